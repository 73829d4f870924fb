package serverplugin

import (
	"sync"
	"time"
)

// allowance bounds the audit lines of attempts that proved nothing. Anybody who reaches SPIRE's port can make them, as many as
// he likes, and each is written and synced: the disk would be full, and then nobody is let in. What is beyond the bound
// is counted, and the next line that is written says how many there were. Attempts that proved an EK are always written.
type allowance struct {
	mu      sync.Mutex
	left    float64       // lines that may be written now
	filled  time.Duration // when left was reckoned, by the monotonic clock
	begun   bool
	omitted uint64
}

const (
	// maxUnproved is how many such lines may be written at once; a line of a few hundred bytes is gained back each unprovedPace. That
	// is some 15 000 lines and 7 MB a day; 90 MB where a stranger makes each as long as he can.
	maxUnproved  = 100
	unprovedPace = 6 * time.Second
)

// take asks to write a line at a time of the monotonic clock, and returns how many attempts were omitted before it.
func (a *allowance) take(proved bool, now time.Duration) (omitted uint64, write bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.begun {
		a.begun, a.left = true, maxUnproved
	} else {
		a.left = min(maxUnproved, a.left+float64(now-a.filled)/float64(unprovedPace))
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

// omit takes back what a line would have told of that could not be written, and counts its own attempt if that proved nothing.
func (a *allowance) omit(n uint64, itself bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.omitted += n
	if itself {
		a.omitted++
	}
}

// rest is how many attempts no line has told of; they are told of then.
func (a *allowance) rest() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.omitted
	a.omitted = 0
	return n
}
