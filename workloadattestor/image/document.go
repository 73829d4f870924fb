package image

import (
	"errors"
	"fmt"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

// Limits on foreign documents. Manifests and indexes of real images are a few KiB, and have at most a few hundred layers
// or entries.
const (
	maxDocument = 4 << 20
	maxChildren = 4096 // descriptors in one index, layers in one manifest
)

// document is a parsed manifest or index: exactly one of the two pointers is set.
type document struct {
	manifest *manifestDoc
	index    *indexDoc
}

// manifestDoc is an image manifest (OCI image spec, manifest.md; Docker image manifest v2 schema 2).
type manifestDoc struct {
	digest workloadclaim.ManifestDigest
	config workloadclaim.ConfigDigest
	layers []descriptor

	subject string // the digest of what it refers to (OCI image spec 1.1, manifest.md, subject), "" for none
}

// indexDoc is an image index (OCI image spec, image-index.md; Docker manifest list v2).
type indexDoc struct {
	digest   workloadclaim.IndexDigest
	children []descriptor
}

// descriptor is OCI image spec, descriptor.md, as far as it is needed here.
type descriptor struct {
	MediaType    types.MediaType   `json:"mediaType"`
	ArtifactType string            `json:"artifactType"`
	Digest       string            `json:"digest"`
	Size         int64             `json:"size"`
	Annotations  map[string]string `json:"annotations"`
	Platform     *entryPlatform    `json:"platform"`
}

// entryPlatform is the platform of an index's entry (OCI image spec, image-index.md; features: Docker manifest list v2).
type entryPlatform struct {
	Architecture string   `json:"architecture"`
	OS           string   `json:"os"`
	OSVersion    string   `json:"os.version"`
	OSFeatures   []string `json:"os.features"`
	Variant      string   `json:"variant"`
	Features     []string `json:"features"`
}

type rawDocument struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     types.MediaType `json:"mediaType"`
	Config        *descriptor     `json:"config"`
	Subject       *descriptor     `json:"subject"`
	Layers        []descriptor    `json:"layers"`
	Manifests     []descriptor    `json:"manifests"`
}

// configKeys are keys that an image config has and neither a manifest nor an index may have. Bytes that are valid
// as both would let a config's digest be read as a manifest's, with a "config" of the attacker's choice. rootfs is
// the one that no runnable image config can do without.
var configKeys = []string{"rootfs", "architecture", "os", "history"}

// parseDocument tells a manifest from an index by its content; the media type, where it is given, must agree, and
// what could be either is refused (as containerd does since CVE-2021-41190).
func parseDocument(raw []byte) (document, error) {
	if len(raw) > maxDocument {
		return document{}, fmt.Errorf("image: manifest of %d bytes, the limit is %d", len(raw), maxDocument)
	}
	var doc rawDocument
	keys, err := decodeStrict(raw, &doc)
	if err != nil {
		return document{}, fmt.Errorf("image: manifest: %w", err)
	}
	for _, k := range configKeys {
		if keys[k] {
			return document{}, fmt.Errorf("image: manifest has the key %q of an image config: refused, since one digest could be read as two things", k)
		}
	}
	if doc.SchemaVersion != 2 {
		return document{}, fmt.Errorf("image: manifest has schemaVersion %d, want 2", doc.SchemaVersion)
	}
	isManifest, isIndex := keys["config"] || keys["layers"], keys["manifests"]
	switch {
	case isManifest && isIndex:
		return document{}, errors.New("image: document is both a manifest and an index")
	case isIndex:
		return parseIndex(raw, doc)
	case isManifest:
		return parseManifest(raw, doc)
	default:
		return document{}, errors.New("image: document is neither a manifest nor an index")
	}
}

func parseManifest(raw []byte, doc rawDocument) (document, error) {
	if doc.MediaType != "" && !doc.MediaType.IsImage() {
		return document{}, fmt.Errorf("image: manifest says media type %s", short(string(doc.MediaType)))
	}
	if doc.Config == nil {
		return document{}, errors.New("image: manifest has no config")
	}
	if len(doc.Layers) > maxChildren {
		return document{}, fmt.Errorf("image: manifest has %d layers, the limit is %d", len(doc.Layers), maxChildren)
	}
	config, err := workloadclaim.ParseConfigDigest(doc.Config.Digest)
	if err != nil {
		return document{}, fmt.Errorf("image: manifest's config: %w", err)
	}
	m := &manifestDoc{digest: workloadclaim.ManifestDigestOf(raw), config: config, layers: doc.Layers}
	if doc.Subject != nil {
		m.subject = doc.Subject.Digest
	}
	return document{manifest: m}, nil
}

func parseIndex(raw []byte, doc rawDocument) (document, error) {
	if doc.MediaType != "" && !doc.MediaType.IsIndex() {
		return document{}, fmt.Errorf("image: index says media type %s", short(string(doc.MediaType)))
	}
	if len(doc.Manifests) > maxChildren {
		return document{}, fmt.Errorf("image: index lists %d manifests, the limit is %d", len(doc.Manifests), maxChildren)
	}
	return document{index: &indexDoc{digest: workloadclaim.IndexDigestOf(raw), children: doc.Manifests}}, nil
}
