package image_test

import (
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/keelson-project/keelson/workloadattestor/image"
	"github.com/keelson-project/keelson/workloadattestor/image/imagetest"
)

// TestRequestsForOneImage counts what one image costs its registry, whose owner counts, too: a manifest is a pull.
func TestRequestsForOneImage(t *testing.T) {
	_, stranger, err := imagetest.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		signed             bool
		firstMinute, later int64
		running            func(f *fixture, a app, index string) image.Running
	}{
		"a Pod's status": {true, 20, 4, func(f *fixture, _ app, index string) image.Running {
			return image.Running{Ref: f.repo + "@" + index, Name: f.repo + ":v1"}
		}},
		"a runtime's answer": {true, 20, 4, func(f *fixture, a app, index string) image.Running {
			return image.Running{ID: a.config, Ref: f.repo + "@" + index, Name: f.repo + ":v1", Hints: []string{f.repo + "@" + index, f.repo + ":v1"}}
		}},
		// A signature that is not there yet is looked for more often.
		"an image that no one signed": {false, 24, 40, func(f *fixture, _ app, index string) image.Running {
			return image.Running{Ref: f.repo + "@" + index, Name: f.repo + ":v1"}
		}},
	}
	for title, tc := range cases {
		t.Run(title, func(t *testing.T) {
			f := newFixture(t)
			a, b := f.app(), f.app()
			index := f.pushIndex("v1", map[string]app{"amd64": a, "arm64": b})
			if tc.signed {
				f.sign(a.manifest)
			}
			c, err := image.New(image.Config{InsecureRegistries: []string{f.host}, Now: f.clock, Platform: image.Platform{OS: "linux", Architecture: "amd64"},
				Verifiers: []image.Verifier{f.releaseKey(), f.verifier("vendor-key", stranger)}})
			if err != nil {
				t.Fatal(err)
			}
			running := tc.running(f, a, index)
			ask := func(d time.Duration) int64 {
				before := f.requests.Load()
				for end := f.clock().Add(d); f.clock().Before(end); f.pass(10 * time.Second) {
					got, err := c.Check(t.Context(), running)
					if err != nil || (len(got.SignedBy) == 1) != tc.signed || len(got.Failures) == 0 || got.Failures[0].Unknown {
						t.Fatal(describe(got, err))
					}
				}
				return f.requests.Load() - before
			}
			first, hour, next := ask(time.Minute), ask(time.Hour), ask(time.Hour)
			t.Logf("%d requests in the first minute, %d in the hour after it, %d in the next", first, hour, next)
			if first > tc.firstMinute || hour > tc.later || next > tc.later {
				t.Errorf("want at most %d and %d", tc.firstMinute, tc.later)
			}
		})
	}
}

// TestASlowRegistryMakesProgress: what one try has fetched, the next one need not fetch again.
func TestASlowRegistryMakesProgress(t *testing.T) {
	f := newFixture(t)
	a := f.app()
	f.push(f.repo+":v1", a.image)
	var entries []entry
	for range 12 {
		entries = append(entries, entry{of: f.app(), platform: "linux/amd64"})
	}
	index := f.pushEntries(entries...)
	f.slow.Store(int64(100 * time.Millisecond))
	c, err := image.New(image.Config{InsecureRegistries: []string{f.host}, Now: f.clock, Timeout: 700 * time.Millisecond,
		Platform: image.Platform{OS: "linux", Architecture: "amd64"}})
	if err != nil {
		t.Fatal(err)
	}
	var unread []int
	for range 5 {
		got, err := c.Check(t.Context(), image.Running{Ref: f.repo + "@" + index})
		if err != nil {
			t.Log(err)
		}
		unread = append(unread, len(got.Unread))
		if len(got.Manifests) == 12 && len(got.Unread) == 0 {
			return
		}
		f.pass(time.Hour)
	}
	t.Errorf("not all was read after five tries: %v", unread)
}

