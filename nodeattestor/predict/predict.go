package predict

import (
	"bytes"
	"fmt"
	"maps"
	"slices"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// File is a file's content and the name by which people know it.
type File struct {
	Name string
	Data []byte
}

// Change is what is booted in another way than in the base: UKI, Linux, GRUB or DBX.
type Change interface{ apply(*draft) error }

// Prediction is what a boot will measure.
type Prediction struct {
	// Bank is the PCR bank that all digests are of.
	Bank nodeclaim.HashAlg
	// PCRs are the values that the boot will have, of those PCRs that the changes concern.
	PCRs map[int][]byte
	// Unknown says of a PCR that the changes concern why it cannot be predicted.
	Unknown map[int]string
	// Facts are what the server will prove of the boot. Those of unknown PCRs do not count.
	Facts eventlog.Facts
	// CommandLine is the kernel's whole command line, "" where it is not known.
	CommandLine string
	// Log is the event log that leads to PCRs, for people and for `keelson eventlog show`. PCR 0 in
	// it may lack the locality from which it starts.
	Log []byte
	// Notes say what a person must know or see to.
	Notes []string

	base  Base
	byPCR map[int][]event
}

// Predict applies changes, in order.
func (b Base) Predict(changes ...Change) (Prediction, error) {
	d := newDraft(b)
	for _, c := range changes {
		if err := c.apply(d); err != nil {
			return Prediction{}, err
		}
	}
	if len(d.changed) == 0 && len(d.unknown) == 0 {
		return Prediction{}, fmt.Errorf("predict: nothing changes")
	}
	if enabled, known := b.secureBoot(); (enabled || !known) && d.changed[4] {
		d.note("PCR 7: taken from the boot before. Secure boot measures into it which key vouched for each image: sign the new images with the same keys")
	}
	p := Prediction{Bank: b.alg, PCRs: map[int][]byte{}, Unknown: d.unknown, Log: d.log(), base: b, byPCR: d.byPCR}
	log, err := eventlog.Parse(p.Log)
	if err != nil {
		return Prediction{}, fmt.Errorf("predict: what will be measured is no event log: %w", err)
	}
	claimed, err := log.Claimed(b.alg)
	if err != nil {
		return Prediction{}, err
	}
	if len(claimed.Problems) > 0 {
		return Prediction{}, fmt.Errorf("predict: the server will refuse this boot: %w", claimed.Problems)
	}
	p.Facts = claimed.Facts
	for pcr := range d.changed {
		if _, no := d.unknown[pcr]; !no {
			p.PCRs[pcr] = fold(b.alg, d.byPCR[pcr])
		}
	}
	p.settleCommandLine(d)
	p.Notes = d.notes
	return p, nil
}

// settleCommandLine takes over a text that the facts confirm.
func (p *Prediction) settleCommandLine(d *draft) {
	switch {
	case d.cmdlineKnown && p.Facts.CommandLine.Is(d.cmdline):
		p.CommandLine = d.cmdline
	case d.cmdlineKnown && p.Facts.CommandLine.Known():
		d.note("the command line %q is not the one that will be measured: no set can hold its text", d.cmdline)
	case !d.cmdlineKnown:
		p.CommandLine = p.Facts.CommandLine.Text
	}
}

// Difference is a PCR whose prediction and measurement differ.
type Difference struct {
	PCR int
	// Event is the first event that differs, from 1 on, and What says how.
	Event int
	What  string
}

// String says it in a line.
func (d Difference) String() string {
	return fmt.Sprintf("PCR %d: event %d: %s", d.PCR, d.Event, d.What)
}

// Compare holds the prediction against a boot of the same files, PCR by PCR; PCRs that are not
// predicted are left out.
func (p Prediction) Compare(boot Base) ([]Difference, error) {
	if boot.alg != p.Bank {
		return nil, fmt.Errorf("predict: the boot is of bank %s, the prediction of %s", boot.alg, p.Bank)
	}
	var out []Difference
	for _, pcr := range slices.Sorted(maps.Keys(p.PCRs)) {
		want, have := p.byPCR[pcr], boot.byPCR[pcr]
		for i := range max(len(want), len(have)) {
			switch {
			case i >= len(have):
				out = append(out, Difference{pcr, i + 1,
					fmt.Sprintf("predicted %s (%s), but the boot measured only %d events", p.digest(want[i]),
						want[i].what, len(have))})
			case i >= len(want):
				out = append(out, Difference{pcr, i + 1, fmt.Sprintf("the boot measured %s, which was not predicted",
					p.digest(have[i]))})
			case !bytes.Equal(want[i].digest, have[i].digest):
				out = append(out, Difference{pcr, i + 1, fmt.Sprintf("predicted %s (%s), the boot measured %s",
					p.digest(want[i]), want[i].what, p.digest(have[i]))})
			default:
				continue
			}
			break
		}
	}
	return out, nil
}

func (p Prediction) digest(e event) eventlog.Digest { return eventlog.NewDigest(p.Bank, e.digest) }

// Describe lists what is predicted, a line for each event that the changes concern.
func (p Prediction) Describe() []string {
	var out []string
	for _, pcr := range slices.Sorted(maps.Keys(p.PCRs)) {
		out = append(out, fmt.Sprintf("PCR %d: %x", pcr, p.PCRs[pcr]))
		for _, e := range p.byPCR[pcr] {
			out = append(out, fmt.Sprintf("  %s %s", p.digest(e), e.what))
		}
	}
	for _, pcr := range slices.Sorted(maps.Keys(p.Unknown)) {
		out = append(out, fmt.Sprintf("PCR %d: not predicted: %s", pcr, p.Unknown[pcr]))
	}
	return out
}
