package verify

import (
	"fmt"
	"sync"

	"github.com/keelson-project/keelson/nodeattestor/evidence"
	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/reference"
)

// logs collects the two logs chunk by chunk. Memory is bounded by the policy, not by
// the agent: the event log by its limit, the IMA log by the replayer's.
type logs struct {
	maxEvent  int
	maxRounds int
	rounds    int
	eventLog  []byte
	eventDone bool
	ima       *ima.Replayer // nil when no IMA log is demanded
	measured  *reference.Measured
	imaOffset uint64
	imaDone   bool
	resumed   bool // ima goes on from an earlier appraisal
	astray    bool // an IMA chunk was asked for that is of no use now
}

func newLogs(p *Pending) logs {
	l := logs{maxEvent: p.policy.maxEventLog(), maxRounds: p.policy.maxRounds(), imaDone: true}
	if !p.policy.IMA {
		return l
	}
	l.imaDone = false
	if l.resume(p) {
		return l
	}
	l.measured = p.policy.References.Measure()
	l.ima = ima.NewStream(p.pcrs, p.policy.IMAOptions, l.measured.Add)
	l.astray = p.earlier.list.Offset() > 0
	return l
}

// Next says which chunk to ask for, or nil when both logs are complete: the event log
// when the node says it ended (its replay then proves that), the IMA log when it has
// reached quoted PCR 10 or ended.
func (p *Pending) Next() (*evidence.Continue, error) {
	l := &p.logs
	l.astray = false
	if l.eventDone && l.imaDone {
		return nil, nil
	}
	if l.rounds++; l.rounds > l.maxRounds {
		return nil, nodeclaim.Refuse("logs.rounds", fmt.Sprintf("the logs did not arrive within %d rounds", l.maxRounds))
	}
	if !l.eventDone {
		return &evidence.Continue{Log: evidence.EventLog, Offset: uint64(len(l.eventLog))}, nil
	}
	return &evidence.Continue{Log: evidence.IMALog, Offset: l.imaOffset}, nil
}

// Add takes one chunk, which must continue its log exactly. An error that is no refusal
// says that the chunk was malformed or out of place.
func (p *Pending) Add(c *evidence.Chunk) error {
	if !p.bound {
		return fmt.Errorf("verify: log chunk before the node was bound")
	}
	l := &p.logs
	switch {
	case c.Log == evidence.IMALog && l.astray:
		l.astray = false
		return nil
	case c.Log == evidence.EventLog && !l.eventDone:
		return l.addEvent(c)
	case c.Log == evidence.IMALog && !l.imaDone:
		return l.addIMA(c)
	}
	return fmt.Errorf("verify: chunk of the %s at offset %d was not asked for", c.Log, c.Offset)
}

func (l *logs) addEvent(c *evidence.Chunk) error {
	raw, err := rawAt(c, uint64(len(l.eventLog)), nil)
	if err != nil {
		return err
	}
	if len(l.eventLog)+len(raw) > l.maxEvent {
		return nodeclaim.Refuse("eventlog.limit", fmt.Sprintf("the TCG event log has more than the %d bytes allowed", l.maxEvent))
	}
	l.eventLog = append(l.eventLog, raw...)
	l.eventDone = c.Final
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

// chunkRoom lends room for one chunk while it is replayed, which keeps nothing of it: a list then costs no memory
// but that, however long it is.
var chunkRoom = sync.Pool{New: func() any { return new([roomForChunk]byte) }}

// roomForChunk is a little more than a chunk: the decoder is faster where it may write past the end.
const roomForChunk = evidence.MaxChunkRaw + 64

func rawAt(c *evidence.Chunk, want uint64, room []byte) ([]byte, error) {
	if c.Offset != want {
		return nil, fmt.Errorf("verify: chunk of the %s begins at offset %d, wanted %d", c.Log, c.Offset, want)
	}
	return c.RawInto(room)
}

// finish ends the logs; the result is nil when no IMA log was demanded.
func (l *logs) finish() (*ima.Result, error) {
	if !l.eventDone || !l.imaDone {
		return nil, fmt.Errorf("verify: finish before the logs were complete")
	}
	if l.ima == nil {
		return nil, nil
	}
	res, err := l.ima.Finish()
	if err != nil {
		return nil, err
	}
	if res.Count == 0 {
		// PCR 10 never extended: IMA is off, and its silence must not pass for cleanness.
		return nil, nodeclaim.Refuse("ima.empty", "the IMA log is empty, as is PCR 10: the kernel measures nothing; boot it with an ima_policy")
	}
	return &res, nil
}
