package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keelson-project/keelson/boundedfile"
	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

const eventlogShowHelp = `Show a TCG event log: the facts that it claims about a boot, the PCR values that its events lead to, and every event
with its digest. Linux has the log of the running machine in /sys/kernel/security/tpm0/binary_bios_measurements.

"confirmed" means that the digest in the log is that of the text shown. Nothing here proves the digests themselves: only a
quote over the PCR values does (keelson evidence verify). With --tpm, the values are compared with those of this
machine's TPM, unquoted. --os-extended-pcrs shows what can be read at most where the operating system extends these PCRs
and no log leads to them: without them.

Exit 0: shown. Exit 1: the log contradicts itself, or the TPM. Exit 2: wrong use, or a file that is no event log.`

type eventlogFlags struct {
	bank, output, tpm string
	osExtended        []int
}

func addEventlog(root *cobra.Command) {
	var f eventlogFlags
	show := &cobra.Command{
		Use: "show FILE", Short: "Show facts, PCRs and events of a TCG event log", Long: eventlogShowHelp, Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return showEventlog(c.Context(), c.OutOrStdout(), args[0], f)
		},
	}
	show.Flags().StringVar(&f.bank, "bank", "", "bank to show, as sha256 (default the log's strongest)")
	show.Flags().StringVar(&f.tpm, "tpm", "", "TPM device or Unix socket whose PCRs the log is compared with")
	osExtendedFlag(show, &f.osExtended)
	outputFlag(show, &f.output)
	group := group("eventlog", "Read TCG event logs")
	group.AddCommand(show)
	root.AddCommand(group)
}

// shownLog is what eventlog show prints; as JSON, its keys are a contract.
type shownLog struct {
	Bank     string             `json:"bank"`
	Banks    []string           `json:"banks"` // all of the log's
	Facts    eventlog.Facts     `json:"facts"` // claimed, not proven
	PCRs     []shownPCR         `json:"pcrs"`  // those with events
	Events   []eventlog.Entry   `json:"events"`
	Problems nodeclaim.Refusals `json:"problems"`
}

type shownPCR struct {
	Index  int    `json:"index"`
	Events int    `json:"events"`
	Value  string `json:"value"` // hex, what the events lead to
	// TPM is what the TPM holds, hex; "" without --tpm.
	TPM string `json:"tpm,omitempty"`
}

func showEventlog(ctx context.Context, out io.Writer, file string, f eventlogFlags) error {
	if f.output != "text" && f.output != "json" {
		return fmt.Errorf("output %q is neither text nor json", f.output)
	}
	raw, err := boundedfile.Read(file, eventlog.MaxLogSize)
	if err != nil {
		return err
	}
	log, err := eventlog.Parse(raw)
	if err != nil {
		return inFile(file, err)
	}
	alg, err := f.pick(log)
	if err != nil {
		return err
	}
	if log, err = log.WithOSExtended(f.osExtended); err != nil {
		return err
	}
	s, err := newShownLog(log, alg)
	if err != nil {
		return inFile(file, err)
	}
	if f.tpm != "" {
		if err := s.compare(ctx, f.tpm, alg, f.osExtended); err != nil {
			return err
		}
	}
	if f.output == "json" {
		err = writeJSON(out, s)
	} else {
		err = s.text(out)
	}
	if err == nil && len(s.Problems) > 0 {
		err = refused(inFile(file, errors.New(s.Problems[0].Reason)))
	}
	return err
}

// pick is the bank asked for, else the log's strongest.
func (f eventlogFlags) pick(log eventlog.Log) (nodeclaim.HashAlg, error) {
	if f.bank != "" {
		alg, err := nodeclaim.ParseHashAlg(f.bank)
		if err == nil && !slices.Contains(log.Banks(), alg) {
			_, err = log.Unverified(alg) // which says why, where the log's header names the bank
			err = fmt.Errorf("the log has no bank %s, only %v, that can be replayed: %w", alg, log.Banks(), err)
		}
		return alg, err
	}
	if len(log.Banks()) == 0 {
		return 0, errors.New("no bank of the log can be replayed: events lack digests, or all are of unknown algorithms")
	}
	return slices.Max(log.Banks()), nil // TPM_ALG_IDs rise with strength
}

func newShownLog(log eventlog.Log, alg nodeclaim.HashAlg) (shownLog, error) {
	claimed, err := log.Claimed(alg)
	if err != nil {
		return shownLog{}, err
	}
	s := shownLog{Bank: alg.String(), Facts: claimed.Facts, Events: claimed.Events, Problems: claimed.Problems, PCRs: []shownPCR{}}
	for _, b := range log.Banks() {
		s.Banks = append(s.Banks, b.String())
	}
	if s.Problems == nil {
		s.Problems = nodeclaim.Refusals{}
	}
	for i := range nodeclaim.MaxPCR + 1 {
		n := 0
		for _, e := range claimed.Events {
			if e.PCR == i {
				n++
			}
		}
		if n > 0 {
			s.PCRs = append(s.PCRs, shownPCR{Index: i, Events: n, Value: hex.EncodeToString(claimed.PCRs[i])})
		}
	}
	return s, nil
}

// later are the PCRs that others than the firmware's log extend after boot.
var later = []int{10, 11, 12, 13, 15}

// compare sets the log against the PCRs of a TPM.
func (s *shownLog) compare(ctx context.Context, path string, alg nodeclaim.HashAlg, osExtended []int) (err error) {
	dev, err := (&tpmFlags{tpm: path}).open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	sel := nodeclaim.Selection{Bank: alg}
	for _, p := range s.PCRs {
		sel.PCRs = append(sel.PCRs, p.Index)
	}
	if len(sel.PCRs) == 0 {
		return nil
	}
	values, err := dev.PCRRead(ctx, sel)
	if err != nil {
		return err
	}
	for i := range s.PCRs {
		p := &s.PCRs[i]
		p.TPM = hex.EncodeToString(values[p.Index])
		if p.TPM != p.Value && !slices.Contains(later, p.Index) && !slices.Contains(osExtended, p.Index) {
			s.Problems = append(s.Problems, *nodeclaim.Refuse("eventlog.pcr", fmt.Sprintf(
				"the log's events for PCR %d lead to %s, the TPM holds %s", p.Index, p.Value, p.TPM)))
		}
	}
	return nil
}

func (s shownLog) text(out io.Writer) error {
	var l lines
	l.add("bank %s of %s; nothing here is proven without a quote", s.Bank, strings.Join(s.Banks, ", "))
	l.b.WriteString(factsText(s.Facts))
	for _, p := range s.PCRs {
		mark := ""
		switch p.TPM {
		case "":
		case p.Value:
			mark = "  as in the TPM"
		default:
			mark = "  the TPM holds " + p.TPM
		}
		l.add("PCR %2d %4d events  %s%s", p.Index, p.Events, p.Value, mark)
	}
	l.b.WriteString(eventsText(s.Events))
	for _, p := range s.Problems {
		l.add("problem (%s): %s", p.Check, p.Reason)
	}
	return l.write(out)
}
