package syncer

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"time"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/kube"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/spireapi"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

// Sync runs one pass and returns when the next one is due at the latest because something expires then (zero: nothing does).
func (s *Syncer) Sync(ctx context.Context) (time.Time, error) {
	began := s.o.Now()
	next, err := s.survive(ctx)
	s.o.Metrics.pass(s.o.Now(), s.o.Now().Sub(began), err)
	return next, err
}

// survive runs a pass of which a panic is the failure: the process goes on, what was closed stays closed, and what the pass would
// have opened after it is not opened.
func (s *Syncer) survive(ctx context.Context) (next time.Time, failed error) {
	defer func() {
		if p := recover(); p != nil {
			err := s.o.Panics.Note("a pass", p, debug.Stack())
			next, failed = time.Time{}, s.broken(fmt.Errorf("syncer: nothing more is changed: %w", err))
		}
	}()
	return s.pass(ctx)
}

func (s *Syncer) pass(ctx context.Context) (time.Time, error) {
	snap, err := s.o.Kubernetes.Read(ctx)
	if err != nil {
		return time.Time{}, s.broken(fmt.Errorf("syncer: nothing is changed: %w", err))
	}
	s.recall(ctx)
	s.events.begin(snap)
	snap.At, snap.Attested = s.o.Now(), s.attested
	snap.InheritUntil = s.inheritUntil(snap.At)
	snap.Images = s.o.Images(s.questions)
	g, err := s.engine.Build(snap)
	if err == nil {
		g, err = s.asked(&snap, g)
	}
	if err != nil {
		return time.Time{}, s.broken(fmt.Errorf("syncer: nothing is changed: %w", err))
	}
	s.attested = g.Attested
	p := s.progress(evidence{trusts: snap.NodeTrusts})
	urgent, err := s.renderer.Urgent(snap, g)
	if err != nil {
		return time.Time{}, s.broken(fmt.Errorf("syncer: nothing is changed: %w", err))
	}
	p.close(ctx, urgent.Operations)

	var spireErr error
	// Agents of a machine that turns bad are looked for in what the server holds now.
	if slices.ContainsFunc(urgent.Operations, func(o plan.Operation) bool { return o.Proved }) {
		s.judged(snap.At)
	}
	if snap.SPIRE, spireErr = s.readSPIRE(ctx); spireErr == nil {
		if g, err = s.engine.Join(snap.SPIRE); err != nil {
			return time.Time{}, s.broken(fmt.Errorf("syncer: nothing more is changed: %w", err))
		}
		p.close(ctx, plan.Evictions(g))
	}
	decision, err := s.renderer.Decide(snap, g)
	if err != nil {
		return time.Time{}, s.broken(errors.Join(p.err(), fmt.Errorf("syncer: nothing more is changed: %w", err)))
	}
	p.unplanned(decision.Plan.Missing)
	p.close(ctx, decision.Plan.Closing())
	if spireErr == nil {
		p.open(ctx, decision.Plan.Opening())
	}
	return s.conclude(ctx, p, snap, decision, spireErr)
}

// asked asks about the images of the graph. Where the answers to new questions are known already, the
// graph is made again with them.
func (s *Syncer) asked(snap *snapshot.Snapshot, g trustgraph.Graph) (trustgraph.Graph, error) {
	questions := s.engine.Questions()
	if snapshot.Same(questions, s.questions) || slices.EqualFunc(questions, s.questions, sameQuestion) {
		s.questions = questions
		return g, nil
	}
	s.questions = questions
	answers := s.o.Images(questions)
	if len(answers) == len(snap.Images) {
		known := func(key snapshot.ImageKey) bool { _, ok := snap.Images[key]; return !ok }
		if !slices.ContainsFunc(slices.Collect(maps.Keys(answers)), known) {
			return g, nil
		}
	}
	snap.Images = answers
	return s.engine.Build(*snap)
}

func sameQuestion(x, y snapshot.ImageQuestion) bool {
	return x.ImageKey == y.ImageKey && x.Namespace == y.Namespace && slices.Equal(x.Verifiers, y.Verifiers)
}

