package predict

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// Base is a boot that took place: what its event log says of one bank. Whoever predicts from it
// must know that the log is true, as a capture does by the machine's quote.
type Base struct {
	alg    nodeclaim.HashAlg
	byPCR  map[int][]event
	order  []int // the PCR of each event, as the log has them; no digest covers it
	facts  eventlog.Facts
	begins int // how many events of PCR 4 stand before the images of the boot attempt
}

// event is one that was, or will be, extended.
type event struct {
	typ    eventlog.EventType
	digest []byte
	data   []byte
	what   string // for people
}

// Types of events (TCG PFP 1.06, table 27), for the log that a prediction writes. No digest covers
// them.
const (
	typeEventTag    eventlog.EventType = 0x6
	typeIPL         eventlog.EventType = 0xD
	typeVariable    eventlog.EventType = 0x80000001
	typeApplication eventlog.EventType = 0x80000003
)

// NewBase reads the log of a boot in one bank.
func NewBase(log eventlog.Log, alg nodeclaim.HashAlg) (Base, error) {
	all, err := log.Measurements(alg)
	if err != nil {
		return Base{}, err
	}
	claimed, err := log.Claimed(alg)
	if err != nil {
		return Base{}, err
	}
	if len(claimed.Problems) > 0 {
		return Base{}, claimed.Problems
	}
	b := Base{alg: alg, byPCR: map[int][]event{}, facts: claimed.Facts}
	for _, m := range all {
		b.byPCR[m.PCR] = append(b.byPCR[m.PCR], event{typ: m.Type, digest: m.Digest, data: m.Data,
			what: "as in the boot before"})
		b.order = append(b.order, m.PCR)
	}
	images := len(b.facts.BootLoader)
	b.begins = len(b.byPCR[4]) - images
	for i, want := range b.facts.BootLoader {
		if b.begins < 0 || eventlog.NewDigest(alg, b.byPCR[4][b.begins+i].digest) != want {
			return Base{}, fmt.Errorf("predict: PCR 4 of the boot before does not end with the images that were started: what follows them cannot be predicted")
		}
	}
	return b, nil
}

// Value is what the events of a PCR lead to.
func (b Base) Value(pcr int) []byte { return fold(b.alg, b.byPCR[pcr]) }

// fold extends a PCR by events, from zero on.
func fold(alg nodeclaim.HashAlg, events []event) []byte {
	value := make([]byte, alg.Size())
	for _, e := range events {
		h := alg.New()
		h.Write(value)
		h.Write(e.digest)
		value = h.Sum(nil)
	}
	return value
}

// hash is the digest of data.
func hash(alg nodeclaim.HashAlg, data []byte) []byte {
	h := alg.New()
	h.Write(data)
	return h.Sum(nil)
}

// measure is the event of data that are measured as they stand.
func (b Base) measure(typ eventlog.EventType, data []byte, what string) event {
	e := event{typ: typ, digest: hash(b.alg, data), data: data, what: what}
	if len(data) > maxLogged {
		e.data = []byte(what)
	}
	return e
}

// maxLogged bounds what the written log keeps of an event's data, in bytes.
const maxLogged = 64 << 10

// texts are events of a command line as EFI programs measure it: UTF-16LE with a final NUL; none
// for an empty one.
func (b Base) texts(typ eventlog.EventType, text, what string) []event {
	if text == "" {
		return nil
	}
	return []event{b.measure(typ, wide(text), what)}
}

// draft is a boot in the making.
type draft struct {
	base Base
	// byPCR has the events of every PCR, those of the base where nothing changes them.
	byPCR   map[int][]event
	changed map[int]bool
	unknown map[int]string
	notes   []string
	// cmdline is the kernel's whole command line; where known is false, the base's stays.
	cmdline      string
	cmdlineKnown bool
	// images are the digests of what will be started, in SHA-256, for a look at the forbidden ones.
	images map[string]string
}

func newDraft(b Base) *draft {
	return &draft{base: b, byPCR: maps.Clone(b.byPCR), changed: map[int]bool{}, unknown: map[int]string{},
		images: map[string]string{}}
}

