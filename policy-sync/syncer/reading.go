package syncer

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// errSlow says that the SPIRE server has not answered yet; its answer will trigger a pass.
var errSlow = errors.New("syncer: the SPIRE server has not answered yet")

// reading is one reading of the SPIRE server that is under way.
type reading struct {
	begun time.Time
	// since are operations that were carried out while the reading went on, which may have missed them.
	since []plan.Operation
	done  chan struct{} // closed when the result is there
	late  chan struct{} // closed by a pass that would not wait
	got   *snapshot.SPIRE
	err   error
	took  time.Duration
}

// spireMost bounds how long one pass writes to the SPIRE server.
const spireMost = 2 * time.Second

// spireFor is how long one pass writes to the SPIRE server: openFor, or as long as the last reading took. A server with
// many entries would otherwise be read most of the time.
func (s *Syncer) spireFor() time.Duration { return min(max(openFor, s.readTook), spireMost) }

// known is what the SPIRE server said last, and what was carried out there since. Only a leader writes to
// the server, so the two together are what the server holds, but for what others have changed there.
type known struct {
	spire *snapshot.SPIRE
	at    time.Time // when the reading began
	since []plan.Operation
}

// wrote notes an operation that was tried on the SPIRE server. One that failed may have been carried out
// in part, or planned from what is not there any more: the next pass reads anew.
func (s *Syncer) wrote(o plan.Operation, err error) {
	if err != nil {
		s.known = known{}
		return
	}
	s.known.since = append(s.known.since, o)
	if s.reading != nil {
		s.reading.since = append(s.reading.since, o)
	}
}

// judged notes that a verdict closes something: what was read before may lack an agent of the machine.
func (s *Syncer) judged(at time.Time) { s.verdictAt, s.known = at, known{} }

// readSPIRE returns what the SPIRE server holds: what is known, unless that is older than
// Options.SPIREFresh or than the last verdict that closes (judged). It waits for the server, but not for long: a server
// that hangs must not keep the loop from closing what a verdict closes.
//
// A reading that was under way when the verdict came serves this pass, but may have missed an agent that
// attested meanwhile. So another pass with another reading follows at once.
func (s *Syncer) readSPIRE(ctx context.Context) (*snapshot.SPIRE, error) {
	if s.reading == nil {
		if k := &s.known; k.spire != nil && s.o.Now().Sub(k.at) < s.o.SPIREFresh && !s.o.Now().Before(k.at) {
			k.spire, k.since = carriedOut(k.spire, k.since), nil
			return k.spire, nil
		}
		s.reading = &reading{begun: s.o.Now(), done: make(chan struct{}), late: make(chan struct{})}
		go s.read(ctx, s.reading)
	}
	r := s.reading
	patience := time.NewTimer(s.o.Patience)
	defer patience.Stop()
	select {
	case <-r.done:
		s.reading, s.readTook = nil, r.took
		if s.known = (known{}); r.err != nil {
			return nil, r.err
		}
		got := carriedOut(r.got, r.since)
		if r.begun.Before(s.verdictAt) {
			s.Trigger()
			return got, nil
		}
		s.known = known{spire: got, at: r.begun}
		return got, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-patience.C:
	}
	select {
	case <-r.late:
	default:
		close(r.late)
	}
	return nil, errSlow
}

// carriedOut is what a server holds after operations. It is another reading: nobody changes one that a
// graph was made from.
func carriedOut(read *snapshot.SPIRE, operations []plan.Operation) *snapshot.SPIRE {
	if len(operations) == 0 {
		return read
	}
	entries, agents := map[string]*snapshot.Entry{}, map[string]bool{}
	for _, o := range operations {
		switch o.Action {
		case plan.CreateEntry, plan.UpdateEntry:
			entries[o.Entry.ID] = o.Entry
		case plan.DeleteEntry:
			entries[o.Entry.ID] = nil
		case plan.DeleteAgent:
			agents[o.AgentID] = true
		case plan.Create, plan.Update, plan.Patch, plan.Delete:
		}
	}
	out := &snapshot.SPIRE{Entries: make([]snapshot.Entry, 0, len(read.Entries)+len(entries)), OwnID: read.OwnID}
	for _, e := range read.Entries {
		if _, another := entries[e.ID]; !another {
			out.Entries = append(out.Entries, e)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(entries)) {
		if e := entries[id]; e != nil {
			out.Entries = append(out.Entries, *e)
		}
	}
	for _, a := range read.Agents {
		if !agents[a.ID] {
			out.Agents = append(out.Agents, a)
		}
	}
	return out
}

func (s *Syncer) read(ctx context.Context, r *reading) {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(s.o.ReadTimeout, s.o.Timeout))
	defer cancel()
	s.readOnce(ctx, r)
	close(r.done)
	select {
	case <-r.late:
		s.Trigger()
	default:
	}
}

// readOnce fills in the result. A panic is an error of this reading.
func (s *Syncer) readOnce(ctx context.Context, r *reading) {
	defer s.o.Panics.Catch("reading SPIRE entries", func(err error) { r.got, r.err = nil, err })
	begun := s.o.Now()
	r.got, r.err = s.o.SPIRE.Read(ctx)
	r.took = s.o.Now().Sub(begun)
}
