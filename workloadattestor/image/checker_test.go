package image_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/keelson-project/keelson/workloadattestor/image"
	"github.com/keelson-project/keelson/workloadattestor/image/imagetest"
	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

func TestThreat22_WithoutAnswerNothingIsProved(t *testing.T) {
	f := newFixture(t)
	a := f.app()
	f.push(f.repo+":v1", a.image)
	f.sign(a.manifest)
	running := image.Running{ID: a.config, Name: f.repo + ":v1"}
	cases := map[string]struct {
		running image.Running
		config  func(*image.Config)
		down    bool
		want    string
	}{
		"the registry is down":                  {running: running, down: true, want: "502"},
		"the registry is not listed":            {running: running, config: func(c *image.Config) { c.InsecureRegistries = nil }, want: "no source"},
		"another repository is listed":          {running: running, config: func(c *image.Config) { c.InsecureRegistries, c.Registries = nil, []string{f.host + "/team/ap"} }, want: "no source"},
		"the registry would be asked in clear":  {running: running, config: func(c *image.Config) { c.InsecureRegistries, c.Registries = nil, []string{f.host} }, want: "insecure_registries"},
		"no digest at all":                      {running: image.Running{Name: f.repo + ":v1"}, want: "gives no digest"},
		"a tag where a digest is expected":      {running: image.Running{Ref: f.repo + ":v1"}, want: "gives no digest"},
		"a digest of another algorithm":         {running: image.Running{Ref: f.repo + "@sha512:" + strings.Repeat("a", 128)}, want: "sha256"},
		"a reference that is none":              {running: image.Running{Ref: "UPPER@" + a.manifest}, want: "reference"},
		"a reference without end":               {running: image.Running{Ref: strings.Repeat("a", 1000) + "@" + a.manifest}, want: "the limit is 640"},
		"a digest that the registry never had":  {running: image.Running{ID: "sha256:" + strings.Repeat("0", 64), Name: f.repo + ":v1"}, want: "none of 1 sources"},
		"a registry name that does not resolve": {running: image.Running{Ref: "registry.invalid/x@" + a.manifest}, config: func(c *image.Config) { c.Registries = []string{"registry.invalid"} }, want: "registry.invalid"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			config := image.Config{InsecureRegistries: []string{f.host}, Verifiers: []image.Verifier{f.releaseKey()}, Now: f.clock, Timeout: 10 * time.Second}
			if tc.config != nil {
				tc.config(&config)
			}
			c, err := image.New(config)
			if err != nil {
				t.Fatal(err)
			}
			f.down.Store(tc.down)
			defer f.down.Store(false)
			f.t = t
			f.wantRefusal(c, tc.running, tc.want)
		})
	}
}

func TestRegistryOutageServesUnexpiredProofsAndRefusesTheRest(t *testing.T) {
	f := newFixture(t)
	a, b := f.app(), f.app()
	f.push(f.repo+":a", a.image)
	f.push(f.repo+":b", b.image)
	f.sign(a.manifest)
	f.sign(b.manifest)
	c := f.checker(f.releaseKey())
	runningA, runningB := image.Running{ID: a.config, Name: f.repo + ":a"}, image.Running{ID: b.config, Name: f.repo + ":b"}
	good := proved(a, []string{a.manifest}, "release-key")
	f.want(c, runningA, good)

	f.down.Store(true)
	f.want(c, runningA, good)
	f.wantRefusal(c, runningB, "502")
	f.pass(45 * time.Minute) // past half of the TTL: a renewal is tried, and fails
	f.want(c, runningA, good)
	f.pass(16 * time.Minute) // past the TTL of an hour
	f.wantRefusal(c, runningA, "502")

	f.down.Store(false)
	f.pass(2 * time.Second) // past the TTL of failures
	f.want(c, runningA, good)
	f.want(c, runningB, proved(b, []string{b.manifest}, "release-key"))
}

