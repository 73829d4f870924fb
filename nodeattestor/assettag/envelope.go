package assettag

import (
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/keelson-project/keelson/nodeattestor/dsse"
)

// PayloadType is the envelope's type of a tag document. The signature covers it, so
// that a signature made for anything else is none for a tag.
const PayloadType = "application/vnd.keelson.asset-tag.v1+json"

// Sign puts a document in a signed envelope (package dsse). The signer's key is ed25519 or ECDSA P-256.
func Sign(d Document, signer crypto.Signer, rand io.Reader) ([]byte, error) {
	payload, err := d.Marshal()
	if err != nil {
		return nil, err
	}
	out, err := dsse.Sign(PayloadType, payload, signer, rand)
	if err != nil {
		return nil, fmt.Errorf("assettag: %w", err)
	}
	if len(out) > MaxDocumentSize {
		return nil, fmt.Errorf("assettag: envelope has %d bytes, more than the %d allowed", len(out), MaxDocumentSize)
	}
	return out, nil
}

// Digest is what goes into the NV index: SHA-256 of the envelope's exact bytes.
func Digest(signed []byte) [DigestSize]byte { return sha256.Sum256(signed) }

// Open reads a document that one of the signers signed. That says who issued the tag, and
// nothing about any TPM: only [Verify] makes a tag something to decide by.
func Open(signed []byte, signers []crypto.PublicKey) (Document, error) {
	if len(signed) > MaxDocumentSize {
		return Document{}, refuse("size", "the tag document has %d bytes, more than the %d allowed", len(signed), MaxDocumentSize)
	}
	return open(signed, signers)
}

// Unverified reads what an envelope claims to say and who it claims signed it, to show it
// to a person. Anybody may have made it.
func Unverified(signed []byte) (d Document, keyID string, err error) {
	if len(signed) > MaxDocumentSize {
		return Document{}, "", fmt.Errorf("assettag: envelope has %d bytes, more than the %d allowed", len(signed), MaxDocumentSize)
	}
	payload, keyID, err := dsse.Unverified(PayloadType, signed)
	if err != nil {
		return Document{}, "", fmt.Errorf("assettag: %w", err)
	}
	d, err = Parse(payload)
	return d, keyID, err
}

// open verifies an envelope and parses the payload that the signature covers.
func open(signed []byte, signers []crypto.PublicKey) (Document, error) {
	payload, _, err := dsse.Open(PayloadType, signed, signers)
	if err != nil {
		bad := &dsse.Error{Fault: dsse.BadEnvelope, Reason: err.Error()}
		errors.As(err, &bad)
		return Document{}, refuse(string(bad.Fault), "the tag's envelope: %s", bad.Reason)
	}
	d, err := Parse(payload)
	if err != nil {
		return Document{}, refuse("document", "the tag's document: %v", err)
	}
	return d, nil
}

// KeyID names a signer; see dsse.KeyID.
func KeyID(key crypto.PublicKey) (string, error) { return dsse.KeyID(key) }

// ParseSigners reads the public keys that may sign tags; see dsse.ParseSigners.
func ParseSigners(pemBytes []byte) ([]crypto.PublicKey, error) { return dsse.ParseSigners(pemBytes) }

// ParseSigningKey reads a private key that signs tags; see dsse.ParseSigningKey.
func ParseSigningKey(pemBytes []byte) (crypto.Signer, error) { return dsse.ParseSigningKey(pemBytes) }
