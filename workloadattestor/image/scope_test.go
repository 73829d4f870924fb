package image_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/keelson-project/keelson/workloadattestor/image"
)

// guarded is a registry in front of the fixture's that wants a password.
type guarded struct {
	host     string
	password atomic.Value
}

func newGuarded(t *testing.T, f *fixture) *guarded {
	t.Helper()
	g := &guarded{}
	g.password.Store("first")
	proxy := proxyTo(f.host)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, password, _ := r.BasicAuth(); password != g.password.Load() {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	g.host = strings.TrimPrefix(server.URL, "http://")
	return g
}

func proxyTo(host string) http.Handler {
	return httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: host})
}

// owners has each namespace's credentials.
type owners map[string]func() (authn.Keychain, error)

func (o owners) Keychain(_ context.Context, owner image.Owner) (authn.Keychain, error) {
	if of, ok := o[owner.Namespace]; ok {
		return of()
	}
	return nil, nil
}

func secret(t *testing.T, host, password string) authn.Keychain {
	t.Helper()
	k, err := image.ParsePullSecret("kubernetes.io/dockerconfigjson", map[string][]byte{".dockerconfigjson": fmt.Appendf(nil,
		`{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte("robot:"+password)))})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestPullSecretsAreForTheirOwnersAlone(t *testing.T) {
	f := newFixture(t)
	g := newGuarded(t, f)
	a := f.app()
	f.push(f.repo+":v1", a.image)
	digest := a.manifest
	f.sign(a.manifest)
	var passwords atomic.Value
	passwords.Store("first")
	secrets := owners{
		"a": func() (authn.Keychain, error) { return secret(t, g.host, passwords.Load().(string)), nil }, //nolint:forcetypeassert // a test's
		"b": func() (authn.Keychain, error) { return secret(t, "other.example", "x"), nil },
		"c": func() (authn.Keychain, error) { return secret(t, g.host, "wrong"), nil },
		"d": func() (authn.Keychain, error) { return nil, errors.New("secrets is forbidden") },
		"e": func() (authn.Keychain, error) { return secret(t, g.host, "first"), errors.New("one cannot be read") },
	}
	c, err := image.New(image.Config{InsecureRegistries: []string{g.host}, Verifiers: []image.Verifier{f.releaseKey()}, PullSecrets: secrets,
		Platform: image.Platform{OS: "linux", Architecture: "amd64"}, TTL: time.Hour, FailureTTL: time.Second, Timeout: 5 * time.Second, Now: f.clock})
	if err != nil {
		t.Fatal(err)
	}
	check := func(namespace string) (image.Result, error) {
		return c.Check(t.Context(), image.Running{Ref: g.host + "/team/app@" + digest, Owner: image.Owner{Namespace: namespace}})
	}
	for namespace, want := range map[string]string{"a": "", "b": "401", "c": "401", "d": "forbidden", "e": "", "none": "401", "": "401"} {
		got, err := check(namespace)
		if want == "" && (err != nil || len(got.SignedBy) != 1) {
			t.Errorf("%s: %s", namespace, describe(got, err))
		}
		// Documents are known by their digests, so the image may be known where its signatures are not.
		if want == "" {
			continue
		}
		open := image.Unknown(err) || err == nil && len(got.SignedBy) == 0 && got.Failures[0].Unknown
		if text := describe(got, err); !open || !strings.Contains(text, want) {
			t.Errorf("%s: %s, want %s, and that it proves nothing", namespace, text, want)
		}
	}
	before := f.requests.Load()
	if got, err := check("e"); err != nil || len(got.SignedBy) != 1 || f.requests.Load() != before {
		t.Errorf("the same credentials are asked with twice: %s, %d requests", describe(got, err), f.requests.Load()-before)
	}
	// The secret and the registry change together.
	g.password.Store("second")
	passwords.Store("second")
	if got, err := check("a"); err != nil || len(got.SignedBy) != 1 {
		t.Errorf("after a rotation: %s", describe(got, err))
	}
}

func TestHelpersOfASecretAreNotRun(t *testing.T) {
	p := newPlugins(t)
	p.add("helper", `echo '{"Username":"u","Secret":"s"}'`)
	program := p.dir + "/helper"
	for name, c := range map[string]struct {
		kind, text string
		none       bool
		want       string
	}{
		"a store":                     {"kubernetes.io/dockerconfigjson", `{"credsStore":"` + program + `"}`, true, ""},
		"a store for an entry":        {"kubernetes.io/dockerconfigjson", `{"auths":{"r.example":{}},"credsStore":"` + program + `"}`, true, ""},
		"a helper":                    {"kubernetes.io/dockerconfigjson", `{"credHelpers":{"r.example":"` + program + `"}}`, true, ""},
		"an unknown key":              {"kubernetes.io/dockerconfigjson", `{"auths":{"r.example":{"auth":"dTpw"}},"other":1}`, false, ""},
		"the older form":              {"kubernetes.io/dockercfg", `{"https://r.example/v1/":{"auth":"dTpw","email":"x"}}`, false, ""},
		"another type":                {"Opaque", `{}`, true, "want kubernetes.io/dockerconfigjson"},
		"no JSON":                     {"kubernetes.io/dockercfg", `{`, true, "not JSON"},
		"the older form, and a trick": {"kubernetes.io/dockercfg", `{},"credsStore":"` + program + `"`, true, ""},
		"no data":                     {"kubernetes.io/dockerconfigjson", ``, true, "not JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			k, err := image.ParsePullSecret(c.kind, map[string][]byte{".dockerconfigjson": []byte(c.text), ".dockercfg": []byte(c.text)})
			switch {
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)), c.want == "" && err != nil, c.none != (k == nil):
				t.Fatalf("%v, %v", k, err)
			case k == nil:
				return
			}
			if got, err := credentialsOf(t, k, "r.example/x"); err != nil || got.Username != "u" {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
	if n := len(p.runs("helper")); n > 0 {
		t.Errorf("a secret's helper was run %d times", n)
	}
}

func TestRulesOfNamespaces(t *testing.T) {
	f := newFixture(t)
	a := f.app()
	f.push(f.repo+":v1", a.image)
	digest := a.manifest
	f.sign(a.manifest)
	other := f.host + "/other/app"
	f.push(other+":v1", a.image)
	config := image.Config{InsecureRegistries: []string{f.host}, Now: f.clock, Platform: image.Platform{OS: "linux", Architecture: "amd64"},
		Verifiers: []image.Verifier{f.releaseKey(), f.verifier("same-key", f.public)},
		Namespaces: map[string]image.NamespaceRule{
			"narrow": {Registries: []string{f.host + "/other"}},
			"team":   {Registries: []string{f.host + "/team"}, Verifiers: []string{"release-key"}},
			"*":      {Verifiers: []string{"same-key"}},
		}}
	c, err := image.New(config)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct{ namespace, repo, signedBy, failed string }{
		"a rule":                         {"team", f.repo, "[release-key]", "same-key: it does not count in this namespace"},
		"a registry that does not count": {"team", other, "", "does not count in its namespace"},
		"another one that does not":      {"narrow", f.repo, "", "does not count in its namespace"},
		"no rule of its own":             {"else", f.repo, "[same-key]", "release-key: it does not count in this namespace"},
		"no namespace":                   {"", f.repo, "[same-key]", "release-key: it does not count in this namespace"},
		"all verifiers":                  {"narrow", other, "[]", "no signature found"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := c.Check(t.Context(), image.Running{Ref: tc.repo + "@" + digest, Owner: image.Owner{Namespace: tc.namespace}})
			if tc.signedBy == "" {
				if err == nil || !strings.Contains(err.Error(), tc.failed) || image.Unknown(err) {
					t.Errorf("%s", describe(got, err))
				}
				return
			}
			if err != nil || fmt.Sprint(got.SignedBy) != tc.signedBy || !strings.Contains(describe(got, err), tc.failed) {
				t.Errorf("%s", describe(got, err))
			}
			for _, failure := range got.Failures {
				if failure.Unknown {
					t.Errorf("%s proves nothing", failure.Verifier)
				}
			}
		})
	}
	for name, tc := range map[string]struct {
		namespace string
		rule      image.NamespaceRule
		want      string
	}{
		"a name that is none":               {"Team", image.NamespaceRule{Verifiers: []string{"release-key"}}, "want a namespace's name"},
		"a pattern":                         {"team-*", image.NamespaceRule{Verifiers: []string{"release-key"}}, "want a namespace's name"},
		"nothing":                           {"a", image.NamespaceRule{}, "says nothing"},
		"no verifier":                       {"a", image.NamespaceRule{Verifiers: []string{}}, "an empty list"},
		"no registry":                       {"a", image.NamespaceRule{Registries: []string{}, Verifiers: []string{"release-key"}}, "an empty list"},
		"an unknown verifier":               {"a", image.NamespaceRule{Verifiers: []string{"vendor"}}, "not configured"},
		"a registry that is not configured": {"a", image.NamespaceRule{Registries: []string{"quay.example"}}, "not among the configured registries"},
		"a wildcard":                        {"a", image.NamespaceRule{Registries: []string{"*.example"}}, "no wildcards"},
	} {
		t.Run(name, func(t *testing.T) {
			config.Namespaces = map[string]image.NamespaceRule{tc.namespace: tc.rule}
			if _, err := image.New(config); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}