func TestAProofIsNotMadeAgainBeforeHalfItsLife(t *testing.T) {
	f := newFixture(t)
	a := f.app()
	f.push(f.repo+":a", a.image)
	f.sign(a.manifest)
	c := f.checker(f.releaseKey())
	running := image.Running{ID: a.config, Name: f.repo + ":a"}
	good := proved(a, []string{a.manifest}, "release-key")
	f.want(c, running, good)
	before := f.requests.Load()
	f.pass(29 * time.Minute)
	f.want(c, running, good)
	if got := f.requests.Load(); got != before {
		t.Errorf("%d requests for a fresh proof", got-before)
	}
	f.pass(2 * time.Minute)
	f.want(c, running, good)
	if got := f.requests.Load(); got == before {
		t.Error("an old proof is not renewed")
	}
}

func TestSignatureThatWasWithdrawnStopsCountingAtTheNextRenewal(t *testing.T) {
	f := newFixture(t)
	a := f.app()
	f.push(f.repo+":a", a.image)
	f.sign(a.manifest)
	c := f.checker(f.releaseKey())
	running := image.Running{ID: a.config, Name: f.repo + ":a"}
	f.want(c, running, proved(a, []string{a.manifest}, "release-key"))
	if err := remote.Delete(f.reference(f.repo + ":" + imagetest.Tag(a.manifest))); err != nil {
		t.Fatal(err)
	}
	f.pass(31 * time.Minute)
	f.wantRefusal(c, running, "no signature found")
}

func TestSignatureThatIsPushedLaterCountsSoon(t *testing.T) {
	f := newFixture(t)
	a := f.app()
	f.push(f.repo+":a", a.image)
	c := f.checker(f.releaseKey())
	running := image.Running{ID: a.config, Name: f.repo + ":a"}
	f.wantRefusal(c, running, "no signature found")
	f.sign(a.manifest)
	f.wantRefusal(c, running, "no signature found")
	f.pass(time.Second)
	f.want(c, running, proved(a, []string{a.manifest}, "release-key"))
}

func TestEveryVerifierAnswersForItself(t *testing.T) {
	f := newFixture(t)
	a := f.app()
	f.push(f.repo+":a", a.image)
	f.sign(a.manifest)
	_, stranger, err := imagetest.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	config, err := workloadclaim.ParseConfigDigest(a.config)
	if err != nil {
		t.Fatal(err)
	}
	listed, err := image.NewDigestVerifier("listed", image.DigestList{Configs: []workloadclaim.ConfigDigest{config}})
	if err != nil {
		t.Fatal(err)
	}
	both := f.verifier("old-and-new", append(append([]byte(nil), stranger...), f.public...))
	c := f.checker(f.releaseKey(), f.verifier("audit-key", stranger), listed, both)
	f.want(c, image.Running{ID: a.config, Name: f.repo + ":a"},
		proved(a, []string{a.manifest}, "listed", "old-and-new", "release-key")+"\naudit-key: none of 1 signatures is by its key")
}

func TestManyAtOnceAskOnce(t *testing.T) {
	f := newFixture(t)
	a := f.app()
	f.push(f.repo+":a", a.image)
	f.sign(a.manifest)
	c := f.checker(f.releaseKey())
	running := image.Running{ID: a.config, Name: f.repo + ":a"}
	f.want(f.checker(f.releaseKey()), running, proved(a, []string{a.manifest}, "release-key"))
	before := f.requests.Load()
	f.want(f.checker(f.releaseKey()), running, proved(a, []string{a.manifest}, "release-key"))
	one := f.requests.Load() - before
	before = f.requests.Load()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { f.want(c, running, proved(a, []string{a.manifest}, "release-key")) })
	}
	wg.Wait()
	if got := f.requests.Load() - before; got > one {
		t.Errorf("20 at once made %d requests, one makes %d", got, one)
	}
}

func TestCallerThatHangsUpDoesNotFailTheOthers(t *testing.T) {
	f := newFixture(t)
	a := f.app()
	f.push(f.repo+":a", a.image)
	c := f.checker()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Check(ctx, image.Running{ID: a.config, Name: f.repo + ":a"}); err == nil {
		t.Log("answered before it noticed") // allowed: the answer was there
	}
	f.want(c, image.Running{ID: a.config, Name: f.repo + ":a"}, proved(a, []string{a.manifest}))
}

