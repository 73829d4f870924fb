package ak

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/google/go-tpm/tpm2"

	"github.com/keelson-project/keelson/nodeattestor/ek"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// MaxSecretSize bounds the secret of a challenge in bytes. A credential is a
// TPM2B_DIGEST, which the EK's name algorithm caps at 32 bytes or more.
const MaxSecretSize = 32

// Challenge makes the credential that only the TPM with this EK, and only for an object
// with this name, gives back (TPM2_MakeCredential: TPM 2.0 Part 1, section 24;
// annexes B.10.4 for RSA and C.6.4 for ECC). Since the name covers the whole public
// area, an answer proves that the TPM holds the very key whose attributes Parse
// checked. credBlob is a TPMS_ID_OBJECT and encSecret the content of a
// TPM2B_ENCRYPTED_SECRET, both without a size field. rand is the source of the seed.
func Challenge(id ek.Identity, key Key, secret []byte, rand io.Reader) (credBlob, encSecret []byte, err error) {
	if id.IsZero() || key.IsZero() {
		return nil, nil, fmt.Errorf("ak: challenge: needs a verified EK and a checked AK")
	}
	if len(secret) == 0 || len(secret) > MaxSecretSize {
		return nil, nil, fmt.Errorf("ak: challenge: secret has %d bytes, wanted 1 to %d", len(secret), MaxSecretSize)
	}
	public := id.Public()
	pub, err := tpm2.ImportEncapsulationKey(&public)
	if err != nil {
		return nil, nil, fmt.Errorf("ak: challenge: EK: %w", err)
	}
	credBlob, encSecret, err = tpm2.CreateCredential(fullReader{rand}, pub, key.name, secret)
	if err != nil {
		return nil, nil, fmt.Errorf("ak: challenge: %w", err)
	}
	return credBlob, encSecret, nil
}

// fullReader fills every buffer or fails, because the library reads once and takes a
// short read for an error.
type fullReader struct{ r io.Reader }

func (f fullReader) Read(p []byte) (int, error) { return io.ReadFull(f.r, p) }

// rhEndorsement is TPM_RH_ENDORSEMENT, the qualified name of that hierarchy
// (TPM 2.0 Part 1, section 14; Part 2, section 7.4).
const rhEndorsement = 0x4000000B

// InEndorsement reports whether a statement's qualifiedSigner places the key in the
// endorsement hierarchy of the TPM with this EK: as a primary key, or as a child of the
// EK made from any default template. In other hierarchies the TPM obfuscates
// resetCount, restartCount and firmwareVersion for each key (TPM 2.0 Part 1, section
// 36.7), so that they could not be compared between keys.
func (k Key) InEndorsement(qualifiedSigner []byte, id ek.Identity) bool {
	if k.IsZero() || id.IsZero() {
		return false
	}
	root := binary.BigEndian.AppendUint32(nil, rhEndorsement)
	if bytes.Equal(qualifiedSigner, qualifiedName(root, k.name)) {
		return true
	}
	for _, t := range ek.Templates() {
		if !t.Fits(id.Key()) {
			continue
		}
		area := t.WithKey(id.Key())
		name, err := tpm2.ObjectName(&area)
		if err != nil {
			continue
		}
		if bytes.Equal(qualifiedSigner, qualifiedName(qualifiedName(root, name.Buffer), k.name)) {
			return true
		}
	}
	return false
}

// qualifiedName is nameAlg of the object and H(parent's qualified name || name)
// (TPM 2.0 Part 1, section 26.5).
func qualifiedName(parent, name []byte) []byte {
	alg := nodeclaim.HashAlg(binary.BigEndian.Uint16(name))
	h := alg.New()
	h.Write(parent)
	h.Write(name)
	return h.Sum(binary.BigEndian.AppendUint16(nil, uint16(alg)))
}