// conclude tells what came of a pass and says when the next one is due.
func (s *Syncer) conclude(ctx context.Context, p *progress, snap snapshot.Snapshot, d plan.Result, spireErr error) (time.Time, error) {
	s.tell(d.Graph)
	s.fight.round(p.changes)
	s.refused.sweep()
	next := earlier(s.expiries.of(snap), d.Graph.PendingEnds())
	switch {
	case p.unfinished, len(d.Unfinished) > 0:
		next = snap.At // there was no time for all of it
	case d.Plan.Again && (len(p.failed) == 0 || len(p.changes) > 0):
		next = snap.At // an object had to close first and opens in a plan of its own
	}
	if stale := IsStale(p.err()); !stale {
		s.stales = 0
	} else {
		s.stales++
	}
	var unknown map[string]bool
	if snap.At.Before(snap.InheritUntil) {
		unknown = unsettled(d.Graph) // what has just started knows nothing: the next passes do
	}
	untold := errors.Is(spireErr, errSlow) || s.stales > 0 && s.stales < maxStale
	if errors.Is(spireErr, errSlow) {
		spireErr = nil // its answer triggers a pass
	}
	s.tellFailures(p, spireErr)
	s.keep(ctx)
	s.chronicle(ctx, snap, d.Graph)
	return next, errors.Join(p.err(), spireErr, s.report(ctx, p, snap, d, spireErr, untold, unknown))
}

// report writes statuses and events. What is decided in a moment (planned from a stale reading, without an answer that is on
// its way) is untold: a condition that flaps says nothing. Unknown are pods and policies of which that holds alone.
func (s *Syncer) report(ctx context.Context, p *progress, snap snapshot.Snapshot, d plan.Result, spireErr error, untold bool, unknown map[string]bool) error {
	r := kube.Report{Changes: p.changes, NodeTrusts: nodeTrusts(d.Graph)}
	var statuses []kube.PolicyStatus
	if !untold {
		troubles := slices.Concat(p.failed, p.withheld)
		statuses = s.statuses.of(d.Graph, troubles, spireErr)
		s.o.Metrics.state(d.Graph, statuses, troubles)
		if s.reported.differs(snap, statuses, len(s.history.moved) > 0) {
			r.Policies = slices.DeleteFunc(slices.Clone(statuses), func(st kube.PolicyStatus) bool {
				key := st.Namespace + "/" + st.Name
				return d.Unfinished[key] || unknown[key]
			})
		}
		r.Findings = s.events.findings(d.Graph, unknown)
	}
	s.tellMoves(d.Graph, &r)
	err := s.o.Kubernetes.Report(ctx, r)
	if len(r.Policies) > 0 {
		s.reported = reported{}
		if err == nil && len(r.Policies) == len(statuses) {
			s.reported = reported{snap.Policies, statuses, snap.At}
		}
	}
	return err
}

// reported is what was reported of all policies last, with success.
type reported struct {
	policies []v1alpha1.TrustPolicy
	statuses []kube.PolicyStatus
	at       time.Time
}

// reportEvery is how often statuses are compared with what is there though nothing has changed: what they
// say of moved names ends with time.
const reportEvery = time.Minute

// differs reports whether statuses may be others than those that the policies have.
func (r *reported) differs(s snapshot.Snapshot, statuses []kube.PolicyStatus, moved bool) bool {
	return moved || len(r.statuses) == 0 || !snapshot.Same(r.statuses, statuses) || !snapshot.Same(r.policies, s.Policies) ||
		s.At.Sub(r.at) >= reportEvery || s.At.Before(r.at)
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
	trusts evidence
	tried  map[string]bool // by what identifies an operation
	gone   *unanswering
	// changes and failed are what was carried out and what was not, in order. Withheld is what rests on what failed.
	changes          []plan.Operation
	failed, withheld []Failure
	missing          plan.Missing
	// unfinished is true when opening took too long for one pass.
	unfinished bool
}

func (s *Syncer) progress(trusts evidence) *progress {
	p := &progress{Syncer: s, trusts: trusts, tried: map[string]bool{}, gone: &unanswering{}}
	for _, late := range s.lanes.ended() {
		p.record([]plan.Operation{late.operation}, []error{late.err})
	}
	p.tried = map[string]bool{} // what ended since then was planned from an earlier reading
	p.failed, p.missing = nil, plan.Missing{}
	return p
}

// Failure is an operation that did not succeed, or was not tried since it rests on one that did not (Err is a plan.WaitsError).
type Failure struct {
	Operation plan.Operation
	Err       error
}

func (p *progress) err() error {
	var errs []error
	for _, f := range p.failed {
		errs = append(errs, f.Err)
	}
	return errors.Join(errs...)
}

