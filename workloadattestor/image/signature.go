package image

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Cosign keeps an image's signatures in a manifest beside the image, tagged by the image's digest; each layer is one
// signed payload with its signature as an annotation (sigstore/cosign specs/SIGNATURE_SPEC.md).
const payloadMediaType types.MediaType = "application/vnd.dev.cosign.simplesigning.v1+json"

const (
	signatureAnnotation = "dev.cosignproject.cosign/signature"
	payloadType         = "cosign container image signature"

	maxSignatures     = 32   // layers of one signature manifest that are read
	maxSignatureBytes = 4096 // RSA-16384 is 2 KiB
)

// signed is a payload with a signature, both unverified: anybody who may push to a repository can put one there.
type signed struct {
	payload   []byte
	signature []byte
}

// signatureTag is where cosign keeps the signatures of the manifest or index with this digest.
func signatureTag(digest string) string {
	return strings.Replace(digest, "sha256:", "sha256-", 1) + ".sig"
}

// collectSignatures reads the signatures for all subjects (digests of manifests and indexes) from all sources. What
// it cannot read is returned as problems and does not hide what another source has.
func collectSignatures(ctx context.Context, sources []source, subjects []string) ([]signed, []error) {
	var out []signed
	var problems []error
	for _, s := range sources {
		for _, subject := range subjects {
			found, err := readSignatures(ctx, s, subject)
			if err != nil && !errors.Is(err, errNotFound) {
				problems = append(problems, err)
			}
			out = append(out, found...)
		}
	}
	return out, problems
}

func readSignatures(ctx context.Context, s source, subject string) ([]signed, error) {
	doc, err := fetchManifest(ctx, s, signatureTag(subject))
	if err != nil {
		return nil, err
	}
	if doc.manifest == nil {
		return nil, fmt.Errorf("image: %s: %s is an index, want a manifest of signatures", s.describe(), signatureTag(subject))
	}
	if len(doc.manifest.layers) > maxSignatures {
		return nil, fmt.Errorf("image: %s: %d signatures for %s, the limit is %d", s.describe(), len(doc.manifest.layers), subject, maxSignatures)
	}
	var out []signed
	var problems []error
	for _, layer := range doc.manifest.layers {
		one, err := readSignature(ctx, s, layer)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		out = append(out, one)
	}
	return out, errors.Join(problems...)
}

func readSignature(ctx context.Context, s source, layer descriptor) (signed, error) {
	if layer.MediaType != payloadMediaType {
		return signed{}, fmt.Errorf("image: %s: signature payload has media type %s, want %s", s.describe(), short(string(layer.MediaType)), payloadMediaType)
	}
	text := layer.Annotations[signatureAnnotation]
	if len(text) > maxSignatureBytes {
		return signed{}, fmt.Errorf("image: %s: signature of %d characters, the limit is %d", s.describe(), len(text), maxSignatureBytes)
	}
	signature, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(signature) == 0 {
		return signed{}, fmt.Errorf("image: %s: annotation %s is not a base64 signature", s.describe(), signatureAnnotation)
	}
	payload, err := fetchBlob(ctx, s, layer.Digest)
	if err != nil {
		return signed{}, err
	}
	return signed{payload: payload, signature: signature}, nil
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
