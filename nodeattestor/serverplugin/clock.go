package serverplugin

import (
	"slices"
	"sync"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// clock is the server's time as appraisals and verdicts need it. Somebody sets a machine's clock, forwards or
// backwards, while the server runs: NTP after a start without a battery, an administrator, a resumed virtual
// machine. Then
//
//   - a challenge expires by the monotonic clock, which nobody sets;
//   - what is judged by its validity is judged by the later of the machine's clock and the one that the
//     server began with: setting the clock back makes nothing valid again;
//   - receipts, which order verdicts, never go back, or a newer verdict would count as older;
//   - what is out of date by a clock that was set proves nothing about a machine (see setClock).
type clock struct {
	wall    func() time.Time     // the machine's clock
	elapsed func() time.Duration // since the server began, by the monotonic clock
	begun   time.Time            // wall when the server began

	mu   sync.Mutex
	last time.Time // the latest receipt
}

// newClock takes the machine's clock without Go's monotonic reading, which hides that it was set.
func newClock(wall func() time.Time) *clock {
	began := time.Now()
	c := &clock{wall: func() time.Time { return wall().Round(0) }, elapsed: func() time.Duration { return time.Since(began) }}
	c.begun = c.wall()
	return c
}

// steady is the time by the clock that the server began with and nobody sets.
func (c *clock) steady() time.Time { return c.begun.Add(c.elapsed()) }

// now is the time by which validity is judged.
func (c *clock) now() time.Time {
	wall, steady := c.wall(), c.steady()
	if wall.After(steady) {
		return wall
	}
	return steady
}

// receipt is the time of an arrival, later than every one before. The API stores microseconds.
func (c *clock) receipt() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := c.wall().Truncate(time.Microsecond)
	if !at.After(c.last) {
		at = c.last.Add(time.Microsecond)
	}
	c.last = at
	return at
}

// after makes every receipt later than one of an earlier run.
func (c *clock) after(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t.After(c.last) {
		c.last = t
	}
}

// validUntil is the end of a verdict that is valid for a while from now on. It lies after the receipt, as
// the API demands, also when the clock was set back since an earlier one.
func (c *clock) validUntil(receipt time.Time, validFor time.Duration) time.Time {
	end, least := c.wall().Add(validFor), receipt.Add(time.Minute)
	if end.Before(least) {
		return least
	}
	return end
}

// maxStep is how far the machine's clock may be set before it counts as set; NTP moves it gently by less.
const maxStep = 5 * time.Minute

// step is how far the machine's clock was set since the server began; positive is forwards.
func (c *clock) step() time.Duration { return c.wall().Sub(c.steady()).Round(time.Second) }

// setClock reports whether the clock was set.
func (c *clock) setClock() bool { return c.step().Abs() > maxStep }

// dated are the checks that compare a validity with the time.
var dated = []string{"reference.expired", "reference.notyet", "tag.expired", "tag.notyet"}

// onlyDated reports whether nothing but the time speaks against a machine.
func onlyDated(refusals nodeclaim.Refusals) bool {
	return len(refusals) > 0 && !slices.ContainsFunc(refusals, func(r nodeclaim.Refusal) bool { return !slices.Contains(dated, r.Check) })
}
