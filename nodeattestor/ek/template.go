package ek

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// Template is a default EK template of the TCG EK Credential Profile for TPM Family 2.0,
// version 2.x, annexes B.3 (low range) and B.4 (high range).
type Template struct {
	Name     string // the profile's name: "L-1"
	NVIndex  uint32 // where the manufacturer stores the EK certificate of this template
	area     func() tpm2.TPMTPublic
	matches  func(crypto.PublicKey) bool
	lowRange bool
}

// Area is the template as a TPM2_CreatePrimary input, its unique field as the profile
// has it: zeros of the key's size in the low range, empty in the high range.
func (t Template) Area() tpm2.TPMTPublic { return t.area() }

// HighRange reports whether the EK takes PolicyB, and may be authorised with its
// (empty) authValue besides.
func (t Template) HighRange() bool { return !t.lowRange }

// Fits reports whether a key is of the template's type and size.
func (t Template) Fits(key crypto.PublicKey) bool { return t.matches(key) }

// WithKey is the template filled with a key, as the TPM itself would report it.
func (t Template) WithKey(key crypto.PublicKey) tpm2.TPMTPublic {
	p := t.area()
	switch k := key.(type) {
	case *rsa.PublicKey:
		p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: k.N.Bytes()})
	case *ecdsa.PublicKey:
		point, err := k.Bytes()
		if err != nil { // not on its curve: no caller has such a key, and it encrypts nothing
			break
		}
		n := len(point) / 2
		p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[1 : 1+n]},
			Y: tpm2.TPM2BECCParameter{Buffer: point[1+n:]},
		})
	}
	return p
}

// VendorIndices are where a TPM's maker stores what he made the EK with, if he did not use the default template as it is: a nonce
// for its unique field, and a whole template (TCG EK Credential Profile 2.x, section 2.2.1.4). The high range has none.
func (t Template) VendorIndices() (nonce, template uint32, ok bool) {
	return t.NVIndex + 1, t.NVIndex + 2, t.lowRange
}

// DiffersInUniqueOnly tells whether a public area is the template but for its unique field, which has the template's size at most.
func (t Template) DiffersInUniqueOnly(area tpm2.TPMTPublic) bool {
	want := t.area()
	if area.Type != want.Type || len(tpm2.Marshal(area)) > len(tpm2.Marshal(want)) {
		return false
	}
	area.Unique = want.Unique
	return bytes.Equal(tpm2.Marshal(area), tpm2.Marshal(want))
}

// WithNonce is the template with an EK nonce at the begin of its unique field, zeros after it: of the modulus, or of x. It is
// false where the nonce has no room.
func (t Template) WithNonce(nonce []byte) (tpm2.TPMTPublic, bool) {
	area := t.area()
	filled := func(size int) []byte {
		out := make([]byte, size)
		copy(out, nonce)
		return out
	}
	if modulus, err := area.Unique.RSA(); err == nil {
		if len(nonce) > len(modulus.Buffer) {
			return area, false
		}
		area.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: filled(len(modulus.Buffer))})
		return area, true
	}
	point, err := area.Unique.ECC()
	if err != nil || len(nonce) > len(point.X.Buffer) {
		return area, false
	}
	area.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: filled(len(point.X.Buffer))}, Y: point.Y})
	return area, true
}

// Templates lists the supported templates in the order in which an agent looks for a
// certificate: ECC before RSA where a TPM has both, since its credentials are cheaper.
func Templates() []Template { return append([]Template(nil), templates...) }

