package syncer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/keelson-project/keelson/policy-sync/kube"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/spireapi"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

// Sync runs one pass and returns when the next one is due at the latest because something expires then (zero: nothing does).
func (s *Syncer) Sync(ctx context.Context) (time.Time, error) {
	began := s.o.Now()
	next, err := s.pass(ctx)
	s.o.Metrics.pass(s.o.Now(), s.o.Now().Sub(began), err)
	return next, err
}

func (s *Syncer) pass(ctx context.Context) (time.Time, error) {
	snap, err := s.o.Kubernetes.Read(ctx)
	if err != nil {
		return time.Time{}, fmt.Errorf("syncer: nothing is changed: %w", err)
	}
	snap.At, snap.Attested = s.o.Now(), s.attested
	snap.InheritUntil = s.inheritUntil(snap.At)
	snap.Images = s.o.Images(trustgraph.ImageQuestions(snap))

	p := &progress{Syncer: s, trusts: attested(snap.NodeTrusts), tried: map[string]bool{}}
	decision, err := plan.Make(snap)
	if err != nil {
		return time.Time{}, fmt.Errorf("syncer: nothing is changed: %w", err)
	}
	s.attested = decision.Graph.Attested
	p.close(ctx, decision.Plan.Closing())

	var spireErr error
	if snap.SPIRE, spireErr = s.readSPIRE(ctx); spireErr == nil {
		if decision, err = plan.Make(snap); err != nil {
			return time.Time{}, fmt.Errorf("syncer: nothing more is changed: %w", err)
		}
		p.close(ctx, decision.Plan.Closing())
		p.open(ctx, decision.Plan.Opening())
	}
	s.tell(decision.Graph)
	s.fight.round(p.changes)
	next := earlier(nextExpiry(snap), decision.Graph.PendingEnds())
	switch {
	case p.unfinished && len(p.failed) == 0:
		next = snap.At
	case decision.Plan.Again && len(p.failed) == 0:
		next = snap.At // an object had to close first and opens in a plan of its own
	}
	untold := errors.Is(spireErr, errSlow) || IsStale(p.err())
	if errors.Is(spireErr, errSlow) {
		spireErr = nil // its answer triggers a pass
	}
	return next, errors.Join(p.err(), spireErr, s.report(ctx, p, decision, spireErr, untold))
}

// report writes statuses and events. What is decided in a moment (planned from a stale reading, without an answer that is on
// its way) is untold: a condition that flaps says nothing.
func (s *Syncer) report(ctx context.Context, p *progress, d plan.Result, spireErr error, untold bool) error {
	r := kube.Report{Changes: p.changes, NodeTrusts: nodeTrusts(d.Graph)}
	if !untold {
		r.Policies = Statuses(d.Graph, p.failed, spireErr)
	}
	return s.o.Kubernetes.Report(ctx, r)
}

// IsStale tells whether an error means no more than that the world moved on since it was read; of several errors, all must.
func IsStale(err error) bool {
	if several, ok := err.(interface{ Unwrap() []error }); ok {
		return !slices.ContainsFunc(several.Unwrap(), func(e error) bool { return !IsStale(e) })
	}
	if within := errors.Unwrap(err); within != nil && !isMark(err) {
		return IsStale(within)
	}
	return isMark(err)
}

// isMark tells whether err itself, not one that it wraps, says that something is stale.
func isMark(err error) bool {
	if err == kube.ErrStale || err == spireapi.ErrStale { //nolint:errorlint // this very error is meant
		return true
	}
	marked, ok := err.(interface{ Is(error) bool })
	return ok && marked.Is(kube.ErrStale)
}

// progress is what one pass has done so far.
type progress struct {
	*Syncer
	trusts map[string]time.Time
	tried  map[string]bool // by the operation's text
	// changes and failed are what was carried out and what was not, in order.
	changes []plan.Operation
	failed  []Failure
	// unfinished is true when opening took too long for one pass.
	unfinished bool
}

// Failure is an operation that did not succeed.
type Failure struct {
	Operation plan.Operation
	Err       error
}

func (p *progress) err() error {
	var all []error
	for _, f := range p.failed {
		all = append(all, f.Err)
	}
	return errors.Join(all...)
}

// closers is how many patches go at once: they do not depend on each other, and taking a node's label away must not wait for
// its hundred pods.
const closers = 16

// headStart is how long labels wait for the revoked addresses to be written, which is the faster way to cut off.
const headStart = 250 * time.Millisecond

// close does operations that only close, each even when another one fails. They go in three lanes, so that a data plane's API
// that hangs keeps no label on: objects of data planes, in order; patches of Nodes and Pods, once the revoked addresses are
// written or have had their head start; the SPIRE server last. What the first half of the pass tried is not tried again: both
// halves plan from the same objects.
func (p *progress) close(ctx context.Context, operations []plan.Operation) {
	var objects, patches, spire []plan.Operation
	for _, o := range operations {
		switch {
		case p.tried[o.String()]:
		case onSPIRE(o):
			spire = append(spire, o)
		case o.Action == plan.Patch:
			patches = append(patches, o)
		default:
			objects = append(objects, o)
		}
	}
	revoked := make(chan struct{})
	results := make(chan []error, 1)
	go func() { results <- p.applyInOrder(ctx, objects, revoked) }()
	wait := time.NewTimer(headStart)
	defer wait.Stop()
	select {
	case <-revoked:
	case <-wait.C:
	}
	p.record(patches, p.applyAll(ctx, patches))
	p.record(spire, p.applySPIRE(ctx, spire))
	p.record(objects, <-results)
}

