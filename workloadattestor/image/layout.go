package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// refName is the annotation by which an OCI layout names its entries (OCI image spec, annotations.md).
const refName = "org.opencontainers.image.ref.name"

// ociLayout is a source: a directory in OCI image layout (OCI image spec, image-layout.md).
type ociLayout struct{ dir string }

func newLayout(dir string) (*ociLayout, error) {
	l := &ociLayout{dir: dir}
	if _, err := l.entries(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *ociLayout) describe() string { return "OCI layout " + l.dir }

func (l *ociLayout) entries() ([]descriptor, error) {
	raw, err := l.read("index.json", maxDocument)
	if err != nil {
		return nil, fmt.Errorf("image: %s: %w", l.describe(), err)
	}
	var index struct {
		Manifests []descriptor `json:"manifests"`
	}
	if _, err := decodeStrict(raw, &index); err != nil {
		return nil, fmt.Errorf("image: %s: index.json: %w", l.describe(), err)
	}
	return index.Manifests, nil
}

// kindAnnotation says what an entry is in a layout that `cosign save` wrote (sigstore/cosign pkg/oci/layout): an image, or the
// signatures of an image, which it does not name.
const (
	kindAnnotation = "kind"
	kindSignatures = "dev.cosignproject.cosign/sigs"
)

// holdsSignatures tells whether an entry is made to hold signatures.
func holdsSignatures(e descriptor) bool {
	return strings.HasSuffix(e.Annotations[refName], ".sig") || e.Annotations[kindAnnotation] == kindSignatures
}

// signatures lists the entries that are named as cosign names the subject's signatures, those that `cosign save` wrote, and those
// whose manifests refer to the subject, as OCI 1.1 referrers do.
func (l *ociLayout) signatures(_ context.Context, subject string) ([]string, error) {
	entries, err := l.entries()
	if err != nil {
		return nil, err
	}
	out := []string{signatureTag(subject)}
	for _, e := range entries[:min(len(entries), maxRoots)] {
		if e.Annotations[kindAnnotation] == kindSignatures || l.refersTo(e, subject) {
			out = append(out, e.Digest)
		}
	}
	list, err := l.tagged(strings.TrimSuffix(signatureTag(subject), ".sig"))
	if err != nil {
		return out, ignoreNotFound(err)
	}
	listed, err := referrers(list)
	return append(out, listed...), err
}

func (l *ociLayout) refersTo(e descriptor, subject string) bool {
	raw, err := l.readBlob(e.Digest, maxDocument)
	if err != nil {
		return false
	}
	doc, err := parseDocument(raw)
	return err == nil && doc.manifest != nil && doc.manifest.subject == subject
}

// roots lists every entry of the layout except signatures: which one is the image is for the digests to say.
func (l *ociLayout) roots(_ context.Context, q question) ([]string, error) {
	if q.entry != "" {
		return []string{q.entry}, nil
	}
	entries, err := l.entries()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if !holdsSignatures(e) {
			out = append(out, e.Digest)
		}
	}
	return out, nil
}

func (l *ociLayout) manifest(_ context.Context, ref string) ([]byte, error) {
	if !strings.HasPrefix(ref, "sha256:") {
		return l.tagged(ref)
	}
	return l.readBlob(ref, maxDocument)
}

// tagged finds an entry by its name: the tag alone, or a reference that ends in it.
func (l *ociLayout) tagged(tag string) ([]byte, error) {
	entries, err := l.entries()
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if n := e.Annotations[refName]; n == tag || strings.HasSuffix(n, ":"+tag) {
			raw, err := l.readBlob(e.Digest, maxDocument)
			if err != nil {
				return nil, err
			}
			return raw, checkDigest(e.Digest, raw)
		}
	}
	return nil, errNotFound
}

func (l *ociLayout) blob(_ context.Context, digest string) ([]byte, error) {
	return l.readBlob(digest, maxBlob)
}

func (l *ociLayout) readBlob(digest string, limit int64) ([]byte, error) {
	if _, ok := bareDigest(digest); !ok || !strings.HasPrefix(digest, "sha256:") {
		return nil, fmt.Errorf("entry %s is not a sha256 digest", short(digest))
	}
	return l.read(filepath.Join("blobs", "sha256", strings.TrimPrefix(digest, "sha256:")), limit)
}

// read reads a file inside the layout; os.Root keeps links from leading out of it.
func (l *ociLayout) read(path string, limit int64) (raw []byte, err error) {
	root, err := os.OpenRoot(l.dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	f, err := root.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", path, errNotFound)
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	raw, err = io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(raw)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return raw, err
}
