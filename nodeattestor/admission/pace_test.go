package admission

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

func machine(i int) (ek nodeclaim.EKHash) {
	binary.BigEndian.PutUint32(ek[:], uint32(i+1))
	return ek
}

func TestThreat24_AMachineInALoopIsOwedSoManyLines(t *testing.T) {
	var p Pace
	taken := 0
	for range 10 * MaxProved {
		if p.Take(machine(0), 0) {
			taken++
		}
	}
	if taken != MaxProved {
		t.Errorf("%d lines at once, want %d", taken, MaxProved)
	}
	if !p.Take(machine(1), 0) {
		t.Error("another machine waits for it")
	}
	for step, want := range []bool{false, true, true} { // half a minute, one, one more
		now := time.Duration(step)*ProvedPace + ProvedPace/2
		if step == 0 {
			now = ProvedPace / 2
		}
		if p.Take(machine(0), now) != want {
			t.Errorf("after %v: %t", now, !want)
		}
	}
	taken = 0
	for now := time.Hour; now < 25*time.Hour; now += time.Second {
		if p.Take(machine(0), now) {
			taken++
		}
	}
	if most := MaxProved + int(24*time.Hour/ProvedPace) + 1; taken > most || taken < most-MaxProved {
		t.Errorf("%d lines on a day, want about %d", taken, most)
	}
}

func TestThreat24_MachinesThatAreRememberedAreBounded(t *testing.T) {
	var p Pace
	for range MaxProved {
		p.Take(machine(0), 0)
	}
	for i := range 2 * maxPaced {
		p.Take(machine(i+1), 0)
	}
	if len(p.byEK) > maxPaced {
		t.Errorf("%d machines are remembered", len(p.byEK))
	}
	for i := range 10 {
		if !p.Take(machine(3*maxPaced+i), time.Hour) {
			t.Error("a new machine finds no room")
		}
	}
	if len(p.byEK) > maxPaced {
		t.Errorf("%d machines are remembered", len(p.byEK))
	}
}
