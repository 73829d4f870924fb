package workloadclaim

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// Three kinds of digest name an image, and all three look alike: "sha256:" and 64 hex digits. Comparing one kind
// with another is how a signature or a pin comes to vouch for something else, so each kind is a Go type of its
// own. The field names differ on purpose: it makes the types inconvertible as well as incomparable.

// ManifestDigest is the SHA-256 of a platform's image manifest (OCI image spec, manifest.md).
type ManifestDigest struct{ manifest digest }

// ConfigDigest is the SHA-256 of an image's config (OCI image spec, config.md): its "image ID".
type ConfigDigest struct{ config digest }

// IndexDigest is the SHA-256 of an image index (OCI image spec, image-index.md): what a multi-platform tag names.
type IndexDigest struct{ index digest }

// ParseManifestDigest reads "sha256:" and 64 lower-case hex digits.
func ParseManifestDigest(s string) (ManifestDigest, error) {
	d, err := parseDigest(s)
	return ManifestDigest{manifest: d}, err
}

// ParseConfigDigest reads "sha256:" and 64 lower-case hex digits.
func ParseConfigDigest(s string) (ConfigDigest, error) {
	d, err := parseDigest(s)
	return ConfigDigest{config: d}, err
}

// ParseIndexDigest reads "sha256:" and 64 lower-case hex digits.
func ParseIndexDigest(s string) (IndexDigest, error) {
	d, err := parseDigest(s)
	return IndexDigest{index: d}, err
}

// ManifestDigestOf hashes a manifest's bytes.
func ManifestDigestOf(manifest []byte) ManifestDigest {
	return ManifestDigest{manifest: digestOf(manifest)}
}

// ConfigDigestOf hashes an image config's bytes.
func ConfigDigestOf(config []byte) ConfigDigest { return ConfigDigest{config: digestOf(config)} }

// IndexDigestOf hashes an image index's bytes.
func IndexDigestOf(index []byte) IndexDigest { return IndexDigest{index: digestOf(index)} }

// String is "sha256:<hex>", or empty for the zero value.
func (d ManifestDigest) String() string { return d.manifest.String() }

// String is "sha256:<hex>", or empty for the zero value.
func (d ConfigDigest) String() string { return d.config.String() }

// String is "sha256:<hex>", or empty for the zero value.
func (d IndexDigest) String() string { return d.index.String() }

// IsZero tells whether d names nothing.
func (d ManifestDigest) IsZero() bool { return !d.manifest.set }

// IsZero tells whether d names nothing.
func (d ConfigDigest) IsZero() bool { return !d.config.set }

// IsZero tells whether d names nothing.
func (d IndexDigest) IsZero() bool { return !d.index.set }

type digest struct {
	set bool
	sum [sha256.Size]byte
}

func digestOf(b []byte) digest { return digest{set: true, sum: sha256.Sum256(b)} }

func (d digest) String() string {
	if !d.set {
		return ""
	}
	return algorithm + hex.EncodeToString(d.sum[:])
}

const algorithm = "sha256:"

// parseDigest accepts one spelling only, so that equal digests are equal strings. OCI also knows sha512; nothing
// that Keelson reads uses it, and an unknown algorithm must not pass for a known one.
func parseDigest(s string) (digest, error) {
	digits, ok := strings.CutPrefix(s, algorithm)
	if !ok {
		return digest{}, fmt.Errorf("workloadclaim: digest %s: want it to start with %q", quoteShort(s), algorithm)
	}
	if len(digits) != hex.EncodedLen(sha256.Size) {
		return digest{}, fmt.Errorf("workloadclaim: digest %s: want 64 hex digits, got %d characters", quoteShort(s), len(digits))
	}
	if strings.ToLower(digits) != digits {
		return digest{}, fmt.Errorf("workloadclaim: digest %s: want lower-case hex digits", quoteShort(s))
	}
	d := digest{set: true}
	if _, err := hex.Decode(d.sum[:], []byte(digits)); err != nil {
		return digest{}, fmt.Errorf("workloadclaim: digest %s: %w", quoteShort(s), err)
	}
	return d, nil
}

// quoteShort quotes foreign text for an error and cuts it, so that a peer cannot flood a log.
func quoteShort(s string) string {
	const limit = 96
	if len(s) > limit {
		return fmt.Sprintf("%q…", s[:limit])
	}
	return fmt.Sprintf("%q", s)
}
