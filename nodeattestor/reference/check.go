package reference

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// Check compares evidence with the set at a time. It goes on after a difference, so that all are
// seen: validity, then components in a person's words, then the PCRs whose difference no
// component explains, then IMA. No refusal means that the set accepts the evidence.
func (s Set) Check(ev Evidence, now time.Time) nodeclaim.Refusals {
	c := &checker{set: s, explained: map[int]bool{}}
	if s.name == "" {
		c.refuse("reference.none", "the reference set is empty and accepts nothing")
		return c.refusals
	}
	c.refusals = s.Valid(now)
	facts, ok := ev.Boot.Facts(s.boot.bank)
	if !ok {
		c.refuse("reference.bank", "%s is of bank %s, which was not quoted", c, s.boot.bank)
	} else {
		c.facts = facts
		if s.boot.pcrs[s.boot.bank][4] == nil {
			// Only the PCR's exact value says which images before the boot attempt are good, and who controls the
			// machine later can append the begin of an attempt. So all that ran counts.
			c.facts.BootLoader = facts.Started()
		}
		c.scripted()
		c.secureBoot()
		c.commandLine()
		c.anyOf("kernel.initrd", "initrd", facts.Initrd, s.boot.initrd, 4, 9, 11)
		c.anyOf("kernel.digest", "kernel", facts.Kernel, s.boot.kernel, 4, 9, 11)
		c.bootLoader()
		c.inOrder(sequence{check: "firmware.digest", what: "firmware measurement", have: facts.Firmware, want: s.boot.firmware, pcr: 0})
	}
	c.pcrs(ev)
	c.ima(ev)
	if ok {
		c.conditions()
	}
	return c.refusals
}

// checker collects the differences of one evidence from one set.
type checker struct {
	set       Set
	facts     eventlog.Facts
	explained map[int]bool // PCRs whose difference a component's refusal explains
	refusals  nodeclaim.Refusals
}

// String names the set in a sentence.
func (c *checker) String() string { return "reference set " + c.set.name }

func (c *checker) refuse(check, format string, args ...any) {
	c.refusals = append(c.refusals, *nodeclaim.Refuse(check, fmt.Sprintf(format, args...)))
}

// component refuses and notes which PCRs the difference explains.
func (c *checker) component(check string, pcrs []int, format string, args ...any) {
	c.refuse(check, format, args...)
	for _, i := range pcrs {
		c.explained[i] = true
	}
}

