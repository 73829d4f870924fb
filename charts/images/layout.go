package images

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// refName is the annotation that names an entry of a layout's index (OCI image-spec, annotations.md): its tag.
const refName = "org.opencontainers.image.ref.name"

// Built is an image for one platform.
type Built struct {
	Platform v1.Platform
	Image    v1.Image
}

// WriteLayout writes an image for several platforms as a folder in OCI image layout, which skopeo, crane, podman and containerd
// read, in the place of one that is there, and returns the digest of its index.
func WriteLayout(dir, tag string, built ...Built) (v1.Hash, error) {
	if len(built) == 0 {
		return v1.Hash{}, fmt.Errorf("images: %s: there is no image to write", dir)
	}
	if err := removeOld(dir); err != nil {
		return v1.Hash{}, err
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, b := range built {
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: b.Image, Descriptor: v1.Descriptor{Platform: &b.Platform}})
	}
	to, err := layout.Write(dir, mutate.IndexMediaType(empty.Index, types.OCIImageIndex))
	if err == nil {
		err = to.AppendIndex(index, layout.WithAnnotations(map[string]string{refName: tag}))
	}
	if err != nil {
		return v1.Hash{}, fmt.Errorf("images: %s: %w", dir, err)
	}
	digest, err := index.Digest()
	if err != nil {
		return v1.Hash{}, fmt.Errorf("images: %s: %w", dir, err)
	}
	return digest, nil
}

// removeOld removes a layout that an earlier run left, and nothing else.
func removeOld(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	}
	if err == nil {
		_, err = os.Stat(filepath.Join(dir, "oci-layout"))
	}
	if err != nil {
		return fmt.Errorf("images: %s is there and is no image layout; name another folder: %w", dir, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("images: %w", err)
	}
	return nil
}

// Push pushes the image of a layout to a repository ("registry.example.org/keelson/keelson-node"), under the layout's tag, with
// the credentials that Docker keeps for its registry, and returns the reference by digest. It speaks plain HTTP to
// loopback and private addresses only.
func Push(ctx context.Context, dir, repository string) (name.Digest, error) {
	root, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return name.Digest{}, fmt.Errorf("images: %s: %w; make it first", dir, err)
	}
	manifest, err := root.IndexManifest()
	if err != nil {
		return name.Digest{}, fmt.Errorf("images: %s: %w", dir, err)
	}
	if len(manifest.Manifests) != 1 || manifest.Manifests[0].Annotations[refName] == "" {
		return name.Digest{}, fmt.Errorf("images: %s does not hold one image with a tag; make it anew", dir)
	}
	entry := manifest.Manifests[0]
	to, err := name.NewTag(repository+":"+entry.Annotations[refName], name.StrictValidation)
	if err != nil {
		return name.Digest{}, fmt.Errorf("images: push to %s: %w", repository, err)
	}
	index, err := root.ImageIndex(entry.Digest)
	if err != nil {
		return name.Digest{}, fmt.Errorf("images: %s: %w", dir, err)
	}
	if err := remote.WriteIndex(to, index, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)); err != nil {
		return name.Digest{}, fmt.Errorf("images: push to %s: %w", to, err)
	}
	return to.Digest(entry.Digest.String()), nil
}
