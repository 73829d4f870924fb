package predict

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
)

// GRUB is the boot before with other files, and other texts or another configuration. What GRUB does
// depends on its configuration, its environment and the machine: all that it measured before is taken
// over, but what is named here.
//
// If one of the files is a configuration (NAME.cfg) and no text is given, its commands are interpreted
// (package grubscript): the old one must explain all that the boot before measured, and the new one may
// ask only what that boot answers. Else PCR 8 is not known, with the line and the reason.
type GRUB struct {
	// Files replace files that the boot before read (PCR 9) or started (PCR 4): shim, GRUB, its
	// configuration, kernel, initrd.
	Files []Replacement
	// Texts replace texts in what GRUB was told (PCR 8): a version in paths, words of the command
	// line. They are replaced in the order given, everywhere.
	Texts []Substitution
}

// Replacement is a file that takes another's place.
type Replacement struct{ Old, New File }

// Substitution is a text that takes another's place.
type Substitution struct{ Old, New string }

// apply predicts PCRs 4, 8 and 9.
func (g GRUB) apply(d *draft) error {
	if len(d.base.byPCR[8]) == 0 {
		return fmt.Errorf("predict: in the boot before, GRUB measured no command into PCR 8: nothing says what it read")
	}
	for _, s := range g.Texts {
		if s.Old == "" {
			return fmt.Errorf("predict: a text to replace is empty")
		}
	}
	lines, err := g.commands(d)
	if err != nil {
		return err
	}
	g.unchanged(d)
	var run *grubRun
	var why error
	if r, ok := g.updated(); ok {
		if run, why = g.interpret(d, r); why == nil {
			lines = run.lines
		}
	}
	if err := g.files(d, lines); err != nil {
		return err
	}
	if run != nil {
		run.apply(d)
		return nil
	}
	g.configuration(d, why)
	return nil
}

// files replaces digests in PCRs 4 and 9. Every old file must be there. lines are the command
// line's old and new form as the kernel's stub measures it, by their digests.
func (g GRUB) files(d *draft, lines map[string]event) error {
	read, started := lines, map[string]event{}
	found := map[string]bool{}
	names := map[string]string{} // of files, by digest
	for _, r := range g.Files {
		old := hash(d.base.alg, r.Old.Data)
		read[string(old)] = d.base.measure(typeIPL, r.New.Data, "file "+r.New.Name)
		names[string(old)] = r.Old.Name
		img, err := ParseImage(r.Old.Data)
		if err != nil {
			continue // a file that is only read
		}
		if old, err = img.Authenticode(d.base.alg); err != nil {
			return fmt.Errorf("%s: %w", r.Old.Name, err)
		}
		e, err := d.image(r.New)
		if err != nil {
			return err
		}
		started[string(old)], names[string(old)] = e, r.Old.Name
	}
	for pcr, by := range map[int]map[string]event{4: started, 9: read} {
		events := slices.Clone(d.base.byPCR[pcr])
		for i, e := range events {
			to, ok := by[string(e.digest)]
			if !ok {
				continue
			}
			found[names[string(e.digest)]] = true
			to.typ = e.typ
			events[i] = to
		}
		d.set(pcr, events)
	}
	for _, r := range g.Files {
		if !found[r.Old.Name] {
			return fmt.Errorf("%s: the boot before neither read this file (PCR 9) nor started it (PCR 4): give the file that was there then", r.Old.Name)
		}
	}
	g.together(d)
	return nil
}

// unchanged says that PCR 9 is not known where commands change and none of the files does that GRUB
// read them, or what they depend on, from: its configuration and its environment block.
func (g GRUB) unchanged(d *draft) {
	told := func(name string) bool {
		name = strings.TrimRight(name, "\x00")
		return strings.HasSuffix(name, ".cfg") || strings.HasSuffix(name, "grubenv")
	}
	if len(g.Texts) == 0 || slices.ContainsFunc(g.Files, func(r Replacement) bool { return told(r.Old.Name) || told(r.New.Name) }) {
		return
	}
	for _, e := range d.base.byPCR[9] {
		if told(string(e.data)) {
			d.unknown[9] = fmt.Sprintf("GRUB's commands change, so a file with commands does that GRUB read, such as %.200q, and none is replaced: replace it beside the texts",
				strings.TrimRight(string(e.data), "\x00"))
			return
		}
	}
}