// unplanned notes policies that could not be rendered: what rests on them waits, and their status says why.
func (p *progress) unplanned(missing map[plan.Part]string) {
	parts := slices.SortedFunc(maps.Keys(missing), func(a, b plan.Part) int { return cmp.Compare(a.Name, b.Name) })
	for _, part := range parts {
		why := fmt.Errorf("%s: %s", part, missing[part])
		p.missing.AddPart(part, why)
		p.withheld = append(p.withheld, Failure{Operation: plan.Operation{Domain: plan.Domain{Parts: []plan.Part{part}}}, Err: why})
	}
}

const (
	// headStart is how long labels wait for the revoked addresses to be written, which is the faster way to cut off.
	headStart = 250 * time.Millisecond
	// closers is how many operations that close go at once: they do not depend on each other, and taking a node's label away
	// must not wait for its hundred pods.
	closers = 16
	// closeFor is how long one pass writes objects of namespaces that only close. The next pass does the rest, after what is
	// more urgent: a team whose objects are many, or refused slowly, must not keep a revocation waiting.
	closeFor = 500 * time.Millisecond
)

// close does operations that only close, each even when another one fails: revoked addresses first; then labels and taints, once
// these are written or have had their head start, beside data planes' other objects; the SPIRE server last. So a data plane's API
// that hangs keeps no label on. What an earlier step of the pass tried is not tried again: all plan from the same objects.
func (p *progress) close(ctx context.Context, operations []plan.Operation) {
	var revoke, objects, teams, patches, spire []plan.Operation
	for _, o := range operations {
		switch {
		case p.tried[identify(o)]:
		case onSPIRE(o):
			spire = append(spire, o)
		case o.Action == plan.Patch:
			patches = append(patches, o)
		case o.Phase == plan.Revoke:
			revoke = append(revoke, o)
		case o.Target.Namespace != "":
			teams = append(teams, o)
		default:
			objects = append(objects, o)
		}
	}
	revoked := p.beside(ctx, revoke)
	select {
	case results := <-revoked:
		p.record(revoke, results)
		revoke, revoked = nil, nil
	case <-time.After(headStart):
	}
	others := p.beside(ctx, objects)
	p.record(patches, p.applyAll(ctx, patches, bounds{width: closers}))
	p.closeTeams(ctx, teams)
	p.record(objects, <-others)
	if revoked != nil {
		p.record(revoke, <-revoked)
	}
	p.closeSPIRE(ctx, spire)
}

// beside applies operations in a goroutine of their own, which delivers the results.
func (p *progress) beside(ctx context.Context, operations []plan.Operation) <-chan []error {
	results := make(chan []error, 1)
	if len(operations) == 0 {
		results <- nil
		return results
	}
	go func() {
		defer p.o.Panics.Catch("writing objects", func(err error) { results <- all(operations, err) })
		results <- p.applyAll(ctx, operations, bounds{width: closers})
	}()
	return results
}

// closeTeams writes objects of namespaces. All namespaces go at once, each for as long as a pass has time for it. What waits for
// the next pass is missing in this one.
func (p *progress) closeTeams(ctx context.Context, operations []plan.Operation) {
	until := p.o.Now().Add(closeFor)
	begun := operations[:0:0]
	through := map[string]bool{}
	for _, o := range operations {
		key := closingKey(o)
		through[key] = true
		if err := p.refused.before(key, o); err != nil {
			p.fail(o, err)
			continue
		}
		begun = append(begun, o)
	}
	late := func() bool { return !p.o.Now().Before(until) }
	results := p.applyAll(ctx, begun, bounds{width: closers, stop: late, limit: closeFor + p.o.Patience})
	p.record(begun, results)
	for i, err := range results {
		key := closingKey(begun[i])
		p.refused.note(key, begun[i], err)
		if errors.Is(err, errNoTime) {
			through[key] = false
			p.postpone(begun[i : i+1])
		}
	}
	for key, all := range through {
		p.refused.over(key, all)
	}
}

func closingKey(o plan.Operation) string { return "close " + o.Target.Namespace }

// closeSPIRE evicts agents; then it takes entries away and makes them tighter, each namespace's first entry, then each one's second,
// and so on, for as long as a pass has time for the SPIRE server.
func (p *progress) closeSPIRE(ctx context.Context, operations []plan.Operation) {
	var until time.Time
	operations = inTurns(operations)
	silent := false
	var n int
	for ; len(operations) > 0; operations = operations[n:] {
		for n = 1; n < min(len(operations), entriesATurn) && operations[n].Action == operations[0].Action; n++ {
		}
		evicts := operations[0].Action == plan.DeleteAgent
		if !evicts && until.IsZero() {
			until = p.o.Now().Add(p.spireFor())
		}
		if silent || !evicts && !p.o.Now().Before(until) {
			p.postpone(operations[:n])
			continue
		}
		results := p.applySPIRE(ctx, operations[:n])
		silent = !slices.ContainsFunc(results, func(err error) bool { return !errors.Is(err, context.DeadlineExceeded) })
		p.record(operations[:n], results)
	}
}

