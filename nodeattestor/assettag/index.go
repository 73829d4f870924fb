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

// NVPublic is the public area that the tag's index must have. written is false only for
// TPM2_NV_DefineSpace: the TPM sets TPMA_NV_WRITTEN with the first write, and the name
// of the index covers that bit (TPM 2.0 Part 1, section 14; Part 2, section 13.4).
//
// Attributes: only the owner writes (OWNERWRITE, whole digests: WRITEALL); whoever asks
// may read and certify with the index's empty authValue (AUTHREAD), as may the owner;
// reading never counts as a dictionary attack (NO_DA). There is no authPolicy, no write
// lock and no other type: an ordinary index, which a new tag must be able to replace.
func NVPublic(index uint32, written bool) tpm2.TPMSNVPublic {
	return tpm2.TPMSNVPublic{
		NVIndex: tpm2.TPMHandle(index),
		NameAlg: tpm2.TPMAlgSHA256,
		Attributes: tpm2.TPMANV{
			NT:         tpm2.TPMNTOrdinary,
			OwnerWrite: true,
			WriteAll:   true,
			OwnerRead:  true,
			AuthRead:   true,
			NoDA:       true,
			Written:    written,
		},
		DataSize: DigestSize,
	}
}

// NVName is the name of the tag's index once it has been written. An index of any other
// attributes, size or policy has another name, which is how a server sees that
// somebody defined it differently.
func NVName(index uint32) ([]byte, error) {
	if err := CheckIndex(index); err != nil {
		return nil, err
	}
	public := NVPublic(index, true)
	name, err := tpm2.NVName(&public)
	if err != nil {
		return nil, fmt.Errorf("assettag: name of NV index 0x%08x: %w", index, err)
	}
	return name.Buffer, nil
}
