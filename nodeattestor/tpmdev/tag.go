package tpmdev

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-tpm/tpm2"

	"github.com/keelson-project/keelson/nodeattestor/assettag"
)

// TagIndex is what the TPM says about the NV index of the asset tag, uncertified.
type TagIndex struct {
	Index      uint32
	Attributes []string // names of TPMA_NV bits that are set, as in "OWNERWRITE"
	Written    bool
	Locked     bool
	// Right says that the index has exactly the attributes, size and policy of a tag's,
	// is written and is locked: the one state that servers accept.
	Right bool
	// Contents are its bytes, nil when it was never written.
	Contents []byte
}

// Tag reads the tag's index; ErrNoTag where it is not defined. One that was never
// written, or is defined otherwise, is no error here.
func (d *Device) Tag(ctx context.Context, index uint32) (TagIndex, error) {
	want, err := assettag.NVName(index)
	if err != nil {
		return TagIndex{}, err
	}
	out := TagIndex{Index: index}
	err = d.do(ctx, func() error {
		public, name, err := d.nvPublic(index)
		if errors.Is(err, errNoIndex) {
			return noTag(index)
		}
		if err != nil {
			return err
		}
		a := public.Attributes
		out.Attributes, out.Written, out.Locked = attributeNames(a), a.Written, a.WriteLocked
		out.Right = bytes.Equal(name.Buffer, want)
		if a.Written {
			out.Contents, err = d.nvRead(index)
		}
		return err
	})
	return out, err
}

func noTag(index uint32) error {
	return fmt.Errorf("%w at NV index 0x%08x; provision one with keelson tag provision", ErrNoTag, index)
}

// attributeNames are the names of TPM 2.0 Part 2, section 13.4, without their prefix.
func attributeNames(a tpm2.TPMANV) []string {
	var out []string
	for _, n := range []struct {
		set  bool
		name string
	}{
		{a.PPWrite, "PPWRITE"}, {a.OwnerWrite, "OWNERWRITE"}, {a.AuthWrite, "AUTHWRITE"}, {a.PolicyWrite, "POLICYWRITE"},
		{a.NT != tpm2.TPMNTOrdinary, fmt.Sprintf("TYPE_%d", a.NT)}, {a.PolicyDelete, "POLICY_DELETE"}, {a.WriteLocked, "WRITELOCKED"},
		{a.WriteAll, "WRITEALL"}, {a.WriteDefine, "WRITEDEFINE"}, {a.WriteSTClear, "WRITE_STCLEAR"}, {a.GlobalLock, "GLOBALLOCK"},
		{a.PPRead, "PPREAD"}, {a.OwnerRead, "OWNERREAD"}, {a.AuthRead, "AUTHREAD"}, {a.PolicyRead, "POLICYREAD"}, {a.NoDA, "NO_DA"},
		{a.Orderly, "ORDERLY"}, {a.ClearSTClear, "CLEAR_STCLEAR"}, {a.ReadLocked, "READLOCKED"}, {a.Written, "WRITTEN"},
		{a.PlatformCreate, "PLATFORMCREATE"}, {a.ReadSTClear, "READ_STCLEAR"},
	} {
		if n.set {
			out = append(out, n.name)
		}
	}
	return out
}

// ProvisionTag writes a tag document's digest (assettag.Digest) to an index in the
// owner's range and locks it. An index that is there already is deleted and defined anew,
// unless it holds that digest as servers accept it. A machine that loses power in between
// has no tag, and is provisioned again. It needs the owner's authorisation.
func (d *Device) ProvisionTag(ctx context.Context, index uint32, digest [assettag.DigestSize]byte) error {
	want, err := assettag.NVName(index)
	if err != nil {
		return err
	}
	return d.do(ctx, func() error {
		owner, err := d.owner()
		if err != nil {
			return err
		}
		if _, name, err := d.nvPublic(index); err == nil && bytes.Equal(name.Buffer, want) && d.holdsTag(owner, index, digest[:]) == nil {
			return nil
		}
		if err := d.undefine(owner, index); err != nil && !errors.Is(err, errNoIndex) {
			return err
		}
		if err := d.writeTag(owner, index, digest[:]); err != nil {
			return err
		}
		return d.holdsTag(owner, index, digest[:])
	})
}

