package image

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// maxReferrers bounds the referrers of one subject that are read. Those that look like signatures are read first.
const maxReferrers = 100

// referrers reads a list of referrers (OCI distribution spec 1.1, "Listing Referrers"), an index, and returns their digests. It
// leaves out none by artifactType, because registries and tools list cosign's bundles under several; the manifest says what
// it is. An error beside digests says that there are more which could be signatures.
func referrers(raw []byte) ([]string, error) {
	doc, err := parseDocument(raw)
	if err != nil {
		return nil, err
	}
	if doc.index == nil {
		return nil, errors.New("image: list of referrers is a manifest, want an index")
	}
	children := slices.Clone(doc.index.children)
	slices.SortStableFunc(children, func(a, b descriptor) int { return cmp.Compare(likeness(a), likeness(b)) })
	var out []string
	seen := map[string]bool{}
	for _, child := range children {
		if _, ok := bareDigest(child.Digest); !ok || seen[child.Digest] {
			continue
		}
		if len(out) == maxReferrers {
			if likeness(child) < 2 {
				return out, fmt.Errorf("more than %d of %d referrers could be signatures, the rest is not read", maxReferrers, len(children))
			}
			break
		}
		seen[child.Digest] = true
		out = append(out, child.Digest)
	}
	return out, nil
}

// likeness orders referrers: 0 are signatures by their own word, 1 may be, 2 say that they are something else.
func likeness(d descriptor) int {
	predicate := d.Annotations["dev.sigstore.bundle.predicateType"]
	switch {
	case predicate == signPredicate || strings.HasPrefix(d.ArtifactType, "application/vnd.dev.cosign"):
		return 0
	case predicate != "":
		return 2
	case d.ArtifactType == "" || strings.HasPrefix(d.ArtifactType, bundleMediaType) || strings.HasPrefix(d.ArtifactType, "application/vnd.oci."):
		return 1
	default:
		return 2
	}
}

func ignoreNotFound(err error) error {
	if errors.Is(err, errNotFound) {
		return nil
	}
	return err
}