func (d *draft) note(format string, args ...any) {
	d.notes = append(d.notes, fmt.Sprintf(format, args...))
}

// set replaces all events of a PCR.
func (d *draft) set(pcr int, events []event) {
	d.byPCR[pcr] = events
	d.changed[pcr] = true
}

// add appends events to a PCR that the draft has set.
func (d *draft) add(pcr int, events ...event) {
	d.byPCR[pcr] = append(slices.Clip(d.byPCR[pcr]), events...)
	d.changed[pcr] = true
}

// image is the event of an image that will be started.
func (d *draft) image(f File) (event, error) {
	img, err := ParseImage(f.Data)
	if err != nil {
		return event{}, fmt.Errorf("%s: %w", f.Name, err)
	}
	digest, err := img.Authenticode(d.base.alg)
	if err != nil {
		return event{}, fmt.Errorf("%s: %w", f.Name, err)
	}
	forbidden, err := img.Authenticode(nodeclaim.SHA256)
	if err != nil {
		return event{}, fmt.Errorf("%s: %w", f.Name, err)
	}
	d.images[string(forbidden)] = f.Name
	return event{typ: typeApplication, digest: digest, data: []byte(f.Name), what: "image " + f.Name}, nil
}

// start puts images behind the begin of the boot attempt in PCR 4. The base tells how often each
// place is measured: shim and the firmware may both measure an image.
func (d *draft) start(images []event) {
	runs := d.base.runs()
	out := slices.Clone(d.base.byPCR[4][:d.base.begins])
	for i, e := range images {
		n := 1
		if len(runs) == len(images) {
			n = runs[i]
		}
		for range n {
			out = append(out, e)
		}
	}
	if len(runs) != len(images) {
		d.note("PCR 4: the boot before started %d images, this one will start %d: each is taken to be measured once",
			len(runs), len(images))
	}
	d.set(4, out)
}

// runs is how often each image of the base's boot attempt was measured, one after the other.
func (b Base) runs() []int {
	var out []int
	for i, e := range b.byPCR[4][b.begins:] {
		if i > 0 && bytes.Equal(e.digest, b.byPCR[4][b.begins+i-1].digest) {
			out[len(out)-1]++
			continue
		}
		out = append(out, 1)
	}
	return out
}

// secureBoot tells whether the base's boot enforced secure boot; known is false where PCR 7 does
// not say.
func (b Base) secureBoot() (enabled, known bool) {
	state := b.facts.SecureBoot.State.Tristate()
	return state == nodeclaim.True, state != nodeclaim.Unknown
}

// log writes the events as a crypto-agile event log of one bank (TCG PFP 1.06, 10.2.2 and
// 10.4.5.1).
func (d *draft) log() []byte {
	le := binary.LittleEndian
	header := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2)
	header = le.AppendUint32(header, 1)
	header = le.AppendUint16(header, uint16(d.base.alg))
	header = le.AppendUint16(header, uint16(d.base.alg.Size())) //nolint:gosec // a hash has at most 64 bytes
	header = append(header, 0)
	const noAction = 3
	out := le.AppendUint32(make([]byte, 4), noAction)
	out = append(out, make([]byte, 20)...)
	out = le.AppendUint32(out, uint32(len(header))) //nolint:gosec // a few dozen bytes
	out = append(out, header...)
	for _, pcr := range slices.Sorted(maps.Keys(d.byPCR)) {
		for _, e := range d.byPCR[pcr] {
			out = le.AppendUint32(out, uint32(pcr)) //nolint:gosec // 0 to 23
			out = le.AppendUint32(out, uint32(e.typ))
			out = le.AppendUint32(out, 1)
			out = le.AppendUint16(out, uint16(d.base.alg))
			out = append(out, e.digest...)
			out = le.AppendUint32(out, uint32(len(e.data))) //nolint:gosec // bounded where files are read
			out = append(out, e.data...)
		}
	}
	return out
}
