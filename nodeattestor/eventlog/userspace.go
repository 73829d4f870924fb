package eventlog

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// Limits of the user-space log. A machine writes some ten records of about 300 bytes.
const (
	MaxUserspaceLog = 1 << 20 // bytes
	maxRecords      = 4096
	maxRecord       = 64 << 10 // bytes
)

// recordSeparator begins a record of a JSON text sequence (RFC 7464, 2.1).
const recordSeparator = 0x1E

// record is one of the user-space log's. There are more fields; what is not read decides nothing.
type record struct {
	PCR *int `json:"pcr"`
	// NVIndex and RTMR stand in PCR's place where something else was extended.
	NVIndex *json.RawMessage `json:"nv_index"`
	RTMR    *int             `json:"rtmr"`
	Digests []struct {
		HashAlg string `json:"hashAlg"`
		Digest  string `json:"digest"`
	} `json:"digests"`
	ContentType string `json:"content_type"`
	Content     struct {
		EventType string `json:"eventType"`
		String    string `json:"string"`
	} `json:"content"`
}

// WithUserspace is the log continued by what user space measured after boot: systemd's log
// /run/log/systemd/tpm2-measure.log, a JSON text sequence (RFC 7464) of records that follow TCG's Canonical Event Log format in
// JSON without record numbers (systemd-pcrextend(8); TCG CEL 1.0, 5). The node controls every byte of it, as of the rest:
// a quoted PCR proves the digests and their order. Records of NV indices and of other machines' registers
// are passed over. A last record that was cut while it was written, as the end of RFC 7464's section 2.1 knows it, is left out.
// Errors are *nodeclaim.Refusal with check "eventlog.userspace".
func (l Log) WithUserspace(raw []byte) (Log, error) {
	if len(raw) > MaxUserspaceLog {
		return Log{}, userspace("the log has %d bytes, more than the %d allowed", len(raw), MaxUserspaceLog)
	}
	if len(raw) > 0 && raw[0] != recordSeparator {
		return Log{}, userspace("the log begins with byte %#02x and not with a record separator", raw[0])
	}
	l.userspace = nil
	records := bytes.Split(raw, []byte{recordSeparator})
	if len(records)-1 > maxRecords {
		return Log{}, userspace("the log has %d records, more than the %d allowed", len(records)-1, maxRecords)
	}
	for i, text := range records[1:] {
		last := i == len(records)-2
		if last && !bytes.HasSuffix(text, []byte{'\n'}) {
			break
		}
		e, ok, err := l.record(text, i)
		if err != nil {
			return Log{}, err
		}
		if ok {
			l.userspace = append(l.userspace, e)
		}
	}
	return l, nil
}

// record reads one record; ok is false for one that is not of a PCR.
func (l Log) record(text []byte, i int) (e event, ok bool, err error) {
	if len(text) > maxRecord {
		return e, false, userspace("record %d has %d bytes, more than the %d allowed", i, len(text), maxRecord)
	}
	var r record
	if err := json.Unmarshal(text, &r); err != nil {
		return e, false, userspace("record %d: %v", i, err)
	}
	if r.PCR == nil {
		if r.NVIndex == nil && r.RTMR == nil {
			return e, false, userspace("record %d says nothing of what was extended", i)
		}
		return e, false, nil
	}
	if *r.PCR < 0 || *r.PCR > nodeclaim.MaxPCR {
		return e, false, userspace("record %d: PCR %d does not exist", i, *r.PCR)
	}
	e = event{index: len(l.events) + i, pcr: *r.PCR, digests: make([][]byte, len(l.places)), data: []byte(r.Content.String), origin: "userspace"}
	if r.ContentType == "systemd" {
		e.origin = "systemd:" + r.Content.EventType
	}
	for _, d := range r.Digests {
		at, size, known := l.place(d.HashAlg)
		if !known {
			continue
		}
		sum, err := hex.DecodeString(d.Digest)
		if err != nil || len(sum) != size {
			return e, false, userspace("record %d: %.160q is no %s digest", i, d.Digest, d.HashAlg)
		}
		if e.digests[at] != nil {
			return e, false, userspace("record %d has two %s digests", i, d.HashAlg)
		}
		e.digests[at] = sum
	}
	return e, true, nil
}

// place is where the digests of a bank of the log stand in an event.
func (l Log) place(name string) (at, size int, known bool) {
	alg, err := nodeclaim.ParseHashAlg(name)
	if err != nil {
		return 0, 0, false
	}
	at, known = l.places[alg]
	return at, alg.Size(), known
}

func userspace(f string, args ...any) *nodeclaim.Refusal {
	return nodeclaim.Refuse("eventlog.userspace", fmt.Sprintf("user-space event log: "+f, args...))
}
