package serverplugin

import (
	"testing"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// setable is a clock whose wall clock a test sets, apart from the time that passes.
type setable struct {
	*clock
	passed, set time.Duration
}

func newSetable() *setable {
	begun := time.Date(2026, 10, 1, 12, 0, 0, 0, time.UTC)
	s := &setable{}
	s.clock = &clock{begun: begun, elapsed: func() time.Duration { return s.passed }, wall: func() time.Time { return begun.Add(s.passed + s.set) }}
	return s
}

func TestThreat25_AClockSetBackReordersNoVerdicts(t *testing.T) {
	c := newSetable()
	first := c.receipt()
	c.passed, c.set = time.Minute, -3*time.Hour
	second := c.receipt()
	if !second.After(first) {
		t.Errorf("a verdict received a minute later, with the clock set back, counts as older: %s, %s", first, second)
	}
	if end := c.validUntil(second, 2*time.Hour); !end.After(second) || end.After(second.Add(time.Minute)) {
		t.Errorf("received %s, valid until %s; want little more than the API demands", second, end)
	}
	c.after(second.Add(time.Hour)) // what an earlier run of the server left in its queue
	if third := c.receipt(); !third.After(second.Add(time.Hour)) {
		t.Errorf("received %s, before what waits from the run before", third)
	}
	c.set, c.passed = 0, 5*time.Hour
	if now := c.receipt(); !now.Equal(c.wall()) {
		t.Errorf("with the clock right again, received %s at %s", now, c.wall())
	}
	if end := c.validUntil(c.wall(), 2*time.Hour); !end.Equal(c.wall().Add(2 * time.Hour)) {
		t.Errorf("valid until %s", end)
	}
}

func TestThreat25_AClockSetBackMakesNothingValidAgain(t *testing.T) {
	c := newSetable()
	c.passed, c.set = time.Hour, -24*time.Hour
	if want := c.begun.Add(time.Hour); !c.now().Equal(want) {
		t.Errorf("validity is judged by %s, want %s", c.now(), want)
	}
	c.set = 24 * time.Hour
	if want := c.begun.Add(25 * time.Hour); !c.now().Equal(want) {
		t.Errorf("set forwards, validity is judged by %s, want %s", c.now(), want)
	}
}

func TestThreat25_AClockThatWasSetIsTold(t *testing.T) {
	c := newSetable()
	for set, want := range map[time.Duration]bool{0: false, 4 * time.Minute: false, -4 * time.Minute: false, time.Hour: true, -time.Hour: true} {
		if c.set = set; c.setClock() != want {
			t.Errorf("set by %s: %t", set, !want)
		}
	}
	for name, tc := range map[string]struct {
		checks []string
		want   bool
	}{
		"nothing":                       {nil, false},
		"an expired set":                {[]string{"reference.expired"}, true},
		"an expired set and tag":        {[]string{"reference.expired", "tag.expired"}, true},
		"an expired set and a bad file": {[]string{"reference.expired", "ima.file"}, false},
	} {
		var refusals nodeclaim.Refusals
		for _, check := range tc.checks {
			refusals = append(refusals, nodeclaim.Refusal{Check: check})
		}
		if onlyDated(refusals) != tc.want {
			t.Errorf("%s: only dated: %t", name, !tc.want)
		}
	}
}

func TestTheRealClockIsSteady(t *testing.T) {
	c := newClock()
	if c.setClock() {
		t.Errorf("a clock that nobody set is %s off", c.step())
	}
	if a, b := c.receipt(), c.receipt(); !b.After(a) {
		t.Errorf("two receipts %s and %s", a, b)
	}
}