func TestARegistryThatAsksToBeLeftAloneIs(t *testing.T) {
	for title, after := range map[string]string{"for seconds": "120", "until a time": "date", "without saying how long": ""} {
		t.Run(title, func(t *testing.T) {
			f := newFixture(t)
			var asked atomic.Int64
			busy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				asked.Add(1)
				switch after {
				case "":
				case "date":
					w.Header().Set("Retry-After", f.clock().Add(2*time.Minute).Format(http.TimeFormat))
				default:
					w.Header().Set("Retry-After", after)
				}
				w.WriteHeader(http.StatusTooManyRequests)
			}))
			t.Cleanup(busy.Close)
			host := strings.TrimPrefix(busy.URL, "http://")
			c, err := image.New(image.Config{InsecureRegistries: []string{host, f.host}, Now: f.clock, FailureTTL: time.Second})
			if err != nil {
				t.Fatal(err)
			}
			ask := func(repository string) error {
				_, err := c.Check(t.Context(), image.Running{Ref: host + "/" + repository + "@sha256:" + strings.Repeat("0", 64)})
				return err
			}
			if err := ask("a"); !image.Unknown(err) {
				t.Errorf("got %v", err)
			}
			before := asked.Load()
			f.pass(50 * time.Second)
			for _, repository := range []string{"a", "b", "c"} {
				if err := ask(repository); !image.Unknown(err) || !strings.Contains(err.Error(), "not asked again before") {
					t.Errorf("got %v", err)
				}
			}
			if asked.Load() != before {
				t.Errorf("asked %d times meanwhile", asked.Load()-before)
			}
			// Others' images are not delayed.
			a := f.app()
			f.push(f.repo+":a", a.image)
			f.want(c, image.Running{ID: a.config, Name: f.repo + ":a"}, proved(a, []string{a.manifest}))
			f.pass(2 * time.Minute)
			if err := ask("a"); err == nil || asked.Load() == before {
				t.Errorf("never asked again: %v", err)
			}
		})
	}
}

func TestErrorsThatProveNothingAreTold(t *testing.T) {
	cases := map[string]struct {
		status  int
		unknown bool
	}{
		"credentials are wanted": {http.StatusUnauthorized, true},
		"not allowed":            {http.StatusForbidden, true},
		"broken":                 {http.StatusInternalServerError, true},
		"not there":              {http.StatusNotFound, false},
	}
	for title, tc := range cases {
		t.Run(title, func(t *testing.T) {
			f := newFixture(t)
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/v2/" {
					w.WriteHeader(tc.status)
				}
			}))
			t.Cleanup(server.Close)
			host := strings.TrimPrefix(server.URL, "http://")
			c, err := image.New(image.Config{InsecureRegistries: []string{host}, Now: f.clock, Timeout: 5 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			_, err = c.Check(t.Context(), image.Running{Ref: host + "/a@sha256:" + strings.Repeat("0", 64)})
			if err == nil || image.Unknown(err) != tc.unknown {
				t.Errorf("unknown %t: %v", image.Unknown(err), err)
			}
		})
	}
}

