package image_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"github.com/keelson-project/keelson/workloadattestor/image"
)

// plugins is a folder of credential provider plugins, each a shell script that counts its runs.
type plugins struct {
	t   *testing.T
	dir string
}

func newPlugins(t *testing.T) plugins { return plugins{t, t.TempDir()} }

// add makes a plugin. script may use $image, what the request names.
func (p plugins) add(name, script string) {
	p.t.Helper()
	text := "#!/bin/sh\nrequest=$(cat)\necho \"$request\" >> " + filepath.Join(p.dir, "requests-"+name) + "\nimage=${request##*\\\"image\\\":\\\"}; image=${image%%\\\"*}\n" + script + "\n"
	if err := os.WriteFile(filepath.Join(p.dir, name), []byte(text), 0o755); err != nil {
		p.t.Fatal(err)
	}
}

func (p plugins) runs(name string) []string {
	raw, err := os.ReadFile(filepath.Join(p.dir, "requests-"+name))
	if err != nil {
		return nil
	}
	return strings.Split(strings.TrimSpace(string(raw)), "\n")
}

func (p plugins) open(config string) (*image.CredentialProviders, error) {
	p.t.Helper()
	path := filepath.Join(p.dir, "config.yaml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		p.t.Fatal(err)
	}
	return image.OpenCredentialProviders(path, p.dir)
}

const cloud = `
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
- name: cloud
  matchImages: ["*.dkr.ecr.*.cloud.example", "registry.example:5000/team", docker.io]
  defaultCacheDuration: 12h
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  args: [--region, eu]
  env: [{name: PROFILE, value: keelson}]
`

// answer is a plugin's script that answers so.
func answer(scope, duration, key string) string {
	return fmt.Sprintf(`printf '{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"%%s"%%s,"auth":{"%%s":{"username":"%%s","password":"%%s"}}}' %s '%s' %s "$PROFILE" "$*"`,
		scope, duration, key)
}

func credentialsOf(t *testing.T, k authn.Keychain, repository string) (authn.AuthConfig, error) {
	t.Helper()
	repo, err := name.NewRepository(repository)
	if err != nil {
		t.Fatal(err)
	}
	a, err := k.Resolve(repo)
	if err != nil {
		t.Fatal(err)
	}
	c, err := authn.Authorization(context.Background(), a)
	if err != nil {
		return authn.AuthConfig{}, err
	}
	return *c, nil
}

func TestCredentialProviders(t *testing.T) {
	p := newPlugins(t)
	p.add("cloud", answer("Registry", `,"cacheDuration":"1h"`, "'1.dkr.ecr.*.cloud.example'"))
	k, err := p.open(cloud)
	if err != nil {
		t.Fatal(err)
	}
	for repository, want := range map[string]string{
		"1.dkr.ecr.eu.cloud.example/app":   "keelson:--region eu",
		"1.dkr.ecr.eu.cloud.example/other": "keelson:--region eu",
		"2.dkr.ecr.eu.cloud.example/app":   ":", // the answer is for another registry
		"1.dkr.ecr.cloud.example/app":      ":",
		"registry.example:5000/teams/x":    ":",
		"registry.example:5001/team/x":     ":",
		"quay.example/app":                 ":",
	} {
		c, err := credentialsOf(t, k, repository)
		if got := c.Username + ":" + c.Password; err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", repository, got, err, want)
		}
	}
	if n := len(p.runs("cloud")); n != 3 {
		t.Errorf("%d runs for three registries of which it is asked: %v", n, p.runs("cloud"))
	}
	if _, err := credentialsOf(t, k, "docker.io/library/nginx"); err != nil {
		t.Error(err)
	}
	if last := p.runs("cloud")[3]; !strings.Contains(last, `"image":"docker.io/library/nginx"`) || !strings.Contains(last, `"kind":"CredentialProviderRequest"`) {
		t.Errorf("asked %s", last)
	}
}

// TestCredentialProvidersKeepAnswersAsTheySay: for an image, a registry or all, and callers at once share a run.
func TestCredentialProvidersKeepAnswersAsTheySay(t *testing.T) {
	for scope, want := range map[string]int{"Image": 3, "Registry": 2, "Global": 1} {
		t.Run(scope, func(t *testing.T) {
			p := newPlugins(t)
			p.add("cloud", "sleep 0.1; "+answer(scope, "", "'*.dkr.ecr.*.cloud.example'"))
			k, err := p.open(cloud)
			if err != nil {
				t.Fatal(err)
			}
			for _, repository := range []string{"1.dkr.ecr.eu.cloud.example/a", "1.dkr.ecr.eu.cloud.example/b", "2.dkr.ecr.eu.cloud.example/a"} {
				var callers sync.WaitGroup
				for range 8 {
					callers.Go(func() {
						if c, err := credentialsOf(t, k, repository); err != nil || c.Username != "keelson" {
							t.Errorf("%v, %v", c, err)
						}
					})
				}
				callers.Wait()
			}
			if n := len(p.runs("cloud")); n != want {
				t.Errorf("%d runs, want %d", n, want)
			}
		})
	}
}

