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
}

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
		s.reading = nil
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
	r.got, r.err = s.o.SPIRE.Read(ctx)
	close(r.done)
	select {
	case <-r.late:
		s.Trigger()
	default:
	}
}
