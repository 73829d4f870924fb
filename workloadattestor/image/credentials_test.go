package image_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
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
		"no JSON":                       {`{"auths":` + secret, "not JSON"},
		"nothing in it":                 {`{}`, "for no registry"},
		"a registry twice":              {`{"auths":{"a.example":{},"a.example":{}}}`, "given twice"},
		"auth that is no base64":        {`{"auths":{"a.example":{"auth":"%%"}}}`, "not base64"},
		"auth without a colon":          {`{"auths":{"a.example":{"auth":"` + secret + `"}}}`, "not base64"},
		"two spellings of one registry": {"{\"auths\":{\"a.example\":{\"auth\":\"dTpw\"},\n\"https://a.example/v1/\":{\"auth\":\"dTpw\"}}}", "line 2: \"https://a.example/v1/\": credentials for the same are given twice, first in line 1"},
		"two spellings of Docker Hub":   {"{\"auths\":{\"docker.io\":{\"auth\":\"dTpw\"},\n\"https://index.docker.io/v1/\":{\"auth\":\"dTpw\"}}}", "line 2:"},
		"one repository twice":          {"{\"auths\":{\"a.example/x\":{\"auth\":\"dTpw\"},\n\n\"a.example/x/\":{\"auth\":\"dTpw\"}}}", "line 3:"},
		"a helper and credentials":      {`{"credHelpers":{"a.example":"/bin/true"},"auths":{"a.example":{"auth":"dTpw"}}}`, "given twice"},
		"an entry for no credentials":   {`{"auths":{"a.example":{}}}`, "no credsStore"},
		"a store that is not there":     {"{\n\"credsStore\":\"none-such\"}", "line 2: credsStore: helper \"none-such\" cannot be run"},
		"a helper in a relative path":   {`{"credHelpers":{"a.example":"bin/x"}}`, "want a name"},
		"a helper for a repository":     {`{"credHelpers":{"a.example/x":"/bin/true"}}`, "whole registry"},
		"half of a password":            {`{"auths":{"a.example":{"username":"u"}}}`, "belong together"},
		"two user names":                {`{"auths":{"a.example":{"auth":"dTpw","username":"x"}}}`, "different things"},
		"two tokens":                    {`{"auths":{"a.example":{"identitytoken":"a","registrytoken":"b"}}}`, "not both"},
		"a key of no meaning":           {`{"auths":{"a.example":{"auth":"dTpw","token":"x"}}}`, `key "token" is not known`},
		"a misspelled store":            {"{\"auths\":{},\n\"credStore\":\"x\"}", `line 2: key "credStore" is not known`},
		"the machine behind Docker Hub": {`{"auths":{"registry-1.docker.io":{"auth":"dTpw"}}}`, "write docker.io"},
		"a pattern of no registry":      {`{"auths":{"*":{"auth":"dTpw"}}}`, "names no registry"},
		"a pattern that is none":        {`{"auths":{"[a.example":{"auth":"dTpw"}}}`, "not a pattern"},
		"a pattern in a path":           {`{"auths":{"a.example/*":{"auth":"dTpw"}}}`, "a path has no patterns"},
		"a path that leads elsewhere":   {`{"auths":{"a.example/x/../y":{"auth":"dTpw"}}}`, "components, . and .."},
		"another scheme":                {`{"auths":{"ftp://a.example":{"auth":"dTpw"}}}`, "not a registry"},
		"auths that are a list":         {`{"auths":[]}`, "not a JSON object"},
		"more after the end":            {`{"auths":{"a.example":{"auth":"dTpw"}}} {}`, "after the end"},
		"a name that is none":           {`{"auths":{"a b":{}}}`, "not a registry"},
		"no name":                       {`{"auths":{"":{}}}`, "not a registry"},
		"larger than allowed":           {strings.Repeat(" ", 1<<20+1), "the limit"},
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

// resolve is what is sent to a registry for a repository: "user:password", a token, or nothing.
func resolve(t *testing.T, keychain authn.Keychain, repository string) (string, error) {
	t.Helper()
	target, err := name.NewRepository(repository)
	if err != nil {
		t.Fatal(err)
	}
	auth, err := keychain.Resolve(target)
	if err != nil {
		return "", err
	}
	config, err := authn.Authorization(t.Context(), auth)
	switch {
	case err != nil:
		return "", err
	case config.IdentityToken != "":
		return "identity " + config.IdentityToken, nil
	case config.RegistryToken != "":
		return "registry " + config.RegistryToken, nil
	case config.Username != "":
		return config.Username + ":" + config.Password, nil
	default:
		return "", nil
	}
}

