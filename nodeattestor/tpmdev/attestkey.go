package tpmdev

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/go-tpm/tpm2"

	"github.com/keelson-project/keelson/nodeattestor/ek"
)

// ErrOtherTPM says that the data directory belongs to another TPM, or that this TPM's
// endorsement seed was changed.
var ErrOtherTPM = errors.New("tpmdev: the attestation key was made on another TPM, or this TPM's endorsement seed was changed")

// AKType is the algorithm of an attestation key.
type AKType string

// The types. A server takes both.
const (
	ECDSA AKType = "ecdsa" // P-256, signs with SHA-256
	RSA   AKType = "rsa"   // 2048 bits, RSASSA (PKCS #1 v1.5) with SHA-256
)

// ParseAKType reads "ecdsa" or "rsa"; "" is ECDSA.
func ParseAKType(s string) (AKType, error) {
	switch t := AKType(s); t {
	case "":
		return ECDSA, nil
	case ECDSA, RSA:
		return t, nil
	}
	return "", fmt.Errorf("tpmdev: attestation key type %.40q is neither %q nor %q", s, ECDSA, RSA)
}

// other is the type to try where a TPM cannot make this one.
func (t AKType) other() AKType {
	if t == RSA {
		return ECDSA
	}
	return RSA
}

// uniqueSize is the size of the template's unique field in bytes: both coordinates of a
// point, or a modulus.
func (t AKType) uniqueSize() int {
	if t == RSA {
		return akRSABits / 8
	}
	return 64
}

// akRSABits is the size of an RSA AK: what every TPM with RSA makes.
const akRSABits = 2048

// area is the AK's template. userWithAuth with an empty authValue lets the agent use
// it; noDA keeps a wrong use from locking the TPM. Being restricted, it signs only what
// the TPM itself made (TPM 2.0 Part 1, section 25.2.3).
func (t AKType) area(unique []byte) tpm2.TPMTPublic {
	p := tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM:            true,
			FixedParent:         true,
			SensitiveDataOrigin: true,
			UserWithAuth:        true,
			NoDA:                true,
			Restricted:          true,
			SignEncrypt:         true,
		},
	}
	if t == RSA {
		p.Type = tpm2.TPMAlgRSA
		p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
			Scheme: tpm2.TPMTRSAScheme{
				Scheme:  tpm2.TPMAlgRSASSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			KeyBits: akRSABits,
		})
		p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: unique})
		return p
	}
	p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
		Scheme: tpm2.TPMTECCScheme{
			Scheme:  tpm2.TPMAlgECDSA,
			Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
		},
		CurveID: tpm2.TPMECCNistP256,
	})
	half := len(unique) / 2
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: unique[:half]},
		Y: tpm2.TPM2BECCParameter{Buffer: unique[half:]},
	})
	return p
}

// AK is this machine's attestation key: a restricted signing key, made as a primary key
// of the endorsement hierarchy.
type AK struct {
	// Public is the AK's TPM2B_PUBLIC.
	Public []byte
	// New says that the AK was made by this call, which servers notice.
	New bool
	// Replaced is the type of the AK that a New one took the place of, because Options
	// ask for another type now; "" otherwise.
	Replaced AKType

	kind   AKType
	unique []byte
	salt   ek.Template // of the EK that sessions are salted with
	saltEK []byte      // its TPMT_PUBLIC as first seen
}

// Type is the AK's algorithm.
func (k AK) Type() AKType { return k.kind }

// AK is the attestation key kept in dir, which is made (mode 0700) where it is missing.
// Without AKFile in it, or when it is of another type than Options ask for, a new AK
// comes into being. A file that was written on another TPM is ErrOtherTPM, and an
// unreadable one an error too: neither is replaced silently, because servers audit a new AK.
func (d *Device) AK(ctx context.Context, dir string) (AK, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return AK{}, fmt.Errorf("tpmdev: data directory: %w", err)
	}
	path := filepath.Join(dir, AKFile)
	old, err := readAK(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return AK{}, err
	}
	k := old
	if old.kind != d.opts.AKType {
		k = AK{New: true, Replaced: old.kind, kind: d.opts.AKType, unique: make([]byte, d.opts.AKType.uniqueSize()), salt: old.salt, saltEK: old.saltEK}
		if _, err := rand.Read(k.unique); err != nil {
			return AK{}, fmt.Errorf("tpmdev: %w", err)
		}
	}
	err = d.do(ctx, func() error {
		if err := d.adoptEK(&k); err != nil {
			return hint(err, path)
		}
		if k.New {
			return d.makeAK(&k)
		}
		_, _, err := d.attestation(k)
		return hint(err, path)
	})
	if err != nil {
		return AK{}, err
	}
	if !k.New && bytes.Equal(k.saltEK, old.saltEK) {
		return k, nil
	}
	return k, writeAK(path, k)
}

// hint says what to do about a state file of another TPM.
func hint(err error, path string) error {
	if errors.Is(err, ErrOtherTPM) {
		return fmt.Errorf("%w (%s; remove it to start with a new attestation key)", err, path)
	}
	return err
}

