package image

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

// Platform says which entry of an index this node runs, when an index digest is all that the runtime reports.
type Platform struct{ OS, Architecture, Variant string }

// bound is what was proved about an image by reading documents: the manifests' config is config, and each index
// lists one of the manifests.
type bound struct {
	config    workloadclaim.ConfigDigest
	manifests []workloadclaim.ManifestDigest
	indexes   []workloadclaim.IndexDigest
}

// Bounds on the work for one image.
const (
	maxRoots     = 512 // entries of one source at which an image may be found
	maxBound     = 16  // manifests, and indexes, that share one config
	maxDocuments = 2048
)

// kind is what the runtime's digest turned out to be.
type kind string

const (
	kindConfig   kind = "config"
	kindManifest kind = "manifest"
	kindIndex    kind = "index"
)

// binder looks for documents that say what q.id is.
type binder struct {
	q        question
	platform Platform
	kind     kind
	result   bound
	fetched  int
	problems []error
}

// bind asks every source. One source that fails does not spoil what another one proves; a digest that turns out to be
// two kinds of thing does.
func bind(ctx context.Context, sources []source, q question, platform Platform) (bound, error) {
	b := &binder{q: q, platform: platform}
	for _, s := range sources {
		if err := b.search(ctx, s); err != nil {
			return bound{}, err
		}
	}
	if len(b.result.manifests) > 0 {
		return b.result, nil
	}
	if len(sources) == 0 {
		return bound{}, fmt.Errorf("image: no source for %s: its registry is not listed in registries, and no oci_layouts are configured", q.id)
	}
	none := fmt.Errorf("image: none of %d sources has a manifest for %s", len(sources), q.id)
	return bound{}, errors.Join(append([]error{none}, b.problems...)...)
}

func (b *binder) search(ctx context.Context, s source) error {
	roots, err := s.roots(ctx, b.q)
	if err != nil {
		b.problem(err)
		return nil
	}
	if len(roots) > maxRoots {
		b.problem(fmt.Errorf("image: %s: %d entries, only the first %d are read", s.describe(), len(roots), maxRoots))
		roots = roots[:maxRoots]
	}
	for _, root := range roots {
		doc, ok := b.fetch(ctx, s, root)
		if !ok {
			continue
		}
		if err := b.visit(ctx, s, doc); err != nil {
			return err
		}
	}
	return nil
}

// fetch gets one document; a failure is noted, except "not found", which is the usual answer of a place where an
// image could have been.
func (b *binder) fetch(ctx context.Context, s source, ref string) (document, bool) {
	if b.fetched++; b.fetched > maxDocuments {
		b.problem(fmt.Errorf("image: more than %d documents to read for one image", maxDocuments))
		return document{}, false
	}
	doc, err := fetchManifest(ctx, s, ref)
	if err != nil {
		if !errors.Is(err, errNotFound) {
			b.problem(err)
		}
		return document{}, false
	}
	return doc, true
}

func (b *binder) visit(ctx context.Context, s source, doc document) error {
	if doc.manifest != nil {
		_, err := b.visitManifest(doc.manifest)
		return err
	}
	if doc.index.digest.String() == string(b.q.id) {
		return b.visitOwnIndex(ctx, s, doc.index)
	}
	for _, child := range doc.index.children {
		if !mayRun(child) {
			continue
		}
		m, ok := b.child(ctx, s, child)
		if !ok {
			continue
		}
		matched, err := b.visitManifest(m)
		if err != nil {
			return err
		}
		if matched {
			b.addIndex(doc.index.digest)
		}
	}
	return nil
}