// auths makes a file in which each key's user is named like it.
func auths(keys ...string) string {
	var entries []string
	for _, key := range keys {
		entries = append(entries, fmt.Sprintf("%q:{\"username\":%q,\"password\":\"p\"}", key, key))
	}
	return `{"auths":{` + strings.Join(entries, ",") + `}}`
}

// TestCredentialsOfTheMostSpecificEntry: the kubelet's rules, whatever the order in the file.
func TestCredentialsOfTheMostSpecificEntry(t *testing.T) {
	cases := map[string]struct {
		keys  []string
		wants map[string]string // by repository, the key
	}{
		"two repositories": {[]string{"r.example/team-a", "r.example/team-b"},
			map[string]string{"r.example/team-a/x": "r.example/team-a", "r.example/team-b/x": "r.example/team-b", "r.example/team-c/x": "", "r.example/team-b": "r.example/team-b"}},
		"the longest path": {[]string{"r.example", "r.example/a", "r.example/a/b"},
			map[string]string{"r.example/a/b/c": "r.example/a/b", "r.example/a/c": "r.example/a", "r.example/b": "r.example"}},
		"whole components first": {[]string{"r.example", "r.example/team"}, map[string]string{"r.example/team-b/x": "r.example", "r.example/team/x": "r.example/team"}},
		"a part of one, else":    {[]string{"r.example/team"}, map[string]string{"r.example/team-b/x": "r.example/team"}},
		"a pattern": {[]string{"*.registry.example"},
			map[string]string{"a.registry.example/x": "*.registry.example", "a.b.registry.example/x": "", "registry.example/x": "", "a.registry.example:5000/x": "", "a.registry.other/x": ""}},
		"a pattern with a port":          {[]string{"*.r.example:5000"}, map[string]string{"a.r.example:5000/x": "*.r.example:5000", "a.r.example/x": ""}},
		"a pattern and a path":           {[]string{"*.r.example/a", "*.r.example"}, map[string]string{"x.r.example/a/b": "*.r.example/a", "x.r.example/b": "*.r.example"}},
		"the host before a pattern":      {[]string{"*.r.example/a/b", "x.r.example"}, map[string]string{"x.r.example/a/b/c": "x.r.example", "y.r.example/a/b/c": "*.r.example/a/b"}},
		"Docker Hub, as docker login":    {[]string{"https://index.docker.io/v1/"}, map[string]string{"docker.io/library/nginx": "https://index.docker.io/v1/", "r.example/x": ""}},
		"Docker Hub, one organisation's": {[]string{"docker.io/acme"}, map[string]string{"docker.io/acme/x": "docker.io/acme", "docker.io/library/nginx": ""}},
		"the API's path":                 {[]string{"https://r.example/v2/"}, map[string]string{"r.example/x": "https://r.example/v2/"}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			for range 20 {
				rand.Shuffle(len(tc.keys), func(i, j int) { tc.keys[i], tc.keys[j] = tc.keys[j], tc.keys[i] })
				keychain, err := image.ParseCredentials([]byte(auths(tc.keys...)))
				if err != nil {
					t.Fatal(err)
				}
				for repository, key := range tc.wants {
					want := key
					if key != "" {
						want += ":p"
					}
					if got, err := resolve(t, keychain, repository); err != nil || got != want {
						t.Fatalf("%s: got %q, %v; want %q", repository, got, err, want)
					}
				}
			}
		})
	}
}

func TestCredentialsThatAreTokens(t *testing.T) {
	for file, want := range map[string]string{
		`{"auths":{"r.example":{"auth":"MDAwMDAwMDAtMDAwMC0wMDAwLTAwMDAtMDAwMDAwMDAwMDAwOg==","identitytoken":"T"}}}`: "identity T",
		`{"auths":{"r.example":{"identitytoken":"T"}}}`:                                                               "identity T",
		`{"auths":{"r.example":{"registrytoken":"T"}}}`:                                                               "registry T",
		`{"auths":{"r.example":{"auth":"dTpwcA"}}}`:                                                                   "u:pp", // without padding
		`{"auths":{"r.example":{"auth":"dTpwcA=="}},"currentContext":"x","HttpHeaders":{"A":"b"}}`:                    "u:pp",
	} {
		keychain, err := image.ParseCredentials([]byte(file))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := resolve(t, keychain, "r.example/x"); err != nil || got != want {
			t.Errorf("%s: got %q, %v", file, got, err)
		}
	}
}