func TestCredentialProvidersThatFail(t *testing.T) {
	const ok = `{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"Image"`
	for name, c := range map[string]struct{ script, want string }{
		"it ends with an error":            {"echo secret; exit 3", "exit status 3"},
		"it writes no JSON":                {"echo secret", "no CredentialProviderResponse"},
		"it writes nothing":                {":", "no CredentialProviderResponse"},
		"another version":                  {"echo '" + strings.Replace(ok, "io/v1", "io/v1beta1", 1) + "}'", "apiVersion credentialprovider.kubelet.k8s.io/v1"},
		"no cache key type":                {"echo '" + strings.Replace(ok, "Image", "Pod", 1) + "}'", "want Image, Registry or Global"},
		"a duration that is none":          {"echo '" + ok + `,"cacheDuration":"secret"}'`, "cacheDuration"},
		"a key given twice":                {"echo '" + ok + `,"auth":null,"auth":{}}'`, "twice"},
		"more than it may":                 {"head -c 70000 /dev/zero", "more than 65536 bytes"},
		"it has none":                      {"echo '" + ok + "}'", ""},
		"its auth is null":                 {"echo '" + ok + `,"auth":null}'`, ""},
		"its key is no registry's":         {"echo '" + ok + `,"auth":{"a://b":{"username":"u","password":"p"}}}'`, ""},
		"its key is another registry's":    {"echo '" + ok + `,"auth":{"evil.example":{"username":"u","password":"p"}}}'`, ""},
		"it does not read what it is sent": {"exec 0<&-; echo '" + ok + "}'", ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlugins(t)
			p.add("cloud", c.script)
			k, err := p.open(cloud)
			if err != nil {
				t.Fatal(err)
			}
			got, err := credentialsOf(t, k, "1.dkr.ecr.eu.cloud.example/a")
			switch {
			case c.want == "" && (err != nil || got != authn.AuthConfig{}):
				t.Errorf("%v, %v; want none", got, err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secret")):
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
	t.Run("it hangs", func(t *testing.T) {
		p := newPlugins(t)
		p.add("cloud", "sleep 60")
		k, err := p.open(cloud)
		if err != nil {
			t.Fatal(err)
		}
		repo, err := name.NewRepository("1.dkr.ecr.eu.cloud.example/a")
		if err != nil {
			t.Fatal(err)
		}
		a, err := k.Resolve(repo)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		if _, err := authn.Authorization(ctx, a); err == nil || !strings.Contains(err.Error(), "deadline") {
			t.Errorf("%v", err)
		}
	})
}

func TestCredentialProvidersThatAreRefused(t *testing.T) {
	for name, c := range map[string]struct{ old, replacement, want string }{
		"another kind":            {"kind: Cred", "kind: Red", "line 1"},
		"another version":         {"config.k8s.io/v1", "config.k8s.io/v2", "line 1"},
		"an unknown key":          {"  args:", "  arguments:", "line 9: field arguments not found"},
		"a key given twice":       {"  args:", "  name: cloud\n  args:", "already defined"},
		"no such program":         {"name: cloud", "name: fog", `line 5: provider "fog": its program cannot be run`},
		"a program elsewhere":     {"name: cloud", "name: ../cloud", "the plugin's file name"},
		"no image":                {`["*.dkr.ecr.*.cloud.example", "registry.example:5000/team", docker.io]`, "[]", "line 5"},
		"a scheme that is none":   {"docker.io]", `"ftp://x"]`, "matchImages"},
		"every registry":          {"docker.io]", `"*"]`, "names no registry"},
		"no duration":             {"  defaultCacheDuration: 12h\n", "", "defaultCacheDuration"},
		"a negative duration":     {"12h", "-12h", "defaultCacheDuration"},
		"a provider's version":    {"credentialprovider.kubelet.k8s.io/v1", "v1", "apiVersion"},
		"tokens":                  {"  args:", "  tokenAttributes: {cacheType: Token}\n  args:", "tokenAttributes"},
		"a variable without name": {"name: PROFILE", `name: "A=B"`, "no variable's name"},
		"a second document":       {"  env:", "---\nenv:", "more than one document"},
		"the same provider twice": {"providers:", "providers:\n- {name: cloud, matchImages: [a.example], defaultCacheDuration: 1h, apiVersion: credentialprovider.kubelet.k8s.io/v1}", "already"},
		"nothing":                 {cloud, "", "EOF"},
		"no provider":             {cloud[strings.Index(cloud, "- name"):], "  []\n", "0 providers"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlugins(t)
			p.add("cloud", ":")
			text := strings.Replace(cloud, c.old, c.replacement, 1)
			if _, err := p.open(text); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
	if _, err := image.OpenCredentialProviders(filepath.Join(t.TempDir(), "absent"), "/"); err == nil {
		t.Error("a file that is not there is taken")
	}
}

func TestKeychainsInOrder(t *testing.T) {
	parse := func(text string) authn.Keychain {
		k, err := image.ParseCredentials([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	p := newPlugins(t)
	p.add("cloud", answer("Image", "", "'*.dkr.ecr.*.cloud.example'"))
	providers, err := p.open(cloud)
	if err != nil {
		t.Fatal(err)
	}
	k := image.Keychains(nil, parse(`{"auths":{"1.dkr.ecr.eu.cloud.example/file":{"username":"file","password":"x"}}}`), providers)
	for repository, want := range map[string]string{
		"1.dkr.ecr.eu.cloud.example/file": "file", "1.dkr.ecr.eu.cloud.example/plugin": "keelson", "else.example/x": "",
	} {
		if c, err := credentialsOf(t, k, repository); err != nil || c.Username != want {
			t.Errorf("%s: %q, %v; want %q", repository, c.Username, err, want)
		}
	}
	if image.Keychains(nil, nil) != nil {
		t.Error("no keychains make one")
	}
}

func FuzzProviderResponse(f *testing.F) {
	f.Add([]byte(`{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"Image","cacheDuration":"6h","auth":{"*.example":{"username":"u","password":"p"}}}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		keep, entries, err := image.ParseProviderResponse(raw)
		if err == nil && (entries > len(raw) || keep == 1) {
			t.Error("more than was given")
		}
	})
}