// Valid is why the set may not be used at a time: it is not yet valid, or no more.
func (s Set) Valid(now time.Time) nodeclaim.Refusals {
	c := &checker{set: s}
	if now.IsZero() {
		c.refuse("reference.time", "the time is unknown, so %s may be expired", c)
		return c.refusals
	}
	if nb := s.notBefore; !nb.IsZero() && now.Before(nb) {
		c.refuse("reference.notyet", "%s is valid from %s on, and it is %s", c, nb.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	if na := s.notAfter; !na.IsZero() && !now.Before(na) {
		c.refuse("reference.expired", "%s expired at %s, and it is %s", c, na.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return c.refusals
}

// finding is one difference from one alternative.
type finding struct{ check, text string }

// nearest runs every alternative and takes the differences from the nearest, none when one of them fits.
func nearest[T any](alternatives []T, differences func(T) []finding) []finding {
	var best []finding
	for i, a := range alternatives {
		found := differences(a)
		if len(found) == 0 {
			return nil
		}
		if i == 0 || len(found) < len(best) {
			best = found
		}
	}
	if n := len(alternatives); n > 1 {
		for i := range best {
			best[i].text += fmt.Sprintf(" (the nearest of the %d that it allows)", n)
		}
	}
	return best
}

func (c *checker) secureBoot() {
	for _, f := range nearest(c.set.boot.secureBoot, c.secureBootDifferences) {
		c.component(f.check, []int{7}, "%s", f.text)
	}
}

func (c *checker) secureBootDifferences(want eventlog.SecureBoot) []finding {
	have := c.facts.SecureBoot
	var out []finding
	if have.State != want.State {
		state := "is " + string(have.State)
		if have.State == eventlog.SecureBootUnknown {
			state = "is not proven by the evidence"
		}
		out = append(out, finding{"secureboot.state", fmt.Sprintf("secure boot %s, %s has %s", state, c, want.State)})
	}
	var changed []string
	for _, k := range secureBootKeys {
		if w := k.of(want); w != "" && k.of(have) != w {
			changed = append(changed, k.name)
		}
	}
	if len(changed) > 0 {
		out = append(out, finding{"secureboot.keys", fmt.Sprintf("secure boot's %s differ from those in %s", strings.Join(changed, ", "), c)})
	}
	if want.Authorities != nil && !slices.Equal(have.Authorities, want.Authorities) && !slices.Equal(c.facts.ListedAuthorities(), want.Authorities) {
		out = append(out, finding{"secureboot.authority", fmt.Sprintf("images were let in by %s, %s has %s", authorities(have.Authorities), c, authorities(want.Authorities))})
	}
	return out
}

var secureBootKeys = []struct {
	name string
	of   func(eventlog.SecureBoot) eventlog.Digest
}{
	{"platform key (PK)", func(s eventlog.SecureBoot) eventlog.Digest { return s.PK }},
	{"key exchange keys (KEK)", func(s eventlog.SecureBoot) eventlog.Digest { return s.KEK }},
	{"allowed signers (db)", func(s eventlog.SecureBoot) eventlog.Digest { return s.DB }},
	{"forbidden signers and images (dbx)", func(s eventlog.SecureBoot) eventlog.Digest { return s.DBX }},
}

func authorities(list []eventlog.Authority) string {
	if len(list) == 0 {
		return "no signer"
	}
	names := make([]string, len(list))
	for i, a := range list {
		names[i] = fmt.Sprintf("%s entry %s", a.Variable, a.Digest)
	}
	return strings.Join(names, ", ")
}

// scripted refuses to believe what ran late on the word of a boot loader that takes commands, unless
// its commands and the files that it read are pinned (see eventlog.Facts.Scripted).
func (c *checker) scripted() {
	b := c.set.boot
	if c.set.late() && c.facts.Scripted() && (b.pcrs[b.bank][8] == nil || b.pcrs[b.bank][9] == nil) {
		c.refuse("bootloader.scripted", "a boot loader that takes commands (GRUB) ran, which can start a kernel that PCR 4 does not have; %s looks at kernel, initrd or command line, but does not pin PCR 8 and 9 of bank %s, which hold its commands and files", c, b.bank)
	}
}

func (c *checker) commandLine() {
	want, have := c.set.boot.commandLine, c.facts.CommandLine
	if len(want) == 0 || slices.ContainsFunc(want, func(w commandLine) bool { return w.is(have) }) {
		return
	}
	pcrs := []int{4, 8, 9, 11, 12}
	allowed := c.allows(want)
	switch {
	case have.Text != "":
		c.component("kernel.cmdline", pcrs, "kernel command line is %s, %s%s", quoteText(have.Text), allowed, wordDiff(want[0].text, have.Text))
	case have.Digest != "":
		c.component("kernel.cmdline", pcrs, "kernel command line has digest %s, %s", have.Digest, allowed)
	default:
		c.component("kernel.cmdline", pcrs, "kernel command line is not proven by the evidence, %s", allowed)
	}
}

func (c *checker) allows(want []commandLine) string {
	texts := make([]string, len(want))
	for i, w := range want {
		texts[i] = w.String()
	}
	return fmt.Sprintf("%s has %s", c, strings.Join(texts, " or "))
}

// quoteText puts a text into quotes, with what is not printable escaped.
func quoteText(s string) string { return strconv.Quote(s) }

// wordDiff tells which words of a command line came and went.
func wordDiff(want, have string) string {
	if want == "" {
		return ""
	}
	w, h := strings.Fields(want), strings.Fields(have)
	var out string
	for _, d := range []struct {
		label    string
		in, from []string
	}{{"added", h, w}, {"missing", w, h}} {
		var words []string
		for _, word := range d.in {
			if !slices.Contains(d.from, word) {
				words = append(words, quoteText(word))
			}
		}
		if len(words) > 0 {
			out += fmt.Sprintf("; %s: %s", d.label, strings.Join(words, " "))
		}
	}
	return out
}

// anyOf checks a component of which a set may name several.
func (c *checker) anyOf(check, what string, have eventlog.Digest, want []eventlog.Digest, pcrs ...int) {
	if len(want) == 0 || slices.Contains(want, have) {
		return
	}
	if have == "" {
		c.component(check, pcrs, "%s is not proven by the evidence, %s has %s%s", what, c, joinDigests(want), c.loaderHint(what, want))
		return
	}
	c.component(check, pcrs, "%s has digest %s, %s has %s", what, have, c, joinDigests(want))
}

// loaderHint explains a set that took a boot loader for the kernel, as captures before 2026-11-29 did.
func (c *checker) loaderHint(what string, want []eventlog.Digest) string {
	if what != "kernel" || !slices.ContainsFunc(want, func(d eventlog.Digest) bool { return slices.Contains(c.facts.Started(), d) }) {
		return ""
	}
	return "; PCR 4 has that image, but nothing proves that it is the kernel and no boot loader: capture the set again"
}

// bootLoader accepts all of PCR 4 too, because sets from before 2026-11-29 list it so; that demands more than the
// images of the boot attempt do.
func (c *checker) bootLoader() {
	if slices.ContainsFunc(c.set.boot.bootLoader, func(want []eventlog.Digest) bool { return slices.Equal(want, c.facts.Started()) }) {
		return
	}
	hint := ""
	if c.explained[4] && len(c.facts.Sections) > 0 {
		hint = " (a unified kernel image: it holds kernel, command line and initrd, see there)"
	}
	c.inOrder(sequence{check: "bootloader.digest", what: "boot loader image", have: c.facts.BootLoader, want: c.set.boot.bootLoader, hint: hint, pcr: 4})
}

// sequence is a component of which all measurements count, in order.
type sequence struct {
	check, what string
	have        []eventlog.Digest
	want        [][]eventlog.Digest // any of them
	hint        string              // for a person, where another component explains a difference
	pcr         int
}

func (c *checker) inOrder(q sequence) {
	for _, f := range nearest(q.want, func(want []eventlog.Digest) []finding { return c.sequenceDifferences(q, want) }) {
		c.component(f.check, []int{q.pcr}, "%s", f.text)
	}
}

func (c *checker) sequenceDifferences(q sequence, want []eventlog.Digest) []finding {
	var out []finding
	for i := range min(len(q.have), len(want)) {
		if q.have[i] != want[i] {
			out = append(out, finding{q.check, fmt.Sprintf("%s %d of %d has digest %s, %s has %s%s", q.what, i+1, len(q.have), q.have[i], c, want[i], q.hint)})
		}
	}
	if len(q.have) == 0 {
		out = append(out, finding{q.check, fmt.Sprintf("no %s is proven by the evidence, %s has %d", q.what, c, len(want))})
	} else if len(q.have) != len(want) {
		out = append(out, finding{q.check, fmt.Sprintf("the number of %ss is %d, %s has %d", q.what, len(q.have), c, len(want))})
	}
	return out
}

func joinDigests(d []eventlog.Digest) string {
	s := make([]string, len(d))
	for i := range d {
		s[i] = string(d[i])
	}
	return strings.Join(s, " or ")
}

// pcrs checks exact values. A pinned PCR that was not quoted is always refused.
func (c *checker) pcrs(ev Evidence) {
	for _, bank := range slices.Sorted(maps.Keys(c.set.boot.pcrs)) {
		want := c.set.boot.pcrs[bank]
		for _, i := range slices.Sorted(maps.Keys(want)) {
			have, quoted := ev.PCRs.Value(bank, i)
			switch {
			case !quoted:
				c.refuse("pcr.unquoted", "PCR %d (%s) was not quoted, %s pins it", i, bank, c)
			case c.explained[i] || slices.ContainsFunc(want[i], func(w []byte) bool { return bytes.Equal(have, w) }):
			default:
				c.refuse("pcr.value", "PCR %d (%s) is %x, %s has %s", i, bank, have, c, joinHex(want[i]))
			}
		}
	}
}

func joinHex(values [][]byte) string {
	s := make([]string, len(values))
	for i := range values {
		s[i] = hex.EncodeToString(values[i])
	}
	return strings.Join(s, " or ")
}
