package node

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Registry is an image registry in this process, over plain HTTP, that forgets everything at the end.
type Registry struct {
	// Host is its address and port, as it stands in image references.
	Host   string
	server *http.Server
}

// Image is what to put into an image: one layer of files.
type Image struct {
	// Files are contents by absolute path; all are executable.
	Files map[string][]byte
	// Entrypoint starts the program; Cmd are its arguments where a pod gives none (a sandbox never does).
	Entrypoint, Cmd []string
}

// Pushed is an image in the registry.
type Pushed struct {
	// Repository is "address:port/name". Manifest and Config are the two digests that are so easily confused.
	Repository       string
	Manifest, Config v1.Hash
	Image            v1.Image
}

// Reference is the image by its manifest digest.
func (p Pushed) Reference() string { return p.Repository + "@" + p.Manifest.String() }

// NewRegistry starts a registry on 127.0.0.1.
func NewRegistry() (*Registry, error) { return NewRegistryAt("127.0.0.1") }

// NewRegistryAt starts a registry on an address of this computer.
func NewRegistryAt(address string) (*Registry, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		return nil, fmt.Errorf("node: registry: %w", err)
	}
	quiet := log.New(io.Discard, "", 0)
	r := &Registry{Host: l.Addr().String(), server: &http.Server{
		Handler: registry.New(registry.Logger(quiet)), ReadHeaderTimeout: 10 * time.Second, ErrorLog: quiet,
	}}
	go func() { _ = r.server.Serve(l) }() // returns ErrServerClosed at Close, and any other end shows in the first pull
	return r, nil
}

// Close stops the registry.
func (r *Registry) Close() error {
	if err := r.server.Close(); err != nil {
		return fmt.Errorf("node: registry: %w", err)
	}
	return nil
}

// Push makes an image and pushes it as repository:latest.
func (r *Registry) Push(ctx context.Context, repository string, i Image) (Pushed, error) {
	img, err := i.build()
	if err != nil {
		return Pushed{}, err
	}
	return r.PushImage(ctx, repository, img)
}

// PushImage pushes an image that was made elsewhere as repository:latest.
func (r *Registry) PushImage(ctx context.Context, repository string, img v1.Image) (Pushed, error) {
	p := Pushed{Repository: r.Host + "/" + repository, Image: img}
	if err := r.write(ctx, p.Repository+":latest", img); err != nil {
		return Pushed{}, err
	}
	var err error
	p.Manifest, err = img.Digest()
	if err != nil {
		return Pushed{}, fmt.Errorf("node: image %s: %w", repository, err)
	}
	p.Config, err = img.ConfigName()
	if err != nil {
		return Pushed{}, fmt.Errorf("node: image %s: %w", repository, err)
	}
	return p, nil
}

// Retag puts an image under another repository's tag "latest", and returns the reference by that tag.
func (r *Registry) Retag(ctx context.Context, p Pushed, repository string) (string, error) {
	tag := r.Host + "/" + repository + ":latest"
	return tag, r.write(ctx, tag, p.Image)
}

func (r *Registry) write(ctx context.Context, reference string, img v1.Image) error {
	ref, err := name.ParseReference(reference, name.Insecure)
	if err != nil {
		return fmt.Errorf("node: image: %w", err)
	}
	if err := remote.Write(ref, img, remote.WithContext(ctx)); err != nil {
		return fmt.Errorf("node: push %s: %w", reference, err)
	}
	return nil
}

// build makes the image without any time in it, so that the same files are the same image.
func (i Image) build() (v1.Image, error) {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, path := range slices.Sorted(maps.Keys(i.Files)) {
		header := &tar.Header{Typeflag: tar.TypeReg, Name: path[1:], Mode: 0o755, Size: int64(len(i.Files[path]))}
		if err := w.WriteHeader(header); err != nil {
			return nil, fmt.Errorf("node: image: %s: %w", path, err)
		}
		if _, err := w.Write(i.Files[path]); err != nil {
			return nil, fmt.Errorf("node: image: %s: %w", path, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("node: image: %w", err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil })
	if err != nil {
		return nil, fmt.Errorf("node: image: %w", err)
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		return nil, fmt.Errorf("node: image: %w", err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("node: image: %w", err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Config.Entrypoint = "linux", runtime.GOARCH, i.Entrypoint
	config.Config.Cmd = i.Cmd
	img, err = mutate.ConfigFile(img, config)
	return img, errors.Join(err)
}

// writeHosts tells containerd that the registry speaks plain HTTP.
func (r *Registry) writeHosts(certsDir string) error {
	dir := filepath.Join(certsDir, r.Host)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("node: registry: %w", err)
	}
	content := fmt.Sprintf("server = %q\n\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", "http://"+r.Host, "http://"+r.Host)
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(content), 0o600); err != nil {
		return fmt.Errorf("node: registry: %w", err)
	}
	return nil
}
