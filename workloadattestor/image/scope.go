package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

// Owner says whose pod runs an image. Its zero value is no one's in particular.
type Owner struct {
	// Namespace of the pod.
	Namespace string
	// Account is the pod's service account.
	Account string
	// PullSecrets are the names in the pod's spec.imagePullSecrets.
	PullSecrets []string
}

// PullSecrets has the registry credentials with which owners' pods are pulled.
type PullSecrets interface {
	// Keychain returns an owner's credentials, nil for none. An error says what could not be read; the keychain then has the rest.
	Keychain(ctx context.Context, o Owner) (authn.Keychain, error)
}

// NamespaceRule says what counts for images of the pods of one namespace.
type NamespaceRule struct {
	// Registries are those of Config.Registries and InsecureRegistries, or parts of them ("host/repository"), that are asked. None
	// means all of them.
	Registries []string
	// Verifiers are the names of those whose acceptance counts. None means all of them.
	Verifiers []string
}

// AnyNamespace is the key of the rule for namespaces that have none of their own.
const AnyNamespace = "*"

// scope is a rule, parsed. Its name tells it from other scopes, and is "" where everything counts.
type scope struct {
	name    string
	allowed []string // nil for all
	counts  []Verifier
	others  []Verifier
}

// scopes are the rules by namespace.
type scopes struct {
	byNamespace map[string]*scope
	all         *scope
}

func newScopes(c Config, r *registries) (scopes, error) {
	out := scopes{byNamespace: map[string]*scope{}, all: &scope{counts: c.Verifiers}}
	var problems []error
	for namespace, rule := range c.Namespaces {
		s, err := rule.scope(namespace, c, r)
		if err != nil {
			problems = append(problems, fmt.Errorf("image: namespace %s: %w", short(namespace), err))
		}
		out.byNamespace[namespace] = s
	}
	return out, errors.Join(problems...)
}

func (rule NamespaceRule) scope(namespace string, c Config, r *registries) (*scope, error) {
	s := &scope{name: namespace}
	var problems []error
	if _, err := workloadclaim.NewSelector(workloadclaim.KindNamespace, namespace); err != nil && namespace != AnyNamespace {
		problems = append(problems, fmt.Errorf("want a namespace's name, or * for all others: %w", err))
	}
	if rule.Registries == nil && rule.Verifiers == nil {
		problems = append(problems, errors.New("give registries or verifiers: without either the rule says nothing"))
	}
	if rule.Registries != nil && len(rule.Registries) == 0 || rule.Verifiers != nil && len(rule.Verifiers) == 0 {
		problems = append(problems, errors.New("an empty list: leave registries or verifiers out where all count"))
	}
	for _, text := range rule.Registries {
		full, err := parsePrefix(text)
		if err == nil && !within(full, r.allowed) {
			err = errors.New("it is not among the configured registries")
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("registry %s: %w", short(text), err))
		}
		s.allowed = append(s.allowed, full)
	}
	for _, named := range rule.Verifiers {
		if !slices.ContainsFunc(c.Verifiers, func(v Verifier) bool { return v.Name() == named }) {
			problems = append(problems, fmt.Errorf("verifier %s is not configured", short(named)))
		}
	}
	for _, v := range c.Verifiers {
		if rule.Verifiers == nil || slices.Contains(rule.Verifiers, v.Name()) {
			s.counts = append(s.counts, v)
		} else {
			s.others = append(s.others, v)
		}
	}
	return s, errors.Join(problems...)
}

// within tells whether a repository or prefix is one of the prefixes, or below one.
func within(full string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return full == p || strings.HasPrefix(full, p+"/") })
}

func (s scopes) of(namespace string) *scope {
	if own, ok := s.byNamespace[namespace]; ok {
		return own
	}
	if other, ok := s.byNamespace[AnyNamespace]; ok {
		return other
	}
	return s.all
}

func (s *scope) allows(repo name.Repository) bool {
	return s.allowed == nil || within(repo.Name(), s.allowed)
}

// refuse adds why verifiers that do not count here do not accept an image.
func (s *scope) refuse(r *Result) {
	for _, v := range s.others {
		r.Failures = append(r.Failures, Failure{Verifier: v.Name(), Reason: errors.New("it does not count in this namespace, by the operator's configuration")})
	}
}

// login chooses the client for a question: the owner's pull secrets come before the operator's credentials. It returns the
// fingerprint of those that are for one of the repositories, "" for none, so that what is known of an image is shared by all who
// pull it with the same credentials. The error says which secrets could not be read.
func (c *Checker) login(ctx context.Context, q *question, o Owner) error {
	q.client = c.registries.puller
	if c.config.PullSecrets == nil || o.Namespace == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.config.Timeout)
	defer cancel()
	keychain, err := c.config.PullSecrets.Keychain(ctx, o)
	if err != nil {
		err = unheard{fmt.Errorf("image: pull secrets: %w", err)}
	}
	if keychain == nil {
		return err
	}
	hash, found := sha256.New(), false
	for _, ref := range q.refs {
		a, resolveErr := keychain.Resolve(ref.Context())
		if resolveErr != nil || a == authn.Anonymous {
			continue
		}
		config, authErr := authn.Authorization(ctx, a)
		if authErr != nil || *config == (authn.AuthConfig{}) {
			continue
		}
		text, jsonErr := json.Marshal([]any{ref.Context().Name(), config.Username, config.Password, config.IdentityToken, config.RegistryToken})
		if jsonErr != nil {
			return errors.Join(err, jsonErr)
		}
		hash.Write(text)
		found = true
	}
	if found {
		q.login = hex.EncodeToString(hash.Sum(nil))
		q.client = c.registries.pullerFor(q.login, keychain)
	}
	return err
}

// maxPullers bounds the clients that log in with pull secrets.
const maxPullers = 4096

// pullerFor is the client that logs in with those credentials, or else with the operator's.
func (r *registries) pullerFor(fingerprint string, keychain authn.Keychain) *puller {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p, ok := r.pullers[fingerprint]; ok {
		return p
	}
	if len(r.pullers) >= maxPullers {
		clear(r.pullers)
	}
	p := &puller{keychain: Keychains(keychain, r.puller.keychain), hosts: r.hosts.client()}
	r.pullers[fingerprint] = p
	return p
}
