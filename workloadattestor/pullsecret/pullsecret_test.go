package pullsecret_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson-project/keelson/workloadattestor/image"
	"github.com/keelson-project/keelson/workloadattestor/pullsecret"
)

// api is a Kubernetes API with Secrets and service accounts, by namespace/name.
type api struct {
	mu       sync.Mutex
	secrets  map[string]*corev1.Secret
	accounts map[string]*corev1.ServiceAccount
	err      error
	requests int
}

func (a *api) Secret(_ context.Context, namespace, name string) (*corev1.Secret, error) {
	return get(a, a.secrets, namespace, name, "secrets")
}

func (a *api) ServiceAccount(_ context.Context, namespace, name string) (*corev1.ServiceAccount, error) {
	return get(a, a.accounts, namespace, name, "serviceaccounts")
}

func get[T any](a *api, from map[string]*T, namespace, name, resource string) (*T, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.requests++
	if a.err != nil {
		return nil, a.err
	}
	if o, ok := from[namespace+"/"+name]; ok {
		return o, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: resource}, name)
}

func secret(user string) *corev1.Secret {
	return &corev1.Secret{Type: corev1.SecretTypeDockerConfigJson, Data: map[string][]byte{corev1.DockerConfigJsonKey: fmt.Appendf(nil,
		`{"auths":{"r.example":{"auth":%q}}}`, base64.StdEncoding.EncodeToString([]byte(user+":x")))}}
}

func account(secrets ...string) *corev1.ServiceAccount {
	out := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "api"}}
	for _, s := range secrets {
		out.ImagePullSecrets = append(out.ImagePullSecrets, corev1.LocalObjectReference{Name: s})
	}
	return out
}

func userOf(t *testing.T, k authn.Keychain) string {
	t.Helper()
	if k == nil {
		return ""
	}
	repo, err := name.NewRepository("r.example/x")
	if err != nil {
		t.Fatal(err)
	}
	a, err := k.Resolve(repo)
	if err != nil {
		t.Fatal(err)
	}
	c, err := authn.Authorization(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	return c.Username
}

func TestSecretsOfPodAndAccount(t *testing.T) {
	bad := secret("x")
	bad.Data = nil
	for name, c := range map[string]struct {
		owner image.Owner
		want  string
		err   string
	}{
		"the pod's":                      {image.Owner{Namespace: "a", Account: "api", PullSecrets: []string{"one"}}, "one", ""},
		"the account's":                  {image.Owner{Namespace: "a", Account: "api"}, "two", ""},
		"of another namespace":           {image.Owner{Namespace: "b", Account: "api", PullSecrets: []string{"one"}}, "", ""},
		"an account without":             {image.Owner{Namespace: "a", Account: "plain"}, "", ""},
		"an account that is not there":   {image.Owner{Namespace: "a", Account: "gone"}, "", ""},
		"one that is not there":          {image.Owner{Namespace: "a", PullSecrets: []string{"gone", "one"}}, "one", ""},
		"the first of two":               {image.Owner{Namespace: "a", PullSecrets: []string{"two", "one"}}, "two", ""},
		"one that cannot be read":        {image.Owner{Namespace: "a", PullSecrets: []string{"bad", "one"}}, "one", "secret a/bad"},
		"more than are read":             {image.Owner{Namespace: "a", PullSecrets: append(make([]string, 16), "one")}, "", "only the first 16"},
		"neither secrets nor an account": {image.Owner{Namespace: "a"}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			a := &api{secrets: map[string]*corev1.Secret{"a/one": secret("one"), "a/two": secret("two"), "a/bad": bad},
				accounts: map[string]*corev1.ServiceAccount{"a/api": account("two"), "a/plain": account()}}
			k, err := pullsecret.New(a, time.Now).Keychain(t.Context(), c.owner)
			if got := userOf(t, k); got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("%q, %v; want %q, %q", got, err, c.want, c.err)
			}
		})
	}
}

// TestSecretsAreReadAgain within a minute, and once for many who ask.
func TestSecretsAreReadAgain(t *testing.T) {
	now := time.Date(2026, 10, 1, 12, 0, 0, 0, time.UTC)
	a := &api{secrets: map[string]*corev1.Secret{"a/one": secret("first")}}
	s := pullsecret.New(a, func() time.Time { return now })
	owner := image.Owner{Namespace: "a", PullSecrets: []string{"one"}}
	ask := func() (string, error) {
		k, err := s.Keychain(t.Context(), owner)
		return userOf(t, k), err
	}
	var callers sync.WaitGroup
	for range 32 {
		callers.Go(func() {
			if k, err := s.Keychain(t.Context(), owner); err != nil || k == nil {
				t.Errorf("%v, %v", k, err)
			}
		})
	}
	callers.Wait()
	if a.requests != 1 {
		t.Errorf("%d requests, want 1", a.requests)
	}
	a.secrets["a/one"] = secret("second")
	if got, err := ask(); got != "first" || err != nil {
		t.Errorf("%s, %v", got, err)
	}
	now = now.Add(time.Minute)
	if got, err := ask(); got != "second" || err != nil {
		t.Errorf("%s, %v", got, err)
	}
	now, a.err = now.Add(time.Minute), errors.New("the API is away")
	before := a.requests
	for range 3 {
		if got, err := ask(); got != "second" || err != nil {
			t.Errorf("the last answer serves: %s, %v", got, err)
		}
	}
	if a.requests != before+1 {
		t.Errorf("an API that is away was asked %d times at once", a.requests-before)
	}
	now = now.Add(3 * time.Hour)
	if got, err := ask(); got != "" || err == nil {
		t.Errorf("after hours: %s, %v", got, err)
	}
	now, a.err = now.Add(10*time.Second), nil
	if got, err := ask(); got != "second" || err != nil {
		t.Errorf("after an error: %s, %v", got, err)
	}
	now = now.Add(time.Minute)
	delete(a.secrets, "a/one")
	if got, err := ask(); got != "" || err != nil {
		t.Errorf("a secret that was deleted: %s, %v", got, err)
	}
}
