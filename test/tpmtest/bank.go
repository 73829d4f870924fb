package tpmtest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// Allocate chooses the TPM's PCR banks from its next start on, as a firmware's setup does (TPM 2.0 Part 3, section
// 22.5 TPM2_PCR_Allocate). path is the TPM's socket. A bank that the TPM does not implement is an error.
func Allocate(path string, banks ...nodeclaim.HashAlg) error {
	command := []byte{
		0x80, 0x02, 0, 0, 0, 0, 0, 0, 0x01, 0x2b, // TPM_ST_SESSIONS, size, TPM_CC_PCR_Allocate
		0x40, 0, 0, 0x0c, // TPM_RH_PLATFORM
		0, 0, 0, 9, 0x40, 0, 0, 0x09, 0, 0, 0, 0, 0, // its empty password
	}
	command = binary.BigEndian.AppendUint32(command, uint32(len(nodeclaim.HashAlgs())))
	for _, alg := range nodeclaim.HashAlgs() {
		selected := []byte{3, 0, 0, 0}
		if slices.Contains(banks, alg) {
			selected = []byte{3, 0xff, 0xff, 0xff}
		}
		command = append(binary.BigEndian.AppendUint16(command, uint16(alg)), selected...)
	}
	binary.BigEndian.PutUint32(command[2:], uint32(len(command)))
	tpm, err := linuxudstpm.Open(path)
	if err != nil {
		return fmt.Errorf("tpmtest: %w", err)
	}
	response, err := tpm.Send(command)
	if err := errors.Join(err, tpm.Close()); err != nil {
		return fmt.Errorf("tpmtest: %w", err)
	}
	if rc := tpm2.TPMRC(binary.BigEndian.Uint32(response[6:])); rc != tpm2.TPMRCSuccess {
		return fmt.Errorf("tpmtest: allocate banks %v: %w", banks, rc)
	}
	const parameters = 14 // header and parameter size
	if len(response) <= parameters || response[parameters] != 1 {
		return fmt.Errorf("tpmtest: allocate banks %v: the TPM does not implement them all at once", banks)
	}
	return nil
}

// Rehash is a crypto-agile event log of one bank as the same firmware would have written it for other banks. A digest of what the log
// holds, or of one of the texts that are known besides, becomes the digest of that in each bank; for what was measured
// and is nowhere (an image, a firmware volume) the old digest stands in its place, so that equal things stay equal.
func Rehash(biosLog []byte, known [][]byte, banks ...nodeclaim.HashAlg) ([]byte, error) {
	r := &reader{b: biosLog}
	header := r.take(4 + 4 + 20)
	spec := r.take(int(r.u32()))
	if r.err != nil || len(spec) < 32 || binary.LittleEndian.Uint32(spec[24:]) != 1 {
		return nil, errors.New("tpmtest: rehash: not a log of one bank")
	}
	from := nodeclaim.HashAlg(binary.LittleEndian.Uint16(spec[28:]))
	if !from.Valid() {
		return nil, fmt.Errorf("tpmtest: rehash: bank %s", from)
	}
	put32, put16 := binary.LittleEndian.AppendUint32, binary.LittleEndian.AppendUint16
	newSpec := put32(bytes.Clone(spec[:24]), uint32(len(banks)))
	for _, b := range banks {
		newSpec = put16(put16(newSpec, uint16(b)), uint16(b.Size()))
	}
	newSpec = append(newSpec, spec[32:]...)
	out := append(put32(bytes.Clone(header), uint32(len(newSpec))), newSpec...)
	for len(r.b) > 0 && r.err == nil {
		out = append(out, r.take(4+4)...) // PCR, type
		if count, alg := r.u32(), nodeclaim.HashAlg(r.u16()); count != 1 || alg != from {
			return nil, fmt.Errorf("tpmtest: rehash: an event has %d digests, the first of bank %s", count, alg)
		}
		digest := r.take(from.Size())
		data := r.take(int(r.u32()))
		measured := digest
		for _, candidate := range append([][]byte{data}, known...) {
			if bytes.Equal(digest, sumOf(from, candidate)) {
				measured = candidate
			}
		}
		out = put32(out, uint32(len(banks)))
		for _, b := range banks {
			out = append(put16(out, uint16(b)), sumOf(b, measured)...)
		}
		out = append(put32(out, uint32(len(data))), data...)
	}
	return out, r.err
}

func sumOf(alg nodeclaim.HashAlg, data []byte) []byte {
	h := alg.New()
	h.Write(data)
	return h.Sum(nil)
}
