// Package imagetest signs images the way cosign does, for tests and for the demo, which sign images that they made
// themselves a moment before. No shipped program imports it.
package imagetest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/payload"
)

// MediaType is that of a signature's payload (sigstore/cosign specs/SIGNATURE_SPEC.md).
const MediaType types.MediaType = "application/vnd.dev.cosign.simplesigning.v1+json"

// Annotation of the payload's layer holds the signature, in base64.
const Annotation = "dev.cosignproject.cosign/signature"

// refName names an entry of an OCI layout.
const refName = "org.opencontainers.image.ref.name"

// Signed is a payload and its signature.
type Signed struct{ Payload, Signature []byte }

// NewKey makes an ECDSA P-256 key, as `cosign generate-key-pair` does, and its public half as PEM.
func NewKey() (crypto.Signer, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("imagetest: %w", err)
	}
	public, err := cryptoutils.MarshalPublicKeyToPEM(key.Public())
	if err != nil {
		return nil, nil, fmt.Errorf("imagetest: %w", err)
	}
	return key, public, nil
}

// Payload is the simple-signing payload for the manifest or index with this digest.
func Payload(reference, digest string) ([]byte, error) {
	return json.Marshal(payload.SimpleContainerImage{Critical: payload.Critical{
		Identity: payload.Identity{DockerReference: reference},
		Image:    payload.Image{DockerManifestDigest: digest},
		Type:     payload.CosignSignatureType,
	}})
}

// SignPayload signs any payload.
func SignPayload(key crypto.Signer, content []byte) (Signed, error) {
	signer, err := signature.LoadSigner(key, crypto.SHA256)
	if err != nil {
		return Signed{}, fmt.Errorf("imagetest: %w", err)
	}
	sig, err := signer.SignMessage(bytes.NewReader(content))
	if err != nil {
		return Signed{}, fmt.Errorf("imagetest: %w", err)
	}
	return Signed{Payload: content, Signature: sig}, nil
}

// Manifest makes the image that holds signatures.
func Manifest(signatures ...Signed) (v1.Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, s := range signatures {
		var err error
		img, err = mutate.Append(img, mutate.Addendum{
			Layer:       static.NewLayer(s.Payload, MediaType),
			Annotations: map[string]string{Annotation: base64.StdEncoding.EncodeToString(s.Signature)},
		})
		if err != nil {
			return nil, fmt.Errorf("imagetest: %w", err)
		}
	}
	return img, nil
}

// Tag is where cosign keeps the signatures of a manifest or index.
func Tag(digest string) string { return strings.Replace(digest, "sha256:", "sha256-", 1) + ".sig" }

// Sign signs the manifest or index with this digest and pushes the signature beside it. repository is "host/name"; for a registry
// without TLS give name.Insecure.
func Sign(ctx context.Context, repository, digest string, key crypto.Signer, options ...name.Option) error {
	content, err := Payload(repository, digest)
	if err != nil {
		return fmt.Errorf("imagetest: %w", err)
	}
	signed, err := SignPayload(key, content)
	if err != nil {
		return err
	}
	return Push(ctx, repository, digest, []Signed{signed}, options...)
}

// Push puts signatures, right or wrong, where the signatures of the image with this digest are looked for.
func Push(ctx context.Context, repository, digest string, signatures []Signed, options ...name.Option) error {
	img, err := Manifest(signatures...)
	if err != nil {
		return err
	}
	repo, err := name.NewRepository(repository, options...)
	if err != nil {
		return fmt.Errorf("imagetest: %w", err)
	}
	if err := remote.Write(repo.Tag(Tag(digest)), img, remote.WithContext(ctx)); err != nil {
		return fmt.Errorf("imagetest: push signature of %s: %w", digest, err)
	}
	return nil
}

// AddToLayout adds an image to the OCI layout in dir under a name, and makes the layout when there is none.
func AddToLayout(dir, reference string, img v1.Image) error {
	path, err := openLayout(dir)
	if err != nil {
		return err
	}
	if err := path.AppendImage(img, layout.WithAnnotations(map[string]string{refName: reference})); err != nil {
		return fmt.Errorf("imagetest: %s: %w", dir, err)
	}
	return nil
}

// SignInLayout signs the manifest or index with this digest and adds the signature to the OCI layout in dir.
func SignInLayout(dir, reference, digest string, key crypto.Signer) error {
	content, err := Payload(reference, digest)
	if err != nil {
		return fmt.Errorf("imagetest: %w", err)
	}
	signed, err := SignPayload(key, content)
	if err != nil {
		return err
	}
	img, err := Manifest(signed)
	if err != nil {
		return err
	}
	return AddToLayout(dir, Tag(digest), img)
}

func openLayout(dir string) (layout.Path, error) {
	_, err := os.Stat(filepath.Join(dir, "index.json"))
	if errors.Is(err, fs.ErrNotExist) {
		path, err := layout.Write(dir, empty.Index)
		if err != nil {
			return "", fmt.Errorf("imagetest: %s: %w", dir, err)
		}
		return path, nil
	}
	path, err := layout.FromPath(dir)
	if err != nil {
		return "", fmt.Errorf("imagetest: %s: %w", dir, err)
	}
	return path, nil
}
