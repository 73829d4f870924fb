package admission

import (
	"errors"
	"sync"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// ErrOften means that a machine attests more often than the server keeps a record of each time.
var ErrOften = errors.New("this machine attests too often; try again in a minute")

// Pace bounds the audit lines that a machine is owed. Each attempt that proved an EK has a line of
// its own, so that one machine in a loop would fill the disk, or push the lines of all others out
// of the files that are kept. An attempt beyond the bound is one of those that an [Allowance] may
// only count, and lets nobody in. The zero value is ready for use.
type Pace struct {
	mu   sync.Mutex
	byEK map[nodeclaim.EKHash]*pace
}

// pace is what one machine is owed.
type pace struct {
	left   float64       // lines
	filled time.Duration // when left was reckoned, by the monotonic clock
}

const (
	// MaxProved is how many lines a machine is owed at once; one more is gained back each
	// ProvedPace. That is some 1 600 lines and 2 MB on a day in which it never stops.
	MaxProved = 200
	// ProvedPace is how long it takes until a machine is owed one more.
	ProvedPace = time.Minute

	// maxPaced bounds the machines that are remembered: a hundred bytes each. Who is owed all lines
	// is forgotten first.
	maxPaced = 100_000
)

// Take asks for a line of a machine at a time of the monotonic clock. It is false where the machine
// is owed none.
func (p *Pace) Take(ek nodeclaim.EKHash, now time.Duration) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.byEK[ek]
	if m == nil {
		p.makeRoom(now)
		m = &pace{left: MaxProved, filled: now}
		p.byEK[ek] = m
	}
	m.fill(now)
	if m.left < 1 {
		return false
	}
	m.left--
	return true
}

func (m *pace) fill(now time.Duration) {
	m.left = min(MaxProved, m.left+float64(now-m.filled)/float64(ProvedPace))
	m.filled = now
}

// makeRoom forgets machines where there are too many: those that are owed all lines, and else any,
// some of them at once so that the next ones find room.
func (p *Pace) makeRoom(now time.Duration) {
	if p.byEK == nil {
		p.byEK = map[nodeclaim.EKHash]*pace{}
	}
	if len(p.byEK) < maxPaced {
		return
	}
	for ek, m := range p.byEK {
		if m.fill(now); m.left == MaxProved {
			delete(p.byEK, ek)
		}
	}
	for ek := range p.byEK {
		if len(p.byEK) <= maxPaced/4*3 {
			return
		}
		delete(p.byEK, ek)
	}
}
