package tpmdev

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/go-tpm/tpm2"

	"github.com/keelson-project/keelson/nodeattestor/ek"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// Unusable says which NV indices of EK certificates hold something that cannot be used, and why, as "NV index 0x01c0000a holds
// …", in the order of the indices: what calls of Endorsement and Endorsements have met so far. An index that
// is not defined, was never written or is blank is not among them: it holds no certificate.
func (d *Device) Unusable() []string {
	d.unusable.Lock()
	defer d.unusable.Unlock()
	var out []string
	for _, index := range slices.Sorted(maps.Keys(d.unusable.why)) {
		out = append(out, fmt.Sprintf("NV index 0x%08x %s", index, d.unusable.why[index]))
	}
	return out
}

// maxWhy bounds a reason in bytes: an error may quote what the index holds.
const maxWhy = 160

func (d *Device) noteUnusable(index uint32, format string, args ...any) {
	d.unusable.Lock()
	defer d.unusable.Unlock()
	if d.unusable.why == nil {
		d.unusable.why = map[uint32]string{}
	}
	why := fmt.Sprintf(format, args...)
	d.unusable.why[index] = why[:min(len(why), maxWhy)]
}

func (d *Device) noteUsable(index uint32) {
	d.unusable.Lock()
	defer d.unusable.Unlock()
	delete(d.unusable.why, index)
}

// certificate reads a template's EK certificate and what the TPM's public area is if it is of this key. There is none (nil) where the
// index holds none, or one that cannot be used; the latter is noted.
func (d *Device) certificate(t ek.Template) (cert, expected []byte, err error) {
	raw, err := d.nvRead(t.NVIndex)
	switch {
	case errors.Is(err, errNoIndex):
		return nil, nil, nil
	case errors.Is(err, errUnreadable):
		d.noteUnusable(t.NVIndex, "cannot be read: %v", err)
		return nil, nil, err
	case err != nil:
		return nil, nil, err
	case blank(raw):
		return nil, nil, nil
	}
	cert, err = cutCertificate(raw)
	if err != nil {
		d.noteUnusable(t.NVIndex, "holds no certificate: %v", err)
		return nil, nil, nil
	}
	key, err := ek.CertificateKey(cert)
	if err != nil {
		why := err.Error()
		if r := nodeclaim.AsRefusals(err); len(r) == 1 {
			why = r[0].Reason
		}
		d.noteUnusable(t.NVIndex, "holds a certificate that cannot be read: %s", why)
		return nil, nil, nil
	}
	if !t.Fits(key) {
		d.noteUnusable(t.NVIndex, "holds a certificate of a key that EK template %s does not make (%s)", t.Name, ek.Describe(key))
		return nil, nil, nil
	}
	return cert, tpm2.Marshal(t.WithKey(key)), nil
}

// The indices of EK certificates, nonces and templates, of the low and of the high range (TCG EK Credential Profile 2.x,
// section 2.2.1.4).
const (
	firstEKIndex = 0x01c00002
	lastEKIndex  = 0x01c0007f
)

// noteOthers notes the certificates at indices of which no template is known here: of a curve or a size of key that servers do
// not take (P-521, RSA-4096, SM2). A TPM that has such a certificate alone must not pass for one without.
func (d *Device) noteOthers() error {
	handles, err := d.handles(firstEKIndex)
	if err != nil {
		return err
	}
	var names []string
	known := map[uint32]bool{}
	for _, t := range ek.Templates() {
		names = append(names, t.Name)
		known[t.NVIndex] = true
		if nonce, template, ok := t.VendorIndices(); ok {
			known[nonce], known[template] = true, true
		}
	}
	for _, h := range handles {
		index := uint32(h)
		if index > lastEKIndex {
			break
		}
		if known[index] {
			continue
		}
		raw, err := d.nvRead(index)
		if errors.Is(err, errNoIndex) || errors.Is(err, errUnreadable) { // a policy or a template may be anybody's secret
			continue
		}
		if err != nil {
			return err
		}
		cert, err := cutCertificate(raw)
		if err != nil {
			continue // the high range has templates beside its certificates
		}
		what := "a certificate that cannot be read"
		if key, err := ek.CertificateKey(cert); err == nil {
			what = "a certificate of a " + ek.Describe(key)
		}
		d.noteUnusable(index, "holds %s, and belongs to none of the EK templates that are supported: %s", what, strings.Join(names, ", "))
	}
	return nil
}

