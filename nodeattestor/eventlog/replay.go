package eventlog

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/quote"
)

// Replay parses a log and replays it against quoted PCRs.
func Replay(raw []byte, pcrs quote.PCRs) (Boot, error) { return ReplayBoth(raw, nil, pcrs) }

// ReplayBoth is Replay of the firmware's log and of user space's after it (see Log.WithUserspace), nil where there is none.
// osExtended are further PCRs that the operating system extends without a log (see Log.WithOSExtended).
func ReplayBoth(raw, userspace []byte, pcrs quote.PCRs, osExtended ...int) (Boot, error) {
	log, err := Parse(raw)
	if err != nil {
		return Boot{}, err
	}
	if log, err = log.WithUserspace(userspace); err != nil {
		return Boot{}, err
	}
	if log, err = log.WithOSExtended(osExtended); err != nil {
		return Boot{}, err
	}
	return log.Replay(pcrs)
}

// Replay extends, for each quoted bank and PCR, what the log says was extended, and
// compares. The node controls the log; pcrs are proven. In this order:
//
//  1. every quoted bank is one of the log's;
//  2. every quoted PCR is reached exactly (TCG PFP 1.06, 3.3.3: the log's events, in order, yield the PCR), by the
//     firmware's log or by that and the first few of user space's events, which go on while the TPM quotes; or it
//     is one that others extend after boot (the table extenders, WithOSExtended) and is then unreplayed;
//  3. facts are drawn from the replayed PCRs alone.
//
// Errors are nodeclaim.Refusals, every PCR that fails with its own, checks "eventlog.bank",
// "eventlog.pcr", "eventlog.locality", "eventlog.event" and "eventlog.separator".
func (l Log) Replay(pcrs quote.PCRs) (Boot, error) {
	boot := Boot{banks: map[nodeclaim.HashAlg]bank{}}
	var refusals nodeclaim.Refusals
	for _, alg := range pcrs.Banks() {
		b, r := l.replayBank(alg, pcrs)
		refusals = append(refusals, r...)
		boot.banks[alg] = b
	}
	if len(boot.banks) == 0 {
		refusals = append(refusals, *nodeclaim.Refuse("eventlog.bank", "event log: no PCR was quoted, so the log proves nothing"))
	}
	if len(refusals) > 0 {
		return Boot{}, refusals
	}
	return boot, nil
}

func (l Log) replayBank(alg nodeclaim.HashAlg, pcrs quote.PCRs) (bank, nodeclaim.Refusals) {
	values, err := l.Unverified(alg)
	if err != nil {
		return bank{}, nodeclaim.AsRefusals(err)
	}
	b := bank{booted: map[int][]byte{}}
	var later []*event
	var refusals nodeclaim.Refusals
	for _, i := range pcrs.Indices(alg) {
		quoted, _ := pcrs.Value(alg, i)
		ours := slices.Contains(l.osExtended, i)
		way, reached := l.reach(alg, i, values[i], quoted)
		switch {
		case reached:
			b.replayed = append(b.replayed, i)
			b.booted[i] = way.booted
			later = append(later, way.later...)
			if i == phasePCR {
				b.phases = way.phases
			}
		case ours || mayEndElsewhere(i):
			b.unreplayed = append(b.unreplayed, i)
			if ours {
				b.booted[i] = values[i]
			}
		default:
			refusals = append(refusals, *l.unreached(alg, i, values[i], quoted))
		}
	}
	if len(refusals) > 0 {
		return bank{}, refusals
	}
	b.measured = newMeasured(l, alg, b.replayed, later)
	b.measured.unreplayed = b.unreplayed
	b.facts, refusals = b.measured.facts()
	return b, refusals
}

// exits has, for a PCR, sequences of strings that firmware extends after the log's last event. It logs these into a second
// table, which older kernels do not add to their log (TCG PFP 1.06, 10.4.4; go-attestation has the same in its
// eventlog_workarounds.go). They are no secret, but a quoted value that is the log's plus the first few of a sequence
// proves both.
var exits = map[int][][]string{
	5: {
		{"Exit Boot Services Invocation", "Exit Boot Services Returned with Success"},
		{"Exit Boot Services Invocation", "Exit Boot Services Returned with Failure", "Exit Boot Services Invocation", "Exit Boot Services Returned with Success"},
	},
}

// way is how a quoted PCR is reached.
type way struct {
	booted []byte   // its value when user space began
	later  []*event // of the user-space log, but those that are known to mean nothing for the boot
	phases []string // that systemd marked
}

// reach finds how a quoted value follows from the firmware's log: alone, with what firmware is known not to log, and then
// with the first few of user space's events, or with what user space is known to extend. PCR 10 is IMA's, which has a
// log of its own.
func (l Log) reach(alg nodeclaim.HashAlg, pcr int, value, quoted []byte) (way, bool) {
	if pcr == imaPCR {
		return way{}, false
	}
	starts := [][]byte{value}
	for _, words := range exits[pcr] {
		v := value
		for _, w := range words {
			v = extended(alg, v, sum(alg, []byte(w)))
			starts = append(starts, v)
		}
	}
	for _, start := range starts {
		if bytes.Equal(start, quoted) {
			return way{booted: start}, true
		}
		if w, ok := l.reachByLog(alg, pcr, start, quoted); ok {
			return w, true
		}
		if w, ok := reachByWords(alg, pcr, start, quoted); ok {
			return w, true
		}
	}
	return way{}, false
}

