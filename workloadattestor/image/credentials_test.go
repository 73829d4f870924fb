package image_test

import (
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/keelson-project/keelson/workloadattestor/image"
)

func TestCredentialsGoToTheirRegistryAlone(t *testing.T) {
	f := newFixture(t)
	a := f.app()
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	open := httptest.NewServer(handler)
	t.Cleanup(open.Close)
	var given atomic.Bool
	guarded := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "robot" || password != "pass:word" {
			w.Header().Set("WWW-Authenticate", "Basic realm=\"x\"")
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(guarded.Close)
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			given.Store(true)
		}
		w.Header().Set("WWW-Authenticate", "Basic realm=\"x\"")
		w.WriteHeader(http.StatusUnauthorized)
	}))
	t.Cleanup(other.Close)
	host := func(s *httptest.Server) string { return strings.TrimPrefix(s.URL, "http://") }
	if err := remote.Write(f.reference(host(open)+"/x:v1"), a.image); err != nil {
		t.Fatal(err)
	}
	keychain, err := image.ParseCredentials([]byte(fmt.Sprintf(`{"auths":{"http://%s/v2/":{"auth":%q}}}`,
		host(guarded), base64.StdEncoding.EncodeToString([]byte("robot:pass:word")))))
	if err != nil {
		t.Fatal(err)
	}
	c, err := image.New(image.Config{InsecureRegistries: []string{host(guarded), host(other)}, Keychain: keychain, Now: f.clock})
	if err != nil {
		t.Fatal(err)
	}
	f.want(c, image.Running{ID: a.config, Name: host(guarded) + "/x:v1"}, proved(a, []string{a.manifest}))
	f.wantRefusal(c, image.Running{ID: a.config, Name: host(other) + "/x:v1"}, "error")
	if given.Load() {
		t.Error("another registry was given the credentials")
	}
}

func TestCredentialsThatAreRefused(t *testing.T) {
	secret := base64.StdEncoding.EncodeToString([]byte("hunter2"))
	cases := map[string]struct{ file, want string }{
		"no JSON":                {`{"auths":` + secret, "not JSON"},
		"nothing in it":          {`{}`, "for no registry"},
		"a registry twice":       {`{"auths":{"a.example":{},"a.example":{}}}`, "given twice"},
		"auth that is no base64": {`{"auths":{"a.example":{"auth":"%%"}}}`, "not base64"},
		"auth without a colon":   {`{"auths":{"a.example":{"auth":"` + secret + `"}}}`, "not base64"},
		"a name that is none":    {`{"auths":{"a b":{}}}`, "not a registry"},
		"no name":                {`{"auths":{"":{}}}`, "not a registry"},
		"larger than allowed":    {strings.Repeat(" ", 1<<20+1), "the limit"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := image.ParseCredentials([]byte(tc.file))
			if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), secret) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
}

func FuzzCredentials(f *testing.F) {
	f.Add([]byte(`{"auths":{"a.example":{"auth":"dTpw"}}}`))
	f.Add([]byte(`{"auths":{"https://index.docker.io/v1/":{"username":"u","password":"p"}}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		keychain, err := image.ParseCredentials(raw)
		if (keychain == nil) != (err != nil) {
			t.Fatal("neither or both")
		}
	})
}
