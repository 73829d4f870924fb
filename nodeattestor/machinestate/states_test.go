package machinestate

import (
	"encoding/binary"
	"runtime"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/verify"
)

func ekOf(i int) (ek nodeclaim.EKHash) {
	binary.BigEndian.PutUint64(ek[:], uint64(i)+1)
	return ek
}

func TestStatesForgetThoseThatWerePutLongestAgo(t *testing.T) {
	each := verify.State{}.Size() + stateOverhead
	s := NewStates(3 * each)
	for i := range 3 {
		s.Keep(ekOf(i), verify.State{})
	}
	s.Keep(ekOf(0), verify.State{})
	s.Keep(ekOf(3), verify.State{})
	for i, want := range []bool{true, false, true, true} {
		if _, ok := s.Last(ekOf(i)); ok != want {
			t.Errorf("state %d: kept %v, want %v", i, ok, want)
		}
	}
	if s.size != 3*each || len(s.byEK) != 3 || s.order.Len() != 3 {
		t.Errorf("%d bytes, %d states", s.size, len(s.byEK))
	}
}

func TestAnotherConfigurationBeginsWithWhatWasSeen(t *testing.T) {
	s := NewStates(MaxBytes)
	for i := range 3 {
		s.Keep(ekOf(i), verify.State{})
	}
	n := NextStates(s)
	if n.size != s.size || n.limit != s.limit || n.order.Len() != 3 || n.order.Front().Value.(keptState).ek != ekOf(2) {
		t.Errorf("%d bytes, %d states", n.size, n.order.Len())
	}
	n.Keep(ekOf(3), verify.State{})
	if _, ok := s.Last(ekOf(3)); ok {
		t.Error("both have one memory")
	}
}

func TestAStateThatIsTooLargeIsNotKept(t *testing.T) {
	s := NewStates(10)
	s.Keep(ekOf(0), verify.State{})
	if _, ok := s.Last(ekOf(0)); ok || s.size != 0 {
		t.Errorf("kept, %d bytes", s.size)
	}
}

func TestThreat09_TheStoreTakesNoMoreThanItCounts(t *testing.T) {
	const nodes = 10_000
	before := heapInUse()
	s := NewStates(MaxBytes)
	for i := range nodes {
		s.Keep(ekOf(i), verify.State{})
	}
	used := heapInUse() - before
	if len(s.byEK) != nodes || used > uint64(s.size) {
		t.Errorf("%d states take %d bytes, counted are %d", len(s.byEK), used, s.size)
	}
	runtime.KeepAlive(s)
}

func heapInUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
