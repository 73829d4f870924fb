package syncer

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keelson-project/keelson/policy-sync/plan"
)

// undone is a cluster where somebody undoes every write at once.
type undone struct {
	fakeKube
	s      *Syncer
	writes *atomic.Int32
}

func (u undone) Apply(_ context.Context, o plan.Operation) error {
	if o.Target.Kind == "Tier" {
		u.writes.Add(1)
	}
	u.s.Trigger()
	return nil
}

func TestAFightIsFoughtSlowly(t *testing.T) {
	w := newFake(t)
	s := w.syncer()
	writes := &atomic.Int32{}
	s.o.Kubernetes = undone{fakeKube{w}, s, writes}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Start(ctx) }()
	time.Sleep(1500 * time.Millisecond)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n, most := writes.Load(), int32(maxStale+4+1500/int(pauseFirst/time.Millisecond)); n < 2 || n > most {
		t.Errorf("written %d times in 1.5 s, want 2 to %d", n, most)
	}
}

func TestWhatIsAFight(t *testing.T) {
	op := func(n int) plan.Operation {
		return plan.Operation{Action: plan.Update, Target: plan.Target{Name: fmt.Sprint(n)}}
	}
	cases := map[string]struct {
		passes func(i int) []plan.Operation
		fight  bool
	}{
		"if the same is done again, yes":        {func(int) []plan.Operation { return []plan.Operation{op(0)} }, true},
		"if two things are done in turns, yes":  {func(i int) []plan.Operation { return []plan.Operation{op(i % 2)} }, true},
		"if something else is done, no":         {func(i int) []plan.Operation { return []plan.Operation{op(i)} }, false},
		"if nothing is done, no":                {func(int) []plan.Operation { return nil }, false},
		"if it rests for three passes, it ends": {func(i int) []plan.Operation { return []plan.Operation{op(0)}[min(i%4, 1):] }, false},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			var f fight
			for i := range 30 {
				f.round(tc.passes(i))
			}
			if got := f.rounds > maxStale; got != tc.fight {
				t.Errorf("%d rounds over %q", f.rounds, f.over)
			}
		})
	}
}
