package image

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"golang.org/x/sync/singleflight"

	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

// Config says where images and signatures are looked for and who may vouch for them.
type Config struct {
	// Registries that may be asked: "host", "host:port", or "host/repository/prefix". No other one is ever asked.
	Registries []string
	// InsecureRegistries may be asked without TLS; they need not be listed in Registries again.
	InsecureRegistries []string
	// Keychain gives credentials; nil asks anonymously.
	Keychain authn.Keychain
	// PullSecrets, where it is set, has credentials of pods' owners, which come before Keychain's.
	PullSecrets PullSecrets
	// Namespaces say which registries and verifiers count for the pods of a namespace, by its name; AnyNamespace is for all others.
	// Without a rule all count.
	Namespaces map[string]NamespaceRule
	// Mirrors are places that are asked instead of a registry, by its host: "docker.io": {"mirror.example/dockerhub"}. A mirror
	// has the registry's repositories below its own path. Registries lists the names that images have, not mirrors.
	Mirrors map[string][]string
	// SignatureRepositories hold signatures of images in other repositories (cosign's COSIGN_REPOSITORY).
	SignatureRepositories []string
	// RegistryCAs are PEM certificates that are trusted for one registry, in place of the system's, by its host.
	RegistryCAs map[string][]byte
	// RedirectHosts may be asked when a registry sends its client there, for a blob or a token: host, host:port or *.domain. Hosts
	// in the registry's own domain and those of well-known registries need not be listed.
	RedirectHosts []string
	// Layouts are directories in OCI image layout, searched before any registry.
	Layouts []string
	// Verifiers, each with a name of its own. None is fine: digests are bound, nothing is signed-by.
	Verifiers []Verifier
	// Platform of the node, unless Running says another. It decides only when a runtime reports an index digest.
	Platform Platform
	// TTL is how long a proof is served without being made again; zero means DefaultTTL. From half of it on it is made again
	// where that works, so a signature that was withdrawn counts no longer than this.
	TTL time.Duration
	// FailureTTL is how long a first failure is served; zero means DefaultFailureTTL. It doubles with each further one, so a
	// signature that is pushed soon counts soon. Where another verifier accepts the image, the third try comes after half
	// the TTL.
	FailureTTL time.Duration
	// Timeout bounds the work for one image; zero means DefaultTimeout.
	Timeout time.Duration
	// Now is the clock.
	Now func() time.Time
}

// Defaults of Config.
const (
	DefaultTTL        = 2 * time.Hour
	DefaultFailureTTL = 10 * time.Second
	DefaultTimeout    = 15 * time.Second
)

// maxCached bounds the images that are remembered. A node runs a few hundred at most, a cluster some thousands.
const maxCached = 16384

// completeTTL is how long the documents of an image are not read again once all of them were: digests bind them.
const completeTTL = 24 * time.Hour

// Checker binds images to manifests and checks signatures. It is safe for concurrent use.
type Checker struct {
	config     Config
	layouts    []source
	registries *registries
	scopes     scopes
	images     *cache
	memory     *memory
	flight     singleflight.Group
}

// Result is what was proved about an image, and why the rest was not.
//
// Where the runtime reports no more than an index, what runs is one of the images to which that index can lead, and which one
// is not known. Then Manifests are all of them, and who asks for some property of the image has to ask it of each.
type Result struct {
	// Config is zero if more than one image may be what runs.
	Config workloadclaim.ConfigDigest
	// Manifests are sorted. Each one's config is Config, or each one may be what runs.
	Manifests []workloadclaim.ManifestDigest
	// Indexes lead to every one of Manifests and Unread; sorted. The reported index is among them.
	Indexes []workloadclaim.IndexDigest
	// Unread are digests of entries that may be what runs and could not be read.
	Unread []string
	// SignedBy are the sorted names of the verifiers that accepted the image, whichever of Manifests and Unread it is.
	SignedBy []string
	// Signatures are those for which they accepted it.
	Signatures []Signature
	// Failures has one entry per verifier that did not, in configuration order.
	Failures []Failure
}

// Failure is why one verifier did not accept an image.
type Failure struct {
	Verifier string
	Reason   error
	// Unknown means that a place where a signature may be could not be asked, so the image is not proved to lack it.
	Unknown bool
}

// Signature is one that a verifier counted.
type Signature struct {
	Verifier string
	Format   string // FormatSimpleSigning or FormatBundle; "digest-list" where a list of digests accepted the image
	Subject  string // the signer: "sha256:<hex>" of a public key, or a certificate's subject
}

