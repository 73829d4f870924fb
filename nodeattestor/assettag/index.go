package assettag

import (
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// DefaultIndex is the NV index of the tag's digest. It lies in the range that the TCG
// leaves to the TPM's owner, 0x01800000 to 0x01BFFFFF (TCG Registry of Reserved TPM 2.0
// Handles and Localities, section 2.2.1), where neither firmware nor vendors define any.
const DefaultIndex uint32 = 0x01800100

// The owner's range of NV indices.
const (
	firstIndex = 0x01800000
	lastIndex  = 0x01BFFFFF
)

// DigestSize is the size of the NV index in bytes: one SHA-256 digest.
const DigestSize = 32

// CheckIndex refuses indices outside the owner's range.
func CheckIndex(index uint32) error {
	if index < firstIndex || index > lastIndex {
		return fmt.Errorf("assettag: NV index 0x%08x is outside the owner's range 0x%08x to 0x%08x", index, uint32(firstIndex), uint32(lastIndex))
	}
	return nil
}

// NVState is how far an index has come on its way to hold a tag.
type NVState int

// The states, in their order. The TPM itself sets TPMA_NV_WRITTEN and TPMA_NV_WRITELOCKED.
const (
	NVDefined NVState = iota // as in TPM2_NV_DefineSpace
	NVWritten                // after the first TPM2_NV_Write
	NVLocked                 // after TPM2_NV_WriteLock: the only one that a server accepts
)

// NVPublic is the public area that the tag's index must have in a state. The name of an
// index covers all of it, the two bits that the TPM sets included (TPM 2.0 Part 1,
// section 14; Part 2, section 13.4).
//
// Attributes: only the owner writes (OWNERWRITE, whole digests: WRITEALL), and once
// locked nobody does, across resets too, until the index is deleted (WRITEDEFINE);
// whoever asks may read and certify with the index's empty authValue (AUTHREAD), as may
// the owner; reading never counts as a dictionary attack (NO_DA). There is no authPolicy
// and no other type: an ordinary index, which the owner can delete and define anew for
// the next tag. Why a lock: design/2026-11-26-nv-write-lock.md.
func NVPublic(index uint32, state NVState) tpm2.TPMSNVPublic {
	return tpm2.TPMSNVPublic{
		NVIndex: tpm2.TPMHandle(index),
		NameAlg: tpm2.TPMAlgSHA256,
		Attributes: tpm2.TPMANV{
			NT:          tpm2.TPMNTOrdinary,
			OwnerWrite:  true,
			WriteAll:    true,
			WriteDefine: true,
			OwnerRead:   true,
			AuthRead:    true,
			NoDA:        true,
			Written:     state >= NVWritten,
			WriteLocked: state >= NVLocked,
		},
		DataSize: DigestSize,
	}
}

// NVName is the name of the tag's index once it is written and locked. An index of any
// other attributes, size or policy has another name, which is how a server sees that
// somebody defined it differently.
func NVName(index uint32) ([]byte, error) { return nvName(index, NVLocked) }

func nvName(index uint32, state NVState) ([]byte, error) {
	if err := CheckIndex(index); err != nil {
		return nil, err
	}
	public := NVPublic(index, state)
	name, err := tpm2.NVName(&public)
	if err != nil {
		return nil, fmt.Errorf("assettag: name of NV index 0x%08x: %w", index, err)
	}
	return name.Buffer, nil
}
