package ima

import (
	"maps"
	"strings"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/quote"
)

// Boot names the time between two starts of a TPM, as one attestation key sees it: while AK name and
// both counters stay, nothing resets PCR 10 (TPM 2.0 Part 1, 36.7 TPMS_CLOCK_INFO), so that a list can
// only have grown.
type Boot struct {
	AKName       string // TPM name of the AK, its raw bytes
	ResetCount   uint32
	RestartCount uint32
}

// State is how far a list was replayed and proven. It lets the next appraisal in the same boot go on
// from there, and no other one: see Resume. The zero State resumes nothing. It is never
// changed once made; what the entries before it were is not in it but in what the visitor learned.
type State struct {
	boot       Boot
	opt        Options
	offset     int64
	count      int
	violations int
	values     map[nodeclaim.HashAlg]string // proven PCR 10 of every bank
	aggregate  string                       // the first entry's digest
}

// State is what Finish has proven. There is none (false) before the quoted PCR 10 is reached, or when it was
// reached without an entry.
func (r *Replayer) State(boot Boot) (State, bool) {
	if !r.Reached() || r.result.Count == 0 || r.Doubtful() {
		return State{}, false
	}
	s := State{boot: boot, opt: r.opt, offset: r.offset, count: r.result.Count, violations: r.result.Violations,
		values: map[nodeclaim.HashAlg]string{}, aggregate: r.aggregate}
	s.boot.AKName = strings.Clone(boot.AKName)
	for _, b := range r.banks {
		s.values[b.alg] = string(b.value())
	}
	return s, true
}

// Offset is where in the list the state ends, in bytes: the list is to be sent from there.
func (s State) Offset() uint64 { return uint64(s.offset) } //nolint:gosec // counts bytes from 0.

// Boot is the only boot that the state can be resumed in.
func (s State) Boot() Boot { return s.boot }

// Size is about how many bytes of memory the state takes.
func (s State) Size() int {
	const fixed, each = 250, 100 // structs and headers; a map's entry or a string with its room
	n := fixed + len(s.boot.AKName)
	for _, v := range s.values {
		n += each + len(v)
	}
	return n + len(s.aggregate)
}

// Resume goes on from a state: the bytes written begin at its Offset, visit sees the new entries only, and Count,
// Violations and the limits include the earlier ones. It is false, and the whole list must be
// read, unless everything that the state rests on is the same: the AK, both counters, the options and the
// banks. The boot_aggregate is checked against the PCRs quoted now, as a replay of the whole would.
func Resume(s State, boot Boot, pcrs quote.PCRs, opt Options, visit func([]View)) (*Replayer, bool) {
	r := newReplayer(pcrs, opt)
	if r.err != nil || s.count == 0 || s.boot != boot || s.opt != r.opt || len(s.values) != len(r.banks) {
		return nil, false
	}
	for _, b := range r.banks {
		v, ok := s.values[b.alg]
		if !ok {
			return nil, false
		}
		copy(b.value(), v)
	}
	r.visit, r.total, r.offset = visit, s.offset, s.offset
	r.result.Count, r.result.Violations = s.count, s.violations
	if r.err = r.checkAggregate(Entry{Path: bootAggregate, Digest: s.aggregate}); r.err != nil {
		return r, true
	}
	r.check()
	return r, true
}

// Equal tells whether two states are the same.
func (s State) Equal(o State) bool {
	return s.boot == o.boot && s.opt == o.opt && s.offset == o.offset && s.count == o.count && s.violations == o.violations &&
		maps.Equal(s.values, o.values) && s.aggregate == o.aggregate
}
