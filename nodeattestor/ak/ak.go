// Package ak turns the public area of an attestation key into a verified Key, and
// judges what that key has signed.
//
// A Key can only come from [Parse], which checks that the area describes a
// restricted signing key that never left the TPM it was made in. Whether such a key
// really exists in the TPM that an EK belongs to is proved by credential activation
// ([Challenge]), and by nothing else: a public area is only a claim of the agent.
//
// The package opens no device and knows no PCR: package quote and package assettag
// give meaning to the statements that [Key.Open] verifies.
package ak

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// MaxPublicSize bounds a TPM2B_PUBLIC in bytes. An RSA-4096 key with a SHA-512
// policy takes about 610.
const MaxPublicSize = 1024

// Key is an attestation key that passed every check of [Parse].
// The zero Key verifies nothing; IsZero tells it apart.
type Key struct {
	name   []byte
	area   []byte
	public crypto.PublicKey
	scheme tpm2.TPMAlgID
	hash   nodeclaim.HashAlg
}

// IsZero reports whether the key never came from Parse.
func (k Key) IsZero() bool { return k.public == nil }

// Name is the key's TPM name: nameAlg (2 bytes, big endian) followed by the digest of
// its public area (TPM 2.0 Part 1, section 14), computed here and not read anywhere.
func (k Key) Name() []byte { return bytes.Clone(k.name) }

// Area is the TPM2B_PUBLIC that the key was parsed from.
func (k Key) Area() []byte { return bytes.Clone(k.area) }

// Public is the key as an *ecdsa.PublicKey or *rsa.PublicKey.
func (k Key) Public() crypto.PublicKey { return k.public }

// Hash is the hash of the key's signing scheme. The composite digest of a quote is
// made with it too, whatever hash the PCR bank uses.
func (k Key) Hash() nodeclaim.HashAlg { return k.hash }

// Scheme is "ecdsa" or "rsassa".
func (k Key) Scheme() string {
	if k.scheme == tpm2.TPMAlgRSASSA {
		return "rsassa"
	}
	return "ecdsa"
}

// signingHashes and nameHashes are what a scheme and a name may use: SHA-1 has
// practical collisions, and other hashes have no implementation here.
var signingHashes = []tpm2.TPMIAlgHash{tpm2.TPMAlgSHA256, tpm2.TPMAlgSHA384, tpm2.TPMAlgSHA512}

// Parse reads a TPM2B_PUBLIC, which the agent controls, and checks that it can be an
// attestation key (TPM 2.0 Part 1, section 34.2, and Part 2, section 8.3):
//
//  1. size cap, strict parse, no trailing bytes;
//  2. name algorithm SHA-256, SHA-384 or SHA-512;
//  3. attributes: fixedTPM, fixedParent, sensitiveDataOrigin, restricted, sign, and not decrypt;
//  4. a key of an allowed type, strength, scheme and scheme hash (see parsePublicKey);
//  5. the name, recomputed from the bytes received.
//
// Errors are *nodeclaim.Refusal with a check that starts with "ak.".
func Parse(tpm2bPublic []byte) (Key, error) {
	if len(tpm2bPublic) > MaxPublicSize {
		return Key{}, refuse("size", "the AK's public area has %d bytes, more than the %d allowed", len(tpm2bPublic), MaxPublicSize)
	}
	if len(tpm2bPublic) < 2 {
		return Key{}, refuse("parse", "the AK's public area has %d bytes, less than its own size field", len(tpm2bPublic))
	}
	area := tpm2bPublic[2:]
	if n := int(binary.BigEndian.Uint16(tpm2bPublic)); n != len(area) {
		return Key{}, refuse("parse", "the AK's public area says it has %d bytes, %d follow", n, len(area))
	}
	public, err := parseStrict[tpm2.TPMTPublic](area)
	if err != nil {
		return Key{}, refuse("parse", "the AK's public area is not a TPMT_PUBLIC: %v", err)
	}
	if !slices.Contains(signingHashes, public.NameAlg) {
		return Key{}, refuse("namealg", "the AK's name algorithm 0x%04x is not SHA-256, SHA-384 or SHA-512", uint16(public.NameAlg))
	}
	if err := checkAttributes(binary.BigEndian.Uint32(area[4:])); err != nil {
		return Key{}, err
	}
	k := Key{area: bytes.Clone(tpm2bPublic)}
	if err := k.parsePublicKey(public); err != nil {
		return Key{}, err
	}
	h := nodeclaim.HashAlg(public.NameAlg).New()
	h.Write(area)
	k.name = h.Sum(binary.BigEndian.AppendUint16(nil, uint16(public.NameAlg)))
	return k, nil
}

