package dsse

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
)

// KeyID names a signer: hex SHA-256 of the key's DER SubjectPublicKeyInfo. It fails for
// keys that may not sign.
func KeyID(key crypto.PublicKey) (string, error) {
	switch k := key.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return "", fmt.Errorf("dsse: signer is on curve %s; use ed25519 or ECDSA P-256", k.Params().Name)
		}
	default:
		return "", fmt.Errorf("dsse: signer is a %T; use ed25519 or ECDSA P-256", key)
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "", fmt.Errorf("dsse: signer: %w", err)
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:]), nil
}

// ParseSigners reads trusted signers: PEM blocks "PUBLIC KEY", ed25519 or ECDSA P-256.
func ParseSigners(pemBytes []byte) ([]crypto.PublicKey, error) {
	var out []crypto.PublicKey
	for rest := pemBytes; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "PUBLIC KEY" {
			return nil, fmt.Errorf("dsse: PEM block %d is a %q, wanted PUBLIC KEY", len(out)+1, block.Type)
		}
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("dsse: PEM block %d: %w", len(out)+1, err)
		}
		if _, err := KeyID(key); err != nil {
			return nil, fmt.Errorf("dsse: PEM block %d: %w", len(out)+1, err)
		}
		out = append(out, key)
	}
	if len(out) == 0 {
		return nil, errors.New("dsse: no PEM public key found")
	}
	return out, nil
}

// ParseSigningKey reads a PKCS #8 private key in a PEM block "PRIVATE KEY", ed25519 or
// ECDSA P-256.
func ParseSigningKey(pemBytes []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(pemBytes)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("dsse: signing key: no PEM block PRIVATE KEY (PKCS #8) found")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("dsse: signing key: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("dsse: signing key: a %T cannot sign", key)
	}
	if _, err := KeyID(signer.Public()); err != nil {
		return nil, err
	}
	return signer, nil
}
