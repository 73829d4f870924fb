package trustclock

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// setable is a clock whose wall clock a test sets, apart from the time that passes.
type setable struct {
	*Clock
	passed, set time.Duration
}

func newSetable() *setable {
	begun := time.Date(2026, 10, 1, 12, 0, 0, 0, time.UTC)
	s := &setable{}
	s.Clock = &Clock{begun: begun, elapsed: func() time.Duration { return s.passed }, wall: func() time.Time { return begun.Add(s.passed + s.set) }}
	return s
}

// receive dates evidence that arrives now.
func (s *setable) receive(t *testing.T, validFor time.Duration) Receipt {
	t.Helper()
	r, right := s.Date(Receipt{}, validFor)
	if !right || r.At.IsZero() || r.ValidUntil.Before(r.At.Add(time.Minute)) || r.At != r.At.Truncate(time.Microsecond) {
		t.Errorf("received %s, valid until %s, right: %t", r.At, r.ValidUntil, right)
	}
	return r
}

func TestThreat25_AClockSetBackReordersNoVerdicts(t *testing.T) {
	c := newSetable()
	first := c.receive(t, 2*time.Hour)
	c.passed, c.set = time.Minute, -3*time.Hour
	second := c.receive(t, 2*time.Hour)
	if !second.At.After(first.At) {
		t.Errorf("a verdict received a minute later, with the clock set back, counts as older: %s, %s", first.At, second.At)
	}
	if second.ValidUntil.After(second.At.Add(time.Minute)) {
		t.Errorf("received %s, valid until %s; want little more than the API demands", second.At, second.ValidUntil)
	}
	left := second.At.Add(time.Hour) // what an earlier run of the server left in its queue
	c.Follow(nil, left)
	if third := c.receive(t, 2*time.Hour); !third.At.After(left) {
		t.Errorf("received %s, before what waits from the run before", third.At)
	}
	c.Follow(nil, first.At) // an older one takes nothing back
	if fourth := c.receive(t, 2*time.Hour); !fourth.At.After(left) {
		t.Errorf("received %s, before an earlier one", fourth.At)
	}
	c.set, c.passed = 0, 5*time.Hour
	now := c.receive(t, 2*time.Hour)
	if !now.At.Equal(c.wall()) || !now.ValidUntil.Equal(c.wall().Add(2*time.Hour)) {
		t.Errorf("with the clock right again, received %s at %s, valid until %s", now.At, c.wall(), now.ValidUntil)
	}
}

// The API's clock goes on whatever is done to the machine's: verdicts are dated by it, before and after the machine's is right again.
func TestThreat25_AClockThatIsWrongDatesNoVerdictAhead(t *testing.T) {
	c := newSetable()
	api := func() time.Time { return c.begun.Add(c.passed).Truncate(time.Second) }
	known := false
	c.Follow(func() (time.Time, bool) { return api(), known }, time.Time{})
	c.set = 5 * time.Hour
	r := c.receive(t, time.Hour)
	if !r.At.Equal(c.wall()) || c.Now().Offset != 0 {
		t.Errorf("received %s, offset %s, though nothing but the machine's clock is known", r.At, c.Now().Offset)
	}
	if again, right := c.Date(r, time.Hour); !right || again != r {
		t.Errorf("%s became %s, though nothing else was heard", r.At, again.At)
	}
	c.passed += 2 * time.Second
	known = true // the attestation asks the API who the node is
	dated, right := c.Date(r, time.Hour)
	if late := api().Sub(dated.At); right || late < time.Second || late > 3*time.Second {
		t.Errorf("dated %s, right: %t; want two seconds before %s", dated.At, right, api())
	}
	if dated.ValidUntil.Sub(api()).Abs() > time.Hour+time.Second {
		t.Errorf("valid until %s", dated.ValidUntil)
	}
	if again, right := c.Date(dated, time.Hour); !right || again != dated {
		t.Errorf("what was dated anew at %s is dated %s", dated.At, again.At)
	}
	if c.Now().Offset != 5*time.Hour {
		t.Errorf("offset %s", c.Now().Offset)
	}
	last := dated.At
	for _, c.set = range []time.Duration{5 * time.Hour, -5 * time.Hour, 0, 30 * time.Second} {
		c.passed += 2 * time.Minute
		r := c.receive(t, time.Hour)
		if off := r.At.Sub(api()); off.Abs() > MaxOffset || !r.At.After(last) {
			t.Errorf("clock set by %s: received %s after %s, the API's clock says %s", c.set, r.At, last, api())
		}
		if again, right := c.Date(r, time.Hour); !right || again != r {
			t.Errorf("clock set by %s: %s became %s", c.set, r.At, again.At)
		}
		last = r.At
	}
}

