package tpmdev

import (
	"bytes"
	"context"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/keelson-project/keelson/nodeattestor/ek"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// Endorsement is an EK as the agent presents it.
type Endorsement struct {
	// Certs are DER certificates: the EK's own first, then what the TPM keeps of its
	// chain. Empty when the TPM has no certificate for this EK.
	Certs [][]byte
	// Public is the EK's TPM2B_PUBLIC.
	Public []byte
	// Template is the EK's name in the TCG EK Credential Profile ("L-2").
	Template string
	// Hash is the EKHash under which an inventory lists it.
	Hash nodeclaim.EKHash

	template ek.Template
}

// firstChainIndex and lastChainIndex hold certificates of the EK certificate's issuers
// (TCG EK Credential Profile 2.x, section 2.2.1.5.2).
const (
	firstChainIndex = 0x01c00100
	lastChainIndex  = 0x01c001ff
)

// Endorsement is the EK to attest with: the one of Options.Template, else the first
// template (ek.Templates) with a certificate for the very key that this TPM makes, else
// the first one that the TPM can make. It is chosen once.
func (d *Device) Endorsement(ctx context.Context) (Endorsement, error) {
	var out Endorsement
	err := d.do(ctx, func() error {
		e, _, err := d.endorsementKey()
		if err == nil {
			out = *e
		}
		return err
	})
	return out, err
}

// Endorsements lists every EK of the TPM: those with a certificate, and the low-range
// ones, which each TPM can make. An inventory lists all of them as one machine.
func (d *Device) Endorsements(ctx context.Context) ([]Endorsement, error) {
	var out []Endorsement
	err := d.do(ctx, func() error {
		for _, t := range ek.Templates() {
			e, _, err := d.makeEndorsement(t, t.HighRange())
			if flushErr := d.flush(); flushErr != nil {
				return flushErr
			}
			if err == nil && (len(e.Certs) > 0 || !t.HighRange()) {
				out = append(out, *e)
			}
		}
		if len(out) == 0 {
			return errors.New("tpmdev: the TPM makes no EK of any supported template")
		}
		return d.noteOthers()
	})
	return out, err
}

// endorsementKey loads the chosen EK, choosing it first where that was not done.
func (d *Device) endorsementKey() (*Endorsement, *loadedKey, error) {
	if d.ek != nil {
		k, err := d.loadEK(d.ek.template, d.ek.Public[2:])
		if err == nil && !bytes.Equal(k.area, d.ek.Public[2:]) {
			err = ErrOtherTPM
		}
		return d.ek, k, err
	}
	candidates := ek.Templates()
	if t := d.template(); t != nil {
		candidates = []ek.Template{*t}
	}
	var fallback *ek.Template
	var errs []error
	for _, t := range candidates {
		e, k, err := d.makeEndorsement(t, d.opts.Template == "" && (fallback != nil || t.HighRange()))
		if err == nil && len(e.Certs) > 0 {
			d.ek = e
			return e, k, nil
		}
		if flushErr := d.flush(); flushErr != nil {
			return nil, nil, flushErr
		}
		if err == nil && fallback == nil {
			fallback = &t
		}
		errs = append(errs, err)
	}
	if fallback == nil {
		return nil, nil, fmt.Errorf("tpmdev: the TPM makes no EK of any supported template: %w", errors.Join(errs...))
	}
	if err := d.noteOthers(); err != nil {
		return nil, nil, err
	}
	e, k, err := d.makeEndorsement(*fallback, false)
	if err != nil {
		return nil, nil, err
	}
	d.ek = e
	return e, k, nil
}

// makeEndorsement makes the EK of a template and reads its certificate. A certificate of
// another key (the endorsement seed was changed, or the vendor has a template of his
// own that NV does not tell) is left out and noted: no server could accept it for this key. Where one is needed, a template
// that has none is an error, and no key is made: an RSA key takes a hardware TPM many seconds.
func (d *Device) makeEndorsement(t ek.Template, needed bool) (*Endorsement, *loadedKey, error) {
	cert, expected, err := d.certificate(t)
	if err != nil {
		return nil, nil, err
	}
	if expected == nil && needed {
		return nil, nil, fmt.Errorf("tpmdev: no certificate for EK template %s", t.Name)
	}
	k, err := d.loadEK(t, expected)
	if err != nil {
		return nil, nil, fmt.Errorf("tpmdev: EK template %s: %w", t.Name, err)
	}
	hash, err := ek.HashKey(k.key)
	if err != nil {
		return nil, nil, err
	}
	e := &Endorsement{Public: sized(k.area), Template: t.Name, Hash: hash, template: t}
	if expected == nil {
		return e, k, nil
	}
	if !bytes.Equal(k.area, expected) {
		d.noteUnusable(t.NVIndex, "holds a certificate of another key than this TPM makes by EK template %s: its endorsement seed was changed, or its maker has a template of his own", t.Name)
		return e, k, nil
	}
	d.noteUsable(t.NVIndex)
	e.Certs = [][]byte{cert}
	chain, err := d.readChain()
	if err != nil {
		return nil, nil, err
	}
	e.Certs = append(e.Certs, chain...)
	return e, k, nil
}

// firstPersistentEK is where provisioning tools keep an EK (TCG TPM v2.0 Provisioning
// Guidance, section 7.8); lastPersistentEK ends the range for endorsement keys.
const (
	firstPersistentEK = 0x81010001
	lastPersistentEK  = 0x810100ff
)

// loadEK loads the EK of a template. Where its public area is known already and a
// persistent object has exactly that area, that object is used: a hardware TPM takes
// many seconds to derive an RSA key anew.
func (d *Device) loadEK(t ek.Template, expected []byte) (*loadedKey, error) {
	if expected != nil {
		handles, err := d.handles(firstPersistentEK)
		if err != nil {
			return nil, err
		}
		for _, h := range handles {
			if h > lastPersistentEK {
				break
			}
			rsp, err := tpm2.ReadPublic{ObjectHandle: h}.Execute(d.now.tpm)
			if err == nil && bytes.Equal(rsp.OutPublic.Bytes(), expected) {
				return newLoadedKey(h, rsp.Name, rsp.OutPublic)
			}
		}
	}
	k, err := d.primary(t.Area())
	if err != nil || expected == nil || bytes.Equal(k.area, expected) {
		return k, err
	}
	return d.vendorEK(t, k, expected)
}

// vendorEK makes the EK with the nonce or the template that NV has, where the default template's key (k) is not the
// expected one. It is k where that does not help.
func (d *Device) vendorEK(t ek.Template, k *loadedKey, expected []byte) (*loadedKey, error) {
	own, err := d.vendorArea(t)
	if err != nil || own == nil {
		return k, err
	}
	if err := d.release(k.handle); err != nil { // TPMs have room for three keys
		return nil, err
	}
	made, err := d.primary(*own)
	switch {
	case err != nil:
		d.noteUnusable(t.NVIndex, "holds a certificate of a key that this TPM does not make with its own nonce or template: %v", err)
	case bytes.Equal(made.area, expected):
		return made, nil
	default:
		if err := d.release(made.handle); err != nil {
			return nil, err
		}
	}
	return d.primary(t.Area())
}

// readChain reads the issuers' certificates, which some vendors store one after the other across the indices. An index that
// was never written, or that the TPM does not let anybody read, is left out: the chain helps to build a
// path, servers can be configured with what it lacks, and an EK must not be lost for it. No certificate goes on across such a gap.
func (d *Device) readChain() ([][]byte, error) {
	handles, err := d.handles(firstChainIndex)
	if err != nil {
		return nil, err
	}
	var out [][]byte
	var run []byte // contents of neighbouring indices
	for _, h := range handles {
		if h > lastChainIndex {
			break
		}
		part, err := d.nvRead(uint32(h))
		switch {
		case errors.Is(err, errNoIndex), errors.Is(err, errUnreadable):
			out, run = append(out, cutChain(run)...), nil
		case err != nil:
			return nil, err
		default:
			run = append(run, part...)
		}
	}
	out = append(out, cutChain(run)...)
	return out[:min(len(out), ek.MaxCertificates-1)], nil
}

// cutChain splits certificates that lie one after the other, up to the first bytes that begin none. One that no server could
// parse is left out: it must not spoil the EK's own.
func cutChain(raw []byte) [][]byte {
	var out [][]byte
	for {
		var cert []byte
		if cert, raw = cutDER(raw); cert == nil {
			return out
		}
		if _, err := ek.ParseCertificate(cert); err == nil && len(cert) <= ek.MaxCertificateSize {
			out = append(out, cert)
		}
	}
}

// cutDER splits the first DER SEQUENCE off; cert is nil when there is none.
func cutDER(raw []byte) (cert, rest []byte) {
	var v asn1.RawValue
	rest, err := asn1.Unmarshal(raw, &v)
	if err != nil || v.Class != asn1.ClassUniversal || v.Tag != asn1.TagSequence || !v.IsCompound {
		return nil, raw
	}
	return v.FullBytes, rest
}

// sized prefixes a structure with its 16-bit size, which makes a TPMT a TPM2B.
func sized(area []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(area))), area...) //nolint:gosec // a TPM structure has less than 64 KiB
}

// salt opens an HMAC session salted with the EK. Encryption of parameters is an option
// (inOut), because a TPM refuses it for commands without a sized first parameter.
func (d *Device) salt(k *loadedKey, auth []byte, encryption ...tpm2.AuthOption) (tpm2.Session, error) {
	opts := append([]tpm2.AuthOption{tpm2.Auth(auth), tpm2.Salted(k.handle, k.public)}, encryption...)
	s, _, err := tpm2.HMACSession(d.now.tpm, tpm2.TPMAlgSHA256, 16, opts...)
	if err != nil {
		return nil, fmt.Errorf("tpmdev: start a session salted with the EK: %w", err)
	}
	d.keep(s.Handle())
	return s, nil
}

// inOut encrypts the first parameter of command and response with AES-128-CFB.
func inOut() tpm2.AuthOption { return tpm2.AESEncryption(128, tpm2.EncryptInOut) }