// TPMA_OBJECT bits (TPM 2.0 Part 2, section 8.3.2, table 37).
const (
	bitFixedTPM            = 1 << 1
	bitSTClear             = 1 << 2
	bitFixedParent         = 1 << 4
	bitSensitiveDataOrigin = 1 << 5
	bitUserWithAuth        = 1 << 6
	bitAdminWithPolicy     = 1 << 7
	bitFirmwareLimited     = 1 << 8
	bitSVNLimited          = 1 << 9
	bitNoDA                = 1 << 10
	bitRestricted          = 1 << 16
	bitDecrypt             = 1 << 17
	bitSign                = 1 << 18
)

// attributeRules says what each attribute must be and what an attacker could do
// otherwise. The agent chooses these bits, but the TPM activates a credential only for
// the name that covers them.
var attributeRules = []struct {
	check string
	bit   uint32
	set   bool
	why   string
}{
	{"ak.fixedtpm", bitFixedTPM, true, "a copy of the key could sign outside this TPM"},
	{"ak.fixedparent", bitFixedParent, true, "the key could be duplicated to another parent"},
	{"ak.sensitivedataorigin", bitSensitiveDataOrigin, true, "the private key may have been made outside a TPM"},
	{"ak.restricted", bitRestricted, true, "the key would sign a forged TPMS_ATTEST as if the TPM had made it"},
	{"ak.sign", bitSign, true, "the key cannot sign"},
	{"ak.decrypt", bitDecrypt, false, "a key that also decrypts is not an attestation key"},
}

// allowedBits are the attributes that are required above or harmless to attestation.
// encryptedDuplication contradicts fixedTPM, x509sign keys cannot quote, and
// reserved bits mean something that this code does not know.
const allowedBits = bitFixedTPM | bitSTClear | bitFixedParent | bitSensitiveDataOrigin | bitUserWithAuth |
	bitAdminWithPolicy | bitFirmwareLimited | bitSVNLimited | bitNoDA | bitRestricted | bitDecrypt | bitSign

func checkAttributes(attrs uint32) error {
	for _, r := range attributeRules {
		if (attrs&r.bit != 0) != r.set {
			verb := "must be set"
			if !r.set {
				verb = "must be clear"
			}
			return nodeclaim.Refuse(r.check, fmt.Sprintf("attribute %s of the AK %s: %s", r.check[len("ak."):], verb, r.why))
		}
	}
	if extra := attrs &^ allowedBits; extra != 0 {
		return refuse("attributes", "the AK has attribute bits 0x%08x, which no attestation key has", extra)
	}
	return nil
}

// parseStrict reads one TPM structure that must fill the buffer and be in the only
// encoding that a TPM would write: what is judged is then what was signed or hashed.
func parseStrict[T tpm2.Marshallable, P interface {
	*T
	tpm2.Unmarshallable
}](b []byte) (*T, error) {
	v, err := tpm2.Unmarshal[T, P](b)
	if err != nil {
		return nil, err
	}
	if again := tpm2.Marshal(*v); !bytes.Equal(again, b) {
		return nil, fmt.Errorf("%d bytes are not the canonical encoding of the %d bytes in them, or others trail", len(b), len(again))
	}
	return v, nil
}

func refuse(check, format string, args ...any) *nodeclaim.Refusal {
	return nodeclaim.Refuse("ak."+check, fmt.Sprintf(format, args...))
}
