// Package nodeclaim is the vocabulary of node attestation: hash algorithms, PCR
// selections, EK hashes, refusals and the claims that a successful appraisal yields.
//
// It holds verified facts and the words for them, and nothing that could verify
// anything: it parses no evidence, opens no device and knows no policy. Everything
// else in nodeattestor builds on it, so it depends on the standard library alone.
package nodeclaim

import (
	"crypto"
	_ "crypto/sha1" //nolint:gosec // TPM SHA-1 banks exist; policy flags them, see HashAlg.Weak.
	_ "crypto/sha256"
	_ "crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"slices"
)

// HashAlg is a TPM_ALG_ID that names a hash (TCG Algorithm Registry, table 3).
type HashAlg uint16

// The hashes that a PCR bank, an AK scheme or a log digest may use.
const (
	SHA1   HashAlg = 0x0004
	SHA256 HashAlg = 0x000B
	SHA384 HashAlg = 0x000C
	SHA512 HashAlg = 0x000D
)

var hashAlgs = []struct {
	alg  HashAlg
	name string
	hash crypto.Hash
}{
	{SHA1, "sha1", crypto.SHA1},
	{SHA256, "sha256", crypto.SHA256},
	{SHA384, "sha384", crypto.SHA384},
	{SHA512, "sha512", crypto.SHA512},
}

// HashAlgs lists every known algorithm, weakest first.
func HashAlgs() []HashAlg {
	out := make([]HashAlg, len(hashAlgs))
	for i, h := range hashAlgs {
		out[i] = h.alg
	}
	return out
}

// ParseHashAlg reads the lower-case name that String writes ("sha256").
func ParseHashAlg(name string) (HashAlg, error) {
	for _, h := range hashAlgs {
		if h.name == name {
			return h.alg, nil
		}
	}
	return 0, fmt.Errorf("nodeclaim: hash algorithm %q is unknown; use sha1, sha256, sha384 or sha512", name)
}

// Valid reports whether the algorithm is one of the constants above.
func (a HashAlg) Valid() bool { return a.Hash() != 0 }

// Weak reports whether a bank of this algorithm can only be accepted as weak
// evidence: SHA-1 collisions are practical.
func (a HashAlg) Weak() bool { return a == SHA1 }

// Hash is the standard library's name for the algorithm, or 0 when it is unknown.
func (a HashAlg) Hash() crypto.Hash {
	for _, h := range hashAlgs {
		if h.alg == a {
			return h.hash
		}
	}
	return 0
}

// New returns a fresh hash. It panics for an algorithm that is not Valid.
func (a HashAlg) New() hash.Hash {
	h := a.Hash()
	if h == 0 {
		panic(fmt.Sprintf("nodeclaim: hash algorithm 0x%04x has no implementation", uint16(a)))
	}
	return h.New()
}

// Size is the digest length in bytes, 0 when the algorithm is not Valid.
func (a HashAlg) Size() int {
	h := a.Hash()
	if h == 0 {
		return 0
	}
	return h.Size()
}

// String is the lower-case name, or the number in hex for an unknown algorithm.
func (a HashAlg) String() string {
	for _, h := range hashAlgs {
		if h.alg == a {
			return h.name
		}
	}
	return fmt.Sprintf("0x%04x", uint16(a))
}

// EKHash identifies a TPM's endorsement key: SHA-256 over the DER encoding of its
// SubjectPublicKeyInfo (RFC 5280, 4.1.2.7). One TPM has one for each EK type.
type EKHash [32]byte

// ParseEKHash reads 64 lower-case hex digits.
func ParseEKHash(s string) (EKHash, error) {
	var h EKHash
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(h) || hex.EncodeToString(b) != s {
		return h, fmt.Errorf("nodeclaim: EK hash %.80q is not 64 lower-case hex digits", s)
	}
	copy(h[:], b)
	return h, nil
}

// String is the hash in 64 lower-case hex digits.
func (h EKHash) String() string { return hex.EncodeToString(h[:]) }

// IsZero reports whether no hash was ever set.
func (h EKHash) IsZero() bool { return h == EKHash{} }

// MaxPCR is the highest PCR index of a PC client TPM (TCG PC Client Platform TPM
// Profile, 4.6.1).
const MaxPCR = 23

// Selection names PCRs of one bank.
type Selection struct {
	Bank HashAlg
	PCRs []int // ascending, without repeats, each 0 to MaxPCR
}

// Validate reports the first rule that the selection breaks.
func (s Selection) Validate() error {
	if !s.Bank.Valid() {
		return fmt.Errorf("nodeclaim: PCR selection: bank %s is unknown", s.Bank)
	}
	if len(s.PCRs) == 0 {
		return fmt.Errorf("nodeclaim: PCR selection: bank %s selects no PCR", s.Bank)
	}
	for i, p := range s.PCRs {
		if p < 0 || p > MaxPCR {
			return fmt.Errorf("nodeclaim: PCR selection: bank %s: index %d is outside 0 to %d", s.Bank, p, MaxPCR)
		}
		if i > 0 && p <= s.PCRs[i-1] {
			return fmt.Errorf("nodeclaim: PCR selection: bank %s: indices are not ascending at %d", s.Bank, p)
		}
	}
	return nil
}

// Equal reports whether both name the same PCRs of the same bank.
func (s Selection) Equal(o Selection) bool { return s.Bank == o.Bank && slices.Equal(s.PCRs, o.PCRs) }
