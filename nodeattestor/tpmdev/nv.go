package tpmdev

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/keelson-project/keelson/nodeattestor/assettag"
)

// ErrNoTag says that the tag's NV index is not defined or was never written; provision a tag.
var ErrNoTag = errors.New("tpmdev: the TPM holds no asset tag")

// errNoIndex says that an NV index is not defined.
var errNoIndex = errors.New("tpmdev: NV index is not defined")

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
// that, else as owner.
func (d *Device) nvRead(index uint32) ([]byte, error) {
	public, name, err := d.nvPublic(index)
	if err != nil {
		return nil, err
	}
	if public.DataSize > maxNVRead {
		return nil, fmt.Errorf("tpmdev: NV index 0x%08x has %d bytes, more than the %d allowed", index, public.DataSize, maxNVRead)
	}
	var out []byte
	for offset := uint16(0); offset < public.DataSize; {
		size := min(nvChunk, public.DataSize-offset)
		rsp, err := tpm2.NVRead{
			AuthHandle: d.nvReader(public, name),
			NVIndex:    tpm2.NamedHandle{Handle: tpm2.TPMHandle(index), Name: *name},
			Size:       size,
			Offset:     offset,
		}.Execute(d.now.tpm)
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

func (d *Device) nvReader(public *tpm2.TPMSNVPublic, name *tpm2.TPM2BName) tpm2.AuthHandle {
	if public.Attributes.AuthRead {
		return tpm2.AuthHandle{Handle: public.NVIndex, Name: *name, Auth: tpm2.PasswordAuth(nil)}
	}
	return tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(d.opts.OwnerAuth)}
}

// CertifyTag has the TPM certify the tag's index over the nonce with the AK
// (TPM 2.0 Part 3, section 31.16 TPM2_NV_Certify). It returns ErrNoTag where there is none.
func (d *Device) CertifyTag(ctx context.Context, k AK, nonce []byte, index uint32) (TagCertification, error) {
	var out TagCertification
	err := d.do(ctx, func() error {
		public, name, err := d.nvPublic(index)
		if errors.Is(err, errNoIndex) || err == nil && !public.Attributes.Written {
			return fmt.Errorf("%w at NV index 0x%08x; provision one", ErrNoTag, index)
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
			AuthHandle:     d.nvReader(public, name),
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

// ReadTag reads the digest in the tag's index, uncertified; ErrNoTag where there is none.
func (d *Device) ReadTag(ctx context.Context, index uint32) ([]byte, error) {
	var out []byte
	err := d.do(ctx, func() error {
		public, _, err := d.nvPublic(index)
		if errors.Is(err, errNoIndex) || err == nil && !public.Attributes.Written {
			return fmt.Errorf("%w at NV index 0x%08x; provision one", ErrNoTag, index)
		}
		if err != nil {
			return err
		}
		out, err = d.nvRead(index)
		return err
	})
	return out, err
}

// ProvisionTag writes a tag document's digest (assettag.Digest) to an index in the
// owner's range. An index of other attributes is deleted and defined anew with those of
// assettag.NVPublic, because servers accept no other. It needs the owner's authorisation.
func (d *Device) ProvisionTag(ctx context.Context, index uint32, digest [assettag.DigestSize]byte) error {
	want, err := assettag.NVName(index)
	if err != nil {
		return err
	}
	return d.do(ctx, func() error {
		// Salted, so that the owner's authorisation does not cross the bus and the digest
		// cannot be changed on it.
		_, endorsement, err := d.endorsementKey()
		if err != nil {
			return err
		}
		session, err := d.salt(endorsement, d.opts.OwnerAuth)
		if err != nil {
			return err
		}
		owner := tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: session}
		if err := d.defineTag(owner, index, want); err != nil {
			return err
		}
		return d.writeTag(owner, index, digest[:])
	})
}

// defineTag makes sure that the index is defined as a tag's; want is its name once written.
func (d *Device) defineTag(owner tpm2.AuthHandle, index uint32, want []byte) error {
	public, name, err := d.nvPublic(index)
	switch {
	case errors.Is(err, errNoIndex):
	case err != nil:
		return err
	case bytes.Equal(name.Buffer, want):
		return nil
	default:
		_, err := tpm2.NVUndefineSpace{AuthHandle: owner, NVIndex: tpm2.NamedHandle{Handle: public.NVIndex, Name: *name}}.Execute(d.now.tpm)
		if err != nil {
			return fmt.Errorf("tpmdev: delete NV index 0x%08x, which is not defined as a tag's: %w", index, err)
		}
	}
	_, err = tpm2.NVDefineSpace{AuthHandle: owner, PublicInfo: tpm2.New2B(assettag.NVPublic(index, false))}.Execute(d.now.tpm)
	if err != nil {
		return fmt.Errorf("tpmdev: define NV index 0x%08x (is the owner authorisation right?): %w", index, err)
	}
	return nil
}

func (d *Device) writeTag(owner tpm2.AuthHandle, index uint32, digest []byte) error {
	_, name, err := d.nvPublic(index)
	if err != nil {
		return err
	}
	_, err = tpm2.NVWrite{
		AuthHandle: owner,
		NVIndex:    tpm2.NamedHandle{Handle: tpm2.TPMHandle(index), Name: *name},
		Data:       tpm2.TPM2BMaxNVBuffer{Buffer: digest},
	}.Execute(d.now.tpm)
	if err != nil {
		return fmt.Errorf("tpmdev: write NV index 0x%08x: %w", index, err)
	}
	return nil
}
