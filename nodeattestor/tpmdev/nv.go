package tpmdev

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// ErrNoTag says that the tag's NV index is not defined or was never written; provision a tag.
var ErrNoTag = errors.New("tpmdev: the TPM holds no asset tag")

// errNoIndex says that an NV index is not defined, or was and never written.
var errNoIndex = errors.New("tpmdev: NV index is not defined or was never written")

// errUnreadable says that the TPM holds something in an NV index that it or this package does not read.
var errUnreadable = errors.New("tpmdev: NV index cannot be read")

// nvChunk is how many bytes of NV are read at once; every PC client TPM allows 512.
const nvChunk = 512

// maxNVRead bounds what is read from one index in bytes.
const maxNVRead = 8 << 10

// TagCertification is what TPM2_NV_Certify says about the asset tag's index.
type TagCertification struct {
	Attest    []byte // TPMS_ATTEST
	Signature []byte // TPMT_SIGNATURE over Attest
	Contents  []byte // the digest that Attest certifies, for finding the document
}

// nvPublic reads an index's public area and name (TPM 2.0 Part 3, section 31.6).
func (d *Device) nvPublic(index uint32) (*tpm2.TPMSNVPublic, *tpm2.TPM2BName, error) {
	rsp, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(index)}.Execute(d.now.tpm)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, nil, errNoIndex
	}
	if err != nil {
		return nil, nil, fmt.Errorf("tpmdev: NV index 0x%08x: %w", index, err)
	}
	public, err := rsp.NVPublic.Contents()
	if err != nil {
		return nil, nil, fmt.Errorf("tpmdev: NV index 0x%08x: %w", index, err)
	}
	return public, &rsp.NVName, nil
}

// nvRead reads a whole index: with its own, empty authValue where the index allows
// that, else as an owner without authorisation.
func (d *Device) nvRead(index uint32) ([]byte, error) {
	public, name, err := d.nvPublic(index)
	if err != nil {
		return nil, err
	}
	if !public.Attributes.Written {
		return nil, errNoIndex
	}
	if public.DataSize > maxNVRead {
		return nil, fmt.Errorf("%w: 0x%08x has %d bytes, more than the %d allowed", errUnreadable, index, public.DataSize, maxNVRead)
	}
	var out []byte
	for offset := uint16(0); offset < public.DataSize; {
		size := min(nvChunk, public.DataSize-offset)
		rsp, err := tpm2.NVRead{
			AuthHandle: nvReader(public, name),
			NVIndex:    tpm2.NamedHandle{Handle: tpm2.TPMHandle(index), Name: *name},
			Size:       size,
			Offset:     offset,
		}.Execute(d.now.tpm)
		var answer tpm2.TPMRC
		if errors.As(err, &answer) && !answer.IsWarning() && answer != tpm2.TPMRCFailure { // not for now, and not for all
			return nil, fmt.Errorf("%w: 0x%08x: %w", errUnreadable, index, err)
		}
		if err != nil {
			return nil, fmt.Errorf("tpmdev: read NV index 0x%08x: %w", index, err)
		}
		if len(rsp.Data.Buffer) != int(size) {
			return nil, fmt.Errorf("tpmdev: read NV index 0x%08x: got %d bytes, wanted %d", index, len(rsp.Data.Buffer), size)
		}
		out = append(out, rsp.Data.Buffer...)
		offset += size
	}
	return out, nil
}

// nvReader authorises reading an index. EK certificates and tags have AUTHREAD (TCG EK Credential
// Profile 2.x, section 2.2.1.4; assettag.NVPublic). Options.OwnerAuth is never used: what an index's
// attributes are is the word of whoever sits on the bus, who could have it sent to him by changing them.
func nvReader(public *tpm2.TPMSNVPublic, name *tpm2.TPM2BName) tpm2.AuthHandle {
	if public.Attributes.AuthRead {
		return tpm2.AuthHandle{Handle: public.NVIndex, Name: *name, Auth: tpm2.PasswordAuth(nil)}
	}
	return tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
}

// CertifyTag has the TPM certify the tag's index over the nonce with the AK
// (TPM 2.0 Part 3, section 31.16 TPM2_NV_Certify). It returns ErrNoTag where there is none.
func (d *Device) CertifyTag(ctx context.Context, k AK, nonce []byte, index uint32) (TagCertification, error) {
	var out TagCertification
	err := d.do(ctx, func() error {
		public, name, err := d.nvPublic(index)
		if errors.Is(err, errNoIndex) || err == nil && !public.Attributes.Written {
			return noTag(index)
		}
		if err != nil {
			return err
		}
		loaded, session, err := d.attestation(k)
		if err != nil {
			return err
		}
		rsp, err := tpm2.NVCertify{
			SignHandle:     tpm2.AuthHandle{Handle: loaded.handle, Name: loaded.name, Auth: session},
			AuthHandle:     nvReader(public, name),
			NVIndex:        tpm2.NamedHandle{Handle: tpm2.TPMHandle(index), Name: *name},
			QualifyingData: tpm2.TPM2BData{Buffer: nonce},
			InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
			Size:           public.DataSize,
		}.Execute(d.now.tpm)
		if err != nil {
			return fmt.Errorf("tpmdev: certify NV index 0x%08x: %w", index, err)
		}
		out = TagCertification{Attest: rsp.CertifyInfo.Bytes(), Signature: tpm2.Marshal(rsp.Signature)}
		if attest, err := rsp.CertifyInfo.Contents(); err == nil {
			if info, err := attest.Attested.NV(); err == nil {
				out.Contents = info.NVContents.Buffer
			}
		}
		return nil
	})
	if err != nil {
		return TagCertification{}, err
	}
	return out, nil
}