// applyInOrder applies data planes' objects one after the other and closes revoked when those that revoke are done. After one
// that got no answer the rest is not tried: each would wait as long.
func (p *progress) applyInOrder(ctx context.Context, operations []plan.Operation, revoked chan<- struct{}) []error {
	results := make([]error, len(operations))
	told := false
	tell := func() {
		if !told {
			close(revoked)
		}
		told = true
	}
	defer tell()
	for i, o := range operations {
		if o.Phase > plan.Revoke {
			tell()
		}
		if results[i] = p.apply(ctx, o); errors.Is(results[i], context.DeadlineExceeded) {
			for j := i + 1; j < len(operations); j++ {
				results[j] = fmt.Errorf("syncer: %s: not tried, since %s got no answer", operations[j].Target, o.Target)
			}
			break
		}
	}
	return results
}

func (p *progress) applyAll(ctx context.Context, operations []plan.Operation) []error {
	results := make([]error, len(operations))
	var group errgroup.Group
	group.SetLimit(closers)
	for i, o := range operations {
		group.Go(func() error {
			results[i] = p.apply(ctx, o)
			return nil
		})
	}
	_ = group.Wait() // the functions return no errors; each is in results
	return results
}

func (p *progress) apply(ctx context.Context, o plan.Operation) error {
	ctx, cancel := context.WithTimeout(ctx, p.o.Timeout)
	defer cancel()
	return p.o.Kubernetes.Apply(ctx, o)
}

// openFor is how long one pass opens at most. What is left opens in the next pass, which begins by reading the verdicts again:
// giving ten thousand pods their labels must not keep a revocation waiting.
const openFor = 500 * time.Millisecond

// open does operations that open something, in order, and none when anything before it failed. Labels of pods are the last to
// be given and do not depend on each other, so they go side by side, and one pod that nobody can label keeps no other waiting.
func (p *progress) open(ctx context.Context, operations []plan.Operation) {
	until := p.o.Now().Add(openFor)
	for len(operations) > 0 && ctx.Err() == nil && p.mayOpen(operations[0]) {
		if p.unfinished = !p.o.Now().Before(until); p.unfinished {
			return
		}
		n := run(operations)
		if onSPIRE(operations[0]) {
			p.record(operations[:n], p.applySPIRE(ctx, operations[:n]))
		} else {
			p.record(operations[:n], p.applyAll(ctx, operations[:n]))
		}
		operations = operations[n:]
	}
}

// mayOpen tells whether all that the operation rests on succeeded: everything before it, but for a pod's label other pods' labels.
func (p *progress) mayOpen(o plan.Operation) bool {
	return !slices.ContainsFunc(p.failed, func(f Failure) bool { return !onPod(f.Operation) || !onPod(o) })
}

func onPod(o plan.Operation) bool {
	return o.Action == plan.Patch && o.Phase == plan.Trust && o.Target.Kind == "Pod"
}

// run is how many operations from the first on go together.
func run(operations []plan.Operation) int {
	most, same := 1, func(plan.Operation) bool { return false }
	switch {
	case onSPIRE(operations[0]):
		most, same = len(operations), onSPIRE
	case onPod(operations[0]):
		most, same = 4*closers, onPod
	}
	n := 1
	for n < min(most, len(operations)) && same(operations[n]) {
		n++
	}
	return n
}

func (p *progress) applySPIRE(ctx context.Context, operations []plan.Operation) []error {
	if len(operations) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, p.o.Timeout)
	defer cancel()
	return p.o.SPIRE.Apply(ctx, operations)
}

func onSPIRE(o plan.Operation) bool {
	switch o.Action {
	case plan.CreateEntry, plan.UpdateEntry, plan.DeleteEntry, plan.DeleteAgent:
		return true
	case plan.Create, plan.Update, plan.Patch, plan.Delete:
	}
	return false
}

// record logs each decision, once, with what came of it.
func (p *progress) record(operations []plan.Operation, results []error) {
	for i, err := range results {
		o := operations[i]
		p.tried[o.String()] = true
		if err != nil {
			p.failed = append(p.failed, Failure{Operation: o, Err: err})
			p.o.Metrics.operation(o, err)
			continue
		}
		p.changes = append(p.changes, o)
		p.o.Metrics.operation(o, nil)
		args := []any{"phase", o.Phase.String(), "action", string(o.Action), "subject", subject(o), "reason", o.Reason}
		if at, ok := p.trusts[o.Target.Name]; ok && o.Target.Kind == "Node" {
			took := p.o.Now().Sub(at)
			p.o.Metrics.verdict(took)
			args = append(args, "sinceEvidence", took.Round(time.Millisecond).String())
		}
		p.o.Log.Info("applied", args...)
	}
}

func subject(o plan.Operation) string {
	switch {
	case o.Entry != nil:
		return o.Entry.ID + " " + o.Entry.SPIFFEID
	case o.AgentID != "":
		return o.AgentID
	default:
		return o.Target.String()
	}
}
