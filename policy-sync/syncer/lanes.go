package syncer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/keelson-project/keelson/policy-sync/plan"
)

// errNoTime says that an operation was not begun, since the pass has no more time for it.
var errNoTime = errors.New("syncer: the pass has no more time for it")

// slot is how long an operation keeps others waiting. One that takes longer gives its place up and goes on.
const slot = 100 * time.Millisecond

// abreast is how many labels of one namespace's pods are changed at once.
const abreast = 8

// lanes carry out operations on Kubernetes. Those of one API group and namespace go in one lane, in order (pods' and nodes' patches
// abreast). After one that got no answer the rest of its lane is not tried: each would wait as long. When nothing of a group was
// answered, the group is given up. A lane that got no answer the last time, or that outlasted its limit, is not waited for: it goes
// on beside the loop, and what came of it is the next pass's.
type lanes struct {
	patience time.Duration
	again    func()

	mu     sync.Mutex
	slow   map[string]bool  // lanes that got no answer in time
	flying map[string]bool  // lanes that go on beside
	late   []outcome        // what came of them
	errs   map[string]error // the last answer of a lane that went on beside, if it was a refusal
}

// outcome is what came of an operation.
type outcome struct {
	index     int
	operation plan.Operation
	begun     bool
	done      bool
	err       error
}

func newLanes(patience time.Duration, again func()) *lanes {
	return &lanes{patience: patience, again: again, slow: map[string]bool{}, flying: map[string]bool{}, errs: map[string]error{}}
}

// ended returns what came of operations that went on beside.
func (l *lanes) ended() []outcome {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := l.late
	l.late = nil
	return out
}

// unanswering are the API groups that one pass has given up.
type unanswering struct {
	mu       sync.Mutex
	answered map[string]bool
	silent   map[string]string // the operation that got no answer first
}

func (u *unanswering) note(group, target string, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !errors.Is(err, context.DeadlineExceeded) {
		if u.answered == nil {
			u.answered = map[string]bool{}
		}
		u.answered[group] = true
		return
	}
	if u.silent == nil {
		u.silent = map[string]string{}
	}
	if u.silent[group] == "" {
		u.silent[group] = target
	}
}

// given returns the operation for which a group was given up, if it was.
func (u *unanswering) given(group string) string {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.answered[group] {
		return ""
	}
	return u.silent[group]
}

// lane is one run's share of a lane.
type lane struct {
	name, group string
	indices     []int
	width       int
	ended       chan struct{} // closed when all of it has ended

	mu       sync.Mutex
	outcomes []outcome
	next     int
	silent   string // the operation that got no answer
	// left is true once no one waits for the lane any more.
	left bool
}

func split(operations []plan.Operation, width int) []*lane {
	byName := map[string]*lane{}
	var out []*lane
	for i, o := range operations {
		name := o.Target.Group + "/" + o.Target.Namespace
		if o.Action == plan.Patch {
			name += "/" + o.Target.Kind
		}
		l := byName[name]
		if l == nil {
			l = &lane{name: name, group: o.Target.Group, width: 1, ended: make(chan struct{})}
			switch {
			case o.Action == plan.Patch && o.Target.Namespace == "":
				l.width = width
			case o.Action == plan.Patch:
				l.width = min(width, abreast)
			}
			byName[name] = l
			out = append(out, l)
		}
		l.indices = append(l.indices, i)
		l.outcomes = append(l.outcomes, outcome{index: i, operation: o})
	}
	return out
}

// bounds are those of one run.
type bounds struct {
	// width is how many operations go at once.
	width int
	// stop says that no more are begun; without it, everything is.
	stop func() bool
	// limit is how long the run waits for any lane; 0 waits for each that has always answered.
	limit time.Duration
}

// run carries the operations out and returns what came of each.
func (l *lanes) run(ctx context.Context, operations []plan.Operation, b bounds, do func(context.Context, plan.Operation) error, gone *unanswering) []error {
	results := make([]error, len(operations))
	r := &run{ctx: ctx, do: do, stop: b.stop, gone: gone, slots: make(chan struct{}, b.width)}
	begun := time.Now()
	var quick, slow []*lane
	for _, lane := range split(operations, b.width) {
		l.mu.Lock()
		flying, before, last := l.flying[lane.name], l.slow[lane.name], l.errs[lane.name]
		l.mu.Unlock()
		switch {
		case flying:
			for _, i := range lane.indices {
				results[i] = unanswered(operations[i], "not tried, since an earlier operation there still waits for its answer", last)
			}
			continue
		case before:
			lane.width = 1
			slow = append(slow, lane)
		default:
			quick = append(quick, lane)
		}
		go func() {
			defer l.land(lane)
			r.lane(lane)
		}()
	}
	for _, lane := range quick {
		l.await(lane, begun, bounds{stop: b.stop, limit: b.limit}, results)
	}
	for _, lane := range slow {
		l.await(lane, begun, bounds{stop: b.stop, limit: l.patience}, results)
	}
	return results
}