// New makes a Checker. All problems of the configuration are reported at once.
func New(c Config) (*Checker, error) {
	var problems []error
	if c.Now == nil {
		problems = append(problems, errors.New("image: no clock"))
	}
	for i, v := range c.Verifiers {
		same := func(other Verifier) bool { return other.Name() == v.Name() }
		if slices.ContainsFunc(c.Verifiers[:i], same) {
			problems = append(problems, fmt.Errorf("image: two verifiers are named %q", v.Name()))
		}
	}
	var layouts []source
	for _, dir := range c.Layouts {
		l, err := newLayout(dir)
		if err != nil {
			problems = append(problems, err)
		}
		layouts = append(layouts, l)
	}
	reg, err := newRegistries(c)
	var rules scopes
	if err == nil {
		rules, err = newScopes(c, reg)
	}
	if err != nil {
		problems = append(problems, err)
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	c.TTL = orDefault(c.TTL, DefaultTTL)
	c.FailureTTL = orDefault(c.FailureTTL, DefaultFailureTTL)
	c.Timeout = orDefault(c.Timeout, DefaultTimeout)
	return &Checker{
		config:     c,
		layouts:    layouts,
		registries: reg,
		scopes:     rules,
		images:     newCache(maxCached),
		memory:     newMemory(maxMemory),
	}, nil
}

func orDefault(d, def time.Duration) time.Duration {
	if d <= 0 {
		return def
	}
	return d
}

// Check says what can be proved about the image. An error means that the image could not be bound to any manifest,
// so nothing is known about it; failures of single verifiers are in the result.
func (c *Checker) Check(ctx context.Context, running Running) (Result, error) {
	q, err := parseRunning(running, c.registries.insecure)
	if err != nil {
		return Result{}, err
	}
	q.scope = c.scopes.of(running.Owner.Namespace)
	q.patience = c.config.Timeout / 3
	secrets := c.login(ctx, &q, running.Owner)
	result, err := c.shared(ctx, q)
	if secrets == nil {
		return result, err
	}
	// Without the secrets less could be read, which an error or an open verdict may come from. Others share the result.
	result.Failures = slices.Clone(result.Failures)
	for i, f := range result.Failures {
		if f.Unknown {
			result.Failures[i].Reason = errors.Join(f.Reason, secrets)
		}
	}
	if err != nil {
		err = errors.Join(err, secrets)
	}
	return result, err
}

// shared checks once for all who ask the same at the same time.
func (c *Checker) shared(ctx context.Context, q question) (Result, error) {
	type answer struct {
		result Result
		err    error
	}
	// Many replicas of one image start at once: one of them asks. The work is detached from the first caller's
	// context, so that its hanging up does not fail the others.
	ch := c.flight.DoChan(q.key(), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.config.Timeout)
		defer cancel()
		result, err := c.check(ctx, q)
		return answer{result, err}, nil
	})
	select {
	case <-ctx.Done():
		return Result{}, fmt.Errorf("image: %w", ctx.Err())
	case done := <-ch:
		a, ok := done.Val.(answer)
		if !ok {
			return Result{}, errors.New("image: check ended without an answer")
		}
		return a.result, a.err
	}
}

func (c *Checker) check(ctx context.Context, q question) (Result, error) {
	now := c.config.Now()
	e, ok := c.images.get(q.key(), now)
	if !ok {
		e = &knowledge{}
	}
	if !now.Before(e.renew) || e.stale(now) {
		fresh := e.clone()
		c.look(ctx, q, fresh)
		e = fresh
		c.images.put(q.key(), e, now)
	}
	return e.answer(q.scope, now)
}

// Resolve returns the digest that a reference has now: a name or digest in one of the layouts, which is returned as
// "sha256:<hex>", or a reference to a registry, returned as "repository@sha256:<hex>".
func (c *Checker) Resolve(ctx context.Context, text string) (string, error) {
	for i, l := range c.layouts {
		raw, err := l.manifest(ctx, text)
		if errors.Is(err, errNotFound) && i < len(c.layouts)-1 {
			continue // another one may have it
		}
		if err != nil {
			return "", fmt.Errorf("image: %s: %s: %w", l.describe(), short(text), err)
		}
		if err := checkDigest(text, raw); err != nil {
			return "", fmt.Errorf("image: %s: %w", l.describe(), err)
		}
		return identify(raw)
	}
	ref, err := parseReference(text, c.registries.insecure)
	if err != nil {
		return "", err
	}
	sources := c.registries.sources(question{refs: []name.Reference{ref}}, c.memory)
	if len(sources) == 0 {
		return "", fmt.Errorf("image: %s: its registry is not listed in registries", short(text))
	}
	raw, err := sources[0].manifest(ctx, ref.Identifier())
	if err != nil {
		return "", fmt.Errorf("image: %s: %w", short(text), err)
	}
	if err := checkDigest(ref.Identifier(), raw); err != nil {
		return "", fmt.Errorf("image: %s: %w", short(text), err)
	}
	digest, err := identify(raw)
	return ref.Context().Name() + "@" + digest, err
}

