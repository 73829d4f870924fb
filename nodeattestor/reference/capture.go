package reference

import (
	"errors"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/imasig"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// capturedPCRs are the exact values that a captured set pins besides its components, so that
// what no component covers cannot slip: 0 firmware, 2 and 3 option ROMs, 4 images, 7 secure boot, 8 GRUB's
// commands, 9 what the loader and the kernel's stub read, 11 unified kernel image, 12 and 13 its credentials and
// extensions, 14 shim's keys. Left out because they change on a healthy machine: 1 (boot order, SMBIOS,
// setup variables), 5 (partition table, boot attempts), 6 (platform events such as wake-ups), 10 (IMA, has
// its own section), 15, 16, 23 (others extend them after boot), 17 to 22 (a dynamic launch).
var capturedPCRs = []int{0, 2, 3, 4, 7, 8, 9, 11, 12, 13, 14}

// Capture makes a set from a golden node's evidence: each component that is proven, the
// PCRs that are quoted, replayed and stable, and all measured files but those that one of the keys signed, which
// the set then allows as such. It pins one bank, sha256
// if it was quoted, so that machines with more or fewer banks match too. The set has
// no validity window. It must accept the evidence that it came from, or Capture fails. What the evidence
// does not prove is in no set ([Absent] says what that is), and a set that would pin nothing about the kernel
// is an error: [CaptureUnpinned] makes it.
func Capture(name string, ev Evidence, keys ...imasig.Key) (Set, error) {
	return capture(name, ev, false, keys)
}

// CaptureUnpinned is Capture for a machine that measures nothing of its kernel. The set then says so itself
// (Set.AllowsUnpinnedKernel), unless something pins the kernel after all.
func CaptureUnpinned(name string, ev Evidence, keys ...imasig.Key) (Set, error) {
	return capture(name, ev, true, keys)
}

// captureBank is the bank that a captured set pins; false where the evidence proves no boot.
func captureBank(ev Evidence) (nodeclaim.HashAlg, bool) {
	banks := ev.Boot.Banks()
	switch {
	case len(banks) == 0:
		return 0, false
	case slices.Contains(banks, nodeclaim.SHA256):
		return nodeclaim.SHA256, true
	}
	return banks[0], true
}

func capture(name string, ev Evidence, unpinned bool, keys []imasig.Key) (Set, error) {
	if !namePattern.MatchString(name) {
		return Set{}, errName("capture", name)
	}
	bank, ok := captureBank(ev)
	if !ok {
		return Set{}, fmt.Errorf("reference: capture: the evidence proves no boot")
	}
	s := Set{name: name, boot: captureBoot(bank, ev)}
	facts, _ := ev.Facts(bank)
	s.boot.unpinnedKernel = unpinned && (facts.KernelUntold() || !s.PinsKernel())
	if ev.IMA != nil && len(ev.IMA.Entries) > 0 {
		s.ima = captureIMA(ev.IMA, keys)
	} else if len(keys) > 0 {
		return Set{}, errors.New("reference: capture: keys may sign measured files, but the evidence proves none")
	}
	if err := s.writable(); err != nil {
		return Set{}, err
	}
	written, err := ParseSet(s.Marshal())
	if err != nil {
		return Set{}, fmt.Errorf("reference: capture: the evidence does not suffice for a set: %w", err)
	}
	if refusals := written.Check(ev, time.Unix(0, 0)); len(refusals) > 0 {
		return Set{}, fmt.Errorf("reference: capture: a set of this machine would refuse it: %w", refusals)
	}
	if !unpinned && (facts.KernelUntold() || !written.PinsKernel()) {
		return Set{}, errUnpinned(Absent(ev))
	}
	return written, nil
}

func errName(what, name string) error {
	return fmt.Errorf("reference: %s: name %.80q: use up to 63 lower-case letters, digits, '.', '_' and '-', a letter or digit at both ends", what, name)
}

// writable refuses what a text file cannot hold.
func (s Set) writable() error {
	if s.ima == nil {
		return nil
	}
	for file := range s.ima.files {
		if !utf8.ValidString(file) {
			return fmt.Errorf("reference: capture: measured path %q is not UTF-8, so no set can name it; remove the file", file)
		}
	}
	return nil
}

func captureBoot(bank nodeclaim.HashAlg, ev Evidence) boot {
	f, _ := ev.Facts(bank)
	b := boot{bank: bank, values: values{}, pcrs: map[nodeclaim.HashAlg]map[int][][]byte{bank: {}}}
	for _, of := range components {
		if v := of.proven(f); v != nil {
			b.values[of.key] = []value{v}
		}
	}
	replayed := ev.Boot.Replayed(bank)
	for _, i := range capturedPCRs {
		if i == 11 && len(ev.Boot.Phases(bank)) > 0 {
			continue // it changes again with the next boot phase
		}
		if v, ok := ev.PCRs.Value(bank, i); ok && slices.Contains(replayed, i) {
			b.pcrs[bank][i] = [][]byte{v}
		}
	}
	return b
}

// unlistable tells whether no list can have an entry: boot_aggregate, and what says nothing of a file's content.
func unlistable(e ima.Entry) bool {
	return ima.IsBootAggregate(e) || e.NamedOnly || e.Violation || e.Unknown
}

func captureIMA(r *ima.Result, keys []imasig.Key) *imaPolicy {
	p := &imaPolicy{files: map[string][]string{}, keys: keys, vouched: newVouched()}
	unsigned := map[string]bool{} // paths; where one version of a file is not signed, all are listed
	signed := make([]bool, len(r.Entries))
	for i, e := range r.Entries {
		if unlistable(e) {
			continue
		}
		v, budget := e.View(), 1
		if signed[i] = p.signed(&v, &budget) == nil; !signed[i] {
			unsigned[e.Path] = true
		}
	}
	for i, e := range r.Entries {
		if unlistable(e) || signed[i] && !unsigned[e.Path] || slices.Contains(p.files[e.Path], e.Digest) {
			continue
		}
		p.files[e.Path] = append(p.files[e.Path], e.Digest)
	}
	return p
}