var templates = []Template{
	{Name: "L-2", NVIndex: 0x01c0000a, area: eccArea(tpm2.TPMECCNistP256, lowP256), matches: isCurve(elliptic.P256()), lowRange: true},
	{Name: "H-3", NVIndex: 0x01c00016, area: eccArea(tpm2.TPMECCNistP384, highSHA384), matches: isCurve(elliptic.P384())},
	{Name: "H-2", NVIndex: 0x01c00014, area: eccArea(tpm2.TPMECCNistP256, highSHA256), matches: isCurve(elliptic.P256())},
	{Name: "L-1", NVIndex: 0x01c00002, area: rsaArea(2048, lowRSA), matches: isRSA(2048), lowRange: true},
	{Name: "H-1", NVIndex: 0x01c00012, area: rsaArea(2048, highSHA256), matches: isRSA(2048)},
	{Name: "H-6", NVIndex: 0x01c0001c, area: rsaArea(3072, highSHA384), matches: isRSA(3072)},
}

// templateFor picks the first template of the key's type. Where a type has a low-range
// and a high-range template, both have the same name algorithm and symmetric
// parameters, which is all that a credential depends on.
func templateFor(key crypto.PublicKey) (Template, error) {
	if k, ok := key.(*rsa.PublicKey); ok {
		if k.E != 65537 {
			return Template{}, refuse("key", "the EK's RSA exponent %d is not 65537, which every EK template has", k.E)
		}
		if HasROCA(k.N) {
			return Template{}, refuse("roca", "the EK has the ROCA weakness (CVE-2017-15361): its private key can be computed, so it proves no TPM; have the agent present an ECC EK of this TPM (ek_template = \"L-2\"), or replace the TPM")
		}
	}
	for _, prefer := range []bool{true, false} {
		for _, t := range templates {
			if t.lowRange == prefer && t.matches(key) {
				return t, nil
			}
		}
	}
	return Template{}, refuse("key", "the EK is a %s; RSA 2048 and 3072, ECC P-256 and P-384 are supported", Describe(key))
}

// class holds what templates of one name algorithm share.
type class struct {
	nameAlg tpm2.TPMIAlgHash
	aesBits tpm2.TPMKeyBits
	policy  string // hex
	low     int    // bytes of zeros in unique; 0 in the high range
}

// PolicyA is TPM2_PolicySecret(TPM_RH_ENDORSEMENT); PolicyB is PolicyOR of PolicyA and
// TPM2_PolicyAuthorizeNV of the TCG-reserved index I-1 or I-2 (profile B.6).
const (
	policyASHA256 = "837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa"
	policyBSHA256 = "ca3d0a99a2b93906f7a3342414efcfb3a385d44cd1fd459089d19b5071c0b7a0"
	policyBSHA384 = "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12"
)

var (
	lowRSA     = class{tpm2.TPMAlgSHA256, 128, policyASHA256, 256}
	lowP256    = class{tpm2.TPMAlgSHA256, 128, policyASHA256, 32}
	highSHA256 = class{tpm2.TPMAlgSHA256, 128, policyBSHA256, 0}
	highSHA384 = class{tpm2.TPMAlgSHA384, 256, policyBSHA384, 0}
)

// public is the part that all EK templates share (profile B.3.2, B.4.2): a restricted
// decryption key that cannot leave the TPM.
func (c class) public(alg tpm2.TPMAlgID) tpm2.TPMTPublic {
	policy, err := hex.DecodeString(c.policy)
	if err != nil {
		panic(fmt.Sprintf("ek: policy constant: %v", err))
	}
	return tpm2.TPMTPublic{
		Type:    alg,
		NameAlg: c.nameAlg,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM:            true,
			FixedParent:         true,
			SensitiveDataOrigin: true,
			UserWithAuth:        c.low == 0,
			AdminWithPolicy:     true,
			Restricted:          true,
			Decrypt:             true,
		},
		AuthPolicy: tpm2.TPM2BDigest{Buffer: policy},
	}
}

func (c class) symmetric() tpm2.TPMTSymDefObject {
	return tpm2.TPMTSymDefObject{
		Algorithm: tpm2.TPMAlgAES,
		KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, c.aesBits),
		Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
	}
}

