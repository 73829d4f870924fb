package ak

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// Size bounds in bytes of what a TPM signs and of a signature. A quote over all banks
// stays below 250 bytes and an NV_Certify of a digest below 200; an RSA-4096
// TPMT_SIGNATURE has 518.
const (
	MaxAttestSize    = 1024
	MaxSignatureSize = 1024
)

// Kind is the TPM_ST of an attestation structure (TPM 2.0 Part 2, section 6.9).
type Kind uint16

// The kinds that this project asks a TPM for.
const (
	Quote     Kind = Kind(tpm2.TPMSTAttestQuote)
	NVCertify Kind = Kind(tpm2.TPMSTAttestNV)
)

// String is the word that starts the checks of refusals: "quote" or "tag".
func (k Kind) String() string {
	switch k {
	case Quote:
		return "quote"
	case NVCertify:
		return "tag"
	}
	return fmt.Sprintf("attest-0x%04x", uint16(k))
}

// Statement is what a TPM said and an attestation key signed, parsed from exactly the
// bytes that the signature covers. Only [Key.Open] makes one.
type Statement struct {
	attest tpm2.TPMSAttest
}

// Attest is the verified structure; its Type is the Kind that was asked of Open.
func (s Statement) Attest() tpm2.TPMSAttest { return s.attest }

// Open verifies a TPMS_ATTEST and the TPMT_SIGNATURE over it, both of which the agent
// controls (TPM 2.0 Part 2, section 10.12.12, and Part 1, section 31.2):
//
//  1. size caps;
//  2. strict parse of attest, trailing bytes refused;
//  3. magic is TPM_GENERATED_VALUE: a restricted key signs no outside data that starts with it;
//  4. the type is the kind asked for, so that no other statement stands in for it;
//  5. strict parse of the signature, whose scheme and hash must be the ones that the
//     key's public area fixes (allow-listed by Parse);
//  6. the signature over the bytes received, never re-marshalled ones;
//  7. extraData is the nonce.
//
// Errors are *nodeclaim.Refusal with a check that starts with kind.String().
func (k Key) Open(kind Kind, attest, signature, nonce []byte) (Statement, error) {
	no := func(check, format string, args ...any) (Statement, error) {
		return Statement{}, nodeclaim.Refuse(kind.String()+"."+check, fmt.Sprintf(format, args...))
	}
	if k.IsZero() {
		return no("key", "there is no attestation key to verify with")
	}
	if len(nonce) == 0 {
		return no("nonce", "there is no nonce to compare with")
	}
	if len(attest) > MaxAttestSize {
		return no("size", "the attestation has %d bytes, more than the %d allowed", len(attest), MaxAttestSize)
	}
	if len(signature) > MaxSignatureSize {
		return no("size", "the signature has %d bytes, more than the %d allowed", len(signature), MaxSignatureSize)
	}
	// go-tpm refuses a wrong magic itself; looking first gives it its own check.
	if magic := []byte{0xff, 'T', 'C', 'G'}; !bytes.HasPrefix(attest, magic) {
		return no("magic", "the attestation does not begin with TPM_GENERATED_VALUE, so no TPM made it")
	}
	parsed, err := parseStrict[tpm2.TPMSAttest](attest)
	if err != nil {
		return no("parse", "the attestation is not a TPMS_ATTEST: %v", err)
	}
	if Kind(parsed.Type) != kind {
		return no("type", "the attestation has type 0x%04x, wanted 0x%04x", uint16(parsed.Type), uint16(kind))
	}
	if check, err := k.verify(attest, signature); err != nil {
		return no(check, "%v", err)
	}
	if !bytes.Equal(parsed.ExtraData.Buffer, nonce) {
		return no("nonce", "the attestation answers another nonce than the one of this challenge")
	}
	return Statement{attest: *parsed}, nil
}

// verify checks a TPMT_SIGNATURE over msg and names the check that failed.
func (k Key) verify(msg, signature []byte) (check string, err error) {
	sig, err := parseStrict[tpm2.TPMTSignature](signature)
	if err != nil {
		return "signature", fmt.Errorf("the signature is not a TPMT_SIGNATURE: %w", err)
	}
	if sig.SigAlg != k.scheme {
		return "scheme", fmt.Errorf("the signature's scheme 0x%04x is not the AK's 0x%04x", uint16(sig.SigAlg), uint16(k.scheme))
	}
	h := k.hash.New()
	h.Write(msg)
	digest := h.Sum(nil)
	switch pub := k.public.(type) {
	case *ecdsa.PublicKey:
		return verifyECDSA(pub, k.hash, digest, sig)
	case *rsa.PublicKey:
		return verifyRSA(pub, k.hash, digest, sig)
	}
	return "key", fmt.Errorf("the AK is a %T", k.public)
}

func verifyECDSA(pub *ecdsa.PublicKey, hash nodeclaim.HashAlg, digest []byte, sig *tpm2.TPMTSignature) (string, error) {
	s, err := sig.Signature.ECDSA()
	if err != nil {
		return "signature", err
	}
	if nodeclaim.HashAlg(s.Hash) != hash {
		return "scheme", fmt.Errorf("the signature's hash %s is not the AK's %s", nodeclaim.HashAlg(s.Hash), hash)
	}
	size := (pub.Params().BitSize + 7) / 8
	if len(s.SignatureR.Buffer) > size || len(s.SignatureS.Buffer) > size {
		return "signature", fmt.Errorf("the signature's integers have %d and %d bytes, more than the curve's %d",
			len(s.SignatureR.Buffer), len(s.SignatureS.Buffer), size)
	}
	r := new(big.Int).SetBytes(s.SignatureR.Buffer)
	if !ecdsa.Verify(pub, digest, r, new(big.Int).SetBytes(s.SignatureS.Buffer)) {
		return "signature", fmt.Errorf("the signature does not verify with the AK")
	}
	return "", nil
}

func verifyRSA(pub *rsa.PublicKey, hash nodeclaim.HashAlg, digest []byte, sig *tpm2.TPMTSignature) (string, error) {
	s, err := sig.Signature.RSASSA()
	if err != nil {
		return "signature", err
	}
	if nodeclaim.HashAlg(s.Hash) != hash {
		return "scheme", fmt.Errorf("the signature's hash %s is not the AK's %s", nodeclaim.HashAlg(s.Hash), hash)
	}
	if err := rsa.VerifyPKCS1v15(pub, hash.Hash(), digest, s.Sig.Buffer); err != nil {
		return "signature", fmt.Errorf("the signature does not verify with the AK")
	}
	return "", nil
}