func TestLayouts(t *testing.T) {
	f := newFixture(t)
	a, b := f.app(), f.app()
	dir := filepath.Join(t.TempDir(), "layout")
	for _, err := range []error{
		imagetest.AddToLayout(dir, "registry.example/a:v1", a.image),
		imagetest.AddToLayout(dir, "registry.example/b:v1", b.image),
		imagetest.SignInLayout(dir, "registry.example/a", a.manifest, f.key),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	f.layouts = []string{dir}
	c := f.checker(f.releaseKey())
	f.want(c, image.Running{ID: a.config, Name: "registry.example/a:v1"}, proved(a, []string{a.manifest}, "release-key"))
	f.wantRefusal(c, image.Running{ID: b.config}, "no signature found")
	f.wantRefusal(c, image.Running{ID: "sha256:" + strings.Repeat("1", 64)}, "none of 1 sources")
	// An image from the registry, its signature in the layout.
	d := f.app()
	f.push(f.repo+":d", d.image)
	if err := imagetest.SignInLayout(dir, f.repo, d.manifest, f.key); err != nil {
		t.Fatal(err)
	}
	f.want(c, image.Running{ID: d.config, Name: f.repo + ":d"}, proved(d, []string{d.manifest}, "release-key"))
}

func TestLayoutWithDamageProvesNothing(t *testing.T) {
	blob := func(dir, digest string) string {
		return filepath.Join(dir, "blobs", "sha256", strings.TrimPrefix(digest, "sha256:"))
	}
	cases := map[string]struct {
		damage func(dir string, a app) error
		want   string
	}{
		"the manifest's bytes are others": {func(dir string, a app) error {
			return os.WriteFile(blob(dir, a.manifest), []byte(`{"schemaVersion":2}`), 0o600)
		}, "has digest"},
		"the manifest is missing": {func(dir string, a app) error { return os.Remove(blob(dir, a.manifest)) }, "none of 1 sources"},
		"the manifest is a link out of the layout": {func(dir string, a app) error {
			return errors.Join(os.Rename(blob(dir, a.manifest), dir+"-outside"), os.Symlink(dir+"-outside", blob(dir, a.manifest)))
		}, "escapes"},
		"the index is too large": {func(dir string, _ app) error {
			return os.WriteFile(filepath.Join(dir, "index.json"), make([]byte, 4<<20+1), 0o600)
		}, "larger than"},
		"the index is cut": {func(dir string, _ app) error {
			return os.WriteFile(filepath.Join(dir, "index.json"), []byte(`{"manifests":[`), 0o600)
		}, "index.json"},
		"the index names a file outside": {func(dir string, _ app) error {
			return os.WriteFile(filepath.Join(dir, "index.json"), []byte(`{"manifests":[{"digest":"sha256:../../../../etc/passwd"}]}`), 0o600)
		}, "not a sha256 digest"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			a := f.app()
			dir := filepath.Join(t.TempDir(), "layout")
			if err := imagetest.AddToLayout(dir, "a:v1", a.image); err != nil {
				t.Fatal(err)
			}
			f.layouts = []string{dir}
			c := f.checker(f.releaseKey())
			if err := tc.damage(dir, a); err != nil {
				t.Fatal(err)
			}
			f.wantRefusal(c, image.Running{ID: a.config}, tc.want)
		})
	}
}

