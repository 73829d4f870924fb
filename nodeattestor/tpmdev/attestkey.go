package tpmdev

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/go-tpm/tpm2"

	"github.com/keelson-project/keelson/nodeattestor/ek"
)

// AKFile is the file under the agent's data directory that keeps the AK across
// restarts. It holds no secret: the key itself is derived inside the TPM from the
// endorsement seed and the random number kept here.
const AKFile = "ak.json"

// ErrOtherTPM says that the data directory belongs to another TPM, or that this TPM's
// endorsement seed was changed.
var ErrOtherTPM = errors.New("tpmdev: the attestation key was made on another TPM, or this TPM's endorsement seed was changed")

// AK is this machine's attestation key: a restricted ECDSA P-256 signing key, made as a
// primary key of the endorsement hierarchy.
type AK struct {
	// Public is the AK's TPM2B_PUBLIC.
	Public []byte

	unique []byte
	salt   ek.Template // of the EK that sessions are salted with
	saltEK []byte      // its TPMT_PUBLIC as first seen
}

// akState is the content of AKFile.
type akState struct {
	Version  int    `json:"version"`
	Unique   string `json:"unique"`   // hex, 64 random bytes
	Public   string `json:"public"`   // hex, the AK's TPMT_PUBLIC
	Template string `json:"template"` // EK template of the sessions' salt
	EK       string `json:"ek"`       // hex, that EK's TPMT_PUBLIC
}

const (
	akStateVersion = 1
	maxStateSize   = 16 << 10
	uniqueSize     = 64 // bytes, half of it for each coordinate
)

// akArea is the AK's template. userWithAuth with an empty authValue lets the agent use
// it; noDA keeps a wrong use from locking the TPM. Being restricted, it signs only what
// the TPM itself made (TPM 2.0 Part 1, section 25.2.3).
func akArea(unique []byte) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
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
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			CurveID: tpm2.TPMECCNistP256,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: unique[:uniqueSize/2]},
			Y: tpm2.TPM2BECCParameter{Buffer: unique[uniqueSize/2:]},
		}),
	}
}

// AK is the attestation key kept in dir, which is made (mode 0700) where it is missing.
// Without AKFile in it a new AK comes into being. A file that was written on another
// TPM is ErrOtherTPM, and an unreadable one an error too: neither is replaced silently,
// because servers audit a new AK.
func (d *Device) AK(ctx context.Context, dir string) (AK, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return AK{}, fmt.Errorf("tpmdev: data directory: %w", err)
	}
	path := filepath.Join(dir, AKFile)
	old, err := readAK(path)
	if err == nil {
		return old, d.do(ctx, func() error {
			if _, _, err := d.attestation(old); err != nil {
				return fmt.Errorf("%w (%s; remove it to start with a new attestation key)", err, path)
			}
			return nil
		})
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return AK{}, err
	}
	k := AK{unique: make([]byte, uniqueSize)}
	if _, err := rand.Read(k.unique); err != nil {
		return AK{}, fmt.Errorf("tpmdev: %w", err)
	}
	if err := d.do(ctx, func() error { return d.makeAK(&k) }); err != nil {
		return AK{}, err
	}
	return k, writeAK(path, k)
}

// makeAK makes a new AK and records the EK that its sessions are salted with from now on.
func (d *Device) makeAK(k *AK) error {
	endorsement, err := d.saltKey(k)
	if err != nil {
		return err
	}
	session, err := d.salt(endorsement, d.opts.EndorsementAuth, inOut())
	if err != nil {
		return err
	}
	made, err := d.primary(akArea(k.unique), session)
	if err != nil {
		return fmt.Errorf("tpmdev: attestation key: %w", err)
	}
	k.Public = sized(made.area)
	return nil
}

// saltKey picks the EK for the salt: P-256 where the TPM can make it, certificate or not,
// because it is derived quickly; else the EK that the machine attests with.
func (d *Device) saltKey(k *AK) (*loadedKey, error) {
	for _, t := range ek.Templates() {
		if t.Name != "L-2" {
			continue
		}
		if made, err := d.primary(t.Area(), nil); err == nil {
			k.salt, k.saltEK = t, made.area
			return made, nil
		}
	}
	e, made, err := d.endorsementKey()
	if err != nil {
		return nil, err
	}
	k.salt, k.saltEK = e.template, made.area
	return made, nil
}

// attestation loads the AK of one operation and opens a session for it, salted with the
// EK that was recorded when the AK was made.
func (d *Device) attestation(k AK) (*loadedKey, tpm2.Session, error) {
	endorsement, err := d.loadEK(k.salt, k.saltEK)
	if err != nil {
		return nil, nil, err
	}
	if !bytes.Equal(endorsement.area, k.saltEK) {
		return nil, nil, ErrOtherTPM
	}
	create, err := d.salt(endorsement, d.opts.EndorsementAuth, inOut())
	if err != nil {
		return nil, nil, err
	}
	loaded, err := d.primary(akArea(k.unique), create)
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

func readAK(path string) (AK, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return AK{}, fmt.Errorf("tpmdev: attestation key: %w", err)
	}
	bad := func(what string) (AK, error) {
		return AK{}, fmt.Errorf("tpmdev: attestation key: %s: %s; remove it to start with a new attestation key", path, what)
	}
	if len(data) > maxStateSize {
		return bad("too large")
	}
	var s akState
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil {
		return bad(err.Error())
	}
	if s.Version != akStateVersion {
		return bad(fmt.Sprintf("version %d is not %d", s.Version, akStateVersion))
	}
	k := AK{}
	for _, t := range ek.Templates() {
		if t.Name == s.Template {
			k.salt = t
		}
	}
	unique, err1 := hex.DecodeString(s.Unique)
	public, err2 := hex.DecodeString(s.Public)
	saltEK, err3 := hex.DecodeString(s.EK)
	if err := errors.Join(err1, err2, err3); err != nil {
		return bad(err.Error())
	}
	if k.salt.Name == "" || len(unique) != uniqueSize || len(public) == 0 || len(saltEK) == 0 {
		return bad("a field is missing or of the wrong size")
	}
	k.unique, k.Public, k.saltEK = unique, sized(public), saltEK
	return k, nil
}

// writeAK writes the state so that a crash leaves the old file, the new one or none.
func writeAK(path string, k AK) error {
	data, err := json.MarshalIndent(akState{
		Version:  akStateVersion,
		Unique:   hex.EncodeToString(k.unique),
		Public:   hex.EncodeToString(k.Public[2:]),
		Template: k.salt.Name,
		EK:       hex.EncodeToString(k.saltEK),
	}, "", "  ")
	if err != nil {
		return fmt.Errorf("tpmdev: attestation key: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), AKFile+".*") // mode 0600
	if err != nil {
		return fmt.Errorf("tpmdev: attestation key: %w", err)
	}
	_, err = f.Write(append(data, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("tpmdev: attestation key: %w", err), os.Remove(f.Name()))
	}
	return nil
}
