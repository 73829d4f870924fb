package image

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/sigstore/sigstore-go/pkg/bundle"
)

// Formats of signatures, and the media types of the layers that hold them. Cosign up to version 2 writes simple-signing payloads
// (sigstore/cosign specs/SIGNATURE_SPEC.md), version 3 Sigstore bundles (sigstore/protobuf-specs, sigstore_bundle.proto).
const (
	FormatSimpleSigning = "cosign-simple-signing"
	FormatBundle        = "sigstore-bundle"

	// bundleMediaType is the start of "…+json;version=0.2" and of "….v0.3+json".
	bundleMediaType = "application/vnd.dev.sigstore.bundle"

	payloadMediaType = types.MediaType("application/vnd.dev.cosign.simplesigning.v1+json")
)

const (
	signatureAnnotation = "dev.cosignproject.cosign/signature"
	payloadType         = "cosign container image signature"

	maxSignatures     = 1000    // of one image that are read, as cosign does
	maxSignatureSpace = 8 << 20 // bytes of them
	maxSignatureBytes = 4096    // RSA-16384 is 2 KiB
)

// signed is a signature with what it signs, both unverified: anybody who may push to a repository can put one there. It is
// either a payload with its signature, or a bundle.
type signed struct {
	payload   []byte
	signature []byte
	bundle    *bundle.Bundle

	// certified is a payload's signature with a certificate and its witnesses; nil for one by a key. uncertified is what is wrong
	// with those.
	certified   *bundle.Bundle
	uncertified error
}

func (s signed) format() string {
	if s.bundle != nil {
		return FormatBundle
	}
	return FormatSimpleSigning
}

// signatureTag is where cosign keeps the signatures of the manifest or index with this digest.
func signatureTag(digest string) string {
	return strings.Replace(digest, "sha256:", "sha256-", 1) + ".sig"
}

// collector reads the signatures of one image, within the limits on them.
type collector struct {
	found    []signed
	problems []error
	seen     map[string]bool
	space    int
}

// collect reads the signatures for one subject (the digest of a manifest or an index) from a source. What it cannot read is
// a problem and does not hide what another source has.
func (c *collector) collect(ctx context.Context, s source, subject string) {
	places, err := s.signatures(ctx, subject)
	if err != nil && !errors.Is(err, errNotFound) {
		c.problem(err)
	}
	for _, place := range places {
		doc, err := fetchManifest(ctx, s, place)
		switch {
		case errors.Is(err, errNotFound):
		case err != nil:
			c.problem(err)
		case doc.manifest == nil:
			c.problem(fmt.Errorf("image: %s: %s is an index, want a manifest of signatures", s.describe(), short(place)))
		default:
			c.layers(ctx, s, doc.manifest)
		}
	}
}

func (c *collector) layers(ctx context.Context, s source, m *manifestDoc) {
	for _, layer := range m.layers {
		simple, bundled := layer.MediaType == payloadMediaType, strings.HasPrefix(string(layer.MediaType), bundleMediaType)
		id := layer.Digest + layer.Annotations[signatureAnnotation]
		if !simple && !bundled || c.seen[id] {
			continue // an artifact of another kind, or the same signature again
		}
		if len(c.found) >= maxSignatures || c.space > maxSignatureSpace {
			c.problem(fmt.Errorf("image: %s: more than %d signatures or %d bytes of them, the rest is not read", s.describe(), maxSignatures, maxSignatureSpace))
			return
		}
		one, size, err := readSignature(ctx, s, layer, simple)
		if err != nil {
			c.problem(err)
			continue
		}
		if c.seen == nil {
			c.seen = map[string]bool{}
		}
		c.seen[id] = true
		c.space += size
		c.found = append(c.found, one)
	}
}

func (c *collector) problem(err error) {
	const enough = 16
	if len(c.problems) < enough {
		c.problems = append(c.problems, err)
	}
}

func readSignature(ctx context.Context, s source, layer descriptor, simple bool) (signed, int, error) {
	var signature []byte
	if simple {
		var err error
		if signature, err = annotatedSignature(layer); err != nil {
			return signed{}, 0, fmt.Errorf("image: %s: %w", s.describe(), err)
		}
	}
	content, err := fetchBlob(ctx, s, layer.Digest)
	if err != nil {
		return signed{}, 0, err
	}
	if simple {
		// A certificate that cannot be read does not spoil a signature by a key.
		one := signed{payload: content, signature: signature}
		one.certified, one.uncertified = certified(layer, content, signature)
		return one, len(content), nil
	}
	b, err := parseBundle(content)
	if err != nil {
		return signed{}, 0, fmt.Errorf("image: %s: blob %s: %w", s.describe(), short(layer.Digest), err)
	}
	return signed{bundle: b}, len(content), nil
}

func annotatedSignature(layer descriptor) ([]byte, error) {
	text := layer.Annotations[signatureAnnotation]
	if len(text) > maxSignatureBytes {
		return nil, fmt.Errorf("signature of %d characters, the limit is %d", len(text), maxSignatureBytes)
	}
	signature, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(signature) == 0 {
		return nil, fmt.Errorf("annotation %s is not a base64 signature", signatureAnnotation)
	}
	return signature, nil
}

// parseBundle reads a Sigstore bundle. It says nothing about the signature in it.
func parseBundle(raw []byte) (*bundle.Bundle, error) {
	if len(raw) > maxBlob {
		return nil, fmt.Errorf("image: bundle of %d bytes, the limit is %d", len(raw), maxBlob)
	}
	if _, err := decodeStrict(raw, &json.RawMessage{}); err != nil {
		return nil, fmt.Errorf("image: bundle: %w", err)
	}
	b := &bundle.Bundle{}
	if err := b.UnmarshalJSON(bytes.TrimSpace(raw)); err != nil {
		return nil, fmt.Errorf("image: bundle: %w", err)
	}
	return b, nil
}

// simpleSigning is the payload (containers/image docs/containers-signature.5.md, "json data format", with cosign's
// type). The docker-reference is what the signer called the image; it is no fact about what runs here.
type simpleSigning struct {
	Critical struct {
		Identity struct {
			DockerReference string `json:"docker-reference"`
		} `json:"identity"`
		Image struct {
			DockerManifestDigest string `json:"docker-manifest-digest"`
		} `json:"image"`
		Type string `json:"type"`
	} `json:"critical"`
	Optional map[string]json.RawMessage `json:"optional"`
}

// parsePayload returns the digest that a payload vouches for, "sha256:<hex>" of a manifest or of an index. Only bytes
// whose signature was verified are given to it. The type is checked so that a key that signs other things too does
// not vouch for images by accident.
func parsePayload(raw []byte) (string, error) {
	if len(raw) > maxBlob {
		return "", fmt.Errorf("image: signature payload of %d bytes, the limit is %d", len(raw), maxBlob)
	}
	var p simpleSigning
	if _, err := decodeStrict(raw, &p); err != nil {
		return "", fmt.Errorf("image: signature payload: %w", err)
	}
	if p.Critical.Type != payloadType {
		return "", fmt.Errorf("image: signature payload has type %s, want %q", short(p.Critical.Type), payloadType)
	}
	digest := p.Critical.Image.DockerManifestDigest
	if _, ok := bareDigest(digest); !ok || !strings.HasPrefix(digest, "sha256:") {
		return "", fmt.Errorf("image: signature payload names digest %s, want a lower-case sha256 digest", short(digest))
	}
	return digest, nil
}
