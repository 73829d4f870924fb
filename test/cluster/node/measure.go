package node

import (
	"context"
	"crypto/sha1" // the kernel's format: the first hash of an IMA entry is SHA-1 whatever the rest is
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/tpmdev"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// Boot gives a freshly started TPM the PCRs of a recorded boot: each event of a TCG log (binary_bios_measurements), then each
// entry of an IMA list (binary_runtime_measurements), in order.
func Boot(ctx context.Context, tpm *tpmdev.Device, tcgLog, imaList []byte) error {
	extensions, err := tpmtest.ParseBoot(tcgLog, imaList)
	if err != nil {
		return fmt.Errorf("node: boot: %w", err)
	}
	if err := tpmtest.Replay(ctx, tpm, extensions); err != nil {
		return fmt.Errorf("node: boot: %w", err)
	}
	return nil
}

// RunFile does what the kernel does when a program is run on a machine with IMA: an entry (template ima-sig, no signature) at
// the end of the list, and its digest into PCR 10. The list is extended first, as in the kernel.
func RunFile(ctx context.Context, tpm *tpmdev.Device, imaList, path string, content []byte) error {
	banks, err := tpm.Banks(ctx)
	if err != nil {
		return err
	}
	data := imaSig(path, content)
	sum := sha1.Sum(data)
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
	digests := make(map[nodeclaim.HashAlg][]byte, len(banks))
	for _, bank := range banks {
		h := bank.New()
		h.Write(data)
		digests[bank] = h.Sum(nil)
	}
	return tpm.PCRExtend(ctx, pcr, digests)
}

// imaSig is the data of an ima-sig entry: d-ng, n-ng, sig, each with its length before it.
func imaSig(path string, content []byte) []byte {
	digest := sha256.Sum256(content)
	data := appendSized(nil, append([]byte("sha256:\x00"), digest[:]...))
	data = appendSized(data, append([]byte(path), 0))
	return appendSized(data, nil)
}

func appendSized(to, field []byte) []byte {
	to = binary.LittleEndian.AppendUint32(to, uint32(len(field)))
	return append(to, field...)
}
