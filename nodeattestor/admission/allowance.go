package admission

import (
	"sync"
	"time"
)

// Allowance bounds the audit lines of attempts that proved nothing. Anybody who reaches SPIRE's port can make them, as
// many as he likes, and each is written and synced: the disk would be full, and then nobody is let in. What is beyond
// the bound is counted, and the next line that is written says how many there were. Attempts that proved an EK are
// always written. The zero value is ready for use.
type Allowance struct {
	mu      sync.Mutex
	left    float64       // lines that may be written now
	filled  time.Duration // when left was reckoned, by the monotonic clock
	begun   bool
	omitted uint64
}

const (
	// MaxUnproved is how many such lines may be written at once; a line of a few hundred bytes is gained back each
	// UnprovedPace. That is some 15 000 lines and 7 MB a day; 90 MB where a stranger makes each as long as he can.
	MaxUnproved = 100
	// UnprovedPace is how long it takes until one more may be written.
	UnprovedPace = 6 * time.Second
)

// Spend has a line written at a time of the monotonic clock, unless the attempt proved nothing and the allowance is
// spent: then it is counted alone. write gets how many attempts were omitted before its line. What write says of them is
// lost with an error, so that a later line says it again, and this attempt with them where it proved nothing.
func (a *Allowance) Spend(proved bool, now time.Duration, write func(omitted uint64) error) error {
	omitted, ok := a.take(proved, now)
	if !ok {
		return nil
	}
	err := write(omitted)
	if err != nil {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.omitted += omitted
		if !proved {
			a.omitted++
		}
	}
	return err
}

// take asks for a line, and returns how many attempts were omitted before it.
func (a *Allowance) take(proved bool, now time.Duration) (omitted uint64, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.begun {
		a.begun, a.left = true, MaxUnproved
	} else {
		a.left = min(MaxUnproved, a.left+float64(now-a.filled)/float64(UnprovedPace))
	}
	a.filled = now
	if !proved {
		if a.left < 1 {
			a.omitted++
			return 0, false
		}
		a.left--
	}
	omitted, a.omitted = a.omitted, 0
	return omitted, true
}
