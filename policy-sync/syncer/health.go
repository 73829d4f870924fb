package syncer

import (
	"errors"
	"fmt"
	"sync"

	"github.com/keelson-project/keelson/policy-sync/plan"
)

// mostFailures is how many passes in a row may fail before the leader is not ready. A pass that is made again at once takes
// milliseconds; one that fails is made again after at most ten seconds.
const mostFailures = 5

// health counts passes that failed as a whole: nothing could be read or planned, the SPIRE server could not be read, or what closes
// the cluster is not in place. What fails of one team is in its policies' status and in the metrics, and no reason for anybody to
// restart policy-sync.
type health struct {
	mu       sync.Mutex
	failures int
	last     error
}

func (h *health) note(p *progress, whole error) {
	err := whole
	if p != nil && err == nil {
		err = p.missing.Holds(plan.Operation{Domain: plan.Domain{Needs: []plan.Part{{Kind: plan.Cluster}}}})
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil || IsStale(err) {
		h.failures, h.last = 0, nil
		return
	}
	h.failures++
	h.last = err
}

// good tells whether the last pass succeeded as a whole.
func (h *health) good() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.failures == 0
}

// Ready returns why passes fail, once several in a row did, and what panicked lately. A replica that does not lead makes no passes.
func (s *Syncer) Ready() error {
	s.health.mu.Lock()
	defer s.health.mu.Unlock()
	if s.health.failures < mostFailures {
		return s.o.Panics.Ready()
	}
	return errors.Join(s.o.Panics.Ready(), fmt.Errorf("the last %d passes failed; what is closed stays closed", s.health.failures), s.health.last)
}
