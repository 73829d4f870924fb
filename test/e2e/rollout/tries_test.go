package rollout

import (
	"testing"
	"time"

	"github.com/keelson-project/keelson/test/e2e/workload/said"
)

func TestWhatFailsBesideAControlIsAStall(t *testing.T) {
	at := func(seconds float64, ok bool) said.Try {
		begun := int64(seconds * float64(time.Second))
		return said.Try{Begun: begun, Ended: begun + int64(time.Second), OK: ok}
	}
	tries := []said.Try{at(0, true), at(10, false), at(30, false), at(40, true), {Begun: int64(50 * time.Second), Ended: int64(50 * time.Second), Kind: said.Refused}, at(70, false)}
	control := []said.Try{at(0, true), at(12, false), at(30, true), at(50, true)}
	bad, stalls := denied(tries, control)
	if len(bad) != 1 || bad[0].Begun != tries[2].Begun || stalls != 3 {
		t.Errorf("%+v, %d stalls", bad, stalls)
	}
}