// helperProgram writes a credential helper, and puts its folder first in PATH. It counts its runs.
func helperProgram(t *testing.T, script string) (runs func() int) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	count := filepath.Join(dir, "count")
	text := "#!/bin/sh\n[ \"$1\" = get ] || exit 9\nread -r server || [ -n \"$server\" ]\necho x >> " + count + "\n" + script + "\n"
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-test"), []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	return func() int {
		raw, err := os.ReadFile(count)
		if err != nil {
			return 0
		}
		return strings.Count(string(raw), "x")
	}
}

func TestCredentialHelpers(t *testing.T) {
	const some = `case "$server" in
r.example) echo '{"ServerURL":"r.example","Username":"robot","Secret":"s3"}';;
acr.example) echo '{"Username":"<token>","Secret":"T"}';;
https://index.docker.io/v1/) echo '{"Username":"hub","Secret":"s"}';;
*) echo 'credentials not found in native keychain'; exit 1;;
esac`
	runs := helperProgram(t, some)
	cases := map[string]struct{ file, repository, want, problem string }{
		"a store, with an entry for it":     {`{"auths":{"r.example":{}},"credsStore":"test"}`, "r.example/x", "robot:s3", ""},
		"a store, without an entry":         {`{"credsStore":"test"}`, "r.example/x", "robot:s3", ""},
		"a store that has none":             {`{"credsStore":"test"}`, "other.example/x", "", ""},
		"a store that lacks an entry's":     {`{"auths":{"other.example":{}},"credsStore":"test"}`, "other.example/x", "", "no credentials for this registry"},
		"a helper":                          {`{"credHelpers":{"r.example":"test"}}`, "r.example/x", "robot:s3", ""},
		"a helper, and what login leaves":   {`{"credHelpers":{"r.example":"test"},"auths":{"r.example":{}}}`, "r.example/x", "robot:s3", ""},
		"a helper for another registry":     {`{"credHelpers":{"r.example":"test"}}`, "other.example/x", "", ""},
		"a helper that has none":            {`{"credHelpers":{"other.example":"test"}}`, "other.example/x", "", "no credentials for this registry"},
		"an identity token":                 {`{"credHelpers":{"acr.example":"test"}}`, "acr.example/x", "identity T", ""},
		"Docker Hub's name":                 {`{"credsStore":"test"}`, "docker.io/library/x", "hub:s", ""},
		"an entry before the store":         {`{"auths":{"r.example":{"auth":"dTpw"}},"credsStore":"test"}`, "r.example/x", "u:p", ""},
		"a helper before the store":         {`{"credHelpers":{"r.example":"test"},"credsStore":"test"}`, "r.example/x", "robot:s3", ""},
		"a repository's entry of the store": {`{"auths":{"r.example/a":{}},"credsStore":"test"}`, "r.example/a/x", "robot:s3", ""},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			keychain, err := image.ParseCredentials([]byte(tc.file))
			if err != nil {
				t.Fatal(err)
			}
			for range 3 {
				got, err := resolve(t, keychain, tc.repository)
				if got != tc.want || (err == nil) != (tc.problem == "") || err != nil && !strings.Contains(err.Error(), tc.problem) {
					t.Errorf("got %q, %v; want %q, %q", got, err, tc.want, tc.problem)
				}
			}
		})
	}
	if got := runs(); got > len(cases) {
		t.Errorf("the helper ran %d times for %d registries: its answers are not kept", got, len(cases))
	}
}

