package plan

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/desired"
	"github.com/keelson-project/keelson/policy-sync/registration"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

// kept is what a Renderer keeps of one plan for the next. Each piece stands with what it follows from,
// and is used again only while that is the same: by identity for objects of a cache and for parts of a
// graph, by value for the rest. The plan is always the one that a new Renderer makes.
//
// Where all lists that something follows from are the same lists (snapshot.Same), nothing of it is looked
// at.
type kept struct {
	config    snapshot.Config
	shared    sharedObjects
	objects   map[*unstructured.Unstructured]*facts
	round     int
	nodes     nodesMarks
	pods      podsMarks
	groups    groups
	entries   entryMarks
	workloads workloads
	all       allObjects
	// urgent and whole are the comparisons of the objects of no single policy, and of all objects.
	urgent, whole objectMarks
	agents        agents
	revoked       revoked
	sets          sets
}

// begin forgets everything where the configuration is another, and begins a round.
func (k *kept) begin(c snapshot.Config) {
	if k.objects == nil || !reflect.DeepEqual(k.config, c) {
		*k = kept{config: c, objects: map[*unstructured.Unstructured]*facts{}}
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
	if k.objects != nil && equalLists(k.namespaces, in.Namespaces) && equalLists(k.revoked, in.Revoked) &&
		(snapshot.SameMap(k.revokedSets, in.RevokedSets) || maps.Equal(k.revokedSets, in.RevokedSets)) {
		k.namespaces, k.revoked, k.revokedSets = in.Namespaces, in.Revoked, in.RevokedSets
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

// equalLists reports whether two lists hold the same, and looks only where they are not one list.
func equalLists[T comparable](x, y []T) bool { return snapshot.Same(x, y) || slices.Equal(x, y) }

// agents are the SPIFFE IDs of the nodes' agents, by node.
type agents struct {
	trusts []v1alpha1.NodeTrust
	byNode map[string]string
	// bad are the nodes that are proved bad, by their agents.
	bad map[string]string
}

func (k *kept) agentsOf(trusts []v1alpha1.NodeTrust) *agents {
	a := &k.agents
	if a.byNode == nil || !snapshot.Same(a.trusts, trusts) {
		*a = agents{trusts, agentsByNode(trusts), badAgents(trusts)}
	}
	return a
}

// revoked is which machine had an address.
type revoked struct {
	list []trustgraph.Revoked
	by   map[netip.Prefix]string
}

func (k *kept) revokedBy(list []trustgraph.Revoked) map[netip.Prefix]string {
	r := &k.revoked
	if r.by == nil || !snapshot.Same(r.list, list) {
		*r = revoked{list, revokedBy(list)}
	}
	return r.by
}

// nodeMarks are the operations on one node.
type nodeMarks struct {
	node         trustgraph.Node
	uid, version string
	operations   []Operation
	again        bool
}

// nodesMarks are the operations on all nodes.
type nodesMarks struct {
	graph []trustgraph.Node
	live  []corev1.Node
	by    map[string]nodeMarks
	idle  bool // there are none
}

// keptNodes compares nodes, those again that have changed.
func (d *differ) keptNodes(g trustgraph.Graph) error {
	k := &d.k.nodes
	if k.idle && snapshot.Same(k.graph, g.Nodes) && snapshot.Same(k.live, d.s.Nodes) {
		return nil
	}
	live := make(map[string]int, len(d.s.Nodes))
	for i := range d.s.Nodes {
		live[d.s.Nodes[i].Name] = i
	}
	now := nodesMarks{g.Nodes, d.s.Nodes, make(map[string]nodeMarks, len(g.Nodes)), true}
	for _, node := range g.Nodes {
		i, ok := live[node.Name]
		if !ok || string(d.s.Nodes[i].UID) != node.UID {
			continue // what is not there, or is another object by now, inherits nothing
		}
		n := &d.s.Nodes[i]
		m, ok := k.by[node.Name]
		if !ok || n.ResourceVersion == "" || m.uid != string(n.UID) || m.version != n.ResourceVersion || !reflect.DeepEqual(m.node, node) {
			one := &differ{s: d.s}
			if err := one.node(n, desired.NodeOf(g, node)); err != nil {
				return err
			}
			m = nodeMarks{node, string(n.UID), n.ResourceVersion, one.p.Operations, one.p.Again}
		}
		now.by[node.Name] = m
		now.idle = now.idle && len(m.operations) == 0 && !m.again
		d.p.Operations = append(d.p.Operations, m.operations...)
		d.p.Again = d.p.Again || m.again
	}
	*k = now
	return nil
}

// podMarks are the operations on the pods of one namespace.
type podMarks struct {
	operations []Operation
	again      bool
	sure       map[string]bool
}

// podsMarks are the operations on all pods, in the order of the parts of a graph.
type podsMarks struct {
	parts []*trustgraph.Part
	marks []podMarks
	idle  bool // there are none
}

// of finds the marks of a part, which is the i-th of a graph now.
func (k *podsMarks) of(i int, part *trustgraph.Part, byPart map[*trustgraph.Part]int) (podMarks, bool) {
	if byPart == nil {
		if i < len(k.parts) && k.parts[i] == part {
			return k.marks[i], true
		}
		return podMarks{}, false
	}
	at, ok := byPart[part]
	if !ok {
		return podMarks{}, false
	}
	return k.marks[at], true
}

// keptPods compares pods, those again of parts of the graph that have changed.
func (d *differ) keptPods(g trustgraph.Graph) error {
	k := &d.k.pods
	if k.idle && equalLists(k.parts, g.Parts) {
		k.parts = g.Parts
		return nil
	}
	var byPart map[*trustgraph.Part]int
	if len(k.parts) != len(g.Parts) {
		byPart = make(map[*trustgraph.Part]int, len(k.parts))
		for i, part := range k.parts {
			byPart[part] = i
		}
	}
	now := podsMarks{g.Parts, make([]podMarks, len(g.Parts)), true}
	for i, part := range g.Parts {
		m, ok := k.of(i, part, byPart)
		if !ok {
			one := &differ{s: d.s, agents: d.agents, sure: map[string]bool{}}
			for i, p := range part.Pods {
				if err := one.pod(part.Live[i], desired.PodOf(g, p)); err != nil {
					return err
				}
			}
			m = podMarks{one.p.Operations, one.p.Again, one.sure}
		}
		now.marks[i] = m
		if len(m.operations) == 0 && !m.again {
			continue
		}
		now.idle = false
		d.p.Operations = append(d.p.Operations, m.operations...)
		d.p.Again = d.p.Again || m.again
		maps.Copy(d.sure, m.sure)
	}
	*k = now
	return nil
}

// entryGroup is the SPIRE entries of one identity.
type entryGroup struct {
	identity     trustgraph.Identity
	wants, keeps []snapshot.Entry
}

// groups are the SPIRE entries of all identities.
type groups struct {
	identities []trustgraph.Identity
	list       []*entryGroup
	by         map[string]*entryGroup
}

// groupsOf makes the entries of all identities, those again that have changed. Same is true when none
// has, and none has come or gone.
func (k *kept) groupsOf(in desired.Intents) (out []*entryGroup, same bool) {
	had := &k.groups
	if had.by != nil && snapshot.Same(had.identities, in.Identities) {
		return had.list, true
	}
	now := groups{identities: in.Identities, by: make(map[string]*entryGroup, len(in.Identities))}
	same = had.by != nil && len(in.Identities) == len(had.by)
	for _, id := range in.Identities {
		g := had.by[id.Key()]
		if g == nil || !reflect.DeepEqual(g.identity, id) {
			same = false
			g = &entryGroup{identity: id}
			g.wants, g.keeps = registration.Of(in.Config, id)
		}
		now.by[id.Key()] = g
		now.list = append(now.list, g)
	}
	k.groups = now
	return now.list, same
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

// keptEntries compares SPIRE entries, again when one or what is wanted of one has changed.
func (d *differ) keptEntries(in desired.Intents, groups []*entryGroup, same bool) {
	k := &d.k.entries
	bad := d.k.agentsOf(d.s.NodeTrusts).bad
	if !same || d.s.SPIRE == nil || k.spire != d.s.SPIRE || !sameList(k.own, in.OwnEntries) || !snapshot.SameMap(k.bad, bad) && !maps.Equal(k.bad, bad) {
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
	d.rails = append(d.rails, k.rail)
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
	if w.units != nil && equalLists(w.namespaces, g.Namespaces) && (snapshot.SameMap(w.ambient, g.AmbientAccounts) || maps.Equal(w.ambient, g.AmbientAccounts)) &&
		(snapshot.Same(w.policies, g.Policies) || slices.EqualFunc(w.policies, g.Policies, sameRules)) {
		w.policies, w.namespaces, w.ambient = g.Policies, g.Namespaces, g.AmbientAccounts
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

// allObjects are all wanted objects, where none was missing.
type allObjects struct {
	units  []unit
	shared []desired.Object
	list   []desired.Object
}

// objectMarks say of which lists a comparison found nothing to do.
type objectMarks struct {
	idle       bool
	live       []*unstructured.Unstructured
	want       []desired.Object
	namespaces []corev1.Namespace
	// owned counts our objects by namespace, for the rail.
	owned rail
}

func (m *objectMarks) holds(s snapshot.Snapshot, want []desired.Object) bool {
	return m.idle && snapshot.Same(m.live, s.Objects) && snapshot.Same(m.want, want) && snapshot.Same(m.namespaces, s.Namespaces)
}

// note notes that there was nothing to do.
func (m *objectMarks) note(d *differ, want []desired.Object) {
	*m = objectMarks{idle: len(d.p.Operations) == 0 && !d.p.Again && len(d.p.Withheld) == 0 && len(d.p.Missing) == 0,
		live: d.s.Objects, want: want, namespaces: d.s.Namespaces}
	if m.idle {
		m.owned = maps.Clone(d.rail)
	}
}

// wantedObjects compares the objects that are wanted.
func (d *differ) wantedObjects(want []desired.Object) error {
	if d.k.urgent.holds(d.s, want) {
		return nil
	}
	err := d.keptObjects(want)
	if err == nil {
		d.k.urgent.note(d, want)
	}
	return err
}

// everyObject compares all objects, and deletes those that nothing wants.
func (d *differ) everyObject(want []desired.Object) error {
	if len(d.p.Missing) == 0 && d.k.whole.holds(d.s, want) {
		d.rails = append(d.rails, d.k.whole.owned)
		return nil
	}
	if err := d.keptObjects(want); err != nil {
		return err
	}
	d.surplusObjects()
	d.k.whole.note(d, want)
	return nil
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
	return fmt.Sprintf("%d objects, %d nodes, %d namespaces, %d identities", len(k.objects), len(k.nodes.by), len(k.pods.parts), len(k.groups.by))
}
