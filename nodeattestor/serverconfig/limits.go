package serverconfig

import (
	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/evidence"
	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/verify"
)

// What no attestation carries or reads further, whatever the configuration says.
const (
	mostEventLog = eventlog.MaxLogSize
	mostIMALog   = verify.DefaultMaxRounds * evidence.MaxChunkRaw
)

// logLimits reads the bounds of what agents send of their logs.
func (b *builder) logLimits(raw *hclConfig, p *verify.Policy) {
	p.MaxEventLog = int(b.limit("max_event_log_bytes", int64(raw.MaxEventLog), mostEventLog, verify.DefaultMaxEventLog))
	l := ima.DefaultLimits()
	l.Total = b.limit("max_ima_log_bytes", raw.MaxIMALog, mostIMALog, l.Total)
	if raw.MaxIMAEntries < 0 {
		b.problems.Add("max_ima_entries", "%d is negative", raw.MaxIMAEntries)
	}
	if raw.MaxIMAEntries > 0 {
		l.Entries = raw.MaxIMAEntries
	}
	p.IMAOptions.Limits = l
}

// limit is a bound in bytes, or the default where none is given. One above what is read at all would promise what the
// first machine with such a log is refused for.
func (b *builder) limit(key string, given, most, otherwise int64) int64 {
	switch {
	case given < 0:
		b.problems.Add(key, "%d is negative", given)
	case given > most:
		b.problems.Add(key, "%d is more than the %d bytes that are read of any log", given, most)
	case given > 0:
		return given
	}
	return otherwise
}