// reachByLog tries the first few of user space's events.
func (l Log) reachByLog(alg nodeclaim.HashAlg, pcr int, start, quoted []byte) (way, bool) {
	w := way{booted: start}
	v := start
	known := wordsOf[alg]()
	for i := range l.userspace {
		e := &l.userspace[i]
		if e.pcr != pcr {
			continue
		}
		digest := e.digests[l.places[alg]]
		if digest == nil {
			return way{}, false
		}
		v = extended(alg, v, digest)
		// A node may pass off the firmware's last events as user space's. So all of them count as measurements of the
		// boot, as far as facts go, except strings that can be nothing else.
		if word, ok := known.ofUserspace(alg, e, digest); !ok {
			w.later = append(w.later, e)
		} else if pcr == phasePCR {
			w.phases = append(w.phases, word)
		}
		if bytes.Equal(v, quoted) {
			return w, true
		}
	}
	return way{}, false
}

// extended is a PCR's value after one more digest.
func extended(alg nodeclaim.HashAlg, value, digest []byte) []byte {
	return sum(alg, slices.Concat(value, digest))
}

// Unverified computes the value of PCRs 0 to 23 of one bank from the log alone: what they would be
// if the log were true. A quote over exactly these values proves it; nothing else does.
// PCRs without events have their reset value (TCG PC Client Platform TPM Profile 1.05, 4.6.2).
func (l Log) Unverified(alg nodeclaim.HashAlg) (map[int][]byte, error) {
	if first, lacks := l.lacks[alg]; lacks {
		return nil, refuse("bank", "event %d has no digest of bank %s, which the log's header names: that bank cannot be replayed, only %v can", first, alg, l.algs)
	}
	if !l.has(alg) {
		return nil, nodeclaim.Refuse("eventlog.bank", fmt.Sprintf("event log: bank %s was quoted, the log has only %v", alg, l.algs))
	}
	locality, err := l.startupLocality()
	if err != nil {
		return nil, err
	}
	values := make(map[int][]byte, nodeclaim.MaxPCR+1)
	for i := range nodeclaim.MaxPCR + 1 {
		values[i] = make([]byte, alg.Size())
		if i >= 17 && i <= 22 {
			values[i] = bytes.Repeat([]byte{0xFF}, alg.Size())
		}
	}
	values[0][alg.Size()-1] = locality
	at := l.places[alg]
	both := make([]byte, 0, 2*alg.Size())
	for i := range l.events {
		e := &l.events[i]
		if !e.extended() {
			continue
		}
		both = append(append(both[:0], values[e.pcr]...), e.digests[at]...)
		copy(values[e.pcr], sum(alg, both))
	}
	return values, nil
}

// UnverifiedNow is Unverified with all that user space measured since (see WithUserspace).
func (l Log) UnverifiedNow(alg nodeclaim.HashAlg) (map[int][]byte, error) {
	values, err := l.Unverified(alg)
	if err != nil {
		return nil, err
	}
	for i := range l.userspace {
		e := &l.userspace[i]
		if digest := e.digests[l.places[alg]]; digest != nil {
			values[e.pcr] = extended(alg, values[e.pcr], digest)
		}
	}
	return values, nil
}

func (l Log) has(alg nodeclaim.HashAlg) bool {
	for _, a := range l.algs {
		if a == alg {
			return true
		}
	}
	return false
}

func (l Log) count(pcr int) int {
	n := 0
	for i := range l.events {
		if e := &l.events[i]; e.pcr == pcr && e.extended() {
			n++
		}
	}
	return n
}

// extended tells whether the log claims that an event was extended into its PCR.
func (e *event) extended() bool { return e.typ != evNoAction }

var localitySignature = []byte("StartupLocality\x00")

// startupLocality is the last byte of PCR 0's initial value: the locality that sent
// TPM2_Startup, 0 or 3, or 4 after an H-CRTM sequence (TCG PFP 1.06, 10.4.5.3; TPM 2.0
// Part 1, 34.2.3). The log's word for it is not hashed, but a wrong one misses quoted PCR 0.
// Firmware that measured an H-CRTM and left the locality out still started at 4. Zeros may follow, because coreboot
// writes all data into records of one size (Dasharo/coreboot#699).
func (l Log) startupLocality() (byte, error) {
	found, locality := false, byte(0)
	for i := range l.events {
		e := &l.events[i]
		if e.typ == evHCRTM && e.pcr == 0 && !found {
			locality = 4
		}
		if e.typ != evNoAction || e.pcr != 0 || !bytes.HasPrefix(e.data, localitySignature) {
			continue
		}
		v := e.data[len(localitySignature):]
		if len(v) == 0 || v[0] != 0 && v[0] != 3 && v[0] != 4 || len(bytes.Trim(v[1:], "\x00")) > 0 {
			return 0, refuse("locality", "event %d: startup locality %.64x is not 00, 03 or 04, alone or before zeros", e.index, v)
		}
		if found && v[0] != locality {
			return 0, refuse("locality", "event %d: a second startup locality %d, after %d", e.index, v[0], locality)
		}
		found, locality = true, v[0]
	}
	return locality, nil
}

func refuse(check, f string, args ...any) *nodeclaim.Refusal {
	return nodeclaim.Refuse("eventlog."+check, fmt.Sprintf("event log: "+f, args...))
}
