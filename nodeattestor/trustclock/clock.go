package trustclock

import (
	"sync"
	"time"
)

// MaxOffset is how far the machine's clock may be from the Kubernetes API's, which gives whole seconds, before it
// counts as wrong. What policy-sync believes is within 5 minutes.
const MaxOffset = time.Minute

// MaxStep is how far the machine's clock may be set before it counts as set; NTP moves it gently by less.
const MaxStep = 5 * time.Minute

// Clock is a server's time. Its methods may be called by several goroutines at once.
type Clock struct {
	wall    func() time.Time     // the machine's clock
	elapsed func() time.Duration // since the server began, by the monotonic clock
	begun   time.Time            // wall when the server began

	mu   sync.Mutex
	api  func() (time.Time, bool) // the Kubernetes API's clock, as far as it is known; nil without Kubernetes
	last time.Time                // the latest receipt
}

// New begins a clock over the machine's, which may be set meanwhile.
func New(wall func() time.Time) *Clock {
	began := time.Now()
	// Go's monotonic reading would hide that the clock was set: Round takes it away.
	c := &Clock{wall: func() time.Time { return wall().Round(0) }, elapsed: func() time.Duration { return time.Since(began) }}
	c.begun = c.wall()
	return c
}

// Reading is what the clocks say at one moment.
type Reading struct {
	Wall    time.Time     // the machine's clock, for people
	Valid   time.Time     // by which a validity is judged; never goes back
	Elapsed time.Duration // since the clock began, by the monotonic clock
	Step    time.Duration // how far the machine's clock was set since; positive is forwards, in whole seconds
	Offset  time.Duration // how far it is ahead of the Kubernetes API's, in whole seconds; 0 while that is not known
}

// Now reads the clocks.
func (c *Clock) Now() Reading {
	r := Reading{Wall: c.wall(), Elapsed: c.elapsed()}
	steady := c.begun.Add(r.Elapsed)
	r.Step = r.Wall.Sub(steady).Round(time.Second)
	if r.Valid = steady; r.Wall.After(steady) {
		r.Valid = r.Wall
	}
	c.mu.Lock()
	api := c.api
	c.mu.Unlock()
	if api != nil {
		if t, ok := api(); ok {
			r.Offset = r.Wall.Sub(t).Round(time.Second)
		}
	}
	return r
}

// Follow makes the Kubernetes API's clock the one that receipts follow; nil is none. Every receipt is later than
// newest, which an earlier run of the server left behind.
func (c *Clock) Follow(api func() (time.Time, bool), newest time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.api = api
	if newest.After(c.last) {
		c.last = newest
	}
}

// Receipt is when evidence arrived, and how long what it proves counts.
type Receipt struct {
	At         time.Time // orders verdicts, in whole microseconds, which is what the Kubernetes API stores
	ValidUntil time.Time
	arrived    time.Duration // by the monotonic clock
}

// Date dates evidence. The zero Receipt stands for evidence that arrives now: it is dated later than every one before.
// Another is compared with what is known of the clocks now, since the API may have been heard only after it was given:
// Date returns it with true where it was right, and dated anew with false where it was not.
func (c *Clock) Date(r Receipt, validFor time.Duration) (dated Receipt, right bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.At.IsZero() {
		return c.receive(validFor), true
	}
	at := c.shared().Add(r.arrived - c.elapsed()).Truncate(time.Microsecond)
	if off := at.Sub(r.At); c.api == nil || off.Abs() <= MaxOffset {
		return r, true
	}
	return Receipt{at, c.validUntil(at, validFor), r.arrived}, false
}

// receive dates an arrival. The caller holds the lock.
func (c *Clock) receive(validFor time.Duration) Receipt {
	at := c.shared().Truncate(time.Microsecond)
	if !at.After(c.last) {
		at = c.last.Add(time.Microsecond)
	}
	c.last = at
	return Receipt{at, c.validUntil(at, validFor), c.elapsed()}
}

// validUntil is the end of a verdict that is valid for a while from now on. It lies after the receipt, as
// the API demands, also when the clock was set back since an earlier one. The caller holds the lock.
func (c *Clock) validUntil(receipt time.Time, validFor time.Duration) time.Time {
	end, least := c.shared().Add(validFor), receipt.Add(time.Minute)
	if end.Before(least) {
		return least
	}
	return end
}

// shared is the time that servers and policy-sync share, as well as it is known. The caller holds the lock.
func (c *Clock) shared() time.Time {
	wall := c.wall()
	if c.api == nil {
		return wall
	}
	t, ok := c.api()
	if ok && c.last.After(t.Add(MaxOffset)) {
		c.last = t // it was given before the clock was known to be wrong
	}
	if !ok || wall.Sub(t).Abs() <= MaxOffset {
		return wall
	}
	return t
}
