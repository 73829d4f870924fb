package tpmtest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// SoftAK is a key without a TPM that claims to be an attestation key. It signs whatever
// it is given, which is what a verifier must be safe from (and what unit tests need).
type SoftAK struct {
	Key *ecdsa.PrivateKey // P-256
	// Area is the public area that it claims; change it before Public.
	Area tpm2.TPMTPublic
}

// NewSoftAK makes one whose area passes every check of package ak.
func NewSoftAK() (*SoftAK, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("tpmtest: %w", err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		return nil, fmt.Errorf("tpmtest: %w", err)
	}
	return &SoftAK{Key: key, Area: tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, Restricted: true, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, ECDSAParms(tpm2.TPMAlgSHA256)),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
		}),
	}}, nil
}

// ECDSAParms are the parameters of a P-256 signing key.
func ECDSAParms(hash tpm2.TPMIAlgHash) *tpm2.TPMSECCParms {
	return &tpm2.TPMSECCParms{
		Scheme: tpm2.TPMTECCScheme{
			Scheme:  tpm2.TPMAlgECDSA,
			Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: hash}),
		},
		CurveID: tpm2.TPMECCNistP256,
	}
}

// RSAArea is the public area of a restricted RSASSA signing key.
func RSAArea(key *rsa.PublicKey, hash tpm2.TPMIAlgHash) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgRSA,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, Restricted: true, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
			Scheme: tpm2.TPMTRSAScheme{
				Scheme:  tpm2.TPMAlgRSASSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: hash}),
			},
			KeyBits: tpm2.TPMKeyBits(key.N.BitLen()),
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: key.N.Bytes()}),
	}
}

// Sized is a public area as a TPM2B_PUBLIC.
func Sized(area tpm2.TPMTPublic) []byte {
	b := tpm2.Marshal(area)
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
}

// Public is the key's TPM2B_PUBLIC.
func (k *SoftAK) Public() []byte { return Sized(k.Area) }

// Sign makes a TPMT_SIGNATURE (ECDSA, SHA-256) over any bytes.
func (k *SoftAK) Sign(msg []byte) ([]byte, error) {
	digest := sha256.Sum256(msg)
	r, s, err := ecdsa.Sign(rand.Reader, k.Key, digest[:])
	if err != nil {
		return nil, fmt.Errorf("tpmtest: %w", err)
	}
	return tpm2.Marshal(tpm2.TPMTSignature{
		SigAlg: tpm2.TPMAlgECDSA,
		Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
			Hash:       tpm2.TPMAlgSHA256,
			SignatureR: tpm2.TPM2BECCParameter{Buffer: r.FillBytes(make([]byte, 32))},
			SignatureS: tpm2.TPM2BECCParameter{Buffer: s.FillBytes(make([]byte, 32))},
		}),
	}), nil
}

// QuoteAttest is a TPMS_ATTEST of a quote over any selections and digest.
func QuoteAttest(nonce, digest []byte, selections ...tpm2.TPMSPCRSelection) tpm2.TPMSAttest {
	return tpm2.TPMSAttest{
		Magic:           tpm2.TPMGeneratedValue,
		Type:            tpm2.TPMSTAttestQuote,
		QualifiedSigner: tpm2.TPM2BName{Buffer: append([]byte{0, 0x0b}, make([]byte, 32)...)},
		ExtraData:       tpm2.TPM2BData{Buffer: nonce},
		ClockInfo:       tpm2.TPMSClockInfo{Clock: 1, ResetCount: 2, RestartCount: 3, Safe: true},
		Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{
			PCRSelect: tpm2.TPMLPCRSelection{PCRSelections: selections},
			PCRDigest: tpm2.TPM2BDigest{Buffer: digest},
		}),
	}
}

// NVAttest is a TPMS_ATTEST of an NV_Certify.
func NVAttest(nonce, indexName, contents []byte, offset uint16) tpm2.TPMSAttest {
	a := QuoteAttest(nonce, nil)
	a.Type = tpm2.TPMSTAttestNV
	a.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestNV, &tpm2.TPMSNVCertifyInfo{
		IndexName:  tpm2.TPM2BName{Buffer: indexName},
		Offset:     offset,
		NVContents: tpm2.TPM2BData{Buffer: contents},
	})
	return a
}

// Select is one TPMS_PCR_SELECTION of three bytes.
func Select(bank nodeclaim.HashAlg, pcrs ...int) tpm2.TPMSPCRSelection {
	bitmap := make([]byte, 3)
	for _, p := range pcrs {
		bitmap[p/8] |= 1 << (p % 8)
	}
	return tpm2.TPMSPCRSelection{Hash: tpm2.TPMIAlgHash(bank), PCRSelect: bitmap}
}

// UnrestrictedSign has a TPM sign any bytes with a real key of its own that is an
// attestation key in all but one attribute: it is not restricted. This is the forgery of
// CVE-2024-29038. path is the TPM's socket.
func UnrestrictedSign(path string, msg []byte) (public, signature []byte, err error) {
	tpm, err := linuxudstpm.Open(path)
	if err != nil {
		return nil, nil, fmt.Errorf("tpmtest: %w", err)
	}
	soft, err := NewSoftAK()
	if err != nil {
		return nil, nil, err
	}
	area := soft.Area
	area.ObjectAttributes.Restricted = false
	made, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.New2B(area),
	}.Execute(tpm)
	if err != nil {
		return nil, nil, fmt.Errorf("tpmtest: %w", err)
	}
	defer func() {
		if _, e := (tpm2.FlushContext{FlushHandle: made.ObjectHandle}).Execute(tpm); e != nil && err == nil {
			err = fmt.Errorf("tpmtest: %w", e)
		}
	}()
	digest := sha256.Sum256(msg)
	rsp, err := tpm2.Sign{
		KeyHandle:  tpm2.AuthHandle{Handle: made.ObjectHandle, Name: made.Name, Auth: tpm2.PasswordAuth(nil)},
		Digest:     tpm2.TPM2BDigest{Buffer: digest[:]},
		InScheme:   tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
	}.Execute(tpm)
	if err != nil {
		return nil, nil, fmt.Errorf("tpmtest: %w", err)
	}
	inner := bytes.Clone(made.OutPublic.Bytes())
	public = append(binary.BigEndian.AppendUint16(nil, uint16(len(inner))), inner...)
	return public, tpm2.Marshal(rsp.Signature), nil
}