func TestDocumentsThatAreRefused(t *testing.T) {
	config := `"config":{"digest":"sha256:` + strings.Repeat("0", 64) + `"}`
	cases := map[string]struct{ manifest, want string }{
		"manifest and index at once":        {`{"schemaVersion":2,` + config + `,"manifests":[]}`, "both a manifest and an index"},
		"neither":                           {`{"schemaVersion":2}`, "neither"},
		"no config":                         {`{"schemaVersion":2,"layers":[]}`, "has no config"},
		"schema 1":                          {`{"schemaVersion":1,` + config + `}`, "schemaVersion 1"},
		"a key twice":                       {`{"schemaVersion":2,` + config + `,` + config + `}`, "given twice"},
		"a key twice in other case":         {`{"schemaVersion":2,` + config + `,"Config":{}}`, "given twice"},
		"a key twice with a Kelvin sign":    {"{\"schemaVersion\":2,\"k\":1,\"\u212a\":2}", "given twice"},
		"deep nesting":                      {`{"schemaVersion":2,"x":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`, "nested deeper"},
		"text after the end":                {`{"schemaVersion":2,` + config + `}{}`, "after the end"},
		"no JSON":                           {`hello`, "invalid character"},
		"a manifest that says index":        {`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json",` + config + `}`, "says media type"},
		"an index that says manifest":       {`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","manifests":[]}`, "says media type"},
		"an image config's key":             {`{"schemaVersion":2,` + config + `,"rootfs":{}}`, "of an image config"},
		"an image config's key, other case": {`{"schemaVersion":2,` + config + `,"RootFS":{}}`, "of an image config"},
		"a config digest of another kind":   {`{"schemaVersion":2,"config":{"digest":"sha512:00"}}`, "manifest's config"},
		"too many layers":                   {`{"schemaVersion":2,` + config + `,"layers":[` + strings.Repeat("{},", 4096) + `{}]}`, "4097 layers"},
		"too many entries":                  {`{"schemaVersion":2,"manifests":[` + strings.Repeat("{},", 4096) + `{}]}`, "4097 manifests"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			server := serve(t, tc.manifest)
			c, err := image.New(image.Config{InsecureRegistries: []string{server}, Now: f.clock, Timeout: 5 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			f.wantRefusal(c, image.Running{ID: "sha256:" + strings.Repeat("0", 64), Name: server + "/x:v1"}, tc.want)
		})
	}
}

// serve is a registry that gives the same manifest for every tag, and nothing else.
func serve(t *testing.T, manifest string) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/v2/":
		case strings.HasSuffix(r.URL.Path, "/manifests/v1"):
			w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
			_, _ = w.Write([]byte(manifest))
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

func TestAnswersWithoutEndAreCut(t *testing.T) {
	f := newFixture(t)
	endless := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2/" {
			return
		}
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		block := make([]byte, 1<<20)
		for range 64 {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	}))
	t.Cleanup(endless.Close)
	slow := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	t.Cleanup(slow.Close)
	redirect := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v2/" {
			http.Redirect(w, r, "http://localhost:1/elsewhere", http.StatusTemporaryRedirect)
		}
	}))
	t.Cleanup(redirect.Close)
	for name, tc := range map[string]struct{ url, want string }{
		"an answer without end":           {endless.URL, "larger than"},
		"no answer":                       {slow.URL, "deadline"},
		"sent elsewhere, without TLS too": {redirect.URL, "localhost:1 would be asked without TLS"},
	} {
		t.Run(name, func(t *testing.T) {
			host := strings.TrimPrefix(tc.url, "http://")
			c, err := image.New(image.Config{InsecureRegistries: []string{host}, Now: f.clock, Timeout: time.Second})
			if err != nil {
				t.Fatal(err)
			}
			f.t = t
			f.wantRefusal(c, image.Running{ID: "sha256:" + strings.Repeat("0", 64), Name: host + "/x:v1"}, tc.want)
		})
	}
}

func TestNewReportsEveryProblemAtOnce(t *testing.T) {
	f := newFixture(t)
	_, err := image.New(image.Config{
		Registries:         []string{"bad host/x", "/x"},
		InsecureRegistries: []string{"also bad"},
		Layouts:            []string{"/nonexistent/layout"},
		Verifiers:          []image.Verifier{f.releaseKey(), f.releaseKey()},
	})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{`"bad host/x"`, `"/x"`, `"also bad"`, "/nonexistent/layout", `two verifiers are named "release-key"`, "no clock"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no word of %s in:\n%v", want, err)
		}
	}
}
