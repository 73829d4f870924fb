package eventlog

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// measured has the events of one bank's replayed PCRs. Their digests and their order within
// a PCR are proven; type, data and the order between PCRs are not.
type measured struct {
	alg   nodeclaim.HashAlg
	byPCR map[int][]measurement // a key for each replayed PCR, also for one without events
	order []measurement
	words *words
	// unreplayed are PCRs that were quoted and whose events are not known.
	unreplayed []int
}

// measurement is an event and its digest in the bank.
type measurement struct {
	*event
	sum    []byte
	digest Digest
}

// words are strings that are recognised by their digest in a bank, without the log's help.
type words struct {
	known  map[Digest]string
	breaks map[Digest]bool   // separators
	names  map[Digest]string // section names of unified kernel images
	// userspace has what user space measures and that says nothing about how the machine was started.
	userspace map[Digest]string
	// begins are the texts in PCR 4 with which a boot attempt begins or the one before it ends.
	begins map[Digest]bool
	legacy map[Digest]bool // of a BIOS
	recent map[Digest]bool // taken for images by older sets
}

// action is a string that firmware measures into PCR 4 or 5 and that is no image. It is recognised
// by its digest: data could lie.
type action struct {
	text string
	// attempt says that what was started before it, if anything, was started before this boot attempt.
	attempt bool
	// legacy says that a BIOS says so, which starts a boot sector and measures that alone.
	legacy bool
	// recent says that releases before this table took it for an image, as sets of reference values may.
	recent bool
}

// actions are the strings of TCG PFP 1.06, 10.4.4, those of the BIOS (TCG PC Client Implementation Specification for
// Conventional BIOS 1.21, 11.3; SeaBIOS src/tcgbios.c), and those that name a boot option by its number.
var actions = func() []action {
	out := []action{
		{text: "Calling EFI Application from Boot Option", attempt: true},
		{text: "Returning from EFI Application from Boot Option", attempt: true},
		{text: "Exit Boot Services Invocation"},
		{text: "Exit Boot Services Returned with Failure"},
		{text: "Exit Boot Services Returned with Success"},
		{text: "BOOT ATTEMPTS OMITTED"},
		{text: "Calling INT 19h", attempt: true, legacy: true, recent: true},
		{text: "Returned INT 18h", attempt: true, legacy: true, recent: true},
		{text: "Returned via INT 18h", attempt: true, legacy: true, recent: true},
		{text: "Booting BCV device 80h (Hard drive)", attempt: true, legacy: true, recent: true},
		{text: "Booting BCV device 00h (Floppy)", attempt: true, legacy: true, recent: true},
		{text: "Booting from CD ROM device", attempt: true, legacy: true, recent: true},
	}
	for i := range bootOptions {
		name := fmt.Sprintf("Boot%04X", i)
		out = append(out,
			action{text: "Booting to " + name + " Option", attempt: true, recent: true},
			action{text: "Returning from " + name + " Option", attempt: true, recent: true},
			action{text: "Failed to boot " + name + " Option", attempt: true, recent: true})
	}
	return out
}()

// bootOptions is how many numbers of boot options (UEFI 2.11, 3.1.1) are recognised without the log's help. Firmware gives
// them out from 0000 on. A text with a higher one is recognised where the log has it and its digest confirms it.
const bootOptions = 64

// separators are the data of EV_SEPARATOR: two forms of "pre-boot ends here" and the
// one that reports an error (TCG PFP 1.06, 10.4.2).
var separators = [][]byte{{0, 0, 0, 0}, {0xFF, 0xFF, 0xFF, 0xFF}, {1, 0, 0, 0}}

// wordsOf has the words of each bank, made once.
var wordsOf = func() map[nodeclaim.HashAlg]func() *words {
	all := map[nodeclaim.HashAlg]func() *words{}
	for _, alg := range nodeclaim.HashAlgs() {
		all[alg] = sync.OnceValue(func() *words { return newWords(alg) })
	}
	return all
}()

func newWords(alg nodeclaim.HashAlg) *words {
	w := &words{known: map[Digest]string{}, breaks: map[Digest]bool{}, names: map[Digest]string{}, userspace: map[Digest]string{}, begins: map[Digest]bool{}, legacy: map[Digest]bool{}, recent: map[Digest]bool{}}
	for _, a := range actions {
		d := hash(alg, []byte(a.text))
		w.known[d] = a.text
		w.begins[d], w.legacy[d], w.recent[d] = a.attempt, a.legacy, a.recent
	}
	for _, s := range separators {
		w.known[hash(alg, s)] = "separator"
		w.breaks[hash(alg, s)] = true
	}
	for _, n := range sectionNames {
		w.names[hash(alg, []byte(n+"\x00"))] = n
	}
	for _, s := range userspaceWords() {
		w.userspace[hash(alg, []byte(s))] = s
	}
	return w
}

