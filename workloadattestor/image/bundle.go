package image

import (
	"errors"
	"fmt"
	"time"

	in_toto "github.com/in-toto/attestation/go/v1"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/sigstore/sigstore/pkg/signature"
)

// signPredicate is the predicate type with which cosign 3 says "this image is signed" (sigstore/cosign pkg/types). Other
// statements about an image, such as provenance or the findings of a scan, do not accept it.
const signPredicate = "https://sigstore.dev/cosign/sign/v1"

// maxSubjects bounds the images that one statement names.
const maxSubjects = 64

// statementSubjects returns the digests, "sha256:<hex>", for which a verified statement vouches.
func statementSubjects(s *in_toto.Statement) ([]string, error) {
	if s == nil {
		return nil, errors.New("bundle signs no statement, want a DSSE envelope with an in-toto statement")
	}
	if s.GetPredicateType() != signPredicate {
		return nil, fmt.Errorf("statement has predicate type %s, want %q", short(s.GetPredicateType()), signPredicate)
	}
	if n := len(s.GetSubject()); n == 0 || n > maxSubjects {
		return nil, fmt.Errorf("statement names %d subjects, want 1 to %d", n, maxSubjects)
	}
	var out []string
	for _, subject := range s.GetSubject() {
		digest := "sha256:" + subject.GetDigest()["sha256"]
		if _, ok := bareDigest(digest); !ok {
			return nil, fmt.Errorf("statement names digest %s, want a lower-case sha256 digest", short(digest))
		}
		out = append(out, digest)
	}
	return out, nil
}

// keyBundles verifies bundles by one key. A key has no end and needs no witness of when it was used, so neither the transparency
// log nor timestamps are asked for.
func keyBundles(key signature.Verifier) (*verify.Verifier, error) {
	material := root.NewTrustedPublicKeyMaterial(func(string) (root.TimeConstrainedVerifier, error) { return lasting{key}, nil })
	return verify.NewVerifier(material, verify.WithNoObserverTimestamps())
}

// lasting is a key that is good at any time.
type lasting struct{ signature.Verifier }

// ValidAtTime is always true.
func (lasting) ValidAtTime(time.Time) bool { return true }
