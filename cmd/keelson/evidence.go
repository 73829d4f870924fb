package main

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keelson-project/keelson/boundedfile"
	"github.com/keelson-project/keelson/nodeattestor/ak"
	"github.com/keelson-project/keelson/nodeattestor/appraise"
	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/quote"
	"github.com/keelson-project/keelson/nodeattestor/reference"
)

// Files of an evidence folder. cmdline.txt is /proc/cmdline: a PCR holds only its digest, so a
// refusal can say what the command line was only if somebody wrote it down.
const (
	fileEventLog    = "binary_bios_measurements"
	fileIMALog      = "binary_runtime_measurements"
	fileSystemdLog  = "tpm2-measure.log"
	fileAttest      = "quote.attest"
	fileSignature   = "quote.sig"
	fileAK          = "ak.tpmpub"
	fileCommandLine = "cmdline.txt"
	filePCRs        = "pcrs.txt"
	ekPattern       = "ek-*.pem"
)

const evidenceHelp = `Verify evidence that was collected into a folder: replay its TCG event log and IMA list, check that
the quote covers what they lead to, and compare with reference sets.

The folder has binary_bios_measurements and binary_runtime_measurements (from securityfs),
quote.attest (TPMS_ATTEST), quote.sig (TPMT_SIGNATURE), ak.tpmpub (TPM2B_PUBLIC); optionally
tpm2-measure.log (what systemd measured after boot), cmdline.txt (/proc/cmdline, believed only where a
digest confirms it) and ek-*.pem. With --os-extended-pcrs, pcrs.txt says what these PCRs hold ("  8: 0xHEX" a
line, as tpm2_pcrread writes them), because no log leads to them; the quote decides whether that is so.

The verdict is "trusted" only if a reference set accepts the evidence. Without --reference the
evidence is replayed and its facts are shown, and the verdict is "untrusted" (reference.none):
nothing says that such a boot is good.

A folder proves what a TPM with that attestation key quoted. It does not prove that the key is in the TPM
of ek-*.pem (that takes credential activation, which the node attestor does), nor, unless the
nonce is fresh, when.

Exit 0: trusted. Exit 1: untrusted. Exit 2: wrong use, or a file that cannot be read.`

type evidenceFlags struct {
	dir        string
	nonce      string
	ekRoots    string
	references []string
	signers    []string
	output     string
	padded     bool
	osExtended []int
}

func addEvidence(root *cobra.Command) {
	evidence := group("evidence", "Work with evidence of measured boots")
	var f evidenceFlags
	verify := &cobra.Command{
		Use: "verify --dir DIR --nonce STRING", Short: "Verify evidence in a folder", Long: evidenceHelp, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return verifyEvidence(c.OutOrStdout(), f, time.Now()) },
	}
	flags := verify.Flags()
	flags.StringVar(&f.dir, "dir", "", "folder with the evidence (required)")
	flags.StringVar(&f.nonce, "nonce", "", "nonce that the quote must answer, as text (required)")
	flags.StringVar(&f.ekRoots, "ek-roots", "", "folder with PEM certificates of TPM makers; every ek-*.pem must verify under them")
	flags.StringArrayVar(&f.references, "reference", nil, "file with a reference set; may be repeated")
	flags.StringArrayVar(&f.signers, "signer", nil, signerHelp)
	flags.StringVarP(&f.output, "output", "o", "text", "text for people or json for programs")
	flags.BoolVar(&f.padded, "ima-padded-sha1", false, "the kernel is older than 5.8 and extends every bank with SHA-1 (weak)")
	osExtendedFlag(verify, &f.osExtended)
	evidence.AddCommand(verify, collectCommand())
	root.AddCommand(evidence)
}

