package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// errNotFound is the answer of a source that works and does not have what was asked. Every other error means that
// nothing is known.
var errNotFound = errors.New("not found")

// ErrUnheard means that a registry could not be asked: it was away or too slow, it wants credentials, or it asked to be asked
// later. Such an error proves nothing about an image.
var ErrUnheard = errors.New("not heard")

// Unknown tells whether an error of Check leaves open what the image is, because a registry could not be asked, or there was no
// time left to judge.
func Unknown(err error) bool {
	return errors.Is(err, ErrUnheard) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

// unheard marks an error as ErrUnheard without changing its text.
type unheard struct{ error }

func (u unheard) Unwrap() []error { return []error{u.error, ErrUnheard} }

// maxBlob bounds a signature payload or a bundle. Simple-signing payloads are a few hundred bytes, bundles with certificates,
// the log's proof and timestamps about ten thousand.
const maxBlob = 256 << 10

// source is one place that holds manifests and signatures: a repository of a registry, or an OCI layout.
type source interface {
	// describe names the source in errors.
	describe() string
	// roots lists tags and digests of this source at which the image may be found.
	roots(ctx context.Context, q question) ([]string, error)
	// signatures lists tags and digests of manifests of this source that may hold signatures for a subject, the digest of a
	// manifest or index.
	signatures(ctx context.Context, subject string) ([]string, error)
	// manifest fetches a manifest or index by tag or digest.
	manifest(ctx context.Context, ref string) ([]byte, error)
	// blob fetches a small blob by digest.
	blob(ctx context.Context, digest string) ([]byte, error)
}

// fetchManifest fetches from s and, when ref is a digest, checks that the bytes have it.
func fetchManifest(ctx context.Context, s source, ref string) (document, error) {
	raw, err := s.manifest(ctx, ref)
	if err != nil {
		return document{}, fmt.Errorf("image: %s: manifest %s: %w", s.describe(), short(ref), err)
	}
	if err := checkDigest(ref, raw); err != nil {
		return document{}, fmt.Errorf("image: %s: %w", s.describe(), err)
	}
	return parseDocument(raw)
}

// fetchBlob fetches from s and checks the digest.
func fetchBlob(ctx context.Context, s source, digest string) ([]byte, error) {
	if _, ok := bareDigest(digest); !ok {
		return nil, fmt.Errorf("image: %s: blob %s: not a sha256 digest", s.describe(), short(digest))
	}
	raw, err := s.blob(ctx, digest)
	if err != nil {
		return nil, fmt.Errorf("image: %s: blob %s: %w", s.describe(), digest, err)
	}
	if len(raw) > maxBlob {
		return nil, fmt.Errorf("image: %s: blob %s has %d bytes or more, the limit is %d", s.describe(), digest, len(raw), maxBlob)
	}
	if err := checkDigest(digest, raw); err != nil {
		return nil, fmt.Errorf("image: %s: %w", s.describe(), err)
	}
	return raw, nil
}

// checkDigest holds raw against ref if ref is a digest; a tag promises nothing.
func checkDigest(ref string, raw []byte) error {
	if !strings.HasPrefix(ref, "sha256:") {
		return nil
	}
	sum := sha256.Sum256(raw)
	if got := "sha256:" + hex.EncodeToString(sum[:]); got != ref {
		return fmt.Errorf("content asked as %s has digest %s", short(ref), got)
	}
	return nil
}
