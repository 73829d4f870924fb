package plan

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/keelson-project/keelson/policy-sync/calico"
	"github.com/keelson-project/keelson/policy-sync/desired"
	"github.com/keelson-project/keelson/policy-sync/istio"
	"github.com/keelson-project/keelson/policy-sync/registration"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

// Result is everything that follows from a snapshot.
type Result struct {
	Graph   trustgraph.Graph
	Intents desired.Intents
	Objects []desired.Object
	Entries []snapshot.Entry
	Plan    Plan
}

// Make runs the whole pipeline. An error means that nothing may be changed.
func Make(s snapshot.Snapshot) (Result, error) {
	g, err := trustgraph.Build(s)
	if err != nil {
		return Result{}, fmt.Errorf("plan: %w", err)
	}
	r := Result{Graph: g, Intents: desired.From(g)}
	r.Intents.RevokedSets = revokedSets(s)
	if s.Config.Calico {
		objects, err := calico.Render(r.Intents)
		if err != nil {
			return Result{}, fmt.Errorf("plan: %w", err)
		}
		r.Objects = append(r.Objects, objects...)
	}
	if s.Config.Istio {
		objects, err := istio.Render(r.Intents)
		if err != nil {
			return Result{}, fmt.Errorf("plan: %w", err)
		}
		r.Objects = append(r.Objects, objects...)
	}
	r.Entries = registration.Render(r.Intents)
	r.Plan, err = Diff(s, r.Intents, r.Objects, r.Entries)
	return r, err
}

// Diff compares the snapshot with what should be. An object appears in at most one
// operation, so that no operation of a plan invalidates the resourceVersion of another.
func Diff(s snapshot.Snapshot, in desired.Intents, objects []desired.Object, entries []snapshot.Entry) (Plan, error) {
	d := &differ{s: s, sure: map[string]bool{}}
	if err := d.objects(objects); err != nil {
		return Plan{}, err
	}
	if err := d.nodes(in.Nodes); err != nil {
		return Plan{}, err
	}
	if err := d.pods(in.Pods); err != nil {
		return Plan{}, err
	}
	d.entries(in, entries)
	for _, e := range in.Evict {
		d.add(Operation{Phase: Revoke, Action: DeleteAgent, AgentID: e.AgentID, Proved: true, Reason: e.Reason})
	}
	d.guardDeletes()
	d.withoutSPIRE()
	slices.SortFunc(d.p.Operations, func(a, b Operation) int {
		return cmp.Or(cmp.Compare(a.Phase, b.Phase), cmp.Compare(rank(a), rank(b)), cmp.Compare(subject(a), subject(b)), cmp.Compare(a.Action, b.Action))
	})
	slices.Sort(d.p.Withheld)
	return d.p, nil
}

type differ struct {
	s snapshot.Snapshot
	p Plan
	// owned counts our policies and entries, deletes those that would go.
	owned, deletes int
	// sure are pods that a policy selects and that do not meet it, by subject: no list that came back empty says so.
	sure map[string]bool
	// own are the IDs of the live SPIRE entries that are this cluster's, foreign the others by SPIFFE ID.
	own     map[string]bool
	foreign map[string][]snapshot.Entry
}

func (d *differ) add(o Operation) { d.p.Operations = append(d.p.Operations, o) }

func (d *differ) withhold(format string, args ...any) {
	d.p.Withheld = append(d.p.Withheld, fmt.Sprintf(format, args...))
}

// rank orders operations of one phase: a tier before its policies, the set of revoked
// addresses before agents; the other way round when they go.
func rank(o Operation) int {
	r := 5
	switch {
	case o.Action == DeleteAgent:
		r = 9
	case o.Target.Kind == "Tier":
		r = 0
	case o.Target.Kind == "GlobalNetworkSet":
		r = 1
	case o.Target.Kind == "Node":
		r = 6
	case o.Target.Kind == "Pod":
		r = 7
	case o.Entry != nil && !registration.IsClass(*o.Entry):
		r = 8
	}
	if o.Action == Delete || o.Action == DeleteEntry {
		return 20 - r
	}
	return r
}

func subject(o Operation) string {
	switch {
	case o.Entry != nil:
		return o.Entry.ID
	case o.AgentID != "":
		return o.AgentID
	}
	return o.Target.GroupVersionKind.String() + " " + o.Target.Namespace + "/" + o.Target.Name
}

// minDeletes is how many deletes pass without the rail: small clusters change by whole
// percentages all the time.
const minDeletes = 5

// guardDeletes is a rail against a reading that is wrong without saying so: a list that
// came back empty makes everything look superfluous. Then nothing is done but what
// follows from proof, and what takes trust from a pod that a policy selects and that does
// not meet it: else whoever may make and delete many TrustPolicies could keep pods
// trusted whose image has changed or whose node's proof has ended.
func (d *differ) guardDeletes() {
	limit := d.s.Config.MaxDeletePercent
	if limit == 0 || d.deletes <= minDeletes || d.deletes*100 <= limit*d.owned {
		return
	}
	d.p.Operations = slices.DeleteFunc(d.p.Operations, func(o Operation) bool { return !o.Proved && (!o.Phase.Closing() || !d.sure[subject(o)]) })
	d.p.Again = false
	d.withhold("the plan would delete %d of our %d policies and entries, more than %d%%: nothing is done but what follows from proof or takes trust from single pods; check the reading, or raise the limit", d.deletes, d.owned, limit)
}

// withoutSPIRE opens nothing while the SPIRE server cannot be read.
func (d *differ) withoutSPIRE() {
	if d.s.SPIRE != nil {
		return
	}
	before := len(d.p.Operations)
	d.p.Operations = slices.DeleteFunc(d.p.Operations, func(o Operation) bool { return !o.Phase.Closing() })
	d.withhold("the SPIRE server could not be read: no entry is touched, and %d operations that open wait", before-len(d.p.Operations))
}