// visitOwnIndex handles a runtime that reports an index digest: what runs is the one entry for this node's platform.
// Two entries that fit would leave a choice that nobody proved.
func (b *binder) visitOwnIndex(ctx context.Context, s source, index *indexDoc) error {
	var fits []descriptor
	for _, child := range index.children {
		if mayRun(child) && child.Platform != nil && !plain(child) {
			return fmt.Errorf("image: index %s has an entry for %s/%s, which runtimes read as another name of a platform: refused",
				index.digest, short(child.Platform.OS), short(child.Platform.Architecture))
		}
		if mayRun(child) && b.platform.fits(child) {
			fits = append(fits, child)
		}
	}
	if len(fits) != 1 {
		return fmt.Errorf("image: index %s has %d entries for %s/%s, want exactly one", index.digest, len(fits), b.platform.OS, b.platform.Architecture)
	}
	m, ok := b.child(ctx, s, fits[0])
	if !ok {
		return nil
	}
	if err := b.is(kindIndex); err != nil {
		return err
	}
	if err := b.add(m); err != nil {
		return err
	}
	b.addIndex(index.digest)
	return nil
}

// visitManifest tells whether m is the image that runs.
func (b *binder) visitManifest(m *manifestDoc) (bool, error) {
	var k kind
	switch string(b.q.id) {
	case m.config.String():
		k = kindConfig
	case m.digest.String():
		k = kindManifest
	default:
		return false, nil
	}
	if err := b.is(k); err != nil {
		return false, err
	}
	return true, b.add(m)
}

// child fetches an index's entry. An index in an index is not followed: no runtime starts one.
func (b *binder) child(ctx context.Context, s source, d descriptor) (*manifestDoc, bool) {
	if _, ok := bareDigest(d.Digest); !ok {
		return nil, false
	}
	doc, ok := b.fetch(ctx, s, d.Digest)
	if !ok || doc.manifest == nil {
		return nil, false
	}
	return doc.manifest, true
}

// is notes what kind of digest the runtime reported and refuses a second answer.
func (b *binder) is(k kind) error {
	if b.kind != "" && b.kind != k {
		return fmt.Errorf("image: %s is both a %s and a %s: refused", b.q.id, b.kind, k)
	}
	b.kind = k
	return nil
}

func (b *binder) add(m *manifestDoc) error {
	if !b.result.config.IsZero() && b.result.config != m.config {
		return fmt.Errorf("image: %s has two configs, %s and %s: refused", b.q.id, b.result.config, m.config)
	}
	b.result.config = m.config
	if !slices.Contains(b.result.manifests, m.digest) && len(b.result.manifests) < maxBound {
		b.result.manifests = append(b.result.manifests, m.digest)
	}
	return nil
}

func (b *binder) addIndex(d workloadclaim.IndexDigest) {
	if !slices.Contains(b.result.indexes, d) && len(b.result.indexes) < maxBound {
		b.result.indexes = append(b.result.indexes, d)
	}
}

func (b *binder) problem(err error) {
	const enough = 8
	if len(b.problems) < enough {
		b.problems = append(b.problems, err)
	}
}

// mayRun leaves out entries that are no images, such as build attestations ("unknown/unknown").
func mayRun(d descriptor) bool {
	if d.MediaType.IsIndex() {
		return false
	}
	return d.Platform == nil || d.Platform.OS != "unknown"
}

// Platforms as Go and the OCI image spec (image-index.md) spell them. Runtimes take other spellings for the same ("x86_64", "Linux":
// containerd's platforms.Normalize) and start the first entry that fits, so an index with one could hide from us what runs.
var (
	plainSystems       = []string{"linux", "windows", "darwin", "freebsd", "wasip1"}
	plainArchitectures = []string{"386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64", "ppc64le", "riscv64", "s390x", "wasm"}
)

func plain(d descriptor) bool {
	return slices.Contains(plainSystems, d.Platform.OS) && slices.Contains(plainArchitectures, d.Platform.Architecture)
}

func (p Platform) fits(d descriptor) bool {
	if d.Platform == nil || d.Platform.OS != p.OS || d.Platform.Architecture != p.Architecture {
		return false
	}
	return p.Variant == "" || d.Platform.Variant == "" || d.Platform.Variant == p.Variant
}
