package syncer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/registration"
)

const (
	// openFor is how long one pass opens at most. The next pass opens the rest, and begins by reading the verdicts again: giving
	// ten thousand pods their labels must not keep a revocation waiting.
	openFor = 500 * time.Millisecond
	// openers is how many objects of one namespace are written at once, and atOnce how many operations of all namespaces.
	openers = 2
	atOnce  = 16
	// objectsATurn and labelsATurn are how many operations a namespace does before the next namespace has its turn, and
	// entriesATurn how many SPIRE entries of all namespaces travel in one call.
	objectsATurn = 2
	labelsATurn  = abreast
	entriesATurn = 50
)

// backlog is what one namespace, or the cluster itself (""), has to open. Its operations go in the order of the plan, stage after
// stage. Backlogs take turns, so that one namespace's thousand operations do not keep another one's single label waiting.
type backlog struct {
	key   string           // its round and its namespace
	left  []plan.Operation // not begun
	stage int              // so many of left may begin: they are of the stage under way
	under int              // calls under way
	cut   bool             // for something that was begun there was no time
}

// open does operations that open something, each unless it rests on something that is missing: first what everything rests on,
// then all namespaces in turns, and what retires for the whole cluster last.
func (p *progress) open(ctx context.Context, operations []plan.Operation) {
	begun, spireFor := p.o.Now(), p.spireFor()
	late := func(atMost time.Duration) func() bool {
		return func() bool { return p.o.Now().Sub(begun) >= atMost || ctx.Err() != nil }
	}
	for _, backlogs := range p.backlogs(operations) {
		o := opening{progress: p, backlogs: backlogs, late: late(openFor), lateAtSPIRE: late(spireFor)}
		if !o.run(ctx) {
			p.unfinished = true
			return
		}
	}
}

// backlogs deals the operations out. The three lists are opened one after the other.
func (p *progress) backlogs(operations []plan.Operation) (out [3][]*backlog) {
	by := map[string]*backlog{}
	for _, o := range operations {
		round, namespace := 1, plan.NamespaceOf(o)
		switch {
		case namespace != "":
		case o.Phase == plan.Retire:
			round = 2
		case o.Domain.Holds && len(o.Domain.Parts) > 0:
			round = 0
		}
		key := fmt.Sprint(round, " ", namespace)
		q := by[key]
		if q == nil {
			q = &backlog{key: key}
			by[key] = q
			out[round] = append(out[round], q)
		}
		q.left = append(q.left, o)
	}
	p.turns.forget(by)
	return out
}

// turns remembers, from pass to pass, when each backlog had its last turn: where the time of a pass is not enough for all, the next
// pass begins with those that had none.
type turns struct {
	last map[string]uint64
	now  uint64
}

func (t *turns) take(q *backlog) {
	if t.last == nil {
		t.last = map[string]uint64{}
	}
	t.now++
	t.last[q.key] = t.now
}

// forget leaves out backlogs that have nothing to open.
func (t *turns) forget(backlogs map[string]*backlog) {
	for key := range t.last {
		if backlogs[key] == nil {
			delete(t.last, key)
		}
	}
}

// opening opens several backlogs. One goroutine runs it; calls to the APIs go beside, and it alone records what comes of them.
type opening struct {
	*progress
	backlogs []*backlog // in the order of their turns
	// late says that no more operations begin on Kubernetes, lateAtSPIRE on the SPIRE server.
	late, lateAtSPIRE func() bool
	calls             chan answer
	// weight is how many operations are under way that others wait for, flying how many calls, and atSPIRE whether one of them
	// is the SPIRE server's.
	weight, flying int
	atSPIRE        bool
}

// answer is what a call sends: once that it takes long, if it does, and once with its results.
type answer struct {
	call    *call
	overdue bool
	results []error
}

// call is some operations that were begun together: of one backlog, or on the SPIRE server of several.
type call struct {
	operations []plan.Operation
	backlogs   []*backlog // of each operation
	weight     int
}

