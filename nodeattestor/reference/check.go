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
	facts, ok := ev.Facts(s.boot.bank)
	if !ok {
		c.refuse("reference.bank", "%s is of bank %s, which was not quoted", c, s.boot.bank)
	} else {
		c.facts = s.boot.judged(facts, ev)
		c.scripted()
		for _, of := range checkOrder() {
			if want := s.boot.values[of.key]; len(want) > 0 {
				of.judge(c, of, want)
			}
		}
	}
	c.pcrs(ev)
	c.ima(ev)
	if ok {
		c.conditions(ev)
	}
	return c.refusals
}

// checker collects the differences of one evidence from one set.
type checker struct {
	set       Set
	facts     eventlog.Facts
	list      *tally       // what the IMA list says; nil where the set does not look, or none is proven
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

// hint says more of a component's difference, "" where there is nothing to say.
func (c *checker) hint(of *component, want []value) string {
	if of.hint == nil {
		return ""
	}
	return of.hint(c, want)
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

// scripted refuses to believe what ran late on the word of a boot loader that takes commands, unless
// its commands and the files that it read are pinned (see eventlog.Facts.Scripted).
func (c *checker) scripted() {
	b := c.set.boot
	if c.set.late() && c.facts.Scripted() && (!b.exact(8) || !b.exact(9)) {
		c.refuse("bootloader.scripted", "a boot loader that takes commands (GRUB) ran, which can start a kernel that PCR 4 does not have; %s looks at %s, but does not pin PCR 8 and 9 of bank %s, which hold its commands and files", c, lateNames(), b.bank)
	}
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
