package node

import (
	"context"
	"crypto/sha1" //nolint:gosec // the kernel's format: the first hash of an IMA entry is SHA-1 whatever the rest is
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/tpmdev"
)

// Measurement is one extension of one PCR.
type Measurement struct {
	PCR     int
	Digests map[nodeclaim.HashAlg][]byte
}

// Boot gives a freshly started TPM the PCRs of a recorded boot: each event of a TCG log (binary_bios_measurements), then each
// entry of an IMA list (binary_runtime_measurements), in order, for the banks that the TPM has.
func Boot(ctx context.Context, tpm *tpmdev.Device, tcgLog, imaList []byte) error {
	banks, err := tpm.Banks(ctx)
	if err != nil {
		return err
	}
	events, err := tcgMeasurements(tcgLog)
	if err != nil {
		return err
	}
	entries, err := imaMeasurements(imaList, banks)
	if err != nil {
		return err
	}
	for _, m := range append(events, entries...) {
		if err := m.extend(ctx, tpm, banks); err != nil {
			return err
		}
	}
	return nil
}

func (m Measurement) extend(ctx context.Context, tpm *tpmdev.Device, banks []nodeclaim.HashAlg) error {
	digests := make(map[nodeclaim.HashAlg][]byte, len(banks))
	for _, bank := range banks {
		if digest, ok := m.Digests[bank]; ok {
			digests[bank] = digest
		}
	}
	if len(digests) == 0 {
		return fmt.Errorf("node: a measurement into PCR %d has a digest for none of the TPM's banks %v", m.PCR, banks)
	}
	return tpm.PCRExtend(ctx, m.PCR, digests)
}

const evNoAction = 3 // TCG PC Client Platform Firmware Profile, section 10.4.1: it extends nothing

// tcgMeasurements reads what a crypto-agile log extended. The log is ours (a recorded boot), so this reads no more of it than
// that, and trusts it; the verifier's own parser is nodeattestor/eventlog.
func tcgMeasurements(log []byte) ([]Measurement, error) {
	const head = 4 + 4 + 20 + 4 // the first event has the old form: PCR, type, SHA-1, size
	if len(log) < head {
		return nil, errors.New("node: TCG log: too short")
	}
	size := int(binary.LittleEndian.Uint32(log[head-4:]))
	if len(log) < head+size {
		return nil, errors.New("node: TCG log: the first event is cut off")
	}
	r := &littleEndian{rest: log[head+size:]}
	var all []Measurement
	for len(r.rest) > 0 && r.err == nil {
		pcr, kind, count := r.uint32(), r.uint32(), r.uint32()
		m := Measurement{PCR: int(pcr), Digests: map[nodeclaim.HashAlg][]byte{}}
		for range count {
			alg := nodeclaim.HashAlg(r.uint16())
			if !alg.Valid() {
				return nil, fmt.Errorf("node: TCG log: unknown hash %s", alg)
			}
			m.Digests[alg] = r.take(alg.Size())
		}
		r.take(int(r.uint32())) // the event's data
		if kind != evNoAction {
			all = append(all, m)
		}
	}
	if r.err != nil {
		return nil, fmt.Errorf("node: TCG log: %w", r.err)
	}
	return all, nil
}

// imaMeasurements reads what an IMA list extended: in each bank, the bank's hash over the template's data.
func imaMeasurements(list []byte, banks []nodeclaim.HashAlg) ([]Measurement, error) {
	r := &littleEndian{rest: list}
	var all []Measurement
	for len(r.rest) > 0 && r.err == nil {
		pcr := r.uint32()
		r.take(sha1.Size)
		r.take(int(r.uint32())) // template name
		data := r.take(int(r.uint32()))
		all = append(all, Measurement{PCR: int(pcr), Digests: hashes(data, banks)})
	}
	if r.err != nil {
		return nil, fmt.Errorf("node: IMA list: %w", r.err)
	}
	return all, nil
}

func hashes(data []byte, banks []nodeclaim.HashAlg) map[nodeclaim.HashAlg][]byte {
	digests := make(map[nodeclaim.HashAlg][]byte, len(banks))
	for _, bank := range banks {
		h := bank.New()
		h.Write(data)
		digests[bank] = h.Sum(nil)
	}
	return digests
}

// RunFile does what the kernel does when a program is run on a machine with IMA: an entry (template ima-sig, no signature) at
// the end of the list, and its digest into PCR 10. The list is extended first, as in the kernel.
func RunFile(ctx context.Context, tpm *tpmdev.Device, imaList, path string, content []byte) error {
	banks, err := tpm.Banks(ctx)
	if err != nil {
		return err
	}
	data := imaSig(path, content)
	sum := sha1.Sum(data) //nolint:gosec // as above
	const pcr = 10
	entry := binary.LittleEndian.AppendUint32(nil, pcr)
	entry = append(entry, sum[:]...)
	entry = appendSized(entry, []byte("ima-sig"))
	entry = appendSized(entry, data)
	f, err := os.OpenFile(imaList, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("node: IMA list: %w", err)
	}
	_, err = f.Write(entry)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("node: IMA list: %w", err)
	}
	return Measurement{PCR: pcr, Digests: hashes(data, banks)}.extend(ctx, tpm, banks)
}

// imaSig is the data of an ima-sig entry: d-ng, n-ng, sig, each with its length before it.
func imaSig(path string, content []byte) []byte {
	digest := sha256.Sum256(content)
	data := appendSized(nil, append([]byte("sha256:\x00"), digest[:]...))
	data = appendSized(data, append([]byte(path), 0))
	return appendSized(data, nil)
}

func appendSized(to, field []byte) []byte {
	to = binary.LittleEndian.AppendUint32(to, uint32(len(field))) //nolint:gosec // a few bytes
	return append(to, field...)
}

// littleEndian takes numbers and bytes off a slice; after the first that is not there, everything is zero and err is set.
type littleEndian struct {
	rest []byte
	err  error
}

func (r *littleEndian) take(n int) []byte {
	if r.err != nil || n < 0 || n > len(r.rest) {
		r.err = errors.New("cut off")
		return make([]byte, 4)
	}
	taken := r.rest[:n]
	r.rest = r.rest[n:]
	return taken
}

func (r *littleEndian) uint32() uint32 { return binary.LittleEndian.Uint32(r.take(4)) }

func (r *littleEndian) uint16() uint16 { return binary.LittleEndian.Uint16(r.take(2)) }