func rsaArea(bits tpm2.TPMKeyBits, c class) func() tpm2.TPMTPublic {
	return func() tpm2.TPMTPublic {
		p := c.public(tpm2.TPMAlgRSA)
		p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{Symmetric: c.symmetric(), KeyBits: bits})
		p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: make([]byte, c.low)})
		return p
	}
}

func eccArea(curve tpm2.TPMECCCurve, c class) func() tpm2.TPMTPublic {
	return func() tpm2.TPMTPublic {
		p := c.public(tpm2.TPMAlgECC)
		p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{Symmetric: c.symmetric(), CurveID: curve})
		p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: make([]byte, c.low)},
			Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, c.low)},
		})
		return p
	}
}

func isRSA(bits int) func(crypto.PublicKey) bool {
	return func(key crypto.PublicKey) bool {
		k, ok := key.(*rsa.PublicKey)
		return ok && k.N.BitLen() == bits
	}
}

func isCurve(c elliptic.Curve) func(crypto.PublicKey) bool {
	return func(key crypto.PublicKey) bool {
		k, ok := key.(*ecdsa.PublicKey)
		return ok && k.Curve == c
	}
}

// Describe says in a few words what kind of key it is.
func Describe(key crypto.PublicKey) string {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("%d-bit RSA key", k.N.BitLen())
	case *ecdsa.PublicKey:
		return fmt.Sprintf("key on curve %s", k.Params().Name)
	}
	return fmt.Sprintf("key of type %T", key)
}

// parsePublic reads the key, and nothing else, out of a TPM2B_PUBLIC that the agent
// controls (TPM 2.0 Part 2, section 12.2.5).
func parsePublic(tpm2bPublic []byte) (crypto.PublicKey, error) {
	if len(tpm2bPublic) > MaxPublicSize {
		return nil, refuse("size", "the EK public area has %d bytes, more than the %d allowed", len(tpm2bPublic), MaxPublicSize)
	}
	if len(tpm2bPublic) < 2 || int(binary.BigEndian.Uint16(tpm2bPublic)) != len(tpm2bPublic)-2 {
		return nil, refuse("public", "the EK public area's size field does not match its %d bytes", len(tpm2bPublic))
	}
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](tpm2bPublic[2:])
	if err != nil {
		return nil, refuse("public", "the EK public area is not a TPMT_PUBLIC: %v", err)
	}
	if !bytes.Equal(tpm2.Marshal(*area), tpm2bPublic[2:]) {
		return nil, refuse("public", "the EK public area is not in canonical form or has trailing bytes")
	}
	key, err := keyOf(area)
	if err != nil {
		return nil, refuse("public", "the EK public area holds no usable key: %v", err)
	}
	return key, nil
}

func keyOf(area *tpm2.TPMTPublic) (crypto.PublicKey, error) {
	if area.Type != tpm2.TPMAlgECC {
		return tpm2.Pub(*area)
	}
	parms, err := area.Parameters.ECCDetail()
	if err != nil {
		return nil, err
	}
	point, err := area.Unique.ECC()
	if err != nil {
		return nil, err
	}
	curve := elliptic.P256()
	if parms.CurveID == tpm2.TPMECCNistP384 {
		curve = elliptic.P384()
	} else if parms.CurveID != tpm2.TPMECCNistP256 {
		return nil, fmt.Errorf("curve 0x%04x is neither P-256 nor P-384", uint16(parms.CurveID))
	}
	size := (curve.Params().BitSize + 7) / 8
	x, y := point.X.Buffer, point.Y.Buffer
	if len(x) > size || len(y) > size {
		return nil, fmt.Errorf("coordinates have %d and %d bytes, the curve has %d", len(x), len(y), size)
	}
	raw := make([]byte, 1+2*size)
	raw[0] = 4
	copy(raw[1+size-len(x):], x)
	copy(raw[1+2*size-len(y):], y)
	return ecdsa.ParseUncompressedPublicKey(curve, raw)
}
