package tpmtest

import (
	"context"
	"crypto/sha1" // IMA and old banks use it
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// Extension is one TPM2_PCR_Extend.
type Extension struct {
	PCR     int
	Digests map[nodeclaim.HashAlg][]byte
}

// Extender is what a boot is replayed into; *tpmdev.Device is one.
type Extender interface {
	PCRExtend(ctx context.Context, pcr int, digests map[nodeclaim.HashAlg][]byte) error
}

// Replay extends a TPM as a boot did. Banks of the boot that the TPM lacks must not be
// in the extensions.
func Replay(ctx context.Context, dev Extender, boot []Extension) error {
	for i, e := range boot {
		if err := dev.PCRExtend(ctx, e.PCR, e.Digests); err != nil {
			return fmt.Errorf("tpmtest: replay event %d: %w", i, err)
		}
	}
	return nil
}

// ParseBoot turns a TCG crypto-agile event log and an IMA log (binary, any template but
// "ima"; may be nil) into the extensions that made them. It is for well-formed logs of
// known boots: no product code may use it.
func ParseBoot(biosLog, imaLog []byte) ([]Extension, error) {
	boot, banks, err := parseFirmware(biosLog)
	if err != nil {
		return nil, err
	}
	ima, err := ParseIMA(imaLog, banks)
	if err != nil {
		return nil, err
	}
	return append(boot, ima...), nil
}

// reader reads little-endian fields; err sticks.
type reader struct {
	b   []byte
	err error
}

func (r *reader) take(n int) []byte {
	if r.err != nil || n < 0 || n > len(r.b) {
		r.err = errors.New("tpmtest: log is truncated")
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) u32() uint32 {
	if b := r.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (r *reader) u16() uint16 {
	if b := r.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

const evNoAction = 3

func parseFirmware(log []byte) ([]Extension, []nodeclaim.HashAlg, error) {
	r := &reader{b: log}
	r.take(4 + 4 + 20) // header event: PCR, type, SHA-1 digest
	spec := &reader{b: r.take(int(r.u32()))}
	spec.take(16 + 4 + 4) // signature, platform class, version, uintn size
	var banks []nodeclaim.HashAlg
	for range spec.u32() {
		banks = append(banks, nodeclaim.HashAlg(spec.u16()))
		if size := spec.u16(); spec.err == nil && int(size) != banks[len(banks)-1].Size() {
			return nil, nil, fmt.Errorf("tpmtest: bank %s has digests of %d bytes", banks[len(banks)-1], size)
		}
		if spec.err != nil {
			return nil, nil, spec.err
		}
	}
	var out []Extension
	for len(r.b) > 0 && r.err == nil {
		e := Extension{PCR: int(r.u32()), Digests: map[nodeclaim.HashAlg][]byte{}}
		kind := r.u32()
		for range r.u32() {
			alg := nodeclaim.HashAlg(r.u16())
			if !alg.Valid() {
				return nil, nil, fmt.Errorf("tpmtest: digest of algorithm %s", alg)
			}
			e.Digests[alg] = r.take(alg.Size())
		}
		r.take(int(r.u32()))
		if kind != evNoAction {
			out = append(out, e)
		}
	}
	return out, banks, r.err
}

// ParseIMA turns an IMA log into its extensions of the given banks.
func ParseIMA(log []byte, banks []nodeclaim.HashAlg) ([]Extension, error) {
	r := &reader{b: log}
	var out []Extension
	for len(r.b) > 0 && r.err == nil {
		e := Extension{PCR: int(r.u32()), Digests: map[nodeclaim.HashAlg][]byte{}}
		first := r.take(sha1.Size)
		r.take(int(r.u32())) // template name
		data := r.take(int(r.u32()))
		if r.err != nil {
			break
		}
		violation := [sha1.Size]byte(first) == [sha1.Size]byte{}
		for _, bank := range banks {
			h := bank.New()
			h.Write(data)
			e.Digests[bank] = h.Sum(nil)
			if violation { // the kernel extends all ones and logs all zeros
				for i := range e.Digests[bank] {
					e.Digests[bank][i] = 0xff
				}
			}
		}
		out = append(out, e)
	}
	return out, r.err
}
