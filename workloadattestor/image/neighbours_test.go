package image_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/keelson-project/keelson/workloadattestor/image"
)

// slowly answers each request after a while, and never with anything but "not found".
func slowly(t *testing.T, after time.Duration) (host string, asked *atomic.Int64) {
	t.Helper()
	asked = new(atomic.Int64)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		select {
		case <-time.After(after):
		case <-r.Context().Done():
		}
		if r.URL.Path != "/v2/" {
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://"), asked
}

// TestThreat37_AnotherTenantsNamesOfAnImageDoNotTakeItsTime: a runtime lists every name that an image has on the node, also those
// under which another tenant runs the same image, at a registry that is slow.
func TestThreat37_AnotherTenantsNamesOfAnImageDoNotTakeItsTime(t *testing.T) {
	f := newFixture(t)
	slow, asked := slowly(t, 400*time.Millisecond)
	a := f.app()
	f.push(f.repo+":v1", a.image)
	f.sign(a.manifest)
	var names []string
	for n := range 20 {
		names = append(names, fmt.Sprintf("%s/evil/%d@%s", slow, n, a.manifest), fmt.Sprintf("%s/evil/%d:v1", slow, n))
	}
	for name, running := range map[string]image.Running{
		"the image's config is known": {ID: a.config, Ref: names[0], Name: names[1], Asked: f.repo + ":v1", Hints: names},
		"its manifest is":             {Ref: names[0], Name: names[1], Asked: f.repo + "@" + a.manifest, Hints: names},
	} {
		t.Run(name, func(t *testing.T) {
			f.t = t
			c, err := image.New(image.Config{InsecureRegistries: []string{f.host, slow}, Verifiers: []image.Verifier{f.releaseKey(), f.verifier("again", f.public)},
				Platform: image.Platform{OS: "linux", Architecture: "amd64"}, Timeout: 3 * time.Second, Now: f.clock})
			if err != nil {
				t.Fatal(err)
			}
			begun := time.Now()
			got, err := c.Check(t.Context(), running)
			took := time.Since(begun)
			if err != nil || len(got.SignedBy) != 2 {
				t.Errorf("%s after %v and %d requests to the other registry", describe(got, err), took, asked.Load())
			}
			// A third of the time, and what is under way when it ends.
			if took > 2*time.Second {
				t.Errorf("the other registry held it up for %v", took)
			}
		})
	}
}

// TestAnImageThatIsAskedForWhereNoOneMayAskIsLookedForElsewhere: without a repository to prefer, all have the whole time.
func TestAnImageThatIsAskedForWhereNoOneMayAskIsLookedForElsewhere(t *testing.T) {
	f := newFixture(t)
	f.slow.Store(int64(200 * time.Millisecond))
	a := f.app()
	f.push(f.repo+":v1", a.image)
	f.sign(a.manifest)
	c, err := image.New(image.Config{InsecureRegistries: []string{f.host}, Verifiers: []image.Verifier{f.releaseKey()}, Timeout: 3 * time.Second, Now: f.clock})
	if err != nil {
		t.Fatal(err)
	}
	f.want(c, image.Running{ID: a.config, Name: f.repo + ":v1", Asked: "mirror.example/app:v1"}, proved(a, []string{a.manifest}, "release-key"))
}

// TestThreat37_OneAccountsRateLimitIsNotAnothers: registries count an account's requests, and one tenant's account may have none left.
func TestThreat37_OneAccountsRateLimitIsNotAnothers(t *testing.T) {
	f := newFixture(t)
	a := f.app()
	f.push(f.repo+":v1", a.image)
	f.sign(a.manifest)
	g := newGuarded(t, f)
	g.password.Store("good")
	limited := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, password, _ := r.BasicAuth(); password == "spent" {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		proxyTo(g.host).ServeHTTP(w, r)
	}))
	t.Cleanup(limited.Close)
	host := strings.TrimPrefix(limited.URL, "http://")
	secrets := owners{
		"spent": func() (authn.Keychain, error) { return secret(t, host, "spent"), nil },
		"good":  func() (authn.Keychain, error) { return secret(t, host, "good"), nil },
	}
	c, err := image.New(image.Config{InsecureRegistries: []string{host}, Verifiers: []image.Verifier{f.releaseKey()}, PullSecrets: secrets, Timeout: 5 * time.Second, Now: f.clock})
	if err != nil {
		t.Fatal(err)
	}
	check := func(namespace string) (image.Result, error) {
		return c.Check(t.Context(), image.Running{Ref: host + "/team/app@" + a.manifest, Owner: image.Owner{Namespace: namespace}})
	}
	if got, err := check("spent"); !image.Unknown(err) {
		t.Errorf("the account that is spent: %s", describe(got, err))
	}
	if got, err := check("good"); err != nil || len(got.SignedBy) != 1 {
		t.Errorf("the other account: %s", describe(got, err))
	}
	if _, err := check("spent"); err == nil {
		t.Error("the account that is spent is asked with again")
	}
}
