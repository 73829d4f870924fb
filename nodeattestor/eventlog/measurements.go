package eventlog

import (
	"bytes"
	"slices"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// Measurement is one event that a log says was extended.
type Measurement struct {
	PCR    int
	Type   EventType // the log's claim; no digest covers it
	Digest []byte    // in the bank that was asked for
	Data   []byte    // what the log keeps with it, which is what was measured for some types only
}

// Measurements are the extended events of one bank in log order, as copies. Nothing proves them but
// a quote over the PCRs that they lead to; Claimed says what they would mean.
func (l Log) Measurements(alg nodeclaim.HashAlg) ([]Measurement, error) {
	if _, err := l.Unverified(alg); err != nil {
		return nil, err
	}
	at := l.places[alg]
	var out []Measurement
	for i := range l.events {
		if e := &l.events[i]; e.extended() {
			out = append(out, Measurement{e.pcr, e.typ, slices.Clone(e.digests[at]), slices.Clone(e.data)})
		}
	}
	return out, nil
}

// Text is the string that was measured, where the digest confirms that: the data as they stand,
// without final NULs, or without the label that GRUB puts before it, which is in no digest. before
// and after are what the data have around the measured bytes.
func (m Measurement) Text(alg nodeclaim.HashAlg) (before, text, after string, ok bool) {
	trimmed := bytes.TrimRight(m.Data, "\x00")
	candidates := [][2]int{{0, len(m.Data)}, {0, len(trimmed)}}
	for _, label := range []string{": ", "grub_cmd "} {
		if i := bytes.Index(trimmed, []byte(label)); i >= 0 {
			candidates = append(candidates, [2]int{i + len(label), len(trimmed)}, [2]int{i + len(label), len(m.Data)})
		}
	}
	for _, c := range candidates {
		part := m.Data[c[0]:c[1]]
		if len(part) == 0 || !bytes.Equal(sum(alg, part), m.Digest) {
			continue
		}
		if _, ok := decodeText(part); ok {
			return string(m.Data[:c[0]]), string(part), string(m.Data[c[1]:]), true
		}
	}
	return "", "", "", false
}
