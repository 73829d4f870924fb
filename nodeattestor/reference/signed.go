package reference

import (
	"crypto"
	"errors"
	"fmt"
	"io"

	"github.com/keelson-project/keelson/nodeattestor/dsse"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// PayloadType is the envelope's type of a signed set, whose payload is the set's text. The signature
// covers it, so that a signature made for anything else is none for a set.
const PayloadType = "application/vnd.keelson.reference-set.v1+yaml"

// MaxSignedSize bounds a signed set in bytes: the largest set in base64, and its envelope.
const MaxSignedSize = (MaxSetSize+2)/3*4 + dsse.Overhead

// Sign puts a set in a signed envelope (package dsse). The signer's key is ed25519 or ECDSA P-256. A
// set without an end is not signed: who can write the file could put an old one back forever.
func Sign(s Set, signer crypto.Signer, rand io.Reader) ([]byte, error) {
	if s.name == "" {
		return nil, errors.New("reference: sign: the set is empty")
	}
	if s.notAfter.IsZero() {
		return nil, errors.New("reference: sign: the set has no notAfter; a signed set must end, or an old one could be put back forever")
	}
	text := s.Marshal()
	if len(text) > MaxSetSize {
		return nil, fmt.Errorf("reference: sign: the set has %d bytes, more than the %d allowed", len(text), MaxSetSize)
	}
	out, err := dsse.Sign(PayloadType, text, signer, rand)
	if err != nil {
		return nil, fmt.Errorf("reference: %w", err)
	}
	return out, nil
}

// ParseSigned reads a set that one of the signers signed. In this order: size, envelope,
// signature by a trusted signer, a strict parse of what was signed, an end of validity. Whether the
// set is valid at a time is [Set.Valid]'s matter, which Check asks. Errors are *nodeclaim.Refusal with
// checks "reference.size", "reference.envelope", "reference.signer", "reference.signature" and
// "reference.endless", or Problems of what a trusted signer signed.
func ParseSigned(data []byte, signers []crypto.PublicKey) (Set, error) {
	if len(data) > MaxSignedSize {
		return Set{}, refuseSigned("size", "it has %d bytes, more than the %d allowed", len(data), MaxSignedSize)
	}
	text, keyID, err := dsse.Open(PayloadType, data, signers)
	if err != nil {
		return Set{}, envelopeRefusal(err)
	}
	s, err := ParseSet(text)
	if err != nil {
		return Set{}, err
	}
	if s.notAfter.IsZero() {
		return Set{}, refuseSigned("endless", "set %s has no notAfter; a signed set must end, or an old one could be put back forever", s.name)
	}
	s.signedBy = keyID
	return s, nil
}

// UnverifiedSigned reads a signed set and the key ID that it claims, for showing it to a person.
// Anybody may have made it: nothing may be decided by it.
func UnverifiedSigned(data []byte) (Set, string, error) {
	if len(data) > MaxSignedSize {
		return Set{}, "", refuseSigned("size", "it has %d bytes, more than the %d allowed", len(data), MaxSignedSize)
	}
	text, keyID, err := dsse.Unverified(PayloadType, data)
	if err != nil {
		return Set{}, "", envelopeRefusal(err)
	}
	s, err := ParseSet(text)
	return s, keyID, err
}

func envelopeRefusal(err error) error {
	bad := &dsse.Error{Fault: dsse.BadEnvelope, Reason: err.Error()}
	errors.As(err, &bad)
	if bad.Fault == dsse.BadEnvelope {
		return refuseSigned("envelope", "it is not a signed set: %s; keelson reference sign makes one", bad.Reason)
	}
	return refuseSigned(string(bad.Fault), "%s", bad.Reason)
}

func refuseSigned(check, format string, args ...any) *nodeclaim.Refusal {
	return nodeclaim.Refuse("reference."+check, "signed reference set: "+fmt.Sprintf(format, args...))
}