// RemoveTag deletes the tag's index, whatever it holds; ErrNoTag where there is none. The
// agent has nothing to show then. Somebody with the owner's authorisation can put the
// same digest back, so a server must be told too (assettag.Revocations).
func (d *Device) RemoveTag(ctx context.Context, index uint32) error {
	if err := assettag.CheckIndex(index); err != nil {
		return err
	}
	return d.do(ctx, func() error {
		owner, err := d.owner()
		if err != nil {
			return err
		}
		if err := d.undefine(owner, index); errors.Is(err, errNoIndex) {
			return noTag(index)
		} else if err != nil {
			return err
		}
		return nil
	})
}

// owner authorises as the TPM's owner, in a session that is salted so that the
// authorisation does not cross the bus and the command cannot be changed on it.
func (d *Device) owner() (tpm2.AuthHandle, error) {
	_, endorsement, err := d.endorsementKey()
	if err != nil {
		return tpm2.AuthHandle{}, err
	}
	session, err := d.salt(endorsement, d.opts.OwnerAuth)
	if err != nil {
		return tpm2.AuthHandle{}, err
	}
	return tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: session}, nil
}

func (d *Device) undefine(owner tpm2.AuthHandle, index uint32) error {
	public, name, err := d.nvPublic(index)
	if err != nil {
		return err
	}
	_, err = tpm2.NVUndefineSpace{AuthHandle: owner, NVIndex: tpm2.NamedHandle{Handle: public.NVIndex, Name: *name}}.Execute(d.now.tpm)
	if err != nil {
		return fmt.Errorf("tpmdev: delete NV index 0x%08x, which is %s (is the owner authorisation right?): %w",
			index, strings.Join(attributeNames(public.Attributes), " "), err)
	}
	return nil
}

// tagHandle is the tag's index in a state. Its name is what it must be, not what the TPM
// says: an index of another name fails the command's HMAC.
func tagHandle(index uint32, state assettag.NVState) (tpm2.NamedHandle, error) {
	public := assettag.NVPublic(index, state)
	name, err := tpm2.NVName(&public)
	if err != nil {
		return tpm2.NamedHandle{}, fmt.Errorf("tpmdev: name of NV index 0x%08x: %w", index, err)
	}
	return tpm2.NamedHandle{Handle: public.NVIndex, Name: *name}, nil
}

// writeTag defines, writes and locks the index.
func (d *Device) writeTag(owner tpm2.AuthHandle, index uint32, digest []byte) error {
	defined, err1 := tagHandle(index, assettag.NVDefined)
	written, err2 := tagHandle(index, assettag.NVWritten)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	_, err := tpm2.NVDefineSpace{AuthHandle: owner, PublicInfo: tpm2.New2B(assettag.NVPublic(index, assettag.NVDefined))}.Execute(d.now.tpm)
	if err != nil {
		return fmt.Errorf("tpmdev: define NV index 0x%08x (is the owner authorisation right?): %w", index, err)
	}
	_, err = tpm2.NVWrite{AuthHandle: owner, NVIndex: defined, Data: tpm2.TPM2BMaxNVBuffer{Buffer: digest}}.Execute(d.now.tpm)
	if err != nil {
		return fmt.Errorf("tpmdev: write NV index 0x%08x: %w", index, err)
	}
	if _, err = (tpm2.NVWriteLock{AuthHandle: owner, NVIndex: written}).Execute(d.now.tpm); err != nil {
		return fmt.Errorf("tpmdev: lock NV index 0x%08x: %w", index, err)
	}
	return nil
}

// holdsTag reads the index as owner, in the salted session: that it holds the digest, and is
// written and locked, is then the TPM's word, and nobody's on the bus.
func (d *Device) holdsTag(owner tpm2.AuthHandle, index uint32, digest []byte) error {
	locked, err := tagHandle(index, assettag.NVLocked)
	if err != nil {
		return err
	}
	rsp, err := tpm2.NVRead{AuthHandle: owner, NVIndex: locked, Size: assettag.DigestSize}.Execute(d.now.tpm)
	if err != nil {
		return fmt.Errorf("tpmdev: read NV index 0x%08x back: %w", index, err)
	}
	if !bytes.Equal(rsp.Data.Buffer, digest) {
		return fmt.Errorf("tpmdev: NV index 0x%08x holds %x, not the tag's digest", index, rsp.Data.Buffer)
	}
	return nil
}