// adoptEK sees to it that sessions are salted with the very EK that this machine presents:
// servers believe in that one only with a certificate of its maker or out of the
// inventory, so that one which somebody on the bus put in its place is refused by them.
// Their first meeting decides; from then on the EK is recorded. Another one is taken only where the choice is
// another (Options.Template, a certificate that came later), and is then made in a session
// salted with the recorded one, which vouches for it.
func (d *Device) adoptEK(k *AK) error {
	e, chosen, err := d.endorsementKey()
	if err != nil {
		return err
	}
	if err := d.release(chosen.handle); err != nil {
		return err
	}
	if k.saltEK == nil {
		k.salt, k.saltEK = e.template, chosen.area
	}
	if bytes.Equal(chosen.area, k.saltEK) {
		return nil
	}
	recorded, err := d.recordedEK(*k)
	if err != nil {
		return err
	}
	session, err := d.salt(recorded, d.opts.EndorsementAuth, inOut())
	if err != nil {
		return err
	}
	if err := d.release(recorded.handle); err != nil {
		return err
	}
	made, err := d.remake(e.template, chosen.area, session)
	if err != nil {
		return fmt.Errorf("tpmdev: EK template %s: %w", e.Template, err)
	}
	if !bytes.Equal(made.area, chosen.area) {
		return fmt.Errorf("tpmdev: EK template %s is another key in a protected session: somebody changes what the TPM says, or it has a key of its own at a persistent handle", e.Template)
	}
	k.salt, k.saltEK = e.template, made.area
	return errors.Join(d.release(made.handle), d.release(session.Handle()))
}

// remake makes an EK in a session: from the default template, or if that gives another key than wanted, as its maker did.
func (d *Device) remake(t ek.Template, wanted []byte, session tpm2.Session) (*loadedKey, error) {
	made, err := d.create(t.Area(), session)
	if err != nil || bytes.Equal(made.area, wanted) {
		return made, err
	}
	own, err := d.vendorArea(t)
	if err != nil || own == nil {
		return made, err
	}
	if err := d.release(made.handle); err != nil {
		return nil, err
	}
	return d.create(*own, session)
}

// makeAK makes a new AK.
func (d *Device) makeAK(k *AK) error {
	endorsement, err := d.recordedEK(*k)
	if err != nil {
		return err
	}
	session, err := d.salt(endorsement, d.opts.EndorsementAuth, inOut())
	if err != nil {
		return err
	}
	made, err := d.create(k.kind.area(k.unique), session)
	if lacks(err) {
		return fmt.Errorf("tpmdev: this TPM makes no attestation key of type %[1]q (%[3]w); set ak_type = %[2]q", k.kind, k.kind.other(), err)
	}
	if err != nil {
		return fmt.Errorf("tpmdev: attestation key: %w", err)
	}
	k.Public = sized(made.area)
	return nil
}

// lacks reports whether a TPM refused a key because it does not implement its algorithm,
// curve, scheme or size: what unmarshalling its public area answers then (TPM 2.0 Part 2,
// sections 12.2.2, 11.2.5.5, 11.2.4.2 and 11.2.4.6).
func lacks(err error) bool {
	for _, rc := range []tpm2.TPMRC{tpm2.TPMRCType, tpm2.TPMRCCurve, tpm2.TPMRCScheme, tpm2.TPMRCAsymmetric, tpm2.TPMRCValue, tpm2.TPMRCKeySize} {
		if errors.Is(err, rc) {
			return true
		}
	}
	return false
}

// recordedEK loads the EK that was recorded when the AK was made, and no other.
func (d *Device) recordedEK(k AK) (*loadedKey, error) {
	endorsement, err := d.loadEK(k.salt, k.saltEK)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(endorsement.area, k.saltEK) {
		return nil, ErrOtherTPM
	}
	return endorsement, nil
}

// attestation loads the AK of one operation and opens a session for it, salted with the
// EK that was recorded when the AK was made.
func (d *Device) attestation(k AK) (*loadedKey, tpm2.Session, error) {
	endorsement, err := d.recordedEK(k)
	if err != nil {
		return nil, nil, err
	}
	loaded, err := d.loadAK(k, endorsement)
	if err != nil {
		return nil, nil, fmt.Errorf("tpmdev: attestation key: %w", err)
	}
	if !bytes.Equal(sized(loaded.area), k.Public) {
		return nil, nil, ErrOtherTPM
	}
	use, err := d.salt(endorsement, nil, inOut()) // the AK's authValue is empty
	if err != nil {
		return nil, nil, err
	}
	// The EK's slot is needed: TPMs have room for three keys.
	return loaded, use, d.release(endorsement.handle)
}

// loadAK makes the AK, or loads what was saved of it.
func (d *Device) loadAK(k AK, endorsement *loadedKey) (*loadedKey, error) {
	area := k.kind.area(k.unique)
	if loaded := d.restore(area); loaded != nil {
		return loaded, nil
	}
	session, err := d.salt(endorsement, d.opts.EndorsementAuth, inOut())
	if err != nil {
		return nil, err
	}
	loaded, err := d.create(area, session)
	if err != nil {
		return nil, err
	}
	return loaded, d.release(session.Handle()) // TPMs have room for three sessions, and more are coming
}

// release flushes one handle before the operation ends.
func (d *Device) release(h tpm2.TPMHandle) error {
	for i, kept := range d.now.handles {
		if kept == h {
			d.now.handles = append(d.now.handles[:i], d.now.handles[i+1:]...)
			if _, err := (tpm2.FlushContext{FlushHandle: h}).Execute(d.now.tpm); err != nil {
				return fmt.Errorf("tpmdev: flush 0x%08x: %w", h, err)
			}
			return nil
		}
	}
	return nil
}