// newMeasured has the firmware's events and, after them, those of user space.
func newMeasured(l Log, alg nodeclaim.HashAlg, replayed []int, later []*event) measured {
	m := measured{alg: alg, byPCR: map[int][]measurement{}, order: make([]measurement, 0, len(l.events)), words: wordsOf[alg]()}
	for _, pcr := range replayed {
		m.byPCR[pcr] = nil
	}
	at := l.places[alg]
	add := func(e *event) {
		if _, ok := m.byPCR[e.pcr]; ok && e.extended() {
			one := measurement{e, e.digests[at], NewDigest(alg, e.digests[at])}
			m.byPCR[e.pcr] = append(m.byPCR[e.pcr], one)
			m.order = append(m.order, one)
		}
	}
	for i := range l.events {
		add(&l.events[i])
	}
	slices.SortFunc(later, func(a, b *event) int { return a.index - b.index })
	for _, e := range later {
		add(e)
	}
	return m
}

// replayed tells whether a PCR was quoted and reached; only then its events are proven,
// and so is that it has none.
func (m measured) replayed(pcr int) bool {
	_, ok := m.byPCR[pcr]
	return ok
}

func (m measured) separator(e measurement) bool { return m.words.breaks[e.digest] }

// facts draws every fact, each from its own PCRs.
func (m measured) facts() (Facts, nodeclaim.Refusals) {
	f := Facts{Bank: m.alg.String(), SecureBoot: SecureBoot{State: SecureBootUnknown}}
	f.Firmware = m.firmware()
	f.scripted = len(m.byPCR[8]) > 0 || slices.Contains(m.unreplayed, 8)
	var refusals nodeclaim.Refusals
	var err error
	if f.SecureBoot, f.authorities, err = m.secureBoot(); err != nil {
		refusals = append(refusals, nodeclaim.AsRefusals(err)...)
	}
	a := m.attempt()
	f.BootLoader, f.OtherImages, f.started = a.images, a.others, a.started
	f.Sections = m.sections()
	f.Kernel = m.kernel(f, a)
	f.untold = f.Kernel == "" && m.empty(8) && a.endsInLoader()
	f.Initrd = m.initrd(f)
	f.CommandLine, f.loadOptions = m.commandLine(f)
	if f.CommandLine.Text == "" {
		if text, ok := m.offered(f); ok {
			f, _ = f.withCommandLine(text)
		}
	}
	return f, refusals
}

// firmware is all that PCR 0 holds but the separator that ends it: the last one. Some
// firmware measures something else that has a separator's digest; that stays.
func (m measured) firmware() []Digest {
	var out []Digest
	last := -1
	for _, e := range m.byPCR[0] {
		if m.separator(e) {
			last = len(out)
		}
		out = append(out, e.digest)
	}
	if last >= 0 {
		out = slices.Delete(out, last, last+1)
	}
	return out
}

// entries writes the replayed events out for people.
func (m measured) entries() []Entry {
	out := make([]Entry, len(m.order))
	for i, e := range m.order {
		text, confirmed := m.describe(e)
		out[i] = Entry{e.index, e.pcr, cmp.Or(e.origin, e.typ.String()), e.digest, text, confirmed}
	}
	return out
}

// maxText bounds the text of one entry, in bytes.
const maxText = 512

func (m measured) describe(e measurement) (text string, confirmed bool) {
	if s, ok := m.words.known[e.digest]; ok {
		return s, true
	}
	if n, ok := m.words.names[e.digest]; ok {
		return "name of section " + n, true
	}
	if v, ok := parseVariable(e.data); ok && m.covers(e, e.data) {
		return "variable " + v.name, true
	}
	text, confirmed = m.text(e)
	if !confirmed {
		text = readable(e.data)
	}
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "…"
	}
	return text, confirmed
}

// covers reports whether the measured digest is that of data.
func (m measured) covers(e measurement, data []byte) bool {
	return bytes.Equal(sum(m.alg, data), e.sum)
}

// text is the string that an event measured, where its digest covers one: the data as they
// stand, without the final NUL, or without the label that GRUB puts before the measured
// string ("grub_cmd: ", "kernel_cmdline: "). The label is in no digest and is dropped.
func (m measured) text(e measurement) (string, bool) {
	trimmed := bytes.TrimRight(e.data, "\x00")
	_, labelled, _ := bytes.Cut(trimmed, []byte(": "))
	for i, data := range [][]byte{e.data, trimmed, labelled} {
		if i == 1 && len(data) == len(e.data) {
			continue // nothing was trimmed
		}
		if len(data) > 0 && m.covers(e, data) {
			return decodeText(data)
		}
	}
	return "", false
}

// decodeText reads text in ASCII, UTF-8 or UTF-16LE, without final NULs.
func decodeText(data []byte) (string, bool) {
	if len(data) >= 4 && data[1] == 0 && data[3] == 0 {
		return decodeUTF16(data)
	}
	s := string(bytes.TrimRight(data, "\x00"))
	return s, s != "" && utf8.ValidString(s) && !strings.ContainsRune(s, 0)
}

// readable is text that no digest covers, shown only where all of it is printable.
func readable(data []byte) string {
	s, ok := decodeText(data)
	if !ok || strings.ContainsFunc(s, func(r rune) bool { return r == unicode.ReplacementChar || !unicode.IsPrint(r) }) {
		return ""
	}
	return s
}
