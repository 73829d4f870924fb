package imasig

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // names a key, as RFC 5280 (4.2.1.2) has it; proves nothing
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
)

// Bounds of an RSA key, in bits.
const (
	minRSA = 2048
	maxRSA = 8192
)

// maxKeyPEM bounds a key's text in bytes.
const maxKeyPEM = 16 << 10

// Key is a key that may sign files. Make one with ParseKey.
type Key struct {
	public crypto.PublicKey
	ids    []uint32
	id     string
	pem    string
}

// ParseKey reads one PEM block, "PUBLIC KEY" or "CERTIFICATE" (X.509): RSA of 2048 to 8192 bits, or ECDSA on P-256, P-384
// or P-521. A certificate is as good as its key: who signed it and until when it is valid is not looked at, as
// the kernel does not either; a reference set has a validity of its own.
func ParseKey(text []byte) (Key, error) {
	if len(text) > maxKeyPEM {
		return Key{}, fmt.Errorf("imasig: key has %d bytes, more than the %d allowed", len(text), maxKeyPEM)
	}
	block, rest := pem.Decode(text)
	if block == nil || len(bytes.TrimSpace(rest)) > 0 {
		return Key{}, errors.New("imasig: key: wanted one PEM block, and nothing else")
	}
	k := Key{}
	spki := block.Bytes
	switch block.Type {
	case "PUBLIC KEY":
		public, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return Key{}, fmt.Errorf("imasig: key: %w", err)
		}
		k.public = public
	case "CERTIFICATE":
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return Key{}, fmt.Errorf("imasig: certificate: %w", err)
		}
		k.public, spki = c.PublicKey, c.RawSubjectPublicKeyInfo
		if n := len(c.SubjectKeyId); n >= 4 {
			k.ids = append(k.ids, binary.BigEndian.Uint32(c.SubjectKeyId[n-4:]))
		}
	default:
		return Key{}, fmt.Errorf("imasig: PEM block is a %.40q, wanted PUBLIC KEY or CERTIFICATE", block.Type)
	}
	if err := strong(k.public); err != nil {
		return Key{}, err
	}
	own, err := keyID(spki)
	if err != nil {
		return Key{}, err
	}
	if !slices.Contains(k.ids, own) {
		k.ids = append(k.ids, own)
	}
	sum := sha256.Sum256(spki)
	k.id, k.pem = hex.EncodeToString(sum[:]), string(pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes}))
	return k, nil
}

func strong(key crypto.PublicKey) error {
	switch k := key.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < minRSA || n > maxRSA {
			return fmt.Errorf("imasig: RSA key has %d bits, allowed are %d to %d", n, minRSA, maxRSA)
		}
	case *ecdsa.PublicKey:
		if !slices.Contains([]elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()}, k.Curve) {
			return fmt.Errorf("imasig: ECDSA key is on curve %s; use P-256, P-384 or P-521", k.Params().Name)
		}
	default:
		return fmt.Errorf("imasig: key is a %T; use RSA or ECDSA", key)
	}
	return nil
}

// keyID is the end of the key identifier that certificates usually have and that ima-evm-utils computes for a bare
// key: SHA-1 over the BIT STRING of the SubjectPublicKeyInfo (RFC 5280, 4.2.1.2, method 1).
func keyID(spki []byte) (uint32, error) {
	var info struct {
		Algorithm asn1.RawValue
		Key       asn1.BitString
	}
	if rest, err := asn1.Unmarshal(spki, &info); err != nil || len(rest) > 0 {
		return 0, fmt.Errorf("imasig: key: no SubjectPublicKeyInfo: %w", err)
	}
	sum := sha1.Sum(info.Key.Bytes) //nolint:gosec // as above.
	return binary.BigEndian.Uint32(sum[len(sum)-4:]), nil
}

// ID is the hex SHA-256 of the key's SubjectPublicKeyInfo.
func (k Key) ID() string { return k.id }

// PEM is the key or certificate as it was given, without text around it.
func (k Key) PEM() string { return k.pem }

// Named tells whether a signature names this key, so that verifying it may be worth the while.
func (k Key) Named(s Signature) bool { return slices.Contains(k.ids, s.KeyID) }

// Verify tells, by nil, that the key's owner signed the digest: RSA with PKCS #1 v1.5, or ECDSA (asymmetric_verify).
func (k Key) Verify(s Signature, d Digest) error {
	signed, hash, err := s.signed(d)
	if err != nil {
		return err
	}
	if !k.Named(s) {
		return fmt.Errorf("imasig: the signature names key %08x, this is another", s.KeyID)
	}
	switch key := k.public.(type) {
	case *rsa.PublicKey:
		if rsa.VerifyPKCS1v15(key, hash, signed, s.value) == nil {
			return nil
		}
	case *ecdsa.PublicKey:
		if ecdsa.VerifyASN1(key, signed, s.value) {
			return nil
		}
	}
	return fmt.Errorf("imasig: the signature that names key %08x is not one of that key over this %s digest", s.KeyID, d.Alg)
}
