package eventlog

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// Limits of a log. The node controls every byte, so each bound is far above what real
// machines write (tens of kilobytes, a few hundred events) and low enough to be cheap.
const (
	MaxLogSize    = 4 << 20 // bytes
	MaxEvents     = 16384
	MaxEventSize  = 1 << 20 // bytes of one event's data; a large dbx has tens of kilobytes
	maxAlgorithms = 8       // digests of one event
	maxDigestSize = 64      // bytes
)

// noPCR is the index that some firmware gives to events that are never extended, such as
// SP800-155 ones (TCG PFP 1.06, 10.4.5.2).
const noPCR = -1

// Log is a parsed log. Nothing in it is verified: its events become facts only by Replay.
type Log struct {
	algs   []nodeclaim.HashAlg       // banks with known hashes that every event has, in the header's order
	lacks  map[nodeclaim.HashAlg]int // for a bank of the header that cannot be replayed: the first event without its digest
	places map[nodeclaim.HashAlg]int // where in an event's digests each of the header's algorithms is
	events []event
	// userspace are the events of user space's own log, after all others; a bank may lack a digest.
	userspace []event
	// osExtended are further PCRs that the operating system extends and has no log of (WithOSExtended).
	osExtended []int
}

// event is one entry of the log as it was written; pcr is noPCR or 0 to MaxPCR.
type event struct {
	index   int
	pcr     int
	typ     EventType // untrusted: no digest covers it
	digests [][]byte  // in the header's order; nil where the event has none
	data    []byte    // untrusted, unless a digest confirms it
	origin  string    // "systemd:phase"; "" in the firmware's log
}

// Banks lists the hash algorithms whose digests every event of the log has.
func (l Log) Banks() []nodeclaim.HashAlg { return slices.Clone(l.algs) }

// Parse reads a TCG event log: crypto-agile (TCG_PCR_EVENT2 after a Spec ID header) or the
// SHA-1-only form of older firmware (TCG_PCR_EVENT), all integers little-endian (TCG PC
// Client Platform Firmware Profile 1.06, 10.2.1, 10.2.2, 10.4.5.1). It is strict: every
// event has at least one of the header's digests, each at most once, and no byte is left over.
// The profile wants all of them. Linux also hands on logs with fewer
// (__calc_tpm2_event_size in include/linux/tpm_eventlog.h), and real ones exist
// (canonical/tcglog-parser#9). A bank whose digest an event lacks cannot be replayed.
// Errors are *nodeclaim.Refusal with check "eventlog.format".
func Parse(raw []byte) (Log, error) {
	if len(raw) > MaxLogSize {
		return Log{}, format("the log has %d bytes, more than the %d allowed", len(raw), MaxLogSize)
	}
	if len(raw) == 0 {
		return Log{}, format("the log is empty: the firmware handed none to the kernel, as is known of some Azure virtual machines with " +
			"Trusted Launch (agentrust-io/cmcp#433), so nothing says what the quoted PCRs hold")
	}
	r := &reader{rest: raw}
	first, err := r.legacyEvent(0)
	if err != nil {
		return Log{}, err
	}
	if first.typ != evNoAction || !bytes.HasPrefix(first.data, specIDSignature) {
		return parseLegacy(r, first)
	}
	algs, err := parseSpecID(first.data)
	if err != nil {
		return Log{}, err
	}
	first.digests = nil
	log := Log{events: []event{first}, places: map[nodeclaim.HashAlg]int{}}
	for i, a := range algs {
		log.places[a.alg] = i
	}
	missing := make([]int, len(algs)) // the first event without that digest; 0, which is the header, for none
	for len(r.rest) > 0 {
		if err := log.room(); err != nil {
			return Log{}, err
		}
		e, err := r.agileEvent(len(log.events), algs)
		if err != nil {
			return Log{}, err
		}
		for i := range algs {
			if e.digests[i] == nil && missing[i] == 0 && e.extended() {
				missing[i] = e.index
			}
		}
		log.events = append(log.events, e)
	}
	log.banks(algs, missing)
	return log, nil
}

// banks notes which of the header's algorithms all events have a digest of.
func (l *Log) banks(algs []algorithm, missing []int) {
	l.lacks = map[nodeclaim.HashAlg]int{}
	for i, a := range algs {
		switch {
		case !a.alg.Valid():
		case missing[i] > 0:
			l.lacks[a.alg] = missing[i]
		default:
			l.algs = append(l.algs, a.alg)
		}
	}
}

func parseLegacy(r *reader, first event) (Log, error) {
	log := Log{algs: []nodeclaim.HashAlg{nodeclaim.SHA1}, places: map[nodeclaim.HashAlg]int{nodeclaim.SHA1: 0}, events: []event{first}}
	for len(r.rest) > 0 {
		if err := log.room(); err != nil {
			return Log{}, err
		}
		e, err := r.legacyEvent(len(log.events))
		if err != nil {
			return Log{}, err
		}
		log.events = append(log.events, e)
	}
	return log, nil
}

func (l Log) room() error {
	if len(l.events) == MaxEvents {
		return format("the log has more than the %d events allowed", MaxEvents)
	}
	return nil
}

// specIDSignature opens the header of a crypto-agile log (TCG PFP 1.06, 10.4.5.1). Older
// headers, "Spec ID Event00" and "…02", announce the SHA-1-only form.
var specIDSignature = []byte("Spec ID Event03\x00")

// algorithm is one line of the header's table.
type algorithm struct {
	alg  nodeclaim.HashAlg // may be one that we cannot compute (SM3)
	size int
}

