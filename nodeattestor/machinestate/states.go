package machinestate

import (
	"container/list"
	"sync"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/verify"
)

// MaxBytes bounds the states that are kept: some ten thousand nodes, with a few reference
// sets each, fit several times.
const MaxBytes = 64 << 20

// stateOverhead is about what the store itself takes for one state, in bytes.
const stateOverhead = 300

// States keep where the last proved appraisal of each EK ended. It is a memory of one server: whoever has none of it, and
// who was evicted, reads the whole IMA log, and knows no counters to compare with.
type States struct {
	limit int // in bytes

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

// NewStates makes a memory of at most limit bytes.
func NewStates(limit int) *States {
	return &States{limit: limit, byEK: map[nodeclaim.EKHash]*list.Element{}, order: list.New()}
}

// NextStates is what another configuration begins with: the counters of each EK. What the old one's reference sets judged
// is nothing to it, and would keep these sets in memory.
func NextStates(old *States) *States {
	old.mu.Lock()
	defer old.mu.Unlock()
	out := NewStates(old.limit)
	for e := old.order.Back(); e != nil; e = e.Prev() {
		k := e.Value.(keptState) //nolint:forcetypeassert // nothing else is put in.
		out.Keep(k.ek, k.state.Seen())
	}
	return out
}

// Last is the state in which an EK's last proved appraisal ended.
func (s *States) Last(ek nodeclaim.EKHash) (verify.State, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.byEK[ek]
	if e == nil {
		return verify.State{}, false
	}
	return e.Value.(keptState).state, true //nolint:forcetypeassert // nothing else is put in.
}

// Keep keeps a state, and forgets those that were kept longest ago when they do not all fit.
func (s *States) Keep(ek nodeclaim.EKHash, state verify.State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(ek)
	k := keptState{ek: ek, state: state, size: state.Size() + stateOverhead}
	s.byEK[ek] = s.order.PushFront(k)
	for s.size += k.size; s.size > s.limit; {
		s.remove(s.order.Back().Value.(keptState).ek) //nolint:forcetypeassert // as above.
	}
}

func (s *States) remove(ek nodeclaim.EKHash) {
	e := s.byEK[ek]
	if e == nil {
		return
	}
	s.size -= s.order.Remove(e).(keptState).size //nolint:forcetypeassert // as above.
	delete(s.byEK, ek)
}
