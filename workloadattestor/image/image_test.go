package image_test

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/keelson-project/keelson/workloadattestor/image"
	"github.com/keelson-project/keelson/workloadattestor/image/imagetest"
)

// fixture is a registry with one repository, a key and a clock.
type fixture struct {
	t      *testing.T
	host   string
	repo   string // host/team/app
	key    crypto.Signer
	public []byte

	mu       sync.Mutex
	now      time.Time
	down     atomic.Bool
	requests atomic.Int64
	slow     atomic.Int64 // how long each answer takes
	layouts  []string
	raw      sync.Map // manifests that the registry has though it would not take them, by digest or tag
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{t: t, now: time.Date(2026, 10, 1, 12, 0, 0, 0, time.UTC)}
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.requests.Add(1)
		time.Sleep(time.Duration(f.slow.Load()))
		if f.down.Load() {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		if raw, ok := f.raw.Load(path.Base(r.URL.Path)); ok {
			f.serveRaw(w, raw)
			return
		}
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	f.host = strings.TrimPrefix(server.URL, "http://")
	f.repo = f.host + "/team/app"
	var err error
	if f.key, f.public, err = imagetest.NewKey(); err != nil {
		t.Fatal(err)
	}
	return f
}

// serveRaw answers with an index. Real registries say its media type, too.
func (f *fixture) serveRaw(w http.ResponseWriter, raw any) {
	content, ok := raw.([]byte)
	if !ok {
		f.t.Fatalf("raw manifest is %T", raw)
	}
	w.Header().Set("Content-Type", string(types.OCIImageIndex))
	if _, err := w.Write(content); err != nil {
		f.t.Log(err)
	}
}

func (f *fixture) clock() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

func (f *fixture) pass(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now = f.now.Add(d)
}

func (f *fixture) checker(verifiers ...image.Verifier) *image.Checker {
	f.t.Helper()
	c, err := image.New(image.Config{
		InsecureRegistries: []string{f.host},
		Layouts:            f.layouts,
		Verifiers:          verifiers,
		Platform:           image.Platform{OS: "linux", Architecture: "amd64"},
		TTL:                time.Hour,
		FailureTTL:         time.Second,
		Timeout:            5 * time.Second,
		Now:                f.clock,
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return c
}

func (f *fixture) releaseKey() image.Verifier { return f.verifier("release-key", f.public) }

func (f *fixture) verifier(name string, public []byte) image.Verifier {
	f.t.Helper()
	v, err := image.NewKeyVerifier(name, public)
	if err != nil {
		f.t.Fatal(err)
	}
	return v
}

// app is an image with all its digests.
type app struct {
	image            v1.Image
	manifest, config string
}

func (f *fixture) app() app {
	f.t.Helper()
	img, err := random.Image(64, 1)
	if err != nil {
		f.t.Fatal(err)
	}
	return f.appOf(img)
}

func (f *fixture) appOf(img v1.Image) app {
	f.t.Helper()
	manifest, err1 := img.Digest()
	config, err2 := img.ConfigName()
	if err := errors.Join(err1, err2); err != nil {
		f.t.Fatal(err)
	}
	return app{image: img, manifest: manifest.String(), config: config.String()}
}

// repacked has the same config and so the same content, in another manifest.
func (f *fixture) repacked(a app, note string) app {
	f.t.Helper()
	img, ok := mutate.Annotations(a.image, map[string]string{"note": note}).(v1.Image)
	if !ok {
		f.t.Fatal("not an image")
	}
	b := f.appOf(img)
	if b.config != a.config || b.manifest == a.manifest {
		f.t.Fatal("repacking changed the config, or nothing")
	}
	return b
}

func (f *fixture) push(ref string, img v1.Image) {
	f.t.Helper()
	if err := remote.Write(f.reference(ref), img); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) reference(ref string) name.Reference {
	f.t.Helper()
	r, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		f.t.Fatal(err)
	}
	return r
}

// pushIndex pushes an index of images, each for one architecture.
func (f *fixture) pushIndex(tag string, images map[string]app) string {
	f.t.Helper()
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for architecture, a := range images {
		os := "linux"
		if architecture == "unknown" {
			os = "unknown"
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: a.image, Descriptor: v1.Descriptor{
			Platform: &v1.Platform{OS: os, Architecture: architecture},
		}})
	}
	if err := remote.WriteIndex(f.reference(f.repo+":"+tag), index); err != nil {
		f.t.Fatal(err)
	}
	digest, err := index.Digest()
	if err != nil {
		f.t.Fatal(err)
	}
	return digest.String()
}

func (f *fixture) sign(digest string) {
	f.t.Helper()
	if err := imagetest.Sign(f.t.Context(), f.repo, digest, f.key, name.Insecure); err != nil {
		f.t.Fatal(err)
	}
}

// pushSignatures puts any payloads, each signed by key, where the signatures for at are looked for.
func (f *fixture) pushSignatures(at string, key crypto.Signer, payloads ...[]byte) {
	f.t.Helper()
	var signatures []imagetest.Signed
	for _, p := range payloads {
		s, err := imagetest.SignPayload(key, p)
		if err != nil {
			f.t.Fatal(err)
		}
		signatures = append(signatures, s)
	}
	if err := imagetest.Push(f.t.Context(), f.repo, at, signatures, name.Insecure); err != nil {
		f.t.Fatal(err)
	}
}

func payload(t *testing.T, digest string) []byte {
	t.Helper()
	p, err := imagetest.Payload("registry.example/team/app", digest)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// describe makes a result comparable.
func describe(r image.Result, err error) string {
	if err != nil {
		return "error: " + err.Error()
	}
	out := fmt.Sprintf("config %s manifests %v signed-by %v", r.Config, r.Manifests, r.SignedBy)
	for _, failure := range r.Failures {
		out += fmt.Sprintf("\n%s: %v", failure.Verifier, failure.Reason)
	}
	return out
}

func proved(a app, manifests []string, signedBy ...string) string {
	if signedBy == nil {
		signedBy = []string{}
	}
	return fmt.Sprintf("config %s manifests %v signed-by %v", a.config, manifests, signedBy)
}

func (f *fixture) want(c *image.Checker, running image.Running, want string) {
	f.t.Helper()
	got := describe(c.Check(context.Background(), running))
	if got != want {
		f.t.Errorf("got  %s\nwant %s", got, want)
	}
}

func (f *fixture) wantRefusal(c *image.Checker, running image.Running, part string) {
	f.t.Helper()
	got := describe(c.Check(context.Background(), running))
	if strings.Contains(got, "release-key]") || !strings.Contains(got, part) {
		f.t.Errorf("got %s\nwant a refusal with %q", got, part)
	}
}
