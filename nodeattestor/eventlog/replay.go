package eventlog

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/quote"
)

// elsewhere names the PCRs that others than the firmware's log extend after boot, and who.
// Only these may be left unreplayed; any other quoted PCR must be reached exactly.
var elsewhere = map[int]string{
	10: "IMA",
	11: "systemd, which marks boot phases",
	15: "systemd, which measures the machine id and volume keys",
	16: "debugging tools", 17: "a dynamic launch", 18: "a dynamic launch", 19: "a dynamic launch",
	20: "a dynamic launch", 21: "a dynamic launch", 22: "a dynamic launch", 23: "applications",
}

// Replay parses a log and replays it against quoted PCRs.
func Replay(raw []byte, pcrs quote.PCRs) (Boot, error) {
	log, err := Parse(raw)
	if err != nil {
		return Boot{}, err
	}
	return log.Replay(pcrs)
}

// Replay extends, for each quoted bank and PCR, what the log says was extended, and
// compares. The node controls the log; pcrs are proven. In this order:
//
//  1. every quoted bank is one of the log's;
//  2. every quoted PCR is reached exactly, or is one that others extend after boot and is then
//     unreplayed (TCG PFP 1.06, 3.3.3: the log's events, in order, yield the PCR);
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
	var b bank
	var refusals nodeclaim.Refusals
	for _, i := range pcrs.Indices(alg) {
		quoted, _ := pcrs.Value(alg, i)
		_, other := elsewhere[i]
		switch {
		case bytes.Equal(values[i], quoted) && i != 10:
			b.replayed = append(b.replayed, i)
		case missing(alg, i, values[i], quoted) != nil:
			b.replayed = append(b.replayed, i)
			if i == phasePCR {
				b.phases = missing(alg, i, values[i], quoted)
			}
		case other:
			b.unreplayed = append(b.unreplayed, i)
		default:
			refusals = append(refusals, *nodeclaim.Refuse("eventlog.pcr", fmt.Sprintf(
				"event log: its %d events for PCR %d (%s) lead to %x, the TPM quoted %x: the log was changed or cut, or something was measured that it does not have",
				l.count(i), i, alg, values[i], quoted)))
		}
	}
	if len(refusals) > 0 {
		return bank{}, refusals
	}
	b.measured = newMeasured(l, alg, b.replayed)
	b.facts, refusals = b.measured.facts()
	return b, refusals
}

// phasePCR is where systemd marks boot phases.
const phasePCR = 11

// phases are systemd's marks on the way up and down (systemd-pcrphase.service(8)).
var phases = []string{"enter-initrd", "leave-initrd", "sysinit", "ready", "shutdown", "final"}

// unlogged has, for a PCR, sequences of strings that are known to be extended after the log's last event without
// being written to it. They are no secret, but a quoted value that is the log's plus the first
// few of a sequence proves both.
var unlogged = map[int][][]string{
	// Firmware logs these into a second table, which older kernels do not add to their log (TCG PFP
	// 1.06, 10.4.4; go-attestation has the same in its eventlog_workarounds.go).
	5: {
		{"Exit Boot Services Invocation", "Exit Boot Services Returned with Success"},
		{"Exit Boot Services Invocation", "Exit Boot Services Returned with Failure", "Exit Boot Services Invocation", "Exit Boot Services Returned with Success"},
	},
	phasePCR: {phases, phases[2:]}, // the second without an initrd
}

// missing is what the log lacks to lead to the quoted value, nil when nothing known does.
func missing(alg nodeclaim.HashAlg, pcr int, value, quoted []byte) []string {
	for _, words := range unlogged[pcr] {
		v := value
		for i, w := range words {
			if v = sum(alg, slices.Concat(v, sum(alg, []byte(w)))); bytes.Equal(v, quoted) {
				return words[:i+1]
			}
		}
	}
	return nil
}

// Unverified computes the value of PCRs 0 to 23 of one bank from the log alone: what they would be
// if the log were true. A quote over exactly these values proves it; nothing else does.
// PCRs without events have their reset value (TCG PC Client Platform TPM Profile 1.05, 4.6.2).
func (l Log) Unverified(alg nodeclaim.HashAlg) (map[int][]byte, error) {
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
// Firmware that measured an H-CRTM and left the locality out still started at 4.
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
		if len(v) != 1 || v[0] != 0 && v[0] != 3 && v[0] != 4 {
			return 0, refuse("locality", "event %d: startup locality %x is not 00, 03 or 04", e.index, v)
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
