package verify

import (
	"fmt"
	"sync"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/evidence"
	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/quote"
	"github.com/keelson-project/keelson/nodeattestor/reference"
)

// logs collects the logs chunk by chunk. Memory is bounded by the policy, not by
// the agent: the event logs by their limits, the IMA log by the replayer's.
type logs struct {
	maxEvent  int
	maxRounds int
	rounds    int
	eventLog  []byte
	eventDone bool
	userspace []byte
	userDone  bool
	ima       *ima.Replayer // nil when no IMA log is demanded
	measured  *reference.Measured
	imaOffset uint64
	imaDone   bool
	resumed   bool // ima goes on from an earlier appraisal
	astray    bool // an IMA chunk was asked for that is of no use now
}

func newLogs(p *Proved) *logs {
	l := &logs{maxEvent: p.policy.maxEventLog(), maxRounds: p.policy.maxRounds(), imaDone: true, userDone: !p.userspace}
	if !p.policy.IMA {
		return l
	}
	l.imaDone = false
	if l.resume(p) {
		return l
	}
	l.measured = p.sets.Measure()
	l.ima = ima.NewStream(p.pcrs, p.policy.IMAOptions, l.measured.Add).Recall(l.measured.Recall)
	l.astray = p.earlier.list.Offset() > 0
	return l
}

// Ask has the node send the next chunk of a log.
type Ask func(*evidence.Continue) (*evidence.Chunk, error)

// Complete is an attestation whose logs have arrived.
type Complete struct {
	bound *Bound
	logs  *logs
}

// Read takes the chunks that came with the response, and asks for the rest of the logs. The event
// logs are complete when the node says that they ended (their replay then proves that), the IMA log
// when it has reached quoted PCR 10 or ended. Each chunk must continue its log exactly; one that
// does not is Malformed. An error of ask is returned as it is.
func (b *Bound) Read(first []evidence.Chunk, ask Ask) (*Complete, error) {
	if err := b.Revoked(); err != nil {
		return nil, err
	}
	l := newLogs(b.proved)
	for i := range first {
		if err := l.take(&first[i]); err != nil {
			return nil, err
		}
	}
	for {
		next, err := l.next()
		if err != nil {
			return nil, err
		}
		if next == nil {
			return &Complete{b, l}, nil
		}
		chunk, err := ask(next)
		if err != nil {
			return nil, err
		}
		if err := l.take(chunk); err != nil {
			return nil, err
		}
	}
}

// next says which chunk to ask for, or nil when all logs are complete.
func (l *logs) next() (*evidence.Continue, error) {
	l.astray = false
	if l.eventDone && l.userDone && l.imaDone {
		return nil, nil
	}
	if l.rounds++; l.rounds > l.maxRounds {
		return nil, nodeclaim.Refuse("logs.rounds", fmt.Sprintf("the logs did not arrive within %d rounds", l.maxRounds))
	}
	if !l.eventDone {
		return &evidence.Continue{Log: evidence.EventLog, Offset: uint64(len(l.eventLog))}, nil
	}
	if !l.userDone {
		return &evidence.Continue{Log: evidence.UserspaceLog, Offset: uint64(len(l.userspace))}, nil
	}
	return &evidence.Continue{Log: evidence.IMALog, Offset: l.imaOffset}, nil
}

// take adds one chunk. An error that is no refusal says that the chunk is malformed or out of
// place.
func (l *logs) take(c *evidence.Chunk) error {
	err := l.add(c)
	if err != nil && len(nodeclaim.AsRefusals(err)) == 0 {
		return Malformed{err}
	}
	return err
}

func (l *logs) add(c *evidence.Chunk) (err error) {
	switch {
	case c.Log == evidence.IMALog && l.astray:
		l.astray = false
		return nil
	case c.Log == evidence.EventLog && !l.eventDone:
		l.eventDone, err = c.Final, l.addTo(&l.eventLog, c, l.maxEvent, "eventlog.limit")
		return err
	case c.Log == evidence.UserspaceLog && !l.userDone:
		l.userDone, err = c.Final, l.addTo(&l.userspace, c, eventlog.MaxUserspaceLog, "eventlog.userspace")
		return err
	case c.Log == evidence.IMALog && !l.imaDone:
		return l.addIMA(c)
	}
	return fmt.Errorf("verify: chunk of the %s at offset %d was not asked for", c.Log, c.Offset)
}

// addTo appends a chunk to a log that is kept whole.
func (l *logs) addTo(log *[]byte, c *evidence.Chunk, limit int, check string) error {
	raw, err := rawAt(c, uint64(len(*log)), nil)
	if err != nil {
		return err
	}
	if len(*log)+len(raw) > limit {
		return nodeclaim.Refuse(check, fmt.Sprintf("the %s has more than the %d bytes allowed", c.Log, limit))
	}
	*log = append(*log, raw...)
	return nil
}

func (l *logs) addIMA(c *evidence.Chunk) error {
	if l.resumed && c.Final && c.Offset < l.imaOffset {
		return nodeclaim.Refuse("ima.shorter", fmt.Sprintf("the IMA list has %d bytes, and had %d before in this boot: it was trimmed or rewound", c.Offset, l.imaOffset))
	}
	room := chunkRoom.Get().(*[roomForChunk]byte) //nolint:forcetypeassert // New gives nothing else.
	defer chunkRoom.Put(room)
	raw, err := rawAt(c, l.imaOffset, room[:])
	if err != nil {
		return err
	}
	if _, err := l.ima.Write(raw); err != nil {
		return err
	}
	l.imaOffset += uint64(len(raw))
	l.imaDone = c.Final || l.ima.Reached()
	return nil
}

// chunkRoom lends room for one chunk while it is replayed, which keeps nothing of it: a list then
// costs no memory but that, however long it is.
var chunkRoom = sync.Pool{New: func() any { return new([roomForChunk]byte) }}

// roomForChunk is a little more than a chunk: the decoder is faster where it may write past the
// end.
const roomForChunk = evidence.MaxChunkRaw + 64

func rawAt(c *evidence.Chunk, want uint64, room []byte) ([]byte, error) {
	if c.Offset != want {
		return nil, fmt.Errorf("verify: chunk of the %s begins at offset %d, wanted %d", c.Log, c.Offset, want)
	}
	return c.RawInto(room)
}

// finish ends the logs, which are complete; the result is nil when no IMA log was demanded.
func (l *logs) finish(pcrs quote.PCRs, osExtended []int) (*ima.Result, error) {
	if l.ima == nil {
		return nil, nil
	}
	if l.ima.Doubtful() {
		// User space has extended PCRs since the kernel computed boot_aggregate; the event logs
		// prove what they were.
		if boot, err := eventlog.ReplayBoth(l.eventLog, l.userspace, pcrs, osExtended...); err == nil {
			l.ima.Booted(boot.Booted)
		}
	}
	res, err := l.ima.Finish()
	if err != nil {
		return nil, err
	}
	if res.Count == 0 {
		// PCR 10 never extended: its silence must not pass for cleanness.
		if l.imaOffset > 0 {
			return nil, nodeclaim.Refuse("ima.empty", fmt.Sprintf("PCR 10 was never extended although the list has %d bytes or more: IMA started before the TPM's driver (the kernel's log says TPM-bypass), so nothing of the list is proven; build the driver into the kernel", l.imaOffset))
		}
		return nil, nodeclaim.Refuse("ima.empty", "the IMA log is empty, as is PCR 10: the kernel measures nothing; boot it with an ima_policy")
	}
	return &res, nil
}