// initrdTag is how Linux's stub marks its event of the initrd
// (drivers/firmware/efi/libstub/efistub.h: INITRD_EVENT_TAG_ID).
const initrdTag = 0x8F3B22EC

// together looks for an initrd that the kernel's stub measured as a whole: of several files, GRUB
// makes one, which no single file's digest gives.
func (g GRUB) together(d *draft) {
	if len(g.Files) == 0 {
		return
	}
	for i, e := range d.base.byPCR[9] {
		if e.typ == typeEventTag && len(e.data) >= 4 && binary.LittleEndian.Uint32(e.data) == initrdTag &&
			bytes.Equal(d.byPCR[9][i].digest, e.digest) {
			d.unknown[9] = "the kernel's stub measured an initrd that none of the replaced files is: GRUB made it of several"
		}
	}
}

// stubPrefixes stand before the command line that the kernel is given: GRUB 2.12 puts one there, which
// is not in PCR 8.
var stubPrefixes = []string{"", "BOOT_IMAGE="}

// commands replaces texts in PCR 8, and returns by what the stub's events of the command line are
// replaced.
func (g GRUB) commands(d *draft) (map[string]event, error) {
	lines := map[string]event{}
	used := make([]bool, len(g.Texts))
	events := slices.Clone(d.base.byPCR[8])
	for i, e := range events {
		m := eventlog.Measurement{PCR: 8, Type: e.typ, Digest: e.digest, Data: e.data}
		before, text, after, ok := m.Text(d.base.alg)
		if !ok {
			if len(g.Texts) > 0 {
				d.note("PCR 8: event %d is no text that its digest confirms; it is taken over as it is", i+1)
			}
			continue
		}
		to := g.replaced(text, used)
		if to == text {
			continue
		}
		events[i] = event{e.typ, hash(d.base.alg, []byte(to)), []byte(before + to + after), "command " + to}
		old, line := strings.TrimRight(text, "\x00"), strings.TrimRight(to, "\x00")
		for _, prefix := range stubPrefixes {
			lines[string(hash(d.base.alg, wide(prefix+old)))] = d.base.measure(typeEventTag, wide(prefix+line),
				"command line, by the kernel's stub")
		}
	}
	for i, s := range g.Texts {
		if !used[i] {
			return nil, fmt.Errorf("predict: GRUB was not told %q in the boot before (PCR 8)", s.Old)
		}
	}
	d.set(8, events)
	return lines, nil
}

func (g GRUB) replaced(text string, used []bool) string {
	for i, s := range g.Texts {
		used[i] = used[i] || strings.Contains(text, s.Old)
		text = strings.ReplaceAll(text, s.Old, s.New)
	}
	return text
}

// configuration refuses to know PCR 8 where a configuration changes in other ways than by the
// texts. why is the reason for which its commands could not be interpreted.
func (g GRUB) configuration(d *draft, why error) {
	for _, r := range g.Files {
		if !configures(r) || g.replaced(string(r.Old.Data), make([]bool, len(g.Texts))) == string(r.New.Data) {
			continue
		}
		reason := fmt.Sprintf("%s differs from %s by more than the texts that are replaced", r.New.Name, r.Old.Name)
		if why != nil {
			reason = fmt.Sprintf("what GRUB does with it cannot be told: %v", why)
		}
		d.unknown[8] = reason + ". Say with texts what changes in GRUB's commands, or capture a node that has booted it"
	}
}

func configures(r Replacement) bool { return strings.HasSuffix(r.New.Name, ".cfg") }

// updated is the only configuration that is replaced, where no texts say what changes.
func (g GRUB) updated() (r Replacement, ok bool) {
	for _, f := range g.Files {
		if configures(f) {
			if ok {
				return r, false
			}
			r, ok = f, true
		}
	}
	return r, ok && len(g.Texts) == 0 && !bytes.Equal(r.Old.Data, r.New.Data)
}
