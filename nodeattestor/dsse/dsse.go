// Package dsse signs and opens envelopes: DSSE (github.com/secure-systems-lab/dsse,
// envelope.md 1.0.0) with exactly one signature, in canonical JSON, so that one signed
// thing has one encoding.
//
// Whoever hands over an envelope controls all of it. [Open] gives out the payload only after a
// trusted signer's signature over payload and payload type verified; [Unverified] is for
// showing an envelope to a person, and says so.
package dsse

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// Overhead is how many bytes an envelope has at most beyond its payload in base64.
const Overhead = 1024

// envelope is the JSON of a signed payload.
type envelope struct {
	PayloadType string      `json:"payloadType"`
	Payload     []byte      `json:"payload"` // base64 in JSON
	Signatures  []signature `json:"signatures"`
}

type signature struct {
	KeyID string `json:"keyid"` // see KeyID
	Sig   []byte `json:"sig"`
}

// Fault says which part of an envelope is at fault.
type Fault string

// The faults.
const (
	BadEnvelope  Fault = "envelope"  // not an envelope of the wanted type with one signature
	BadSigner    Fault = "signer"    // signed by nobody who is trusted
	BadSignature Fault = "signature" // a trusted signer's, and does not verify
)

// Error is why an envelope is refused.
type Error struct {
	Fault  Fault
	Reason string
}

func (e *Error) Error() string { return "dsse: " + e.Reason }

func fault(f Fault, format string, args ...any) *Error {
	return &Error{Fault: f, Reason: fmt.Sprintf(format, args...)}
}

// preAuth is DSSE's pre-authentication encoding: what is signed (protocol.md 1.0.0).
func preAuth(payloadType string, payload []byte) []byte {
	head := "DSSEv1 " + strconv.Itoa(len(payloadType)) + " " + payloadType + " " + strconv.Itoa(len(payload)) + " "
	return append([]byte(head), payload...)
}

// Sign puts a payload in a signed envelope. The payload's type is signed with it, so that a signature
// made for one thing is none for another. The signer's key is ed25519 or ECDSA P-256.
func Sign(payloadType string, payload []byte, signer crypto.Signer, rand io.Reader) ([]byte, error) {
	id, err := KeyID(signer.Public())
	if err != nil {
		return nil, err
	}
	msg, opts := preAuth(payloadType, payload), crypto.SignerOpts(crypto.Hash(0))
	if _, ok := signer.Public().(*ecdsa.PublicKey); ok {
		digest := sha256.Sum256(msg)
		msg, opts = digest[:], crypto.SHA256
	}
	sig, err := signer.Sign(rand, msg, opts)
	if err != nil {
		return nil, fmt.Errorf("dsse: sign: %w", err)
	}
	out, err := json.Marshal(envelope{PayloadType: payloadType, Payload: payload, Signatures: []signature{{KeyID: id, Sig: sig}}})
	if err != nil {
		return nil, fmt.Errorf("dsse: envelope: %w", err)
	}
	return out, nil
}

// Open verifies an envelope of a payload type and gives what was signed, and the [KeyID] of
// the signer whose signature verified. The caller bounds data. Errors are *Error.
func Open(payloadType string, data []byte, signers []crypto.PublicKey) (payload []byte, keyID string, err error) {
	e, err := parse(payloadType, data)
	if err != nil {
		return nil, "", err
	}
	sig, msg := e.Signatures[0], preAuth(payloadType, e.Payload)
	for _, key := range signers {
		id, err := KeyID(key)
		if err != nil {
			return nil, "", fault(BadSigner, "a configured signer: %v", err)
		}
		if id != sig.KeyID {
			continue
		}
		if !verifies(key, msg, sig.Sig) {
			return nil, "", fault(BadSignature, "the signature does not verify with signer %s", id)
		}
		return e.Payload, id, nil
	}
	return nil, "", fault(BadSigner, "it is signed by key %.80q, which is not a trusted signer", sig.KeyID)
}

// Unverified gives what an envelope claims to hold and who it claims signed it. Anybody may have
// made it: nothing may be decided by it.
func Unverified(payloadType string, data []byte) (payload []byte, keyID string, err error) {
	e, err := parse(payloadType, data)
	if err != nil {
		return nil, "", err
	}
	return e.Payload, e.Signatures[0].KeyID, nil
}

func parse(payloadType string, data []byte) (envelope, error) {
	var e envelope
	if err := Canonical(data, &e); err != nil {
		return e, fault(BadEnvelope, "%v", err)
	}
	if e.PayloadType != payloadType || len(e.Signatures) != 1 {
		return e, fault(BadEnvelope, "it holds %.80q with %d signatures, wanted %q with one", e.PayloadType, len(e.Signatures), payloadType)
	}
	return e, nil
}

func verifies(key crypto.PublicKey, msg, sig []byte) bool {
	switch k := key.(type) {
	case ed25519.PublicKey:
		return len(k) == ed25519.PublicKeySize && ed25519.Verify(k, msg, sig)
	case *ecdsa.PublicKey:
		digest := sha256.Sum256(msg)
		return ecdsa.VerifyASN1(k, digest[:], sig)
	}
	return false
}

// Canonical decodes JSON and refuses whatever is not the one encoding of the value:
// unknown, repeated or differently spelled keys, white space, trailing bytes.
func Canonical(data []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	again, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if !bytes.Equal(again, data) {
		return errors.New("not in canonical form: a key is repeated or spelled differently, or there are white space, other key order or trailing bytes")
	}
	return nil
}
