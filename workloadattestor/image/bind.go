package image

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

// content is one image that may be what runs. Its manifests share one config, and so one content; each of the indexes
// leads to one of the manifests. Whoever vouches for one of them vouches for the content.
type content struct {
	config    workloadclaim.ConfigDigest
	manifests []workloadclaim.ManifestDigest
	indexes   []workloadclaim.IndexDigest

	// unread is the digest of an entry that may be what runs and could not be read, and why. Such a content has no config and
	// no manifests: only who vouches for one of the indexes vouches for it.
	unread string
	why    error
}

// bound is what was proved about an image by reading documents: one of the contents runs. Where the runtime reports a config's
// or a manifest's digest there is exactly one. Where it reports an index there is one for each image that a runtime could
// start from that index.
type bound struct {
	contents []content
	// odd says that an index has an entry whose platform is spelled in a way of which runtimes differ.
	odd error
}

// unheard tells whether an entry that may run is not known because a source could not be asked.
func (b bound) unheard() bool {
	return slices.ContainsFunc(b.contents, func(c content) bool { return Unknown(c.why) })
}

// Bounds on the work for one image.
const (
	maxRoots      = 512 // entries of one source at which an image may be found
	maxBound      = 64  // manifests, and indexes, of one content
	maxDocuments  = 2048
	maxNested     = 8  // indexes in indexes
	maxCandidates = 64 // entries of one index, and of the indexes in it, that a runtime could start on one platform
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
//
// It also tells whether everything was read, so that asking again could say no more.
func bind(ctx context.Context, sources []source, q question, platform Platform) (bound, bool, error) {
	b := &binder{q: q, platform: platform}
	for _, s := range sources {
		if err := b.search(ctx, s); err != nil {
			return bound{}, false, err
		}
	}
	if len(b.result.contents) > 0 {
		return b.result, len(b.problems) == 0 && !b.result.unheard(), nil
	}
	if len(sources) == 0 {
		return bound{}, false, fmt.Errorf("image: no source for %s: its registry is not listed in registries or does not count in its namespace, and no oci_layouts are configured", q.id)
	}
	none := fmt.Errorf("image: none of %d sources has a manifest for %s", len(sources), q.id)
	return bound{}, false, errors.Join(append([]error{none}, b.problems...)...)
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
		// A tag says nothing more about an image that is known by its own digest, and costs a request.
		if isTag := !strings.HasPrefix(root, "sha256:"); isTag && (b.kind == kindManifest || b.kind == kindIndex) {
			continue
		}
		doc, err := b.fetch(ctx, s, root)
		if err != nil {
			b.problem(err)
			continue
		}
		if _, err := b.visit(ctx, s, doc, nil); err != nil {
			return err
		}
	}
	return nil
}

func (b *binder) fetch(ctx context.Context, s source, ref string) (document, error) {
	if b.fetched++; b.fetched > maxDocuments {
		return document{}, fmt.Errorf("image: more than %d documents to read for one image", maxDocuments)
	}
	return fetchManifest(ctx, s, ref)
}

// path are the indexes that lead to a document, outermost first.
type path []workloadclaim.IndexDigest

func (p path) with(d workloadclaim.IndexDigest) path { return append(slices.Clone(p), d) }

// visit looks for q.id in a document and in what it lists, and tells whether it is there.
func (b *binder) visit(ctx context.Context, s source, doc document, above path) (bool, error) {
	if doc.manifest != nil {
		return b.visitManifest(doc.manifest, above)
	}
	if doc.index.digest.String() == string(b.q.id) {
		return true, b.visitOwnIndex(ctx, s, doc.index, above)
	}
	above = above.with(doc.index.digest)
	if len(above) > maxNested {
		b.problem(fmt.Errorf("image: index %s has indexes in indexes deeper than %d", above[0], maxNested))
		return false, nil
	}
	fits := b.platform.candidates(doc.index.children)
	if found, err := b.visitChildren(ctx, s, fits, above); err != nil || found {
		return found, err
	}
	var rest []descriptor
	for _, child := range doc.index.children {
		if !slices.ContainsFunc(fits, func(d descriptor) bool { return d.Digest == child.Digest }) {
			rest = append(rest, child)
		}
	}
	return b.visitChildren(ctx, s, rest, above)
}

// visitChildren visits those of the children that can be or list the image that runs.
func (b *binder) visitChildren(ctx context.Context, s source, children []descriptor, above path) (bool, error) {
	found := false
	for _, child := range children {
		if _, ok := bareDigest(child.Digest); !ok || !b.worth(child) {
			continue
		}
		doc, err := b.fetch(ctx, s, child.Digest)
		if err != nil {
			b.problem(err)
			continue
		}
		here, err := b.visit(ctx, s, doc, above)
		if err != nil {
			return false, err
		}
		found = found || here
	}
	return found, nil
}