// postpone leaves operations that close to the next pass.
func (p *progress) postpone(operations []plan.Operation) {
	p.unfinished = true
	for _, o := range operations {
		p.missing.Add(o, errNoTime)
		p.withheld = append(p.withheld, Failure{Operation: o, Err: errNoTime})
	}
}

// inTurns deals operations out: those of one action together, and of these one of each namespace in turn.
func inTurns(operations []plan.Operation) []plan.Operation {
	type turn struct {
		o     plan.Operation
		round int
	}
	order, rounds := map[plan.Action]int{plan.DeleteAgent: 0}, map[string]int{}
	turns := make([]turn, 0, len(operations))
	for _, o := range operations {
		if _, ok := order[o.Action]; !ok {
			order[o.Action] = len(order)
		}
		key := string(o.Action) + " " + plan.NamespaceOf(o)
		turns = append(turns, turn{o, rounds[key]})
		rounds[key]++
	}
	slices.SortStableFunc(turns, func(a, b turn) int {
		return cmp.Or(cmp.Compare(order[a.o.Action], order[b.o.Action]), cmp.Compare(a.round, b.round))
	})
	out := make([]plan.Operation, 0, len(turns))
	for _, t := range turns {
		out = append(out, t.o)
	}
	return out
}

func (p *progress) applyAll(ctx context.Context, operations []plan.Operation, b bounds) []error {
	return p.lanes.run(ctx, operations, b, p.apply, p.gone)
}

// all is one error for each operation.
func all(operations []plan.Operation, err error) []error {
	out := make([]error, len(operations))
	for i := range out {
		out[i] = err
	}
	return out
}

// apply does one operation. A panic is the failure of that operation.
func (s *Syncer) apply(ctx context.Context, o plan.Operation) (err error) {
	defer s.o.Panics.Catch("writing an object", func(e error) { err = fmt.Errorf("syncer: %s %s: %w", o.Action, o.Target, e) })
	ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	return s.o.Kubernetes.Apply(ctx, o)
}

// identify is the same for an operation in all plans of one reading.
func identify(o plan.Operation) string {
	return fmt.Sprint(o.Phase, " ", o.Action, " ", o.Target.GroupVersionKind, " ", subject(o), " ", string(o.MergePatch))
}

// fingerprint is the same for an operation that writes the same, in whichever plan it stands.
func fingerprint(o plan.Operation) string {
	text, err := json.Marshal([]any{o.Object, o.Entry})
	if err != nil {
		return ""
	}
	return fmt.Sprintf("%s %x", identify(o), sha256.Sum256(text))
}

// applySPIRE does operations on the SPIRE server. A panic is the failure of all of them.
func (p *progress) applySPIRE(ctx context.Context, operations []plan.Operation) (results []error) {
	defer p.o.Panics.Catch("writing SPIRE entries", func(err error) { results = all(operations, err) })
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
		if errors.Is(err, errNoTime) {
			p.unfinished = true
			p.missing.Add(o, err)
			continue
		}
		p.tried[identify(o)] = true
		if onSPIRE(o) {
			p.wrote(o, err)
		}
		if err != nil {
			p.fail(o, err)
			p.o.Metrics.operation(o, err)
			continue
		}
		p.changes = append(p.changes, o)
		p.o.Metrics.operation(o, nil)
		args := []any{"phase", o.Phase.String(), "action", string(o.Action), "subject", subject(o), "reason", o.Reason}
		if at, ok := p.evidenceFor(o); ok {
			took := p.o.Now().Sub(at)
			p.o.Metrics.verdict(took)
			args = append(args, "sinceEvidence", took.Round(time.Millisecond).String())
		}
		p.o.Log.Info("applied", args...)
	}
}

// evidenceFor is when the evidence came in for which a node is written.
func (p *progress) evidenceFor(o plan.Operation) (time.Time, bool) {
	if o.Target.Kind != "Node" {
		return time.Time{}, false
	}
	return p.trusts.of(o.Target.Name)
}

// fail notes an operation that was not carried out.
func (p *progress) fail(o plan.Operation, err error) {
	p.failed = append(p.failed, Failure{Operation: o, Err: err})
	p.missing.Add(o, err)
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
