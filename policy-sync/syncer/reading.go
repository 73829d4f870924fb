package syncer

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// errSlow says that the SPIRE server has not answered yet; its answer will trigger a pass.
var errSlow = errors.New("syncer: the SPIRE server has not answered yet")

// reading is one reading of the SPIRE server that is under way. It serves one pass, and only passes write to the server, so
// whatever a reading shows is from after the last write.
type reading struct {
	done chan struct{} // closed when the result is there
	late chan struct{} // closed by a pass that would not wait
	got  *snapshot.SPIRE
	err  error
	took time.Duration
}

// spireMost bounds how long one pass writes to the SPIRE server.
const spireMost = 2 * time.Second

// spireFor is how long one pass writes to the SPIRE server: openFor, or as long as the last reading took. Each pass reads it anew,
// so a server with many entries would otherwise be read most of the time.
func (s *Syncer) spireFor() time.Duration { return min(max(openFor, s.readTook), spireMost) }

// readSPIRE waits for the SPIRE server, but not for long: a server that hangs must not keep the loop from closing what a
// verdict closes.
func (s *Syncer) readSPIRE(ctx context.Context) (*snapshot.SPIRE, error) {
	if s.reading == nil {
		s.reading = &reading{done: make(chan struct{}), late: make(chan struct{})}
		go s.read(ctx, s.reading)
	}
	r := s.reading
	patience := time.NewTimer(s.o.Patience)
	defer patience.Stop()
	select {
	case <-r.done:
		s.reading, s.readTook = nil, r.took
		return r.got, r.err
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
