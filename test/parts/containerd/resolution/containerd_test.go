// Package resolution compares what the image checker takes for startable with what runtimes start, by the runtimes' own code.
package resolution

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/keelson-project/keelson/workloadattestor/image"
)

// store holds documents, for containerd as a content.Provider and for the checker as an OCI layout.
type store map[digest.Digest][]byte

type reader struct{ *bytes.Reader }

func (reader) Close() error { return nil }

func (s store) ReaderAt(_ context.Context, d ocispec.Descriptor) (content.ReaderAt, error) {
	raw, ok := s[d.Digest]
	if !ok {
		return nil, fmt.Errorf("%s: %w", d.Digest, errdefs.ErrNotFound)
	}
	return reader{bytes.NewReader(raw)}, nil
}

func (s store) put(t testing.TB, v any) (digest.Digest, int64) {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(raw)
	s[d] = raw
	return d, int64(len(raw))
}

var (
	systems       = []string{"linux", "linux", "linux", "windows", "Linux", "", "unknown", "darwin"}
	architectures = []string{"amd64", "amd64", "arm64", "386", "arm", "x86_64", "aarch64", "i386", "armhf", "", "s390x", "unknown", "AMD64"}
	variants      = []string{"", "", "", "v1", "v2", "v3", "v7", "v8", "v9", "x"}
	nodes         = []string{"linux/amd64", "linux/arm64", "linux/arm/v7", "linux/s390x", "linux/386", "linux/amd64/v3"}
)

// maker makes random images and indexes.
type maker struct {
	*rand.Rand
	store store
	made  int
}

func pick[T any](m *maker, from []T) T { return from[m.IntN(len(from))] }

func (m *maker) platform() *ocispec.Platform {
	if m.IntN(5) == 0 {
		return nil
	}
	p := &ocispec.Platform{OS: pick(m, systems), Architecture: pick(m, architectures), Variant: pick(m, variants)}
	if m.IntN(10) == 0 {
		p.OSVersion = "10.0"
	}
	return p
}

func (m *maker) manifest(t testing.TB) ocispec.Descriptor {
	m.made++
	p := ocispec.Platform{OS: pick(m, systems), Architecture: pick(m, architectures)}
	config, size := m.store.put(t, map[string]any{"os": p.OS, "architecture": p.Architecture, "made": m.made, "rootfs": map[string]any{"type": "layers"}})
	d, n := m.store.put(t, ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: config, Size: size}, Layers: []ocispec.Descriptor{}})
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: d, Size: n}
}

func (m *maker) index(t testing.TB, depth int) ocispec.Descriptor {
	list := []ocispec.Descriptor{}
	for range m.IntN(5) + 1 {
		var child ocispec.Descriptor
		if depth > 0 && m.IntN(3) == 0 {
			child = m.index(t, depth-1)
		} else {
			child = m.manifest(t)
		}
		if m.IntN(12) == 0 {
			child.MediaType = pick(m, []string{images.MediaTypeDockerSchema2Manifest, images.MediaTypeDockerSchema2ManifestList, ocispec.MediaTypeImageIndex, "x/y"})
		}
		child.Platform = m.platform()
		list = append(list, child)
	}
	d, n := m.store.put(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: list})
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: d, Size: n}
}

// layout writes the store as an OCI layout.
func (s store) layout(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o700); err != nil {
		t.Fatal(err)
	}
	for d, raw := range s {
		if err := os.WriteFile(filepath.Join(dir, "blobs", "sha256", d.Encoded()), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "index.json"), []byte(`{"schemaVersion":2,"manifests":[]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// candidates are what the checker takes for startable: manifests' and unread entries' digests.
func candidates(t testing.TB, dir string, root digest.Digest, node ocispec.Platform) ([]string, error) {
	t.Helper()
	c, err := image.New(image.Config{Layouts: []string{dir}, Now: time.Now, Platform: image.Platform{OS: node.OS, Architecture: node.Architecture, Variant: node.Variant}})
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.Check(t.Context(), image.Running{Ref: root.String(), LayoutEntry: root.String()})
	out := slices.Clone(got.Unread)
	for _, m := range got.Manifests {
		out = append(out, m.String())
	}
	return out, err
}

// FuzzContainerd: whatever containerd starts from an index is among what the checker judges, or the index is refused.
func FuzzContainerd(f *testing.F) {
	for i := range uint64(400) {
		f.Add(i, uint8(i))
	}
	f.Fuzz(func(t *testing.T, seed uint64, which uint8) {
		m := &maker{Rand: rand.New(rand.NewPCG(seed, 1)), store: store{}}
		root := m.index(t, 3)
		node := platforms.MustParse(nodes[int(which)%len(nodes)])
		started, err := images.Manifest(t.Context(), m.store, root, platforms.Only(node))
		if err != nil {
			return // containerd starts nothing
		}
		// The manifest's digest is not returned: its config says which one it is.
		var digests []string
		for d, raw := range m.store {
			var have ocispec.Manifest
			if json.Unmarshal(raw, &have) == nil && have.Config.Digest == started.Config.Digest {
				digests = append(digests, d.String())
			}
		}
		got, err := candidates(t, m.store.layout(t), root.Digest, node)
		if err != nil && (strings.Contains(err.Error(), "another name of a platform") || strings.Contains(err.Error(), "could not be read")) {
			return // refused
		}
		if !slices.ContainsFunc(digests, func(d string) bool { return slices.Contains(got, d) }) {
			t.Errorf("containerd starts %v on %s, the checker judges %v (%v)\n%s", digests, platforms.Format(node), got, err, m.store[root.Digest])
		}
	})
}
