package plan

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/desired"
	"github.com/keelson-project/keelson/policy-sync/registration"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

// Make runs the whole pipeline, without any budget. An error means that nothing may be changed.
func Make(s snapshot.Snapshot) (Result, error) {
	g, err := trustgraph.Build(s)
	if err != nil {
		return Result{}, fmt.Errorf("plan: %w", err)
	}
	return new(Renderer).Decide(s, g)
}

// Urgent is what closes and follows from the graph alone, whatever policies say: revoked addresses, what closes the cluster and
// its namespaces, labels that go and taints that come, agents to evict. It is a part of what Decide plans for the same snapshot, and
// costs no rendering of any policy.
func Urgent(s snapshot.Snapshot, g trustgraph.Graph) (Plan, error) { return new(Renderer).Urgent(s, g) }

// Urgent is the function of that name, with what the Renderer renders by.
func (r *Renderer) Urgent(s snapshot.Snapshot, g trustgraph.Graph) (Plan, error) {
	r.kept.begin(s.Config)
	in := desired.Shared(g)
	in.RevokedSets = r.kept.revokedSets(s)
	objects, err := r.shared(s.Config, in)
	if err != nil {
		return Plan{}, fmt.Errorf("plan: %w", err)
	}
	d := newDiffer(s, in, &r.kept)
	if err := errors.Join(d.wantedObjects(objects), d.keptMarks(in, g)); err != nil {
		return Plan{}, err
	}
	d.p.Operations = slices.DeleteFunc(d.p.Operations, func(o Operation) bool { return !o.Phase.Closing() })
	return d.sorted(), nil
}

// Diff compares the snapshot with what should be. An object appears in at most one
// operation, so that no operation of a plan invalidates the resourceVersion of another.
func Diff(s snapshot.Snapshot, in desired.Intents, objects []desired.Object, entries []snapshot.Entry) (Plan, error) {
	k := new(kept)
	k.begin(s.Config)
	d := newDiffer(s, in, k)
	if err := errors.Join(d.keptObjects(objects), d.marks(in)); err != nil {
		return Plan{}, err
	}
	d.surplusObjects()
	d.entries(in, entries, registration.Keep(in))
	return d.finish(), nil
}

// diff is Diff with what is kept of the plan before.
func (r *Renderer) diff(s snapshot.Snapshot, g trustgraph.Graph, out Result, groups []*entryGroup, same bool, missing map[Part]string) (Plan, error) {
	d := newDiffer(s, out.Intents, &r.kept)
	d.p.Missing = missing
	if err := errors.Join(d.everyObject(out.Objects), d.keptMarks(out.Intents, g)); err != nil {
		return Plan{}, err
	}
	d.keptEntries(out.Intents, groups, same)
	return d.finish(), nil
}

// finish holds back what has to wait, and sorts.
func (d *differ) finish() Plan {
	d.guardDeletes()
	d.withoutSPIRE()
	return d.sorted()
}

// keptMarks are marks of a graph, with what is kept of the plan before.
func (d *differ) keptMarks(in desired.Intents, g trustgraph.Graph) error {
	for _, e := range in.Evict {
		d.add(eviction(e))
	}
	return errors.Join(d.keptNodes(g), d.keptPods(g))
}

func newDiffer(s snapshot.Snapshot, in desired.Intents, k *kept) *differ {
	return &differ{s: s, k: k, revoked: k.revokedBy(in.Revoked), rail: rail{}, sure: map[string]bool{}, agents: k.agentsOf(s.NodeTrusts).byNode}
}

// agentsByNode are the SPIFFE IDs of the agents of nodes.
func agentsByNode(trusts []v1alpha1.NodeTrust) map[string]string {
	out := make(map[string]string, len(trusts))
	for i := range trusts {
		out[trusts[i].Name] = trusts[i].Spec.AgentID
	}
	return out
}

// Evictions are the agents to delete, which only a graph of a snapshot with SPIRE's agents knows.
func Evictions(g trustgraph.Graph) []Operation {
	var out []Operation
	for _, e := range g.Evict {
		out = append(out, eviction(e))
	}
	return out
}

func eviction(e trustgraph.Eviction) Operation {
	return Operation{Phase: Revoke, Action: DeleteAgent, AgentID: e.AgentID, Proved: true,
		Domain: Domain{Parts: []Part{part(Machine)}}, Reason: e.Reason}
}

// marks are the operations on nodes, pods and agents.
func (d *differ) marks(in desired.Intents) error {
	for _, e := range in.Evict {
		d.add(eviction(e))
	}
	return errors.Join(d.nodes(in.Nodes), d.pods(in.Pods))
}

func (d *differ) sorted() Plan {
	slices.SortFunc(d.p.Operations, func(a, b Operation) int {
		return cmp.Or(cmp.Compare(a.Phase, b.Phase), cmp.Compare(rank(a), rank(b)), cmp.Compare(subject(a), subject(b)), cmp.Compare(a.Action, b.Action))
	})
	slices.Sort(d.p.Withheld)
	return d.p
}

type differ struct {
	s snapshot.Snapshot
	// k is what is kept of the plan before.
	k *kept
	p Plan
	// rail counts what is ours and what of it would go; so do rails, which are not changed.
	rail  rail
	rails []rail
	// sure are pods that a policy selects and that do not meet it, by subject: no list that came back empty says so.
	sure map[string]bool
	// own are the IDs of the live SPIRE entries that are this cluster's, foreign the others by SPIFFE ID.
	own     map[string]bool
	foreign map[string][]snapshot.Entry
	// revoked says which machine had an address, ending which namespaces are being deleted, agents a node's SPIFFE ID.
	revoked map[netip.Prefix]string
	ending  map[string]bool
	agents  map[string]string
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

// withoutSPIRE opens nothing while the SPIRE server cannot be read.
func (d *differ) withoutSPIRE() {
	if d.s.SPIRE != nil {
		return
	}
	before := len(d.p.Operations)
	d.p.Operations = d.without(func(o Operation) bool { return !o.Phase.Closing() })
	d.withhold("the SPIRE server could not be read: no entry is touched, and %d operations that open wait", before-len(d.p.Operations))
}

// without are the operations that need not wait. The others are noted as waiting.
func (d *differ) without(wait func(Operation) bool) []Operation {
	return slices.DeleteFunc(d.p.Operations, func(o Operation) bool {
		if !wait(o) {
			return false
		}
		d.p.Waiting = append(d.p.Waiting, o)
		return true
	})
}
