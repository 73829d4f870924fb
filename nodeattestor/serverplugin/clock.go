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
//   - where the Kubernetes API's clock is known, receipts follow it as soon as the machine's is off by more than
//     maxOffset: policy-sync believes no verdict of the future, and one would stand in the way of every later one;
//   - what is out of date by a clock that was set proves nothing about a machine (see setClock).
type clock struct {
	wall    func() time.Time     // the machine's clock
	elapsed func() time.Duration // since the server began, by the monotonic clock
	begun   time.Time            // wall when the server began

	mu   sync.Mutex
	api  func() (time.Time, bool) // the Kubernetes API's clock, as far as it is known; nil without Kubernetes
	last time.Time                // the latest receipt
}

// maxOffset is how far the machine's clock may be from the Kubernetes API's, which tells whole seconds, before it counts as
// wrong. What policy-sync believes is within 5 minutes.
const maxOffset = time.Minute

// follow makes the Kubernetes API's clock the one that receipts follow; nil is none.
func (c *clock) follow(api func() (time.Time, bool)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.api = api
}

// offset is how far the machine's clock is ahead of the Kubernetes API's; 0 where that is not known.
func (c *clock) offset() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.api != nil {
		if t, ok := c.api(); ok {
			return c.wall().Sub(t).Round(time.Second)
		}
	}
	return 0
}

// shared is the time that servers and policy-sync share, as well as it is known. The caller holds the lock.
func (c *clock) shared() time.Time {
	wall := c.wall()
	if c.api == nil {
		return wall
	}
	t, ok := c.api()
	if ok && c.last.After(t.Add(maxOffset)) {
		c.last = t // it was given before the clock was known to be wrong
	}
	if !ok || wall.Sub(t).Abs() <= maxOffset {
		return wall
	}
	return t
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

// receipt is when evidence arrived.
type receipt struct {
	at      time.Time     // orders verdicts
	arrived time.Duration // by the monotonic clock
}

// receipt is the time of an arrival, later than every one before. The API stores microseconds.
func (c *clock) receipt() receipt {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := c.shared().Truncate(time.Microsecond)
	if !at.After(c.last) {
		at = c.last.Add(time.Microsecond)
	}
	c.last = at
	return receipt{at, c.elapsed()}
}

// recheck is the receipt as it should be by what is known of the clocks now, and whether it was so: the API may have
// been heard only since.
func (c *clock) recheck(r receipt) (receipt, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := c.shared().Add(r.arrived - c.elapsed()).Truncate(time.Microsecond)
	if off := at.Sub(r.at); c.api == nil || off.Abs() <= maxOffset {
		return r, true
	}
	return receipt{at, r.arrived}, false
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
	c.mu.Lock()
	end, least := c.shared().Add(validFor), receipt.Add(time.Minute)
	c.mu.Unlock()
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