// run returns when everything was tried (through), or there is no more time and what was begun has ended.
func (o *opening) run(ctx context.Context) (through bool) {
	total := 0
	for _, q := range o.backlogs {
		total += len(q.left)
	}
	o.calls = make(chan answer, 2*total) // no call ever waits to be heard
	slices.SortStableFunc(o.backlogs, func(a, b *backlog) int { return cmp.Compare(o.turns.last[a.key], o.turns.last[b.key]) })
	for {
		for o.begin(ctx) {
		}
		if o.flying == 0 {
			break
		}
		o.end(<-o.calls)
	}
	through = true
	for _, q := range o.backlogs {
		all := len(q.left) == 0 && !q.cut
		o.refused.over(q.key, all)
		through = through && all
	}
	return through
}

// begin begins one call, of the backlog whose last turn is longest ago, if any may begin now.
func (o *opening) begin(ctx context.Context) bool {
	for _, q := range o.backlogs {
		o.advance(q)
	}
	if !o.atSPIRE && !o.lateAtSPIRE() {
		if c := o.entries(); c != nil {
			o.atSPIRE = true
			o.start(c, func() []error { return o.applySPIRE(ctx, c.operations) })
			return true
		}
	}
	if o.late() {
		return false
	}
	for i, q := range o.backlogs {
		if q.stage == 0 || q.under > 0 || onSPIRE(q.left[0]) {
			continue
		}
		c, width := o.turn(q)
		if o.weight > 0 && o.weight+c.weight > atOnce {
			return false // its turn comes when there is room for it, and nobody overtakes it
		}
		q.take(len(c.operations))
		o.turns.take(q)
		o.backlogs = append(slices.Delete(o.backlogs, i, i+1), q)
		o.start(c, func() []error {
			return o.applyAll(ctx, c.operations, bounds{width: width, stop: o.late, limit: o.o.Patience})
		})
		return true
	}
	return false
}

// advance begins a backlog's next stage if nothing of the last one is under way any more. What has to wait leaves the backlog.
func (o *opening) advance(q *backlog) {
	for q.stage == 0 && q.under == 0 && len(q.left) > 0 {
		n := stage(q.left)
		ready := o.ready(q.key, q.left[:n])
		q.left = append(ready, q.left[n:]...)
		q.stage = len(ready)
	}
}

func (q *backlog) take(n int) {
	q.left, q.stage = q.left[n:], q.stage-n
	q.under++
}

// turn is what a backlog does in its turn, and how much of it at once.
func (o *opening) turn(q *backlog) (c *call, width int) {
	n := objectsATurn
	width = openers
	if q.left[0].Action == plan.Patch {
		n, width = labelsATurn, abreast
	}
	n = min(n, q.stage)
	c = &call{operations: q.left[:n:n], weight: min(n, width)}
	for range n {
		c.backlogs = append(c.backlogs, q)
	}
	return c, width
}

// entries takes operations on SPIRE entries, one of each backlog in turn, until one call is full. All of a call do the same.
func (o *opening) entries() *call {
	c := &call{}
	for took := true; took && len(c.operations) < entriesATurn; {
		took = false
		for _, q := range o.backlogs {
			if q.stage == 0 || !onSPIRE(q.left[0]) || len(c.operations) == entriesATurn ||
				len(c.operations) > 0 && c.operations[0].Action != q.left[0].Action {
				continue
			}
			c.operations, c.backlogs = append(c.operations, q.left[0]), append(c.backlogs, q)
			q.take(1)
			took = true
		}
	}
	if len(c.operations) == 0 {
		return nil
	}
	for _, q := range c.backlogs {
		o.turns.take(q)
	}
	return c
}