func TestThreat25_WithoutKubernetesAReceiptStays(t *testing.T) {
	c := newSetable()
	r := c.receive(t, time.Hour)
	c.passed, c.set = time.Minute, 5*time.Hour
	if again, right := c.Date(r, time.Hour); !right || again != r {
		t.Errorf("%s became %s, though no other clock is known", r.At, again.At)
	}
}

func TestThreat25_AClockSetBackMakesNothingValidAgain(t *testing.T) {
	c := newSetable()
	c.passed, c.set = time.Hour, -24*time.Hour
	if want := c.begun.Add(time.Hour); !c.Now().Valid.Equal(want) {
		t.Errorf("validity is judged by %s, want %s", c.Now().Valid, want)
	}
	c.set = 24 * time.Hour
	if want := c.begun.Add(25 * time.Hour); !c.Now().Valid.Equal(want) {
		t.Errorf("set forwards, validity is judged by %s, want %s", c.Now().Valid, want)
	}
}

func TestThreat25_OnlyAClockThatWasSetExcusesWhatIsOutOfDate(t *testing.T) {
	of := func(checks ...string) (out nodeclaim.Refusals) {
		for _, c := range checks {
			out = append(out, *nodeclaim.Refuse(c, "why"))
		}
		return out
	}
	for name, tc := range map[string]struct {
		refusals nodeclaim.Refusals
		set      time.Duration
		excused  bool
	}{
		"out of date by a clock that was set":      {of("reference.expired", "tag.expired"), time.Hour, true},
		"out of date by a clock that was set back": {of("reference.notyet", "tag.notyet"), -time.Hour, true},
		"out of date":                          {of("reference.expired"), 0, false},
		"moved by NTP":                         {of("tag.expired"), 4 * time.Minute, false},
		"moved back by NTP":                    {of("tag.notyet"), -4 * time.Minute, false},
		"something else speaks against it too": {of("reference.expired", "ima.file"), time.Hour, false},
		"something else speaks against it":     {of("ima.file"), time.Hour, false},
		"nothing speaks against it":            {nil, time.Hour, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := newSetable()
			c.set = tc.set
			err := Excuse(tc.refusals, c.Now())
			if (err != nil) != tc.excused {
				t.Errorf("excused: %v, want %t", err, tc.excused)
			}
			if err != nil && (!strings.Contains(err.Error(), tc.set.String()) || !strings.Contains(err.Error(), "set it right")) {
				t.Errorf("%v; want how far, and what to do", err)
			}
		})
	}
}

func TestTheRealClockIsSteady(t *testing.T) {
	c := New(time.Now)
	first := c.Now()
	if first.Step != 0 || first.Offset != 0 {
		t.Errorf("a clock that nobody set is %s off, %s from an API that nobody knows", first.Step, first.Offset)
	}
	var mu sync.Mutex
	seen := map[time.Time]bool{}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				r, _ := c.Date(Receipt{}, time.Hour)
				mu.Lock()
				if seen[r.At] {
					t.Errorf("two receipts at %s", r.At)
				}
				seen[r.At] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if now := c.Now(); now.Elapsed < first.Elapsed || now.Valid.Before(first.Valid) {
		t.Errorf("%+v after %+v", now, first)
	}
}
