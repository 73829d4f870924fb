// Command collect runs in the guest of a golden boot: it quotes the boot's PCRs and writes a folder of evidence as
// `keelson reference capture` reads it.
package main

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/tpmdev"
)

func main() {
	dir := flag.String("dir", "", "folder to write into")
	tpm := flag.String("tpm", "/dev/tpmrm0", "the TPM")
	digest := flag.String("extend", "", "SHA-256 digest, in hex, that PCR 9 is extended by first")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := errors.Join(extend(*tpm, *digest), collect(ctx, *tpm, *dir)); err != nil {
		fmt.Fprintln(os.Stderr, "collect:", err)
		os.Exit(1) //nolint:gocritic // the context ends with the process
	}
}

// extend does what every process with access to a TPM can do (TPM 2.0 Library, Part 3, TPM2_PCR_Extend).
func extend(tpm, digest string) (err error) {
	if digest == "" {
		return nil
	}
	const command = "80020000004100000182" + "00000009" + "00000009400000090000000000" + "00000001000b"
	request, err := hex.DecodeString(command + digest)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(tpm, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(request); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	n, err := f.Read(answer)
	if err != nil {
		return err
	}
	if n < 10 || binary.BigEndian.Uint32(answer[6:]) != 0 {
		return fmt.Errorf("the TPM answers %x", answer[:n])
	}
	return nil
}

func collect(ctx context.Context, tpm, dir string) (err error) {
	dev, err := tpmdev.OpenContext(ctx, tpm, tpmdev.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	key, err := dev.AK(ctx, filepath.Join(dir, "ak"))
	if err != nil {
		return err
	}
	var pcrs []int
	for i := range 15 {
		pcrs = append(pcrs, i)
	}
	quotes, err := dev.Quote(ctx, key, []byte("golden"), []nodeclaim.Selection{{Bank: nodeclaim.SHA256, PCRs: pcrs}})
	if err != nil {
		return err
	}
	files := map[string][]byte{"quote.attest": quotes[0].Attest, "quote.sig": quotes[0].Signature, "ak.tpmpub": key.Public}
	// The logs are read after the quote, so that they hold at least what it covers.
	for name, from := range map[string]string{
		"binary_bios_measurements":    "/sys/kernel/security/tpm0/binary_bios_measurements",
		"binary_runtime_measurements": "/sys/kernel/security/ima/binary_runtime_measurements",
		"cmdline.txt":                 "/proc/cmdline",
	} {
		if files[name], err = os.ReadFile(from); err != nil {
			return err
		}
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}
