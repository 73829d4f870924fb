package images_test

import (
	"archive/tar"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"go.yaml.in/yaml/v3"

	"github.com/keelson-project/keelson/charts/images"
)

const root = "../.."

// TestTheImagesAreTheCharts: what the chart's values name is what is made, out of programs that this module has.
func TestTheImagesAreTheCharts(t *testing.T) {
	content, err := os.ReadFile(filepath.Join(root, "charts/keelson/values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	type component struct {
		Image struct{ Repository, Tag string }
	}
	var values struct {
		PolicySync    component `yaml:"policySync"`
		Node, Plugins component
	}
	if err := yaml.Unmarshal(content, &values); err != nil {
		t.Fatal(err)
	}
	want := []string{values.Node.Image.Repository, values.Plugins.Image.Repository, values.PolicySync.Image.Repository}
	var got []string
	for _, i := range images.All() {
		got = append(got, i.Name)
		if i.Programs[i.Entrypoint] == "" {
			t.Errorf("%s starts %s, which is not in it", i.Name, i.Entrypoint)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-chart +made):\n%s", diff)
	}
	for _, p := range images.Packages() {
		if _, err := os.Stat(filepath.Join(root, p, "main.go")); err != nil {
			t.Error(err)
		}
	}
	if version, err := images.Version(root); err != nil || version == "" {
		t.Errorf("version %q: %v", version, err)
	}
}

// module writes a small module in a folder of its own, with a program for every package that images are made of.
func module(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	files := map[string]string{"go.mod": "module example.org/small\n\ngo 1.26\n"}
	for _, p := range images.Packages() {
		files[p+"/main.go"] = "package main\n\nfunc main() { println(" + `"` + p + `"` + ") }\n"
	}
	for file, content := range files {
		path := filepath.Join(dir, file)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func compile(t *testing.T, root string, p v1.Platform) map[string]string {
	t.Helper()
	programs, err := images.Compile(t.Context(), root, t.TempDir(), p, images.Packages()...)
	if err != nil {
		t.Fatal(err)
	}
	return programs
}

// write makes every image of a small module and returns their folder.
func write(t *testing.T, version string) (dir string, digests map[string]v1.Hash) {
	t.Helper()
	root := module(t)
	programs := map[string]map[string]string{}
	for _, p := range images.Platforms() {
		programs[p.String()] = compile(t, root, p)
	}
	dir, digests = t.TempDir(), map[string]v1.Hash{}
	for _, i := range images.All() {
		var built []images.Built
		for _, p := range images.Platforms() {
			image, err := i.Build(p, version, programs[p.String()])
			if err != nil {
				t.Fatal(err)
			}
			built = append(built, images.Built{Platform: p, Image: image})
		}
		var err error
		if digests[i.Name], err = images.WriteLayout(filepath.Join(dir, i.Name), version, built...); err != nil {
			t.Fatal(err)
		}
	}
	return dir, digests
}

// TestTheSameSourceGivesTheSameBytes: in another folder, later, with an environment that says otherwise.
func TestTheSameSourceGivesTheSameBytes(t *testing.T) {
	first, digests := write(t, "1.2.3")
	t.Setenv("GOFLAGS", "-buildvcs=true")
	t.Setenv("GOAMD64", "v3")
	t.Setenv("CGO_ENABLED", "1")
	second, again := write(t, "1.2.3")
	if diff := cmp.Diff(digests, again); diff != "" {
		t.Errorf("two builds differ:\n%s", diff)
	}
	if diff := cmp.Diff(tree(t, first), tree(t, second)); diff != "" {
		t.Errorf("two folders differ:\n%s", diff)
	}
	content, err := os.ReadFile(filepath.Join(first, "keelson-node", "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var index v1.IndexManifest
	if err := json.Unmarshal(content, &index); err != nil || len(index.Manifests) != 1 || index.Manifests[0].MediaType != types.OCIImageIndex ||
		index.Manifests[0].Annotations["org.opencontainers.image.ref.name"] != "1.2.3" {
		t.Errorf("index.json: %v: %s", err, content)
	}
	if _, other := write(t, "1.2.4"); other["keelson-node"] == digests["keelson-node"] {
		t.Error("another version is the same image")
	}
}

func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	if err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		h, _, _ := v1.SHA256(strings.NewReader(string(content)))
		out[strings.TrimPrefix(path, dir)] = h.String()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

// guarded is a registry that wants a password.
func guarded(t *testing.T) (host string) {
	t.Helper()
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "pusher" || password != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

func login(t *testing.T, host string) {
	t.Helper()
	dir := t.TempDir()
	auth := base64.StdEncoding.EncodeToString([]byte("pusher:secret"))
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(`{"auths":{"`+host+`":{"auth":"`+auth+`"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DOCKER_CONFIG", dir)
}

func TestWhatIsPushedIsWhatWasMade(t *testing.T) {
	dir, digests := write(t, "1.2.3")
	host := guarded(t)
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	if _, err := images.Push(t.Context(), filepath.Join(dir, "keelson-node"), host+"/team/keelson-node"); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("without credentials: %v", err)
	}
	login(t, host)
	for _, i := range images.All() {
		t.Run(i.Name, func(t *testing.T) {
			pushed, err := images.Push(t.Context(), filepath.Join(dir, i.Name), host+"/team/"+i.Name)
			if err != nil {
				t.Fatal(err)
			}
			if want := host + "/team/" + i.Name + "@" + digests[i.Name].String(); pushed.String() != want {
				t.Errorf("pushed %s, made %s", pushed, want)
			}
			tag, err := name.NewTag(host + "/team/" + i.Name + ":1.2.3")
			if err != nil {
				t.Fatal(err)
			}
			auth := remote.WithAuth(basic{})
			index, err := remote.Index(tag, auth)
			if err != nil {
				t.Fatal(err)
			}
			if digest, err := index.Digest(); err != nil || digest != digests[i.Name] {
				t.Errorf("the tag is %s, made was %s: %v", digest, digests[i.Name], err)
			}
			for _, p := range images.Platforms() {
				image, err := remote.Image(tag, auth, remote.WithPlatform(p))
				if err != nil {
					t.Fatal(err)
				}
				look(t, i, p, image)
			}
		})
	}
}

type basic struct{}

func (basic) Authorization() (*authn.AuthConfig, error) {
	return &authn.AuthConfig{Username: "pusher", Password: "secret"}, nil
}

// look compares an image with what it should be.
func look(t *testing.T, i images.Image, p v1.Platform, image v1.Image) {
	t.Helper()
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if !config.Platform().Equals(p) || config.Config.User != "65532:65532" || !slices.Equal(config.Config.Entrypoint, []string{i.Entrypoint}) ||
		config.Created.Unix() != 0 || config.Config.Labels["org.opencontainers.image.version"] != "1.2.3" || config.Config.Labels["org.opencontainers.image.title"] != i.Name {
		t.Errorf("%s: config %+v", p, config)
	}
	layers, err := image.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%s: %d layers, %v", p, len(layers), err)
	}
	content, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for r := tar.NewReader(content); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Mode&0o022 != 0 || h.Mode&0o7000 != 0 || h.ModTime.Unix() != 0 {
			t.Errorf("%s: %s: owner %d:%d, mode %o, time %v", p, h.Name, h.Uid, h.Gid, h.Mode, h.ModTime)
		}
		if executable := h.Mode&0o111 == 0o111; executable != (i.Programs["/"+h.Name] != "" || h.Typeflag == tar.TypeDir) {
			t.Errorf("%s: %s: mode %o", p, h.Name, h.Mode)
		}
		got = append(got, h.Name)
	}
	want := map[string][]string{
		"keelson-node":        {"keelson-node"},
		"keelson-policy-sync": {"etc/", "etc/ssl/", "etc/ssl/certs/", "etc/ssl/certs/ca-certificates.crt", "keelson", "keelson-policy-sync"},
		"keelson-plugins":     {"plugins/", "keelson", "plugins/keelson-nodeattestor-agent", "plugins/keelson-nodeattestor-server", "plugins/keelson-workloadattestor"},
	}[i.Name]
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s: files (-want +got):\n%s", p, diff)
	}
}

func TestPublicRootsAreCertificates(t *testing.T) {
	pool := x509.NewCertPool()
	if pem := images.Roots(); !pool.AppendCertsFromPEM(pem) || strings.Count(string(pem), "BEGIN CERTIFICATE") < 80 {
		t.Errorf("%d bytes hold too few certificates", len(pem))
	}
}

func TestRefused(t *testing.T) {
	amd64, arm64 := images.Platforms()[0], images.Platforms()[1]
	root := module(t)
	programs := compile(t, root, amd64)
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("#!/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	host := v1.Platform{OS: "linux", Architecture: runtime.GOARCH}
	node := images.All()[0]
	for what, tc := range map[string]struct {
		platform v1.Platform
		programs map[string]string
		want     string
	}{
		"a program for another architecture":    {arm64, programs, "it is a program for EM_X86_64, the image one for linux/arm64"},
		"an architecture that nobody asked for": {v1.Platform{OS: "linux", Architecture: "s390x"}, programs, "the image one for linux/s390x"},
		"another operating system":              {v1.Platform{OS: "windows", Architecture: "amd64"}, programs, "the image one for windows/amd64"},
		"a script":                              {amd64, map[string]string{"cmd/keelson-node": text}, "no program of Linux"},
		"a program that needs a loader":         {host, map[string]string{"cmd/keelson-node": shell}, "needs a loader"},
		"a program that nobody built":           {amd64, nil, "nobody has built cmd/keelson-node"},
		"a program that is gone":                {amd64, map[string]string{"cmd/keelson-node": text + "-gone"}, "no such file"},
	} {
		t.Run(what, func(t *testing.T) {
			if _, err := node.Build(tc.platform, "1", tc.programs); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
	if err := os.WriteFile(filepath.Join(root, "cmd/keelson/main.go"), []byte("package main\n\nfunc main() { nonsense }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := images.Compile(t.Context(), root, t.TempDir(), amd64, "cmd/keelson"); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("a program that does not compile: %v", err)
	}
}

func TestFoldersThatAreNoLayout(t *testing.T) {
	dir := t.TempDir()
	precious := filepath.Join(dir, "precious")
	if err := os.WriteFile(precious, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	made, some := filepath.Join(dir, "made"), images.Built{Platform: images.Platforms()[0], Image: empty.Image}
	if _, err := images.WriteLayout(dir, "1", some); err == nil || !strings.Contains(err.Error(), "is no image layout") {
		t.Errorf("over somebody's files: %v", err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}
	if _, err := images.Push(t.Context(), filepath.Join(dir, "none"), "registry.example.org/x"); err == nil || !strings.Contains(err.Error(), "make it first") {
		t.Errorf("nothing to push: %v", err)
	}
	if _, err := images.WriteLayout(made, "1"); err == nil || !strings.Contains(err.Error(), "no image") {
		t.Errorf("nothing to write: %v", err)
	}
	if _, err := images.WriteLayout(made, "1", some); err != nil {
		t.Fatal(err)
	}
	if _, err := images.WriteLayout(made, "1", some); err != nil {
		t.Errorf("over one of its own: %v", err)
	}
	if _, err := images.Push(t.Context(), made, "not a repository"); err == nil || !strings.Contains(err.Error(), "push to not a repository") {
		t.Errorf("to nowhere: %v", err)
	}
	path, err := layout.FromPath(made)
	if err != nil {
		t.Fatal(err)
	}
	if err := path.AppendDescriptor(v1.Descriptor{MediaType: types.OCIImageIndex, Digest: v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("0", 64)}}); err != nil {
		t.Fatal(err)
	}
	if _, err := images.Push(t.Context(), made, "registry.example.org/x"); err == nil || !strings.Contains(err.Error(), "does not hold one image") {
		t.Errorf("two images in one layout: %v", err)
	}
	if _, err := images.Version(dir); err == nil {
		t.Error("a folder without a chart has a version")
	}
	if err := os.MkdirAll(filepath.Join(dir, "charts/keelson"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "charts/keelson/Chart.yaml"), []byte("name: keelson\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := images.Version(dir); err == nil || !strings.Contains(err.Error(), "no appVersion") {
		t.Errorf("a chart without a version: %v", err)
	}
}