// parseSpecID reads TCG_EfiSpecIdEvent.
func parseSpecID(data []byte) ([]algorithm, error) {
	r := &reader{rest: data[len(specIDSignature):]}
	if _, err := r.take(4+4, "header"); err != nil { // platformClass, version, errata, uintnSize
		return nil, err
	}
	n, err := r.uint32("header: number of algorithms")
	if err != nil {
		return nil, err
	}
	if n == 0 || n > maxAlgorithms {
		return nil, format("the header names %d digest algorithms, allowed are 1 to %d", n, maxAlgorithms)
	}
	var out []algorithm
	for range n {
		b, err := r.take(4, "header: algorithm")
		if err != nil {
			return nil, err
		}
		a := algorithm{nodeclaim.HashAlg(binary.LittleEndian.Uint16(b)), int(binary.LittleEndian.Uint16(b[2:]))}
		if a.alg.Valid() && a.size != a.alg.Size() || a.size == 0 || a.size > maxDigestSize {
			return nil, format("the header gives %s digests %d bytes", a.alg, a.size)
		}
		if slices.ContainsFunc(out, func(o algorithm) bool { return o.alg == a.alg }) {
			return nil, format("the header names %s twice", a.alg)
		}
		out = append(out, a)
	}
	vendor, err := r.take(1, "header: vendor information")
	if err != nil {
		return nil, err
	}
	if len(r.rest) != int(vendor[0]) {
		return nil, format("the header has %d bytes of vendor information and announces %d", len(r.rest), vendor[0])
	}
	return out, nil
}

// reader cuts fields off a log. Offsets in errors come from event numbers, which a person
// can find again with any tool.
type reader struct {
	rest    []byte
	event   int // being read, counted from 1; 0 in a header
	digests [][]byte
}

// room is for the digests of one event; many events' are made at once.
func (r *reader) room(n int) [][]byte {
	if len(r.digests) < n {
		r.digests = make([][]byte, 64*n)
	}
	out := r.digests[:n:n]
	r.digests = r.digests[n:]
	return out
}

func (r *reader) take(n int, what string) ([]byte, error) {
	if n > len(r.rest) {
		return nil, format("%s needs %d bytes and the log has %d left: it was cut", r.where(what), n, len(r.rest))
	}
	out := r.rest[:n:n]
	r.rest = r.rest[n:]
	return out, nil
}

// where names a part of what is read, for an error: of an event, or of the header before them.
func (r *reader) where(what string) string {
	switch {
	case r.event == 0:
		return what
	case what == "":
		return fmt.Sprintf("event %d", r.event-1)
	default:
		return fmt.Sprintf("event %d: %s", r.event-1, what)
	}
}

func (r *reader) uint32(what string) (uint32, error) {
	b, err := r.take(4, what)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(b), nil
}

// head reads index and type, which both forms share.
func (r *reader) head(i int) (event, error) {
	r.event = i + 1
	b, err := r.take(8, "")
	if err != nil {
		return event{}, err
	}
	e := event{index: i, typ: EventType(binary.LittleEndian.Uint32(b[4:]))}
	pcr := binary.LittleEndian.Uint32(b)
	switch {
	case pcr <= nodeclaim.MaxPCR:
		e.pcr = int(pcr)
	case pcr == 0xFFFFFFFF && e.typ == evNoAction:
		e.pcr = noPCR
	default:
		if i == 0 {
			return event{}, format("event 0: PCR %d does not exist: this is no TCG event log, or its begin is missing", pcr)
		}
		return event{}, format("event %d: PCR %d does not exist", i, pcr)
	}
	return e, nil
}

func (r *reader) body(e *event) error {
	n, err := r.uint32("size of its data")
	if err != nil {
		return err
	}
	if n > MaxEventSize {
		return format("event %d: its data has %d bytes, more than the %d allowed", e.index, n, MaxEventSize)
	}
	e.data, err = r.take(int(n), "its data")
	return err
}

// legacyEvent reads TCG_PCR_EVENT.
func (r *reader) legacyEvent(i int) (event, error) {
	e, err := r.head(i)
	if err != nil {
		return event{}, err
	}
	sum, err := r.take(nodeclaim.SHA1.Size(), "digest")
	if err != nil {
		return event{}, err
	}
	e.digests = [][]byte{sum}
	return e, r.body(&e)
}

// agileEvent reads TCG_PCR_EVENT2.
func (r *reader) agileEvent(i int, algs []algorithm) (event, error) {
	e, err := r.head(i)
	if err != nil {
		return event{}, err
	}
	n, err := r.uint32("number of digests")
	if err != nil {
		return event{}, err
	}
	if n == 0 || int64(n) > int64(len(algs)) {
		return event{}, format("event %d has %d digests, the header promises %d", i, n, len(algs))
	}
	e.digests = r.room(len(algs))
	for range n {
		b, err := r.take(2, "digest algorithm")
		if err != nil {
			return event{}, err
		}
		alg := nodeclaim.HashAlg(binary.LittleEndian.Uint16(b))
		k := slices.IndexFunc(algs, func(a algorithm) bool { return a.alg == alg })
		if k < 0 {
			return event{}, format("event %d has a digest of algorithm %s, which the header does not name", i, alg)
		}
		if e.digests[k] != nil { // a digest is never empty
			return event{}, format("event %d has two %s digests", i, alg)
		}
		if e.digests[k], err = r.take(algs[k].size, "digest"); err != nil {
			return event{}, err
		}
	}
	return e, r.body(&e)
}

func format(f string, args ...any) *nodeclaim.Refusal {
	return nodeclaim.Refuse("eventlog.format", fmt.Sprintf("event log: "+f, args...))
}