// worth tells whether a child can be or list the image that runs. Once it is known that q.id is a manifest's or an index's
// digest, the child's digest says it.
func (b *binder) worth(child descriptor) bool {
	return b.kind == "" || b.kind == kindConfig || child.Digest == string(b.q.id) || child.MediaType.IsIndex()
}

// visitOwnIndex handles a runtime that reports an index digest. Which of the index's images runs is the runtime's choice, and
// containerd and CRI-O choose differently, so every image that one of them could start is noted.
func (b *binder) visitOwnIndex(ctx context.Context, s source, index *indexDoc, above path) error {
	if err := b.is(kindIndex); err != nil {
		return err
	}
	w := walk{binder: b, source: s}
	w.index(ctx, index, above)
	if len(b.result.contents) == 0 {
		return fmt.Errorf("image: index %s has 0 entries for %s/%s, want exactly one, or more that are all accepted",
			index.digest, b.platform.OS, b.platform.Architecture)
	}
	return nil
}

// walk collects what a runtime could start from an index.
type walk struct {
	*binder
	source source
	seen   int
}

func (w *walk) index(ctx context.Context, index *indexDoc, above path) {
	above = above.with(index.digest)
	for _, child := range w.platform.candidates(index.children) {
		if !plain(child) && w.result.odd == nil {
			w.result.odd = fmt.Errorf("image: index %s has an entry for %s/%s, which runtimes read as another name of a platform: refused",
				index.digest, short(child.Platform.OS), short(child.Platform.Architecture))
		}
		if w.seen++; w.seen > maxCandidates {
			// The index stands for all of its entries that are left out.
			w.unread(index.digest.String(), above, fmt.Errorf("image: index %s leads to more than %d images that could run", above[0], maxCandidates))
			return
		}
		w.child(ctx, child, above)
	}
}

func (w *walk) child(ctx context.Context, d descriptor, above path) {
	if _, ok := bareDigest(d.Digest); !ok {
		w.unread(d.Digest, above, fmt.Errorf("image: index %s has an entry with digest %s, want a sha256 digest", above[len(above)-1], short(d.Digest)))
		return
	}
	doc, err := w.fetch(ctx, w.source, d.Digest)
	switch {
	case err != nil:
		w.unread(d.Digest, above, err)
	case doc.manifest != nil:
		w.add(doc.manifest, above)
	case len(above) >= maxNested:
		w.unread(d.Digest, above, fmt.Errorf("image: index %s has indexes in indexes deeper than %d", above[0], maxNested))
	default:
		w.index(ctx, doc.index, above)
	}
}

// unread notes an entry of which nothing is known but its digest. Another source may know it.
func (b *binder) unread(digest string, above path, why error) {
	read := func(c content) bool {
		return slices.ContainsFunc(c.manifests, func(m workloadclaim.ManifestDigest) bool { return m.String() == digest })
	}
	if slices.ContainsFunc(b.result.contents, read) {
		return
	}
	c := b.content(func(c content) bool { return c.unread == digest }, content{unread: digest, why: why})
	c.lead(above)
}

// visitManifest tells whether m is the image that runs.
func (b *binder) visitManifest(m *manifestDoc, above path) (bool, error) {
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
	b.add(m, above)
	return true, nil
}

// is notes what kind of digest the runtime reported and refuses a second answer.
func (b *binder) is(k kind) error {
	if b.kind != "" && b.kind != k {
		return fmt.Errorf("image: %s is both a %s and a %s: refused", b.q.id, b.kind, k)
	}
	b.kind = k
	return nil
}

// add notes a manifest that may be what runs, and the indexes that lead to it.
func (b *binder) add(m *manifestDoc, above path) {
	c := b.content(func(c content) bool { return c.unread == "" && c.config == m.config }, content{config: m.config})
	if !slices.Contains(c.manifests, m.digest) && len(c.manifests) < maxBound {
		c.manifests = append(c.manifests, m.digest)
	}
	c.lead(above)
	b.result.contents = slices.DeleteFunc(b.result.contents, func(c content) bool { return c.unread == m.digest.String() })
}

// content finds the noted content, or notes a new one. The pointer is good until the next one is noted.
func (b *binder) content(is func(content) bool, fresh content) *content {
	i := slices.IndexFunc(b.result.contents, is)
	if i < 0 {
		b.result.contents = append(b.result.contents, fresh)
		i = len(b.result.contents) - 1
	}
	return &b.result.contents[i]
}

func (c *content) lead(above path) {
	for _, d := range above {
		if !slices.Contains(c.indexes, d) && len(c.indexes) < maxBound {
			c.indexes = append(c.indexes, d)
		}
	}
}

// problem notes why a document could not be read, except "not found": that is the usual answer of a place where an image
// could have been.
func (b *binder) problem(err error) {
	const enough = 8
	if !errors.Is(err, errNotFound) && len(b.problems) < enough {
		b.problems = append(b.problems, err)
	}
}