func TestWhereASignatureCouldBeAndWasNotAskedNothingIsProved(t *testing.T) {
	f := newFixture(t)
	a := f.app()
	f.push(f.repo+":a", a.image)
	c, err := image.New(image.Config{InsecureRegistries: []string{f.host, "127.0.0.1:1"}, SignatureRepositories: []string{"127.0.0.1:1/signatures"},
		Verifiers: []image.Verifier{f.releaseKey()}, Now: f.clock, Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.Check(t.Context(), image.Running{ID: a.config, Name: f.repo + ":a"})
	if err != nil || len(got.Failures) != 1 || !got.Failures[0].Unknown {
		t.Errorf("got %s", describe(got, err))
	}
}

func TestMirrorsAreAskedInPlaceOfTheirRegistry(t *testing.T) {
	f := newFixture(t)
	a := f.app()
	f.push(f.host+"/hub/library/app:v1", a.image)
	if err := imagetest.Sign(t.Context(), f.host+"/hub/library/app", a.manifest, f.key, name.Insecure); err != nil {
		t.Fatal(err)
	}
	for _, registries := range [][]string{{"docker.io"}, {"docker.io/library/app"}, {"quay.io"}} {
		c, err := image.New(image.Config{Registries: registries, InsecureRegistries: []string{f.host}, Mirrors: map[string][]string{"docker.io": {f.host + "/hub"}},
			Verifiers: []image.Verifier{f.releaseKey()}, Now: f.clock})
		if err != nil {
			t.Fatal(err)
		}
		running := image.Running{Ref: "docker.io/library/app@" + a.manifest, Name: "app:v1"}
		if registries[0] == "quay.io" {
			f.wantRefusal(c, running, "no source")
			continue
		}
		f.want(c, running, proved(a, []string{a.manifest}, "release-key"))
	}
}

func TestACAOfItsOwnIsTrustedForItsRegistryAlone(t *testing.T) {
	f := newFixture(t)
	img := read(t, "cosign-3.1.3", "image-manifest.json")
	content := files{"manifests/" + digestOf(img): img}
	server := httptest.NewTLSServer(content.handler())
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "https://")
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	for given, cas := range map[string]map[string][]byte{"right": {host: ca}, "another host's": {"registry.example:5000": ca}} {
		c, err := image.New(image.Config{Registries: []string{host}, RegistryCAs: cas, Now: f.clock, Timeout: 5 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		got, err := c.Check(t.Context(), image.Running{Ref: host + "/app@" + digestOf(img)})
		if (err == nil) != (given == "right") {
			t.Errorf("%s: %s", given, describe(got, err))
		}
	}
}

func TestRegistriesMaySendTheirClientOnlyToHostsThatAreListed(t *testing.T) {
	f := newFixture(t)
	var asked atomic.Int64
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { asked.Add(1); w.WriteHeader(http.StatusNotFound) }))
	t.Cleanup(elsewhere.Close)
	other := strings.TrimPrefix(elsewhere.URL, "http://")
	for title, answer := range map[string]func(w http.ResponseWriter, r *http.Request){
		"by a redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://"+other+"/internal", http.StatusFound)
		},
		"for a token": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="https://tokens.example.net/internal",service="x"`)
			w.WriteHeader(http.StatusUnauthorized)
		},
	} {
		t.Run(title, func(t *testing.T) {
			registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/v2/" || title == "for a token" {
					answer(w, r)
				}
			}))
			t.Cleanup(registry.Close)
			host := strings.TrimPrefix(registry.URL, "http://")
			c, err := image.New(image.Config{InsecureRegistries: []string{host}, Now: f.clock, Timeout: 5 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			f.t = t
			f.wantRefusal(c, image.Running{Ref: host + "/x@sha256:" + strings.Repeat("0", 64)}, "redirect_hosts")
			if asked.Load() > 0 {
				t.Error("the other host was asked")
			}
		})
	}
}

func TestConfigurationsThatCouldNeverMatchAreRefused(t *testing.T) {
	f := newFixture(t)
	cases := map[string]struct {
		config image.Config
		want   string
	}{
		"a scheme":                       {image.Config{Registries: []string{"https://quay.io"}}, "without a scheme"},
		"a wildcard":                     {image.Config{Registries: []string{"*.example.org"}}, "no wildcards"},
		"the machine behind docker.io":   {image.Config{Registries: []string{"registry-1.docker.io"}}, "write docker.io"},
		"an official image's short name": {image.Config{Registries: []string{"docker.io/nginx"}}, "docker.io/library/nginx"},
		"a tag":                          {image.Config{Registries: []string{"quay.io/x:v1"}}, "without tag"},
		"dots":                           {image.Config{Registries: []string{"quay.io/x/../y"}}, ". and .."},
		"a mirror that is none":          {image.Config{Mirrors: map[string][]string{"docker.io": {"https://m.example"}}}, "mirror"},
		"mirrors of a repository":        {image.Config{Mirrors: map[string][]string{"docker.io/x": {"m.example"}}}, "mirrors of"},
		"a CA that is none":              {image.Config{RegistryCAs: map[string][]byte{"r.example": []byte("x")}}, "CA certificates"},
		"any redirect":                   {image.Config{RedirectHosts: []string{"*"}}, "redirect host"},
		"signatures in a whole host":     {image.Config{SignatureRepositories: []string{"quay.io"}}, "want host/repository"},
	}
	for title, tc := range cases {
		t.Run(title, func(t *testing.T) {
			tc.config.Now = f.clock
			if _, err := image.New(tc.config); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
	for _, good := range []string{"docker.io", "docker.io/library/nginx", "docker.io/bitnami/", "quay.io/team", "localhost:5000", "registry.example.org/a/b/"} {
		if _, err := image.New(image.Config{Registries: []string{good}, Now: f.clock}); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
}

func TestARepositoryWithDotsIsNotAsked(t *testing.T) {
	f := newFixture(t)
	c, err := image.New(image.Config{InsecureRegistries: []string{f.host}, Now: f.clock})
	if err != nil {
		t.Fatal(err)
	}
	for _, repository := range []string{"team/../evil", "team/x/../../evil", "./evil"} {
		_, err := c.Check(t.Context(), image.Running{Ref: f.host + "/" + repository + "@sha256:" + strings.Repeat("0", 64)})
		if err == nil || f.requests.Load() > 0 {
			t.Errorf("%s: %v, %d requests", repository, err, f.requests.Load())
		}
	}
}

func TestAHintThatDoesNotParseDoesNotSpoilAProof(t *testing.T) {
	f := newFixture(t)
	a := f.app()
	f.push(f.repo+":a", a.image)
	f.sign(a.manifest)
	for _, ref := range []string{f.repo + "@sha512:" + strings.Repeat("a", 128), f.repo + "@" + strings.ToUpper(a.manifest), "<none>@<none>", "UPPER@" + a.manifest} {
		f.want(f.checker(f.releaseKey()), image.Running{ID: a.config, Ref: ref, Name: f.repo + ":a"}, proved(a, []string{a.manifest}, "release-key"))
	}
}
