package reference

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// The key and the word by which a set says that any kernel may run.
const (
	unpinnedKernelKey = "unpinnedKernel"
	allowUnpinned     = "allow"
)

// PinsKernel tells whether the set pins anything that is known to cover the kernel: its digest, a condition on it or on
// the sections of a unified kernel image, or the exact value of a PCR that a kernel, or the loader that
// reads it, is measured into (9 and 11) with something in it, unless the set itself says that these hold none. A PCR 4 may
// hold a kernel or loaders only, which its value does not tell.
func (s Set) PinsKernel() bool {
	if slices.ContainsFunc(components, func(c component) bool { return c.pinsKernel && s.looksAt(c) }) {
		return true
	}
	if s.boot.unpinnedKernel {
		return false
	}
	for _, byPCR := range s.boot.pcrs {
		for _, pcr := range []int{9, 11} {
			if len(byPCR[pcr]) > 0 && !slices.ContainsFunc(byPCR[pcr], unextended) {
				return true
			}
		}
	}
	return false
}

// unextended tells whether a PCR's value is the one before anything was measured.
func unextended(value []byte) bool { return len(bytes.Trim(value, "\x00")) == 0 }

// AllowsUnpinnedKernel tells whether the set says itself that it pins nothing about the kernel.
func (s Set) AllowsUnpinnedKernel() bool { return s.boot.unpinnedKernel }

// KernelWarning says in a person's words that any kernel passes, "" where the set pins one. It refuses nothing, because
// sets from before 2026-11-29 pin what they could.
func (s Set) KernelWarning() string {
	if s.PinsKernel() {
		return ""
	}
	why := "capture it again on a machine that measures its kernel, or write unpinnedKernel: allow into boot"
	if s.boot.unpinnedKernel {
		why = "as its unpinnedKernel says"
	}
	return "it pins nothing that is known to cover the kernel, so a machine may run any kernel that its boot loader starts: " + why
}

// Absent says in a person's words which facts about what was started the evidence does not prove, and what would
// measure them, a line for each. What is absent is in no captured set.
func Absent(ev Evidence) []string {
	bank, ok := captureBank(ev)
	if !ok {
		return nil
	}
	f, _ := ev.Facts(bank)
	var out []string
	const image = "a unified kernel image (systemd-stub measures its sections into PCR 11)"
	by := image + ", or GRUB with its tpm module (it measures its commands into PCR 8 and the files that it reads into PCR 9)"
	if filesPinned(ev, bank, f) {
		by = image + "; GRUB measured its files and commands, which the set pins by the exact values of PCRs 8 and 9"
	}
	by += unquoted(ev, bank)
	for _, c := range components {
		if c.proven(f) != nil {
			continue
		}
		how := c.measured
		if c.late != "" {
			how += by
		}
		out = append(out, fmt.Sprintf("%s: not proven by the evidence, so the set does not pin it; %s", c.absent, how))
	}
	for _, pcr := range capturedPCRs {
		if slices.Contains(ev.Boot.Unreplayed(bank), pcr) {
			out = append(out, fmt.Sprintf("PCR %d: the logs do not lead to its value, so nothing is read from it and the set does not pin it", pcr))
		}
	}
	return out
}

// unquoted names the PCRs that would say what started the kernel and that the evidence does not quote.
func unquoted(ev Evidence, bank nodeclaim.HashAlg) string {
	var missing []string
	for _, pcr := range []int{8, 9, 11} {
		if _, ok := ev.PCRs.Value(bank, pcr); !ok {
			missing = append(missing, fmt.Sprint(pcr))
		}
	}
	if len(missing) == 0 {
		return ""
	}
	return "; the evidence does not quote PCR " + strings.Join(missing, ", ") + ", so collect it with these first"
}

// filesPinned tells whether GRUB ran and what it read and was told is in PCRs that a capture pins.
func filesPinned(ev Evidence, bank nodeclaim.HashAlg, f eventlog.Facts) bool {
	replayed := ev.Boot.Replayed(bank)
	nine, ok := ev.PCRs.Value(bank, 9)
	return f.Scripted() && ok && slices.Contains(replayed, 8) && slices.Contains(replayed, 9) && !unextended(nine)
}

// errUnpinned refuses a capture that would let any kernel pass.
func errUnpinned(absent []string) error {
	return fmt.Errorf("reference: capture: the set would pin nothing about the kernel, so any kernel would pass. Have the machine measure it, "+
		"or ask for such a set by name (--allow-unpinned-kernel). %s", strings.Join(absent, ". "))
}