func verifyEvidence(out io.Writer, f evidenceFlags, now time.Time) error {
	switch {
	case f.dir == "":
		return errors.New("--dir is missing: name the folder with the evidence")
	case f.nonce == "":
		return errors.New("--nonce is missing: give the text that the quote must answer")
	case f.output != "text" && f.output != "json":
		return fmt.Errorf("--output %q: use text or json", f.output)
	}
	read, err := readSets(f.references, f.signers)
	if err != nil {
		return err
	}
	sets, err := reference.NewSets(read...)
	if err != nil {
		return err
	}
	bundle, err := readBundle(f.dir, f.osExtended)
	if err != nil {
		return err
	}
	outcome, pcrs, refusals := appraise.Offline(bundle, []byte(f.nonce), sets, ima.Options{PaddedSHA1: f.padded}, now)
	if f.ekRoots != "" {
		more, err := verifyEKs(f.dir, f.ekRoots, now)
		if err != nil {
			return err
		}
		refusals = append(refusals, more...)
	}
	r := newReport(outcome, pcrs, refusals)
	if err := r.write(out, f.output); err != nil {
		return err
	}
	if r.Verdict != trusted {
		return refused(fmt.Errorf("evidence in %s is refused: %s", f.dir, refusals[0].Reason))
	}
	return nil
}

// osExtendedFlag names PCRs as the server's os_extended_pcrs does.
func osExtendedFlag(c *cobra.Command, to *[]int) {
	c.Flags().IntSliceVar(to, "os-extended-pcrs", nil, "PCRs among 8, 9, 11 to 15 that the machine's operating system extends without a log; nothing is read from them where the log does not lead to them")
}

// checkOSExtended refuses PCRs that are not the operating system's.
func checkOSExtended(pcrs []int) error {
	_, err := eventlog.Log{}.WithOSExtended(pcrs)
	return err
}

// readBundle reads an evidence folder. The node wrote the files, so their sizes are bounded.
func readBundle(dir string, osExtended []int) (appraise.Bundle, error) {
	b := appraise.Bundle{OSExtended: osExtended}
	if err := checkOSExtended(osExtended); err != nil {
		return b, err
	}
	var line, pcrs []byte
	var errs []error
	for _, f := range []struct {
		name     string
		to       *[]byte
		limit    int64
		optional bool
	}{
		{fileEventLog, &b.EventLog, eventlog.MaxLogSize, false},
		{fileIMALog, &b.IMALog, ima.DefaultLimits().Total, false},
		{fileAttest, &b.Attest, ak.MaxAttestSize, false},
		{fileSignature, &b.Signature, ak.MaxSignatureSize, false},
		{fileAK, &b.AK, ak.MaxPublicSize, false},
		{fileSystemdLog, &b.Userspace, eventlog.MaxUserspaceLog, true},
		{fileCommandLine, &line, eventlog.MaxCommandLine, true},
		{filePCRs, &pcrs, maxPCRsFile, true},
	} {
		data, err := boundedfile.Read(filepath.Join(dir, f.name), f.limit)
		if f.optional && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
		}
		*f.to = data
	}
	b.CommandLine = string(line)
	if len(osExtended) > 0 {
		b.Values = readPCRs(pcrs)
	}
	return b, errors.Join(errs...)
}

// maxPCRsFile bounds pcrs.txt, which has some 24 lines.
const maxPCRsFile = 64 << 10

// readPCRs reads what PCRs are said to hold. Lines that say nothing of that are passed over: the quote decides.
func readPCRs(text []byte) map[int][]byte {
	out := map[int][]byte{}
	for line := range strings.Lines(string(text)) {
		index, value, ok := strings.Cut(line, ": 0x")
		i, err := strconv.Atoi(strings.TrimSpace(index))
		if v, hexErr := hex.DecodeString(strings.TrimSpace(value)); ok && err == nil && hexErr == nil {
			out[i] = v
		}
	}
	return out
}

// Verdicts of a report.
const (
	trusted   = "trusted"
	untrusted = "untrusted"
)

