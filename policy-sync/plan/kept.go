package plan

import (
	"fmt"
	"maps"
	"reflect"
	"slices"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/keelson-project/keelson/policy-sync/desired"
	"github.com/keelson-project/keelson/policy-sync/registration"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

// kept is what a Renderer keeps of one plan for the next. Each piece stands with what it follows from,
// and is used again only while that is the same: by identity for objects of a cache and for parts of a
// graph, by value for the rest. The plan is always the one that a new Renderer makes.
type kept struct {
	config    snapshot.Config
	shared    sharedObjects
	objects   map[*unstructured.Unstructured]*facts
	round     int
	nodes     map[string]nodeMarks
	pods      map[*trustgraph.Part]podMarks
	groups    map[string]*entryGroup
	entries   entryMarks
	workloads workloads
}

// begin forgets everything where the configuration is another, and begins a round.
func (k *kept) begin(c snapshot.Config) {
	if k.objects == nil || !reflect.DeepEqual(k.config, c) {
		*k = kept{config: c, objects: map[*unstructured.Unstructured]*facts{}, nodes: map[string]nodeMarks{},
			pods: map[*trustgraph.Part]podMarks{}, groups: map[string]*entryGroup{}}
	}
	k.round++
}

// sharedObjects are the objects of no single policy.
type sharedObjects struct {
	namespaces  []trustgraph.Namespace
	revoked     []trustgraph.Revoked
	revokedSets map[string]int
	objects     []desired.Object
}

func (r *Renderer) shared(c snapshot.Config, in desired.Intents) ([]desired.Object, error) {
	k := &r.kept.shared
	if k.objects != nil && slices.Equal(k.namespaces, in.Namespaces) && slices.Equal(k.revoked, in.Revoked) && maps.Equal(k.revokedSets, in.RevokedSets) {
		return k.objects, nil
	}
	in.Workloads = nil
	objects, err := r.render(c, in)
	if err == nil {
		*k = sharedObjects{in.Namespaces, in.Revoked, in.RevokedSets, objects}
	}
	return objects, err
}

// facts are what is read of one object's metadata, and what became of comparing it.
type facts struct {
	key, namespace, source string
	owned                  bool
	// revoked is in which set of revoked addresses the object is, from 1; 0 for others.
	revoked int
	// live is the round in which the object was in the snapshot last, wanted the one in which something
	// wanted it to be there, used the one in which it was looked at.
	live, wanted, used int
	// at is, of a wanted object, the live one that says the same already.
	at *facts
}

func (k *kept) facts(o *unstructured.Unstructured) *facts {
	f := k.objects[o]
	if f == nil {
		f = &facts{key: key(o), namespace: o.GetNamespace(), source: source(o), owned: snapshot.Owned(o), revoked: revokedSet(o)}
		k.objects[o] = f
	}
	f.used = k.round
	return f
}

// sweep forgets objects that were not looked at lately, once they are more than those that were.
func (k *kept) sweep(looked int) {
	const few = 1000
	if len(k.objects) <= 2*looked+few {
		return
	}
	for o, f := range k.objects {
		if k.round-f.used > 1 {
			delete(k.objects, o)
		}
	}
}

// nodeMarks are the operations on one node.
type nodeMarks struct {
	node         trustgraph.Node
	uid, version string
	operations   []Operation
	again        bool
}

// keptNodes compares nodes, those anew that have changed.
func (d *differ) keptNodes(g trustgraph.Graph) error {
	live := make(map[string]int, len(d.s.Nodes))
	for i := range d.s.Nodes {
		live[d.s.Nodes[i].Name] = i
	}
	now := make(map[string]nodeMarks, len(g.Nodes))
	for _, node := range g.Nodes {
		i, ok := live[node.Name]
		if !ok || string(d.s.Nodes[i].UID) != node.UID {
			continue // what is not there, or is another object by now, inherits nothing
		}
		n := &d.s.Nodes[i]
		m, ok := d.k.nodes[node.Name]
		if !ok || n.ResourceVersion == "" || m.uid != string(n.UID) || m.version != n.ResourceVersion || !reflect.DeepEqual(m.node, node) {
			one := &differ{s: d.s}
			if err := one.node(n, desired.NodeOf(g, node)); err != nil {
				return err
			}
			m = nodeMarks{node, string(n.UID), n.ResourceVersion, one.p.Operations, one.p.Again}
		}
		now[node.Name] = m
		d.p.Operations = append(d.p.Operations, m.operations...)
		d.p.Again = d.p.Again || m.again
	}
	d.k.nodes = now
	return nil
}

// podMarks are the operations on the pods of one namespace.
type podMarks struct {
	operations []Operation
	again      bool
	sure       map[string]bool
}

// keptPods compares pods, those of parts of the graph that have changed anew.
func (d *differ) keptPods(g trustgraph.Graph) error {
	now := make(map[*trustgraph.Part]podMarks, len(g.Parts))
	for _, part := range g.Parts {
		m, ok := d.k.pods[part]
		if !ok {
			one := &differ{s: d.s, agents: d.agents, sure: map[string]bool{}}
			for i, p := range part.Pods {
				if err := one.pod(part.Live[i], desired.PodOf(g, p)); err != nil {
					return err
				}
			}
			m = podMarks{one.p.Operations, one.p.Again, one.sure}
		}
		now[part] = m
		d.p.Operations = append(d.p.Operations, m.operations...)
		d.p.Again = d.p.Again || m.again
		maps.Copy(d.sure, m.sure)
	}
	d.k.pods = now
	return nil
}

// entryGroup is the SPIRE entries of one identity.
type entryGroup struct {
	identity     trustgraph.Identity
	wants, keeps []snapshot.Entry
}

// groupsOf makes the entries of all identities, those anew that have changed. Same is true when none
// has, and none has come or gone.
func (k *kept) groupsOf(in desired.Intents) (out []*entryGroup, same bool) {
	now := make(map[string]*entryGroup, len(in.Identities))
	same = len(in.Identities) == len(k.groups)
	for _, id := range in.Identities {
		g := k.groups[id.Key()]
		if g == nil || !reflect.DeepEqual(g.identity, id) {
			same = false
			g = &entryGroup{identity: id}
			g.wants, g.keeps = registration.Of(in.Config, id)
		}
		now[id.Key()] = g
		out = append(out, g)
	}
	k.groups = now
	return out, same
}

// entryMarks are the operations on SPIRE entries, and what they follow from beside the identities.
type entryMarks struct {
	spire      *snapshot.SPIRE
	own        []string
	bad        map[string]string
	operations []Operation
	withheld   []string
	rail       rail
}

// keptEntries compares SPIRE entries, anew when one or what is wanted of one has changed.
func (d *differ) keptEntries(in desired.Intents, groups []*entryGroup, same bool) {
	k := &d.k.entries
	bad := badAgents(d.s)
	if !same || d.s.SPIRE == nil || k.spire != d.s.SPIRE || !sameList(k.own, in.OwnEntries) || !maps.Equal(k.bad, bad) {
		one := &differ{s: d.s, rail: rail{}, sure: map[string]bool{}}
		var wants, keeps []snapshot.Entry
		for _, g := range groups {
			wants, keeps = append(wants, g.wants...), append(keeps, g.keeps...)
		}
		one.entries(in, wants, keeps)
		*k = entryMarks{d.s.SPIRE, in.OwnEntries, bad, one.p.Operations, one.p.Withheld, one.rail}
	}
	d.p.Operations = append(d.p.Operations, k.operations...)
	d.p.Withheld = append(d.p.Withheld, k.withheld...)
	for namespace, n := range k.rail {
		at := d.rail.at(namespace)
		at.owned, at.deletes = at.owned+n.owned, at.deletes+n.deletes
	}
}

// sameList reports whether two slices are one.
func sameList(x, y []string) bool {
	return len(x) == len(y) && (len(x) == 0 || &x[0] == &y[0])
}

// workloads are the intents of all policies, and what is rendered from each.
type workloads struct {
	policies   []trustgraph.Policy
	namespaces []trustgraph.Namespace
	ambient    map[string]bool
	list       []desired.Workload
	units      []unit
}

// workloadsOf makes the intents of all policies, anew when one of them or of what they rest on has
// changed.
func (k *kept) workloadsOf(g trustgraph.Graph) []desired.Workload {
	w := &k.workloads
	if w.units != nil && slices.Equal(w.namespaces, g.Namespaces) && maps.Equal(w.ambient, g.AmbientAccounts) && slices.EqualFunc(w.policies, g.Policies, sameRules) {
		return w.list
	}
	*w = workloads{policies: g.Policies, namespaces: g.Namespaces, ambient: g.AmbientAccounts, list: desired.Workloads(g)}
	return w.list
}

// unitsOf are what policies are rendered from.
func (k *kept) unitsOf(c snapshot.Config, in desired.Intents) []unit {
	w := &k.workloads
	if w.units == nil {
		w.units = make([]unit, 0, len(in.Workloads))
		for _, one := range in.Workloads {
			w.units = append(w.units, newUnit(c, in, one))
		}
	}
	return w.units
}

// sameRules reports whether two policies are the same in all that desired.Workloads reads of them.
func sameRules(x, y trustgraph.Policy) bool {
	return x.Namespace == y.Namespace && x.Name == y.Name && x.Mode == y.Mode && x.Accepted == y.Accepted && x.Ambient == y.Ambient &&
		slices.Equal(x.ServiceAccounts, y.ServiceAccounts) && slices.Equal(x.SharesPodsWith, y.SharesPodsWith) &&
		reflect.DeepEqual(x.Spec.Ingress, y.Spec.Ingress) && reflect.DeepEqual(x.Spec.Egress, y.Spec.Egress) && reflect.DeepEqual(x.Answers, y.Answers)
}

// keptObjects compares wanted objects with live ones, those anew of which one is another object.
func (d *differ) keptObjects(want []desired.Object) error {
	k := d.k
	var byKey map[string]*unstructured.Unstructured
	for _, o := range d.s.Objects {
		k.facts(o).live = k.round
	}
	for _, w := range want {
		f := k.facts(w.Unstructured)
		if f.at != nil && f.at.live == k.round {
			f.at.wanted = k.round
			continue
		}
		if byKey == nil {
			byKey = make(map[string]*unstructured.Unstructured, len(d.s.Objects))
			for _, o := range d.s.Objects {
				byKey[k.facts(o).key] = o
			}
		}
		live := byKey[f.key]
		before, again := len(d.p.Operations), d.p.Again
		if err := d.object(live, w); err != nil {
			return err
		}
		if live == nil {
			continue
		}
		at := k.facts(live)
		at.wanted = k.round
		if f.at = nil; len(d.p.Operations) == before && d.p.Again == again {
			f.at = at
		}
	}
	return nil
}

// surplusObjects deletes objects of ours that nothing wants any more. It comes after keptObjects.
func (d *differ) surplusObjects() {
	for _, o := range d.s.Objects {
		f := d.k.facts(o)
		if !f.owned {
			continue
		}
		d.rail.owned(f.namespace)
		if f.wanted == d.k.round {
			continue
		}
		if _, unplanned := d.p.Missing[part(Policy, f.source)]; unplanned {
			continue // of a policy that could not be rendered, nothing goes
		}
		d.surplusObject(o)
	}
}

// String is for tests and people who look for what takes room.
func (k *kept) String() string {
	return fmt.Sprintf("%d objects, %d nodes, %d namespaces, %d identities", len(k.objects), len(k.nodes), len(k.pods), len(k.groups))
}
