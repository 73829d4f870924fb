package assettag

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// PayloadType is the envelope's type of a tag document. The signature covers it, so
// that a signature made for anything else is none for a tag.
const PayloadType = "application/vnd.keelson.asset-tag.v1+json"

// envelope is a DSSE envelope (github.com/secure-systems-lab/dsse, envelope.md 1.0.0) with exactly one
// signature, in canonical JSON.
type envelope struct {
	PayloadType string              `json:"payloadType"`
	Payload     []byte              `json:"payload"` // base64 in JSON
	Signatures  []envelopeSignature `json:"signatures"`
}

type envelopeSignature struct {
	KeyID string `json:"keyid"` // hex SHA-256 of the signer's SubjectPublicKeyInfo
	Sig   []byte `json:"sig"`
}

// preAuth is DSSE's pre-authentication encoding: what is signed.
func preAuth(payload []byte) []byte {
	out := []byte("DSSEv1 " + strconv.Itoa(len(PayloadType)) + " " + PayloadType + " " + strconv.Itoa(len(payload)) + " ")
	return append(out, payload...)
}

// Sign puts a document in a signed envelope. The signer's key is ed25519 or ECDSA P-256.
func Sign(d Document, signer crypto.Signer, rand io.Reader) ([]byte, error) {
	payload, err := d.Marshal()
	if err != nil {
		return nil, err
	}
	id, err := KeyID(signer.Public())
	if err != nil {
		return nil, err
	}
	msg, opts := preAuth(payload), crypto.SignerOpts(crypto.Hash(0))
	if _, ok := signer.Public().(*ecdsa.PublicKey); ok {
		digest := sha256.Sum256(msg)
		msg, opts = digest[:], crypto.SHA256
	}
	sig, err := signer.Sign(rand, msg, opts)
	if err != nil {
		return nil, fmt.Errorf("assettag: sign: %w", err)
	}
	out, err := json.Marshal(envelope{
		PayloadType: PayloadType,
		Payload:     payload,
		Signatures:  []envelopeSignature{{KeyID: id, Sig: sig}},
	})
	if err != nil {
		return nil, fmt.Errorf("assettag: envelope: %w", err)
	}
	if len(out) > MaxDocumentSize {
		return nil, fmt.Errorf("assettag: envelope has %d bytes, more than the %d allowed", len(out), MaxDocumentSize)
	}
	return out, nil
}

// Digest is what goes into the NV index: SHA-256 of the envelope's exact bytes.
func Digest(signed []byte) [DigestSize]byte { return sha256.Sum256(signed) }

// open verifies an envelope and parses the payload that the signature covers.
func open(signed []byte, signers []crypto.PublicKey) (Document, error) {
	var e envelope
	if err := parseCanonical(signed, &e); err != nil {
		return Document{}, refuse("envelope", "the tag's envelope: %v", err)
	}
	if e.PayloadType != PayloadType || len(e.Signatures) != 1 {
		return Document{}, refuse("envelope", "the tag's envelope holds %.80q with %d signatures, wanted %q with one", e.PayloadType, len(e.Signatures), PayloadType)
	}
	if err := checkSignature(e, signers); err != nil {
		return Document{}, err
	}
	d, err := Parse(e.Payload)
	if err != nil {
		return Document{}, refuse("document", "the tag's document: %v", err)
	}
	return d, nil
}

func checkSignature(e envelope, signers []crypto.PublicKey) error {
	sig, msg := e.Signatures[0], preAuth(e.Payload)
	for _, key := range signers {
		id, err := KeyID(key)
		if err != nil {
			return refuse("signer", "a configured signer: %v", err)
		}
		if id != sig.KeyID {
			continue
		}
		ok := false
		switch k := key.(type) {
		case ed25519.PublicKey:
			ok = ed25519.Verify(k, msg, sig.Sig)
		case *ecdsa.PublicKey:
			digest := sha256.Sum256(msg)
			ok = ecdsa.VerifyASN1(k, digest[:], sig.Sig)
		}
		if !ok {
			return refuse("signature", "the tag's signature does not verify with signer %s", id)
		}
		return nil
	}
	return refuse("signer", "the tag is signed by key %.80q, which is not a trusted signer", sig.KeyID)
}

// KeyID names a signer: hex SHA-256 of the key's DER SubjectPublicKeyInfo. It fails for
// keys that may not sign tags.
func KeyID(key crypto.PublicKey) (string, error) {
	switch k := key.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return "", fmt.Errorf("assettag: signer is on curve %s; use ed25519 or ECDSA P-256", k.Params().Name)
		}
	default:
		return "", fmt.Errorf("assettag: signer is a %T; use ed25519 or ECDSA P-256", key)
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "", fmt.Errorf("assettag: signer: %w", err)
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
			return nil, fmt.Errorf("assettag: PEM block %d is a %q, wanted PUBLIC KEY", len(out)+1, block.Type)
		}
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("assettag: PEM block %d: %w", len(out)+1, err)
		}
		if _, err := KeyID(key); err != nil {
			return nil, fmt.Errorf("assettag: PEM block %d: %w", len(out)+1, err)
		}
		out = append(out, key)
	}
	if len(out) == 0 {
		return nil, errors.New("assettag: no PEM public key found")
	}
	return out, nil
}

// ParseSigningKey reads a PKCS #8 private key in a PEM block "PRIVATE KEY", ed25519 or
// ECDSA P-256.
func ParseSigningKey(pemBytes []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(pemBytes)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("assettag: signing key: no PEM block PRIVATE KEY (PKCS #8) found")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("assettag: signing key: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("assettag: signing key: a %T cannot sign", key)
	}
	if _, err := KeyID(signer.Public()); err != nil {
		return nil, err
	}
	return signer, nil
}
