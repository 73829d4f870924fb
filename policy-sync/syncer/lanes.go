package syncer

import (
	"context"
	"errors"
	"fmt"
	"slices"
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
// answered, the group is given up. A lane that got no answer the last time is not waited for: it goes on beside the loop, and what
// came of it is the next pass's.
type lanes struct {
	patience time.Duration
	again    func()

	mu     sync.Mutex
	slow   map[string]bool // lanes that got no answer
	flying map[string]bool // lanes that go on beside
	late   []outcome       // what came of them
}

// outcome is what came of an operation.
type outcome struct {
	index     int
	operation plan.Operation
	err       error
}

func newLanes(patience time.Duration, again func()) *lanes {
	return &lanes{patience: patience, again: again, slow: map[string]bool{}, flying: map[string]bool{}}
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
			l = &lane{name: name, group: o.Target.Group, width: 1}
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
	}
	return out
}

// run carries the operations out, width at once, and returns what came of each. When stop says so, no more are begun.
func (l *lanes) run(ctx context.Context, operations []plan.Operation, width int, do func(context.Context, plan.Operation) error,
	stop func() bool, gone *unanswering) []error {
	results := make([]error, len(operations))
	r := &run{ctx: ctx, operations: operations, do: do, stop: stop, gone: gone, slots: make(chan struct{}, width)}
	var quick, slow []*lane
	for _, lane := range split(operations, width) {
		l.mu.Lock()
		flying, before := l.flying[lane.name], l.slow[lane.name]
		l.flying[lane.name] = flying || before
		l.mu.Unlock()
		switch {
		case flying:
			for _, i := range lane.indices {
				results[i] = fmt.Errorf("syncer: %s: not tried, since an earlier operation there still waits for its answer: %w",
					operations[i].Target, context.DeadlineExceeded)
			}
		case before:
			lane.width = 1
			slow = append(slow, lane)
		default:
			quick = append(quick, lane)
		}
	}
	beside := make([]chan []outcome, len(slow))
	for i, lane := range slow {
		beside[i] = make(chan []outcome, 1)
		go func() { beside[i] <- r.lane(lane) }()
	}
	all := make(chan []outcome, len(quick))
	for _, lane := range quick {
		go func() { all <- l.learn(lane, r.lane(lane)) }()
	}
	for range quick {
		for _, o := range <-all {
			results[o.index] = o.err
		}
	}
	patience := time.NewTimer(l.patience)
	defer patience.Stop()
	for i, lane := range slow {
		select {
		case got := <-beside[i]:
			l.land(lane, got, nil)
			for _, o := range got {
				results[o.index] = o.err
			}
			continue
		case <-patience.C:
			patience.Reset(0)
		}
		go func() { l.land(lane, <-beside[i], operations) }()
		for _, k := range lane.indices {
			results[k] = fmt.Errorf("syncer: %s: no answer yet: %w", operations[k].Target, context.DeadlineExceeded)
		}
	}
	return results
}

// learn notes whether a lane got no answer.
func (l *lanes) learn(lane *lane, got []outcome) []outcome {
	silent := slices.ContainsFunc(got, func(o outcome) bool { return errors.Is(o.err, context.DeadlineExceeded) })
	l.mu.Lock()
	defer l.mu.Unlock()
	if delete(l.slow, lane.name); silent {
		l.slow[lane.name] = true
	}
	return got
}

// land ends a lane's time beside the loop. What nobody waited for is the next pass's to tell.
func (l *lanes) land(lane *lane, got []outcome, operations []plan.Operation) {
	l.learn(lane, got)
	l.mu.Lock()
	delete(l.flying, lane.name)
	for _, o := range got {
		if operations != nil && o.err == nil {
			o.operation = operations[o.index]
			l.late = append(l.late, o)
		}
	}
	answered := !l.slow[lane.name]
	l.mu.Unlock()
	if operations != nil && answered {
		l.again()
	}
}

// run is one call of lanes.run.
type run struct {
	ctx        context.Context //nolint:containedctx // of the call that the run is
	operations []plan.Operation
	do         func(context.Context, plan.Operation) error
	stop       func() bool
	gone       *unanswering
	slots      chan struct{}
}

// lane carries out one lane.
func (r *run) lane(lane *lane) []outcome {
	out := make([]outcome, len(lane.indices))
	var mu sync.Mutex
	next, silent := 0, ""
	take := func() (int, string, bool) {
		mu.Lock()
		defer mu.Unlock()
		if next == len(lane.indices) {
			return 0, "", false
		}
		next++
		return next - 1, silent, true
	}
	var workers sync.WaitGroup
	for range min(lane.width, len(lane.indices)) {
		workers.Go(func() {
			for k, waits, ok := take(); ok; k, waits, ok = take() {
				i := lane.indices[k]
				err := r.one(lane, r.operations[i], waits)
				out[k] = outcome{index: i, err: err}
				if waits == "" && errors.Is(err, context.DeadlineExceeded) {
					mu.Lock()
					silent = r.operations[i].Target.String()
					mu.Unlock()
				}
			}
		})
	}
	workers.Wait()
	return out
}

// one carries out one operation, unless something that it would wait for as well got no answer.
func (r *run) one(lane *lane, o plan.Operation, silent string) error {
	if silent == "" {
		select {
		case r.slots <- struct{}{}:
		case <-r.ctx.Done():
			return r.ctx.Err()
		}
		var once sync.Once
		free := func() { once.Do(func() { <-r.slots }) }
		defer free()
		if r.stop != nil && r.stop() {
			return errNoTime
		}
		if silent = r.gone.given(lane.group); silent == "" {
			overdue := time.AfterFunc(slot, free)
			defer overdue.Stop()
			err := r.do(r.ctx, o)
			r.gone.note(lane.group, o.Target.String(), err)
			return err
		}
	}
	return fmt.Errorf("syncer: %s: not tried, since %s got no answer: %w", o.Target, silent, context.DeadlineExceeded)
}
