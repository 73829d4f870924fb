package main

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keelson-project/keelson/boundedfile"
	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/tpmdev"
)

const collectHelp = `Collect evidence of this machine's boot into a folder, as "keelson evidence verify" and "keelson reference capture" read it:
a quote by this machine's TPM over PCRs of one bank, the public part of the key that signed it, the TCG event log, systemd's log of
what it measured after that, the IMA list, the kernel's command line, and the certificates of the TPM's EKs. Nothing secret is among it.

The key is the agent's own with --data-dir, else one that is made for this call alone. The folder must be new or
empty. Run it as root: the logs are not for everybody.

PCRs 0 to 14 are quoted unless --pcrs says otherwise. From a folder, evidence is appraised only where the logs lead to every
quoted PCR: leave out one that something else extends on your machines.`

type collectFlags struct {
	tpmFlags
	dir, nonce, bank, dataDir     string
	eventLog, imaLog, commandLine string
	systemdLog                    string
	pcrs                          []int
}

// maxNonce bounds a nonce in bytes: qualifying data are at most as long as a digest and its algorithm,
// which for a TPM whose longest hash is SHA-384 is 50 (TPM 2.0 Part 2, section 10.4.3 TPM2B_DATA).
const maxNonce = 48

func collectCommand() *cobra.Command {
	var f collectFlags
	c := &cobra.Command{
		Use: "collect --dir DIR --nonce STRING", Short: "Collect evidence of this machine into a folder", Long: collectHelp, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return collectEvidence(c.Context(), c.OutOrStdout(), f) },
	}
	f.register(c, defaultTPM)
	flags := c.Flags()
	flags.StringVar(&f.dir, "dir", "", "folder to write into, new or empty (required)")
	flags.StringVar(&f.nonce, "nonce", "", "text that the quote answers (required)")
	flags.StringVar(&f.bank, "bank", "sha256", "PCR bank to quote")
	flags.IntSliceVar(&f.pcrs, "pcrs", []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14}, "PCRs to quote")
	flags.StringVar(&f.dataDir, "data-dir", "", "the agent's data_dir, whose attestation key is used (default a new key)")
	flags.StringVar(&f.eventLog, "event-log", "/sys/kernel/security/tpm0/binary_bios_measurements", "TCG event log")
	flags.StringVar(&f.imaLog, "ima-log", "/sys/kernel/security/ima/binary_runtime_measurements", "IMA list; a machine without one has an empty list")
	flags.StringVar(&f.systemdLog, "systemd-log", "/run/log/systemd/tpm2-measure.log", "log of what systemd measured; a machine without one has an empty log")
	flags.StringVar(&f.commandLine, "command-line", "/proc/cmdline", "kernel command line")
	return c
}

func collectEvidence(ctx context.Context, out io.Writer, f collectFlags) (err error) {
	sel, err := f.validate()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return err
	}
	if entries, err := os.ReadDir(f.dir); err != nil || len(entries) > 0 {
		return errors.Join(err, fmt.Errorf("--dir %s is not empty: evidence of two moments must not mix", f.dir))
	}
	dev, err := f.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	files, err := f.quote(ctx, dev, sel)
	if err != nil {
		return err
	}
	if err := f.logs(files); err != nil { // after the quote, so that they hold at least what it covers
		return err
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(f.dir, name), data, 0o600); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(out, "%s has a quote of bank %s over PCRs %s, the logs, and %d EK certificates\n",
		f.dir, f.bank, strings.Trim(fmt.Sprint(sel.PCRs), "[]"), len(files)-len(fixedFiles))
	return err
}

func (f collectFlags) validate() (nodeclaim.Selection, error) {
	var sel nodeclaim.Selection
	switch {
	case f.dir == "":
		return sel, errors.New("--dir is missing: name the folder to write into")
	case f.nonce == "" || len(f.nonce) > maxNonce:
		return sel, fmt.Errorf("--nonce has %d bytes: give a text of 1 to %d that the verifier chose", len(f.nonce), maxNonce)
	}
	alg, err := nodeclaim.ParseHashAlg(f.bank)
	if err != nil {
		return sel, err
	}
	sel = nodeclaim.Selection{Bank: alg, PCRs: slices.Sorted(slices.Values(f.pcrs))}
	return sel, sel.Validate()
}

// fixedFiles are in every folder.
var fixedFiles = []string{fileAttest, fileSignature, fileAK, fileEventLog, fileSystemdLog, fileIMALog, fileCommandLine, filePCRs}

// quote has the TPM's part of the evidence.
func (f collectFlags) quote(ctx context.Context, dev *tpmdev.Device, sel nodeclaim.Selection) (files map[string][]byte, err error) {
	key, done, err := f.key(ctx, dev)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, done()) }()
	quotes, err := dev.Quote(ctx, key, []byte(f.nonce), []nodeclaim.Selection{sel})
	if err != nil {
		return nil, err
	}
	files = map[string][]byte{fileAttest: quotes[0].Attest, fileSignature: quotes[0].Signature, fileAK: key.Public, filePCRs: writtenPCRs(quotes[0].Values)}
	endorsements, err := dev.Endorsements(ctx)
	if err != nil {
		return nil, err
	}
	for _, e := range endorsements {
		var chain []byte
		for _, der := range e.Certs {
			chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
		}
		if len(chain) > 0 {
			files[strings.Replace(ekPattern, "*", e.Template, 1)] = chain
		}
	}
	return files, nil
}

// writtenPCRs writes PCR values as readPCRs reads them.
func writtenPCRs(values map[int][]byte) []byte {
	var out []byte
	for _, i := range slices.Sorted(maps.Keys(values)) {
		out = fmt.Appendf(out, "%2d: 0x%X\n", i, values[i])
	}
	return out
}

// key is the agent's AK, or one that is made now; done forgets the latter.
func (f collectFlags) key(ctx context.Context, dev *tpmdev.Device) (k tpmdev.AK, done func() error, err error) {
	if f.dataDir != "" {
		k, err = dev.KeptAK(ctx, f.dataDir)
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w; without --data-dir a key is made for this call", err)
		}
		return k, func() error { return nil }, err
	}
	dir, err := os.MkdirTemp("", "keelson-ak")
	if err != nil {
		return k, nil, err
	}
	if k, err = dev.AK(ctx, dir); err != nil {
		return k, nil, errors.Join(err, os.RemoveAll(dir))
	}
	return k, func() error { return os.RemoveAll(dir) }, nil
}

// logs reads what the kernel keeps.
func (f collectFlags) logs(files map[string][]byte) error {
	var err error
	if files[fileEventLog], err = boundedfile.Read(f.eventLog, eventlog.MaxLogSize); err != nil {
		return err
	}
	if files[fileSystemdLog], err = systemdRecords(f.systemdLog); err != nil {
		return err
	}
	files[fileIMALog], err = boundedfile.Read(f.imaLog, ima.DefaultLimits().Total)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	files[fileCommandLine], err = boundedfile.Read(f.commandLine, eventlog.MaxCommandLine)
	return err
}

// systemdRecords is what systemd's log has of PCRs; nothing where there is none.
func systemdRecords(name string) (log []byte, err error) {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if log, err = eventlog.PCRRecords(f); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return log, nil
}