// blank tells an index that was written with nothing but zeros, or with what an erased memory holds.
func blank(raw []byte) bool {
	return len(bytes.Trim(raw, "\x00")) == 0 || len(bytes.Trim(raw, "\xff")) == 0
}

// The header that TPM makers took over from TPM 1.2 into the indices of some TPMs 2.0: TCG_PCCLIENT_STORED_CERT with a
// TCG_FULL_CERT (TCG PC Client Specific Implementation Specification 1.21, section 7.3.2).
const (
	storedCert       = 0x1001
	storedCertFull   = 0
	fullCert         = 0x1002
	storedCertHeader = 2 + 1 + 2 + 2
)

// cutCertificate takes the certificate out of an index, which may be larger than it, and may have the header of TPM 1.2.
func cutCertificate(raw []byte) ([]byte, error) {
	if len(raw) >= storedCertHeader && binary.BigEndian.Uint16(raw) == storedCert {
		size := int(binary.BigEndian.Uint16(raw[3:]))
		if raw[2] != storedCertFull || binary.BigEndian.Uint16(raw[5:]) != fullCert {
			return nil, fmt.Errorf("it begins with % x, which stands for no whole certificate", raw[:storedCertHeader])
		}
		if size < 2 || size > len(raw)-5 {
			return nil, fmt.Errorf("its header names %d bytes, and it has %d", size, len(raw)-5)
		}
		raw = raw[storedCertHeader : 5+size]
	}
	cert, _ := cutDER(raw)
	if cert == nil {
		return nil, fmt.Errorf("it begins with % x, which is no DER", raw[:min(len(raw), 8)])
	}
	return cert, nil
}

// vendorArea is a template as the TPM's maker filled it in: with the EK nonce in its unique field, or from the EK template that
// NV holds (TCG EK Credential Profile 2.x, section 2.2.1). It is nil where NV has neither. Only the unique field may differ from
// the default template: servers know no other EK, and this package uses it as the default says.
func (d *Device) vendorArea(t ek.Template) (*tpm2.TPMTPublic, error) {
	nonceIndex, templateIndex, ok := t.VendorIndices()
	if !ok {
		return nil, nil
	}
	area, found := t.Area(), false
	raw, err := d.vendorIndex(t, templateIndex)
	if err != nil {
		return nil, err
	}
	if raw != nil {
		stored, err := tpm2.Unmarshal[tpm2.TPMTPublic](raw)
		if err != nil {
			d.noteUnusable(templateIndex, "holds no EK template that can be read: %v", err)
		} else if !t.DiffersInUniqueOnly(*stored) {
			d.noteUnusable(templateIndex, "holds an EK template that differs from %s in more than its unique field", t.Name)
		} else {
			area, found = *stored, true
		}
	}
	nonce, err := d.vendorIndex(t, nonceIndex)
	if err != nil {
		return nil, err
	}
	if nonce != nil {
		filled, ok := t.WithNonce(nonce)
		if !ok {
			d.noteUnusable(nonceIndex, "holds an EK nonce of %d bytes, more than a key of template %s takes", len(nonce), t.Name)
			return nil, nil
		}
		area, found = filled, true
	}
	if !found {
		return nil, nil
	}
	return &area, nil
}

// vendorIndex reads an index that is optional; one that cannot be read is noted.
func (d *Device) vendorIndex(t ek.Template, index uint32) ([]byte, error) {
	raw, err := d.nvRead(index)
	if errors.Is(err, errNoIndex) {
		return nil, nil
	}
	if errors.Is(err, errUnreadable) {
		d.noteUnusable(index, "(what EK template %s is made with) cannot be read: %v", t.Name, err)
		return nil, nil
	}
	return raw, err
}
