package serverplugin

import (
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/keelson-project/keelson/nodeattestor/audit"
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
	first := c.receipt().at
	c.passed, c.set = time.Minute, -3*time.Hour
	second := c.receipt().at
	if !second.After(first) {
		t.Errorf("a verdict received a minute later, with the clock set back, counts as older: %s, %s", first, second)
	}
	if end := c.validUntil(second, 2*time.Hour); !end.After(second) || end.After(second.Add(time.Minute)) {
		t.Errorf("received %s, valid until %s; want little more than the API demands", second, end)
	}
	c.after(second.Add(time.Hour)) // what an earlier run of the server left in its queue
	if third := c.receipt().at; !third.After(second.Add(time.Hour)) {
		t.Errorf("received %s, before what waits from the run before", third)
	}
	c.set, c.passed = 0, 5*time.Hour
	if now := c.receipt().at; !now.Equal(c.wall()) {
		t.Errorf("with the clock right again, received %s at %s", now, c.wall())
	}
	if end := c.validUntil(c.wall(), 2*time.Hour); !end.Equal(c.wall().Add(2 * time.Hour)) {
		t.Errorf("valid until %s", end)
	}
}

// The API's clock goes on whatever is done to the machine's: verdicts are dated by it, before and after the machine's is right again.
func TestThreat25_AClockThatIsWrongDatesNoVerdictAhead(t *testing.T) {
	c := newSetable()
	api := func() time.Time { return c.begun.Add(c.passed).Truncate(time.Second) }
	known := false
	c.follow(func() (time.Time, bool) { return api(), known })
	c.set = 5 * time.Hour
	r := c.receipt()
	if !r.at.Equal(c.wall()) {
		t.Errorf("received %s, though nothing but the machine's clock is known", r.at)
	}
	c.passed += 2 * time.Second
	known = true // the attestation asks the API who the node is
	dated, right := c.recheck(r)
	if late := api().Sub(dated.at); right || late < time.Second || late > 3*time.Second {
		t.Errorf("dated %s, right: %t; want two seconds before %s", dated.at, right, api())
	}
	if end := c.validUntil(dated.at, time.Hour); end.Sub(api()).Abs() > time.Hour+time.Second {
		t.Errorf("valid until %s", end)
	}
	if c.offset() != 5*time.Hour {
		t.Errorf("offset %s", c.offset())
	}
	last := dated.at
	for _, c.set = range []time.Duration{5 * time.Hour, -5 * time.Hour, 0, 30 * time.Second} {
		c.passed += 2 * time.Minute
		r := c.receipt()
		if off := r.at.Sub(api()); off.Abs() > maxOffset || !r.at.After(last) {
			t.Errorf("clock set by %s: received %s after %s, the API's clock says %s", c.set, r.at, last, api())
		}
		if again, right := c.recheck(r); !right || again != r {
			t.Errorf("clock set by %s: %s became %s", c.set, r.at, again.at)
		}
		last = r.at
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
}

func TestThreat22_HowAnAttestationEnds(t *testing.T) {
	refuse := func(checks ...string) error {
		var refusals nodeclaim.Refusals
		for _, c := range checks {
			refusals = append(refusals, *nodeclaim.Refuse(c, "why"))
		}
		return refusals
	}
	for name, tc := range map[string]struct {
		err     error
		proved  bool
		set     time.Duration
		outcome audit.Outcome
		code    codes.Code
	}{
		"proved bad":                                           {refuse("ima.file"), true, 0, audit.Untrusted, codes.PermissionDenied},
		"refused before the proof":                             {refuse("ek.chain"), false, 0, audit.Unproved, codes.PermissionDenied},
		"malformed before the proof":                           {malformed{errors.New("cut")}, false, 0, audit.Unproved, codes.InvalidArgument},
		"malformed after the proof":                            {malformed{errors.New("cut")}, true, 0, audit.Inconclusive, codes.Unavailable},
		"no answer":                                            {errors.New("the stream ended"), true, 0, audit.Inconclusive, codes.Unavailable},
		"out of date":                                          {refuse("reference.expired", "tag.expired"), true, 0, audit.Untrusted, codes.PermissionDenied},
		"out of date by a clock that was set":                  {refuse("reference.expired", "tag.expired"), true, time.Hour, audit.Inconclusive, codes.Unavailable},
		"out of date by a clock that was set back":             {refuse("reference.notyet"), true, -time.Hour, audit.Inconclusive, codes.Unavailable},
		"proved bad whatever the clock says":                   {refuse("reference.expired", "ima.file"), true, time.Hour, audit.Untrusted, codes.PermissionDenied},
		"proved bad alone, by a server whose clock was set":    {refuse("ima.file"), true, time.Hour, audit.Untrusted, codes.PermissionDenied},
		"out of date by a clock that NTP moved by two minutes": {refuse("reference.expired"), true, 2 * time.Minute, audit.Untrusted, codes.PermissionDenied},
	} {
		t.Run(name, func(t *testing.T) {
			c := newSetable()
			c.set = tc.set
			if got := judge(tc.err, tc.proved, c.clock); got.outcome != tc.outcome || got.code != tc.code {
				t.Errorf("%s, %s; want %s, %s", got.outcome, got.code, tc.outcome, tc.code)
			} else if (got.code == codes.PermissionDenied) != (len(got.refusals) > 0) {
				t.Errorf("%s with refusals %v", got.code, got.refusals)
			}
		})
	}
}

func TestTheRealClockIsSteady(t *testing.T) {
	c := newClock(time.Now)
	if c.setClock() {
		t.Errorf("a clock that nobody set is %s off", c.step())
	}
	if a, b := c.receipt().at, c.receipt().at; !b.After(a) {
		t.Errorf("two receipts %s and %s", a, b)
	}
}
