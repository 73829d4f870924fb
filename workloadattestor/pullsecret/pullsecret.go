// Package pullsecret reads the Kubernetes Secrets with which a pod's images are pulled.
//
// They are those that the pod's spec names (spec.imagePullSecrets), or, where it names none, those of its service account. Kubernetes
// copies an account's into the specs of pods that are created after it. Who may write Secrets or pods in a namespace controls both
// names and content, so they serve images of that namespace's pods alone.
package pullsecret

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/keelson-project/keelson/workloadattestor/image"
)

// API is the part of the Kubernetes API that is needed: verb get on secrets and serviceaccounts.
type API interface {
	Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error)
	ServiceAccount(ctx context.Context, namespace, name string) (*corev1.ServiceAccount, error)
}

// Bounds on what is read and kept.
const (
	maxSecrets = 16 // of one pod
	maxKept    = 8192
	fresh      = time.Minute      // for which an answer is used
	retry      = 10 * time.Second // for which an error is
	stale      = 2 * time.Hour    // for which the last answer serves while the API gives none
	timeout    = 5 * time.Second  // of one request
)

// Source is image.PullSecrets. It is safe for concurrent use.
type Source struct {
	api API
	now func() time.Time

	mu   sync.Mutex
	kept map[string]*kept
}

// kept is what the API said of one object. Its lock makes callers for one object wait for one request.
type kept struct {
	mu       sync.Mutex
	until    time.Time
	keychain authn.Keychain // of a Secret
	names    []string       // of a service account
	err      error
	heard    time.Time // when the API gave this answer; zero where it gave none
}

// New makes a Source.
func New(api API, now func() time.Time) *Source {
	return &Source{api: api, now: now, kept: map[string]*kept{}}
}

var _ image.PullSecrets = (*Source)(nil)

// Keychain returns the credentials of an owner's pull secrets, in their order. A Secret that does not exist has none, as for the
// kubelet. What cannot be read is an error; the others count.
func (s *Source) Keychain(ctx context.Context, o image.Owner) (authn.Keychain, error) {
	names := o.PullSecrets
	if len(names) == 0 && o.Account != "" {
		var err error
		if names, err = s.ofAccount(ctx, o); err != nil {
			return nil, err
		}
	}
	var problems []error
	if len(names) > maxSecrets {
		problems = append(problems, fmt.Errorf("pullsecret: %d secrets, only the first %d are read", len(names), maxSecrets))
		names = names[:maxSecrets]
	}
	var list []authn.Keychain
	for _, name := range names {
		if name == "" { // Kubernetes takes such a reference
			continue
		}
		keychain, err := s.secret(ctx, o.Namespace, name)
		if err != nil {
			problems = append(problems, fmt.Errorf("pullsecret: secret %s/%s: %w", o.Namespace, name, err))
		}
		list = append(list, keychain)
	}
	return image.Keychains(list...), errors.Join(problems...)
}

func (s *Source) ofAccount(ctx context.Context, o image.Owner) ([]string, error) {
	k := s.entry("account " + o.Namespace + "/" + o.Account)
	k.mu.Lock()
	defer k.mu.Unlock()
	if s.now().Before(k.until) {
		return k.names, k.err
	}
	asking, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	account, err := s.api.ServiceAccount(asking, o.Namespace, o.Account)
	if s.unheard(ctx, k, err) {
		if k.err != nil {
			k.err = fmt.Errorf("pullsecret: service account %s/%s: %w", o.Namespace, o.Account, k.err)
		}
		return k.names, k.err
	}
	k.names = nil
	if err == nil {
		for _, reference := range account.ImagePullSecrets {
			k.names = append(k.names, reference.Name)
		}
	}
	return k.names, nil
}

func (s *Source) secret(ctx context.Context, namespace, name string) (authn.Keychain, error) {
	k := s.entry("secret " + namespace + "/" + name)
	k.mu.Lock()
	defer k.mu.Unlock()
	if s.now().Before(k.until) {
		return k.keychain, k.err
	}
	asking, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	secret, err := s.api.Secret(asking, namespace, name)
	if s.unheard(ctx, k, err) {
		return k.keychain, k.err
	}
	k.keychain = nil
	if err == nil {
		k.keychain, k.err = image.ParsePullSecret(string(secret.Type), secret.Data)
	}
	return k.keychain, k.err
}

// unheard tells whether the API gave no answer. Then the last one serves for a while, and there is an error where none does. "Not
// found" is an answer; a caller that hung up has none and is not remembered.
func (s *Source) unheard(ctx context.Context, k *kept, err error) bool {
	now := s.now()
	if err == nil || apierrors.IsNotFound(err) {
		k.err, k.heard, k.until = nil, now, now.Add(fresh)
		return false
	}
	if ctx.Err() == nil {
		k.until = now.Add(retry)
	}
	if k.heard.IsZero() || now.Sub(k.heard) > stale {
		k.keychain, k.names, k.err = nil, nil, err
	}
	return true
}

func (s *Source) entry(key string) *kept {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k, ok := s.kept[key]; ok {
		return k
	}
	if len(s.kept) >= maxKept {
		clear(s.kept)
	}
	k := &kept{}
	s.kept[key] = k
	return k
}

// Client is a Kubernetes client as API.
type Client struct{ corev1client.CoreV1Interface }

// Secret gets a Secret.
func (c Client) Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
	return c.Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
}

// ServiceAccount gets a service account.
func (c Client) ServiceAccount(ctx context.Context, namespace, name string) (*corev1.ServiceAccount, error) {
	return c.ServiceAccounts(namespace).Get(ctx, name, metav1.GetOptions{})
}
