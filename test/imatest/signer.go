// Package imatest makes IMA signatures for tests.
package imatest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1" // names a key
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"testing"
)

// Signer signs files with an ECDSA key on P-256, as ima-evm-utils would.
type Signer struct{ key *ecdsa.PrivateKey }

// NewSigner has a new key.
func NewSigner(t testing.TB) Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return Signer{key}
}

// PEM is the public key.
func (s Signer) PEM() []byte {
	der, err := x509.MarshalPKIXPublicKey(&s.key.PublicKey)
	if err != nil {
		panic(err) // a key on P-256 is always written
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// Sign is a value of security.ima over a SHA-256 digest: kind 3 for a file or 6 for an fs-verity digest, version 2
// for the digest itself or 3 for struct ima_file_id (Linux security/integrity/integrity.h).
func (s Signer) Sign(t testing.TB, kind, version byte, digest []byte) []byte {
	t.Helper()
	const hashSHA256 = 4
	signed := digest
	if version == 3 {
		id := sha256.Sum256(append([]byte{kind, hashSHA256}, digest...))
		signed = id[:]
	}
	value, err := ecdsa.SignASN1(rand.Reader, s.key, signed)
	if err != nil {
		t.Fatal(err)
	}
	point, err := s.key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	id := sha1.Sum(point)
	out := append([]byte{kind, version, hashSHA256}, id[16:]...)
	return append(binary.BigEndian.AppendUint16(out, uint16(len(value))), value...)
}