// report is what evidence verify prints; as JSON, its keys are a contract.
type report struct {
	Verdict   string                       `json:"verdict"`
	Reference *string                      `json:"reference"`
	Refusals  nodeclaim.Refusals           `json:"refusals"`
	Facts     json.RawMessage              `json:"facts"`
	PCRs      map[string]map[string]string `json:"pcrs"`
	Notes     []string                     `json:"notes,omitempty"`
	facts     *appraise.Facts
	events    []eventlog.Entry
}

func newReport(o appraise.Outcome, pcrs quote.PCRs, refusals nodeclaim.Refusals) report {
	r := report{Verdict: untrusted, Refusals: refusals, Facts: json.RawMessage("{}"), PCRs: map[string]map[string]string{}, facts: o.Facts(), events: o.Boot.Events(o.Bank)}
	if len(refusals) == 0 && o.Reference != "" {
		r.Notes = o.Notes
		r.Verdict, r.Reference, r.Refusals = trusted, &o.Reference, nodeclaim.Refusals{}
	}
	for bank, values := range pcrs.All() {
		r.PCRs[bank.String()] = map[string]string{}
		for i, v := range values {
			r.PCRs[bank.String()][strconv.Itoa(i)] = hex.EncodeToString(v)
		}
	}
	return r
}

func (r report) write(out io.Writer, format string) error {
	if format == "text" {
		_, err := io.WriteString(out, r.text())
		return err
	}
	if r.facts != nil {
		facts, err := json.Marshal(r.facts)
		if err != nil {
			return err
		}
		r.Facts = facts
	}
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(r)
}

// text is the report for people.
func (r report) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "verdict: %s\n", r.Verdict)
	if r.Reference != nil {
		fmt.Fprintf(&b, "reference set: %s\n", *r.Reference)
	}
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "warning: %s\n", n)
	}
	for _, x := range r.Refusals {
		fmt.Fprintf(&b, "refused (%s): %s\n", x.Check, x.Reason)
	}
	if r.facts == nil {
		return b.String()
	}
	f := r.facts
	b.WriteString(factsText(f.Facts))
	if f.IMA != nil {
		fmt.Fprintf(&b, "measured files: %d, violations: %d\n", f.IMA.Entries, f.IMA.Violations)
	}
	if len(f.Unreplayed) > 0 {
		i := slices.Collect(func(yield func(string) bool) {
			for _, n := range f.Unreplayed {
				if !yield(strconv.Itoa(n)) {
					return
				}
			}
		})
		fmt.Fprintf(&b, "quoted but not from the firmware's log: PCR %s\n", strings.Join(i, ", "))
	}
	b.WriteString(eventsText(r.events))
	return b.String()
}

// factsText is what is proven, or claimed, about a boot.
func factsText(f eventlog.Facts) string {
	var b strings.Builder
	line := string(f.CommandLine.Digest)
	if f.CommandLine.Text != "" {
		line = strconv.Quote(f.CommandLine.Text)
	}
	for _, row := range [][2]string{
		{"secure boot", string(f.SecureBoot.State)}, {"kernel command line", line}, {"kernel", string(f.Kernel)}, {"initrd", string(f.Initrd)},
	} {
		if row[1] == "" {
			row[1] = "not proven"
		}
		fmt.Fprintf(&b, "%s: %s\n", row[0], row[1])
	}
	for i, d := range f.BootLoader {
		fmt.Fprintf(&b, "boot loader image %d: %s\n", i+1, d)
	}
	for _, d := range f.OtherImages {
		fmt.Fprintf(&b, "image that ran before this boot attempt: %s\n", d)
	}
	return b.String()
}

func eventsText(events []eventlog.Entry) string {
	var b strings.Builder
	fmt.Fprintf(&b, "events (type and unconfirmed text are the log's word only):\n")
	for _, e := range events {
		mark := ""
		if !e.Confirmed && e.Text != "" {
			mark = " (unconfirmed)"
		}
		fmt.Fprintf(&b, "  %3d PCR %2d %-32s %s %s%s\n", e.Index, e.PCR, e.Type, e.Digest, strconv.Quote(e.Text), mark)
	}
	return b.String()
}