// identify is the digest of a document that is a manifest or an index.
func identify(raw []byte) (string, error) {
	doc, err := parseDocument(raw)
	if err != nil {
		return "", err
	}
	if doc.index != nil {
		return doc.index.digest.String(), nil
	}
	return doc.manifest.digest.String(), nil
}

// look asks the sources again and changes what is known.
func (c *Checker) look(ctx context.Context, q question, e *knowledge) {
	now := c.config.Now()
	sources := append(slices.Clone(c.layouts), c.registries.sources(q, c.memory)...)
	if !e.complete || !now.Before(e.boundUntil) {
		c.bind(ctx, q, sources, e)
	}
	if e.err != nil {
		e.retry(c.config, now)
		return
	}
	found := &collector{}
	asked := append(slices.Clone(sources), c.registries.signatureSources(c.memory)...)
	verdicts := map[string]verdict{}
	all := func() bool {
		for _, v := range q.scope.counts {
			if _, done := verdicts[v.Name()]; done {
				continue
			}
			if d := judge(v, e.bound, found.found); d.refusal == nil {
				verdicts[v.Name()] = d
			}
		}
		return len(verdicts) == len(q.scope.counts)
	}
	if q.scope.needsSignatures() {
		for _, subject := range e.bound.subjects() {
			if all() {
				break
			}
			for _, s := range asked {
				found.collect(ctx, s, subject)
			}
		}
	}
	if !all() {
		for _, v := range q.scope.counts {
			if _, done := verdicts[v.Name()]; !done {
				verdicts[v.Name()] = judge(v, e.bound, found.found)
			}
		}
	}
	e.note(c.config, verdicts, found.problems, now)
}

func (s *scope) needsSignatures() bool {
	return slices.ContainsFunc(s.counts, Verifier.needsSignatures)
}

func (c *Checker) bind(ctx context.Context, q question, sources []source, e *knowledge) {
	now := c.config.Now()
	platform := q.platform
	if platform == (Platform{}) {
		platform = c.config.Platform
	}
	b, complete, err := bind(ctx, sources, q, platform)
	if err != nil {
		// What was bound by digests stays true; only that it can be shown again is not.
		if len(e.bound.contents) == 0 || !now.Before(e.boundUntil) {
			e.bound, e.err, e.complete = bound{}, err, false
		}
		return
	}
	if !slices.Equal(e.bound.subjects(), b.subjects()) {
		e.verdicts = nil
	}
	e.bound, e.err, e.complete = b, nil, complete
	e.boundUntil = now.Add(max(c.config.TTL, completeTTL))
	if !complete {
		e.boundUntil = now.Add(c.config.TTL)
	}
}

// result is what the documents say, before a verifier was asked.
func (b bound) result() Result {
	var r Result
	for i, c := range b.contents {
		r.Manifests = append(r.Manifests, c.manifests...)
		if c.unread != "" {
			r.Unread = append(r.Unread, c.unread)
		}
		if i == 0 {
			r.Indexes = slices.Clone(c.indexes)
		}
		r.Indexes = slices.DeleteFunc(r.Indexes, func(d workloadclaim.IndexDigest) bool { return !slices.Contains(c.indexes, d) })
	}
	if len(b.contents) == 1 {
		r.Config = b.contents[0].config
	}
	slices.SortFunc(r.Manifests, func(x, y workloadclaim.ManifestDigest) int { return strings.Compare(x.String(), y.String()) })
	slices.SortFunc(r.Indexes, func(x, y workloadclaim.IndexDigest) int { return strings.Compare(x.String(), y.String()) })
	slices.Sort(r.Unread)
	return r
}

// doubt is why nothing can be said of an image for which no verifier vouches.
func (b bound) doubt() error {
	if b.odd != nil {
		return b.odd
	}
	var whys []error
	for _, c := range b.contents {
		if c.unread == "" {
			return nil
		}
		whys = append(whys, fmt.Errorf("image: entry %s of the index: %w", short(c.unread), c.why))
	}
	return errors.Join(whys[:min(len(whys), maxRefusals)]...)
}