func TestCredentialHelpersThatFail(t *testing.T) {
	for name, tc := range map[string]struct{ script, want string }{
		"an exit code":  {"echo hush-a; echo hush-b >&2; exit 3", "exit status 3"},
		"no JSON":       {"echo hush-a", "its answer is not"},
		"no secret":     {`echo '{"Username":"hush-a"}'`, "its answer is not"},
		"endless words": {"exec yes hush-a", "more than"},
	} {
		t.Run(name, func(t *testing.T) {
			helperProgram(t, tc.script)
			keychain, err := image.ParseCredentials([]byte(`{"credHelpers":{"r.example":"test"}}`))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := resolve(t, keychain, "r.example/x"); err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "hush") {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
	t.Run("a helper that hangs ends with its caller", func(t *testing.T) {
		helperProgram(t, "exec sleep 100")
		keychain, err := image.ParseCredentials([]byte(`{"credHelpers":{"r.example":"test"}}`))
		if err != nil {
			t.Fatal(err)
		}
		auth, err := keychain.Resolve(name.MustParseReference("r.example/x").Context())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := authn.Authorization(ctx, auth); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

// TestCredentialsFileIsReadAgain: credentials of clouds live for hours, and a Secret that is mounted is replaced under the reader.
func TestCredentialsFileIsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.json")
	write := func(content string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"auths":{"r.example":{"auth":"dTpx"}}}`)
	file, err := image.OpenCredentials(path)
	if err != nil {
		t.Fatal(err)
	}
	var reports []string
	file.Report = func(err error) { reports = append(reports, fmt.Sprint(err)) }
	want := func(want string) {
		t.Helper()
		for range 3 {
			if got, err := resolve(t, file, "r.example/x"); err != nil || got != want {
				t.Fatalf("got %q, %v; want %q", got, err, want)
			}
		}
	}
	want("u:q")
	write(`{"auths":{"r.example":{"auth":"dTpy"}}}`) // of the same length, in the same instant
	want("u:r")
	write(`{"auths":`)
	want("u:r")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	want("u:r")
	other := path + ".new"
	if err := os.WriteFile(other, []byte(`{"auths":{"r.example":{"auth":"dTpz"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(other, path); err != nil {
		t.Fatal(err)
	}
	want("u:s")
	if len(reports) != 4 || reports[0] != "<nil>" || !strings.Contains(reports[1], "last good") || !strings.Contains(reports[2], "no such file") || reports[3] != "<nil>" {
		t.Errorf("reports: %q", reports)
	}
	if _, err := image.OpenCredentials(filepath.Dir(path)); err == nil {
		t.Error("a folder is accepted")
	}
}

// TestCheckerLogsInWithTheCredentialsOfNow: the client to a registry keeps what it has logged in with.
func TestCheckerLogsInWithTheCredentialsOfNow(t *testing.T) {
	f := newFixture(t)
	a := f.app()
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	open := httptest.NewServer(handler)
	t.Cleanup(open.Close)
	var password atomic.Value
	password.Store("old")
	guarded := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, given, _ := r.BasicAuth(); given != password.Load() {
			w.Header().Set("WWW-Authenticate", "Basic realm=\"x\"")
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(guarded.Close)
	host := strings.TrimPrefix(guarded.URL, "http://")
	if err := remote.Write(f.reference(strings.TrimPrefix(open.URL, "http://")+"/x:v1"), a.image); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "config.json")
	write := func(password string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(fmt.Sprintf(`{"auths":{%q:{"username":"u","password":%q}}}`, host, password)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("old")
	file, err := image.OpenCredentials(path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := image.New(image.Config{InsecureRegistries: []string{host}, Keychain: file, Now: f.clock, TTL: time.Second, FailureTTL: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	running := image.Running{ID: a.config, Name: host + "/x:v1"}
	f.want(c, running, proved(a, []string{a.manifest}))
	password.Store("new")
	write("new")
	f.now = f.now.Add(time.Hour)
	f.want(c, running, proved(a, []string{a.manifest}))
}

func FuzzCredentials(f *testing.F) {
	f.Add([]byte(`{"auths":{"a.example":{"auth":"dTpw"}}}`), "a.example/x")
	f.Add([]byte(`{"auths":{"https://index.docker.io/v1/":{"username":"u","password":"p"}}}`), "nginx")
	f.Add([]byte(auths("r.example/team-a", "r.example/team-b", "*.example")), "r.example/team-b/x")
	f.Add([]byte(`{"auths":{"*.r.example:5000/a":{"identitytoken":"T"},"[::1]:5000":{"registrytoken":"T"}}}`), "x.r.example:5000/a")
	f.Add([]byte(`{"auths":{"a.example":{}},"credsStore":"none-such"}`), "a.example/x")
	f.Fuzz(func(t *testing.T, raw []byte, repository string) {
		if strings.Contains(string(raw), "cred") {
			return // programs are not run by chance
		}
		keychain, err := image.ParseCredentials(raw)
		if (keychain == nil) != (err != nil) {
			t.Fatal("neither or both")
		}
		target, badName := name.NewRepository(repository)
		if err != nil || badName != nil {
			return
		}
		first, err1 := keychain.Resolve(target)
		again, err := image.ParseCredentials(raw)
		if err != nil || err1 != nil {
			t.Fatal(err, err1)
		}
		second, err := again.Resolve(target)
		if err != nil || !reflect.DeepEqual(first, second) {
			t.Fatalf("two readings of one file give different credentials: %v", err)
		}
	})
}
