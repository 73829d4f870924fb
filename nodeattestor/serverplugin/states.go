package serverplugin

import (
	"container/list"
	"sync"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/verify"
)

// maxStateBytes bounds the states that are kept: some ten thousand nodes, with a few reference
// sets each, fit several times.
const maxStateBytes = 64 << 20

// stateOverhead is about what the store itself takes for one state, in bytes.
const stateOverhead = 300

// states keeps where the last proved appraisal of each EK ended. It is a memory of one server: whoever has none of it, and
// who was evicted, reads the whole IMA log, and knows no counters to compare with.
type states struct {
	limit int

	mu    sync.Mutex
	size  int
	byEK  map[nodeclaim.EKHash]*list.Element
	order *list.List // of keptState, the latest first
}

type keptState struct {
	ek    nodeclaim.EKHash
	state verify.State
	size  int
}

func newStates(limit int) *states {
	return &states{limit: limit, byEK: map[nodeclaim.EKHash]*list.Element{}, order: list.New()}
}

// next is what another configuration begins with: the counters of each EK. What the old one's reference sets judged
// is nothing to it, and would keep these sets in memory.
func (s *states) next() *states {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := newStates(s.limit)
	for e := s.order.Back(); e != nil; e = e.Prev() {
		k := e.Value.(keptState) //nolint:forcetypeassert // nothing else is put in.
		out.put(k.ek, k.state.Seen())
	}
	return out
}

// get is the state of an EK's last proved appraisal.
func (s *states) get(ek nodeclaim.EKHash) (verify.State, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.byEK[ek]
	if e == nil {
		return verify.State{}, false
	}
	return e.Value.(keptState).state, true //nolint:forcetypeassert // nothing else is put in.
}

// put keeps a state, and forgets those that were put longest ago when they do not all fit.
func (s *states) put(ek nodeclaim.EKHash, state verify.State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(ek)
	k := keptState{ek: ek, state: state, size: state.Size() + stateOverhead}
	s.byEK[ek] = s.order.PushFront(k)
	for s.size += k.size; s.size > s.limit; {
		s.remove(s.order.Back().Value.(keptState).ek) //nolint:forcetypeassert // as above.
	}
}

func (s *states) remove(ek nodeclaim.EKHash) {
	e := s.byEK[ek]
	if e == nil {
		return
	}
	s.size -= s.order.Remove(e).(keptState).size //nolint:forcetypeassert // as above.
	delete(s.byEK, ek)
}