// start makes a call. After slot it does not count any more among those that others wait for.
func (o *opening) start(c *call, do func() []error) {
	o.flying++
	o.weight += c.weight
	overdue := time.AfterFunc(slot, func() { o.calls <- answer{call: c, overdue: true} })
	go func() {
		defer o.o.Panics.Catch("opening", func(err error) { o.calls <- answer{call: c, results: all(c.operations, err)} })
		results := do()
		overdue.Stop()
		o.calls <- answer{call: c, results: results}
	}()
}

// end takes up what a call says.
func (o *opening) end(a answer) {
	o.weight -= a.call.weight
	a.call.weight = 0
	if a.overdue {
		return
	}
	o.flying--
	o.record(a.call.operations, a.results)
	onServer := onSPIRE(a.call.operations[0])
	o.atSPIRE = o.atSPIRE && !onServer
	seen := map[*backlog]bool{}
	for _, q := range a.call.backlogs {
		if onServer || !seen[q] { // take counted one for each entry, and one for a turn
			q.under--
		}
		seen[q] = true
	}
	for i, err := range a.results {
		q := a.call.backlogs[i]
		if q.cut = q.cut || errors.Is(err, errNoTime); i == 0 && errors.Is(err, errNoTime) {
			delete(o.turns.last, q.key) // it had no turn after all
		}
		o.refused.note(q.key, a.call.operations[i], err)
	}
}

// ready are the operations that may go now. The others are noted, and what rests on them waits as well.
func (p *progress) ready(key string, operations []plan.Operation) []plan.Operation {
	var out []plan.Operation
	for _, o := range operations {
		if why := p.missing.Holds(o); why != nil {
			p.withheld = append(p.withheld, Failure{Operation: o, Err: why})
			p.missing.Add(o, why)
			continue
		}
		if err := p.refused.before(key, o); err != nil {
			p.fail(o, err)
			continue
		}
		out = append(out, o)
	}
	return out
}

// stage is how many operations from the first on go together: none of them rests on another one of them.
func stage(operations []plan.Operation) int {
	like := func(o plan.Operation) [4]bool {
		return [4]bool{onSPIRE(o), o.Entry != nil && registration.IsClass(*o.Entry), onPod(o), o.Target.Kind == "Node"}
	}
	n := 1
	for n < len(operations) && operations[n].Phase == operations[0].Phase && like(operations[n]) == like(operations[0]) {
		n++
	}
	return n
}

func onPod(o plan.Operation) bool {
	return o.Action == plan.Patch && o.Phase == plan.Trust && o.Target.Kind == "Pod"
}

// refusals are operations that were refused, of backlogs for which the time of a pass was not enough. The next pass goes on after
// them: what is refused again and again, slowly, must not use up a backlog's time before its other operations are tried. When the
// backlog is through, everything is tried again.
type refusals struct {
	of   map[string]map[string]error // by the backlog's key and the operation's fingerprint
	seen map[string]bool             // keys of backlogs that this pass came to
}

func (r *refusals) note(key string, o plan.Operation, err error) {
	if err == nil || IsStale(err) || errors.Is(err, errNoTime) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return
	}
	if r.of == nil {
		r.of = map[string]map[string]error{}
	}
	if r.of[key] == nil {
		r.of[key] = map[string]error{}
	}
	r.of[key][fingerprint(o)] = err
}

// before returns how the same operation was refused in an earlier pass over a backlog that is not through yet.
func (r *refusals) before(key string, o plan.Operation) error {
	if len(r.of[key]) == 0 {
		return nil
	}
	return r.of[key][fingerprint(o)]
}

// over ends a pass over a backlog.
func (r *refusals) over(key string, through bool) {
	if r.seen == nil {
		r.seen = map[string]bool{}
	}
	if r.seen[key] = true; through {
		delete(r.of, key)
	}
}

// sweep ends a pass: a backlog that there is no more needs nothing.
func (r *refusals) sweep() {
	for key := range r.of {
		if !r.seen[key] {
			delete(r.of, key)
		}
	}
	r.seen = nil
}