// await takes up what came of a lane. A limit other than 0 bounds how long after begun it waits; then the lane goes on beside.
func (l *lanes) await(lane *lane, begun time.Time, b bounds, results []error) {
	if b.limit > 0 {
		timer := time.NewTimer(time.Until(begun.Add(b.limit)))
		defer timer.Stop()
		select {
		case <-lane.ended:
		case <-timer.C:
		}
	} else {
		<-lane.ended
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	lane.mu.Lock()
	defer lane.mu.Unlock()
	select {
	case <-lane.ended:
		if delete(l.slow, lane.name); lane.silent != "" {
			l.slow[lane.name] = true
		}
		delete(l.errs, lane.name)
	default:
		lane.left, l.flying[lane.name], l.slow[lane.name] = true, true, true
	}
	for i := range lane.outcomes {
		switch o := &lane.outcomes[i]; {
		case o.done:
			results[o.index], o.begun = o.err, false // it was taken up
		case o.begun || b.stop == nil: // without stop all of it goes on beside
			results[o.index] = unanswered(o.operation, "no answer yet", l.errs[lane.name])
		default:
			results[o.index] = errNoTime
		}
	}
}

// unanswered is the error of an operation that has no answer. Last is what its lane answered last, if it went on beside.
func unanswered(o plan.Operation, what string, last error) error {
	if last != nil {
		return fmt.Errorf("syncer: %s: %s: %w; the last answer there, which came late, was: %w", o.Target, what, context.DeadlineExceeded, last)
	}
	return fmt.Errorf("syncer: %s: %s: %w", o.Target, what, context.DeadlineExceeded)
}

// land ends a lane. What no one waited for is the next pass's to record.
func (l *lanes) land(lane *lane) {
	l.mu.Lock()
	lane.mu.Lock()
	left, answered := lane.left, lane.silent == ""
	if left {
		delete(l.flying, lane.name)
		for _, o := range lane.outcomes {
			switch {
			case !o.begun: // taken up, or never begun
			case o.err == nil:
				l.late = append(l.late, o)
				delete(l.errs, lane.name)
			case !errors.Is(o.err, context.DeadlineExceeded) && !IsStale(o.err):
				l.errs[lane.name] = o.err
			}
		}
	}
	lane.mu.Unlock()
	close(lane.ended)
	l.mu.Unlock()
	if left && answered {
		l.again()
	}
}

// run is one call of lanes.run.
type run struct {
	ctx   context.Context //nolint:containedctx // of the call that the run is
	do    func(context.Context, plan.Operation) error
	stop  func() bool
	gone  *unanswering
	slots chan struct{}
}

// lane carries out one lane.
func (r *run) lane(lane *lane) {
	var workers sync.WaitGroup
	for range min(lane.width, len(lane.indices)) {
		workers.Go(func() {
			for o, silent := lane.take(); o != nil; o, silent = lane.take() {
				err := r.one(lane, o, silent)
				lane.mu.Lock()
				o.done, o.err = true, err
				if silent == "" && errors.Is(err, context.DeadlineExceeded) {
					lane.silent = cmp.Or(lane.silent, o.operation.Target.String())
				}
				lane.mu.Unlock()
			}
		})
	}
	workers.Wait()
}

// take returns the next operation, and the one for which the rest of the lane is not tried, if there is one.
func (l *lane) take() (next *outcome, silent string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.next == len(l.outcomes) {
		return nil, ""
	}
	l.next++
	return &l.outcomes[l.next-1], l.silent
}

// enough tells whether nothing more of a lane is begun.
func (r *run) enough(lane *lane) bool {
	if r.stop == nil {
		return false
	}
	lane.mu.Lock()
	left := lane.left
	lane.mu.Unlock()
	return left || r.stop()
}

// one carries out one operation, unless something that it would wait for as well got no answer.
func (r *run) one(lane *lane, o *outcome, silent string) error {
	if silent == "" {
		select {
		case r.slots <- struct{}{}:
		case <-r.ctx.Done():
			return r.ctx.Err()
		}
		var once sync.Once
		free := func() { once.Do(func() { <-r.slots }) }
		defer free()
		if r.enough(lane) {
			return errNoTime
		}
		if silent = r.gone.given(lane.group); silent == "" {
			overdue := time.AfterFunc(slot, free)
			defer overdue.Stop()
			lane.mu.Lock()
			o.begun = true
			lane.mu.Unlock()
			err := r.do(r.ctx, o.operation)
			r.gone.note(lane.group, o.operation.Target.String(), err)
			return err
		}
	}
	return fmt.Errorf("syncer: %s: not tried, since %s got no answer: %w", o.operation.Target, silent, context.DeadlineExceeded)
}
