package trustgraph

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// Engine builds the graphs of one snapshot after another. It keeps, for each namespace, the part of
// the graph that is about it, and makes a part again only when something that it rests on has changed.
// The graph is always the one that Build gives for the same snapshot.
//
// It tells what has changed by identity where the snapshot shares its lists and objects with a cache
// (snapshot.Same), by UID and resourceVersion (policies), and by value (nodes, images). The zero value
// is ready for use. One goroutine uses it.
type Engine struct {
	// Panicked is called for a panic in the judgement of a subject ("namespace shop"), and where it was;
	// nil is fine. The subject is closed, and all others are judged.
	Panicked func(subject string, value any, stack []byte)

	common     *common
	namespaces map[string]*keptPart
	parts      map[string]*part
	// recalled are the namespaces that remember an address.
	recalled   map[netip.Addr][]string
	alone      gathered // the graph without a SPIRE server
	together   gathered // and with one
	spire      spireFacts
	questions  questions
	addresses  addresses
	ranges     ranges
	byAffinity *blocks
	byCIDR     *blocks

	// halfway is true while a graph is made, and after a panic that ended its making.
	halfway bool
	// judging is called with each subject before it is judged. Tests panic in it.
	judging func(subject string)
}

// keptPart is what an Engine keeps of one namespace.
type keptPart struct {
	source
	policyKeys []policyKey
	labels     map[string]string // the namespace's own
	claims     []*claim
	part       *part
	// at is the time of the part.
	at time.Time
	// dirty is true while the part is about objects that have changed.
	dirty bool
}

// policyKey tells one state of a policy from another.
type policyKey struct{ name, uid, version string }

// Build works out the graph of a snapshot. It fails only when no plan may be made from the snapshot.
func (e *Engine) Build(s snapshot.Snapshot) (Graph, error) {
	var last *snapshot.Snapshot
	if e.halfway {
		e.common = nil // nothing that is kept can be relied on
	}
	if e.common != nil {
		last = &e.common.s
	}
	if err := s.ValidateAfter(last); err != nil {
		return Graph{}, fmt.Errorf("trustgraph: %w", err)
	}
	lists, err := s.PodsByNamespace()
	if err != nil {
		return Graph{}, fmt.Errorf("trustgraph: %w", err)
	}
	s.Config = s.Config.WithDefaults()
	s.Config.ClusterName = s.ClusterName()
	e.halfway = true
	before := e.common
	c := before.after(s)
	kept := c != nil
	if !kept {
		c = newCommon(s, confines{e.judging, e.Panicked})
	}
	if before != nil && !kept && !alikeFor(before, c) {
		before = nil
	}
	if before == nil {
		e.forget()
	}
	d := e.changes(before, c, kept, lists)
	e.common = c
	e.remake(before, c, kept, d)
	e.halfway = false
	return e.join(s.SPIRE)
}

// remake makes the parts again that rest on something that has changed.
func (e *Engine) remake(before, c *common, kept bool, d dirt) {
	if !kept {
		e.alone.stale, e.together.stale = true, true
	}
	others := d.others(e)
	var images map[snapshot.ImageKey]bool
	if before != nil {
		images = changedImages(before.s.Images, c.s.Images)
	}
	for name, k := range e.namespaces {
		if k.part != nil && !k.dirty && !others[name] && !d.touches(k) && !k.stale(c, images) {
			continue
		}
		k.part, k.at, k.dirty = e.judge(c, name, k.source), c.s.At, false
		k.labels = c.labels(name)
		e.parts[name] = k.part
		e.changed(name)
	}
}

// changed notes that the part of a namespace is another, or gone.
func (e *Engine) changed(namespace string) {
	e.questions.news[namespace] = true
	for _, j := range []*gathered{&e.alone, &e.together} {
		if !j.stale {
			j.news[namespace] = true
		}
	}
}

// Join is the graph of the snapshot of the last Build, with what a SPIRE server has said since.
func (e *Engine) Join(spire *snapshot.SPIRE) (Graph, error) {
	if e.common == nil {
		return Graph{}, errors.New("trustgraph: no graph has been built")
	}
	return e.join(spire)
}

func (e *Engine) join(spire *snapshot.SPIRE) (Graph, error) {
	if spire != nil && spire != e.spire.read {
		if err := spire.Validate(); err != nil {
			return Graph{}, fmt.Errorf("trustgraph: %w", err)
		}
		e.spire = spireFacts{read: spire, issuable: newIssuable(spire)}
	}
	c := *e.common
	c.s.SPIRE = spire
	j := &e.alone
	if spire != nil {
		j = &e.together
	}
	return j.build(&c, e.parts, &e.spire), nil
}

// forget begins anew.
func (e *Engine) forget() {
	e.namespaces, e.parts, e.recalled = map[string]*keptPart{}, map[string]*part{}, map[netip.Addr][]string{}
	e.byAffinity, e.byCIDR, e.ranges = nil, nil, ranges{}
	e.addresses = addresses{reporters: map[netip.Addr][]*claim{}, tally: map[string]*votes{}}
	e.alone, e.together = gathered{stale: true}, gathered{stale: true}
	e.questions = questions{byNode: map[string]int{}, parts: map[string]*part{}, news: map[string]bool{}}
}

// judge makes a part. A panic is the failure of its namespace: nothing of it is attested.
func (e *Engine) judge(c *common, namespace string, from source) (out *part) {
	c.confine("namespace "+namespace, func() { out = newPart(c, namespace, from) }, func(p any) { out = failedPart(c, namespace, from, p) })
	return out
}

// policiesOf deals policies out to their namespaces, each list sorted by name.
func policiesOf(policies []v1alpha1.TrustPolicy) map[string][]*v1alpha1.TrustPolicy {
	out := map[string][]*v1alpha1.TrustPolicy{}
	for i := range policies {
		out[policies[i].Namespace] = append(out[policies[i].Namespace], &policies[i])
	}
	for _, list := range out {
		slices.SortFunc(list, func(x, y *v1alpha1.TrustPolicy) int { return strings.Compare(x.Name, y.Name) })
	}
	return out
}

// alikeFor reports whether what every part rests on is the same: the configuration, which namespaces
// are enrolled, what nodes could match.
func alikeFor(before, now *common) bool {
	return reflect.DeepEqual(before.s.Config, now.s.Config) && maps.Equal(before.modes, now.modes) &&
		slices.Equal(before.enrolled, now.enrolled) && reflect.DeepEqual(before.classes, now.classes) &&
		before.s.InheritUntil.Equal(now.s.InheritUntil) && slices.Equal(before.s.ServiceCIDRs, now.s.ServiceCIDRs) &&
		slices.Equal(before.s.Pools, now.s.Pools) && (before.s.Pools == nil) == (now.s.Pools == nil) &&
		(before.volumes == nil) == (now.volumes == nil) && (len(before.nodes) == 0) == (len(now.nodes) == 0) && len(before.s.ServiceCIDRs) == len(now.s.ServiceCIDRs)
}

// dirt is what has changed since the graph before, apart from the namespaces' own objects.
type dirt struct {
	// all is true when every part is made again.
	all bool
	// nodes have another verdict, another object or other addresses.
	nodes map[string]bool
	// touched are addresses that somebody else reports now, or does not report any more; within are
	// ranges whose addresses may be somebody else's now.
	touched map[netip.Addr]bool
	within  []netip.Prefix
}

// changes takes up the snapshot's claims and blocks, and says what has changed with them. Kept is true
// where all that namespaces have in common is as it was.
func (e *Engine) changes(before, c *common, kept bool, lists map[string][]*corev1.Pod) dirt {
	d := dirt{nodes: map[string]bool{}, touched: map[netip.Addr]bool{}, all: before == nil}
	if before != nil && !kept {
		changedNodes(before, c, d.nodes)
	}
	byAffinity, byCIDR, moved := e.byAffinity, e.byCIDR, false
	if !kept {
		byAffinity, byCIDR, moved = e.index(c, &d)
	}
	a := &e.addresses
	a.c, a.known, a.swung = c, map[netip.Addr]resolved{}, false
	c.addresses = a
	e.sources(before, c, lists, &d)
	if moved {
		a.tally = map[string]*votes{}
		for _, k := range e.namespaces {
			for _, one := range k.claims {
				a.count(one, byAffinity, byCIDR, 1)
			}
		}
	}
	e.byAffinity, e.byCIDR = byAffinity, byCIDR
	if kept && !a.swung {
		return d // the blocks are those of the graph before, and so is whose word counts
	}
	a.readNodes(c.s.Nodes)
	used := a.blocks
	a.blocks = c.newBlocks(e.ranges, byAffinity, a.tally)
	if used != nil && used.affinities != a.blocks.affinities {
		d.all = true
		e.alone.stale, e.together.stale = true, true
	}
	if len(d.nodes) > 0 {
		e.touchNodes(before, c, &d)
	}
	return d
}

// sources takes up what each namespace has, and marks those that have something else than before.
func (e *Engine) sources(before, c *common, lists map[string][]*corev1.Pod, d *dirt) {
	var last snapshot.Snapshot
	if before != nil {
		last = before.s
	}
	less := e.takePods(&c.s, last.PodLists, lists, d)
	if before == nil || !snapshot.Same(last.Policies, c.s.Policies) {
		less = e.takePolicies(c.s.Policies) || less
	}
	if before == nil || !snapshot.SameMap(last.Attested, c.s.Attested) {
		less = e.takeMemory(c.s.Attested) || less
	}
	if before == nil || !snapshot.Same(last.Namespaces, c.s.Namespaces) {
		for name, k := range e.namespaces {
			k.dirty = k.dirty || !maps.Equal(k.labels, c.labels(name))
		}
	}
	if !less {
		return
	}
	for name, k := range e.namespaces {
		if k.pods == nil && k.policies == nil && k.had == nil {
			delete(e.namespaces, name)
			delete(e.parts, name)
			e.changed(name)
		}
	}
}

// kept finds what is kept of a namespace, or begins it.
func (e *Engine) kept(namespace string) *keptPart {
	k := e.namespaces[namespace]
	if k == nil {
		k = &keptPart{dirty: true}
		e.namespaces[namespace] = k
	}
	return k
}

// takePods takes up the lists of pods. Like takePolicies and takeMemory it reports whether a namespace
// has none any more.
func (e *Engine) takePods(s *snapshot.Snapshot, before, lists map[string][]*corev1.Pod, d *dirt) (less bool) {
	take := func(name string) {
		pods, k := lists[name], e.kept(name)
		if !snapshot.Same(k.pods, pods) && !slices.Equal(k.pods, pods) {
			k.dirty = true
			e.claim(name, pods, d)
		}
		k.pods = pods
		less = less || pods == nil
	}
	if names, known := s.ChangedPods(before); known {
		for _, name := range names {
			take(name)
		}
		return less
	}
	for name := range lists {
		take(name)
	}
	for name := range e.namespaces {
		if _, there := lists[name]; !there {
			take(name)
		}
	}
	return less
}

func (e *Engine) takePolicies(policies []v1alpha1.TrustPolicy) (less bool) {
	lists := policiesOf(policies)
	for name := range lists {
		e.kept(name)
	}
	for name, k := range e.namespaces {
		k.policies = lists[name]
		keys := policyKeys(k.policies)
		k.dirty = k.dirty || !slices.Equal(k.policyKeys, keys) || slices.ContainsFunc(keys, func(p policyKey) bool { return p.version == "" })
		k.policyKeys = keys
		less = less || k.policies == nil
	}
	return less
}

func (e *Engine) takeMemory(memory snapshot.Memory) (less bool) {
	for name := range memory {
		e.kept(name)
	}
	for name, k := range e.namespaces {
		had := memory[name]
		if !sameMemory(k.had, had) {
			e.recall(name, k.had, had)
			k.dirty = true
		}
		if len(had) == 0 {
			had = nil
		}
		k.had = had
		less = less || had == nil
	}
	return less
}

// recall replaces what a namespace remembers in the index of addresses.
func (e *Engine) recall(namespace string, before, now []snapshot.Attested) {
	for _, a := range before {
		for _, addr := range a.Addresses {
			if list := slices.DeleteFunc(e.recalled[addr], func(n string) bool { return n == namespace }); len(list) > 0 {
				e.recalled[addr] = list
			} else {
				delete(e.recalled, addr)
			}
		}
	}
	for _, a := range now {
		for _, addr := range a.Addresses {
			if !slices.Contains(e.recalled[addr], namespace) {
				e.recalled[addr] = append(e.recalled[addr], namespace)
			}
		}
	}
}

// index reads the blocks, and says whether another node has one now.
func (e *Engine) index(c *common, d *dirt) (byAffinity, byCIDR *blocks, moved bool) {
	now := c.believedRanges()
	moved = e.byCIDR == nil || !reflect.DeepEqual(now.cidrs, e.ranges.cidrs) || !reflect.DeepEqual(now.affinities, e.ranges.affinities)
	if moved {
		d.within = append(d.within, differing(e.ranges.cidrs, now.cidrs, d.nodes)...)
		d.within = append(d.within, differing(e.ranges.affinities, now.affinities, d.nodes)...)
	}
	e.ranges = now
	return c.index(now.affinities), c.index(now.cidrs), moved
}

// differing are the prefixes of nodes that have others than before. It adds these nodes.
func differing(before, now map[string][]netip.Prefix, nodes map[string]bool) []netip.Prefix {
	var out []netip.Prefix
	for _, pair := range [][2]map[string][]netip.Prefix{{before, now}, {now, before}} {
		for node, list := range pair[0] {
			if !slices.Equal(list, pair[1][node]) {
				nodes[node] = true
				out = append(out, list...)
			}
		}
	}
	return out
}

// claim replaces the claims of a namespace. Addresses about which these say something else are touched.
func (e *Engine) claim(namespace string, pods []*corev1.Pod, d *dirt) {
	k := e.namespaces[namespace]
	before := make(map[string]*claim, len(k.claims))
	for _, c := range k.claims {
		before[c.key] = c
	}
	now := make([]*claim, 0, len(pods))
	for _, pod := range pods {
		c := claimOf(pod)
		if c == nil {
			continue
		}
		if had := before[c.key]; had != nil && had.equal(c) {
			delete(before, c.key)
			now = append(now, had)
			continue
		}
		now = append(now, c)
		e.enter(c, true, d)
	}
	for _, gone := range before {
		e.enter(gone, false, d)
	}
	k.claims = now
}

// enter adds a claim, or takes it away.
func (e *Engine) enter(c *claim, come bool, d *dirt) {
	for _, addr := range c.addresses {
		d.touched[addr] = true
	}
	by := 1
	if come {
		e.addresses.add(c)
	} else {
		e.addresses.remove(c)
		by = -1
	}
	if e.byCIDR != nil {
		e.addresses.count(c, e.byAffinity, e.byCIDR, by)
	}
}

// changedNodes adds the nodes that are another now.
func changedNodes(before, now *common, out map[string]bool) {
	for name, n := range now.nodes {
		if had, ok := before.nodes[name]; !ok || !reflect.DeepEqual(had, n) || before.causes[name] != now.causes[name] || before.platforms[name] != now.platforms[name] {
			out[name] = true
		}
	}
	for name := range before.nodes {
		if _, ok := now.nodes[name]; !ok {
			out[name] = true
		}
	}
	for _, pair := range [][2]map[string]string{{before.causes, now.causes}, {now.causes, before.causes}} {
		for name, cause := range pair[0] {
			if pair[1][name] != cause {
				out[name] = true
			}
		}
	}
	addresses := func(c *common) map[string][]corev1.NodeAddress {
		of := make(map[string][]corev1.NodeAddress, len(c.s.Nodes))
		for i := range c.s.Nodes {
			of[c.s.Nodes[i].Name] = c.s.Nodes[i].Status.Addresses
		}
		return of
	}
	had := addresses(before)
	for name, list := range addresses(now) {
		if !slices.Equal(list, had[name]) {
			out[name] = true
		}
	}
}

// touchNodes touches what nodes that have changed say and have: addresses that their pods report, their
// own, and their blocks.
func (e *Engine) touchNodes(before, now *common, d *dirt) {
	for _, k := range e.namespaces {
		for _, c := range k.claims {
			if !d.nodes[c.node] {
				continue
			}
			for _, addr := range c.addresses {
				d.touched[addr] = true
			}
		}
	}
	for _, c := range []*common{before, now} {
		if c == nil {
			continue
		}
		for i := range c.s.Nodes {
			for _, reported := range c.s.Nodes[i].Status.Addresses {
				if addr, err := netip.ParseAddr(reported.Address); err == nil && d.nodes[c.s.Nodes[i].Name] {
					d.touched[addr.Unmap()] = true
				}
			}
		}
	}
	for node := range d.nodes {
		d.within = append(append(d.within, e.ranges.cidrs[node]...), e.ranges.affinities[node]...)
	}
}

// others are the namespaces that claim or remember an address that is touched.
func (d dirt) others(e *Engine) map[string]bool {
	out := map[string]bool{}
	for addr := range d.touched {
		for _, c := range e.addresses.reporters[addr] {
			out[c.namespace] = true
		}
		for _, name := range e.recalled[addr] {
			out[name] = true
		}
	}
	return out
}

// touches reports whether a namespace's part rests on something that has changed, apart from single
// addresses.
func (d dirt) touches(k *keptPart) bool {
	if d.all {
		return true
	}
	if len(d.nodes) > 0 {
		for node := range k.part.nodes {
			if d.nodes[node] {
				return true
			}
		}
	}
	if len(d.within) == 0 {
		return false
	}
	for _, c := range k.claims {
		if slices.ContainsFunc(c.addresses, d.concerns) {
			return true
		}
	}
	for _, a := range k.had {
		if slices.ContainsFunc(a.Addresses, d.concerns) {
			return true
		}
	}
	return false
}

// concerns reports whether an address lies in a range that may be another node's now.
func (d dirt) concerns(addr netip.Addr) bool {
	return slices.ContainsFunc(d.within, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// stale reports whether the answers about a namespace's images, its claims or the time make another
// part of it. Images are those of which there is another answer.
func (k *keptPart) stale(c *common, images map[snapshot.ImageKey]bool) bool {
	p := k.part
	if p.contested || c.s.At.Before(k.at) || !p.until.IsZero() && !c.s.At.Before(p.until) {
		return true
	}
	if len(images) > 0 {
		for key := range p.images {
			if images[key] {
				return true
			}
		}
	}
	if c.volumes == p.volumesFrom {
		return false
	}
	for asked, had := range p.volumes {
		if c.volumes.Claim(asked.pod, asked.volume) != had {
			return true
		}
	}
	return false
}

// changedImages are the images about which there is another answer than before, or one where there was
// none, or none any more.
func changedImages(before, now map[snapshot.ImageKey]snapshot.Image) map[snapshot.ImageKey]bool {
	if snapshot.SameMap(before, now) {
		return nil
	}
	out := map[snapshot.ImageKey]bool{}
	for key, image := range now {
		if had, ok := before[key]; !ok || !had.Equal(image) {
			out[key] = true
		}
	}
	for key := range before {
		if _, ok := now[key]; !ok {
			out[key] = true
		}
	}
	return out
}

// sameMemory reports whether two lists are one.
func sameMemory(x, y []snapshot.Attested) bool { return snapshot.Same(x, y) }

func policyKeys(policies []*v1alpha1.TrustPolicy) []policyKey {
	out := make([]policyKey, 0, len(policies))
	for _, p := range policies {
		out = append(out, policyKey{p.Name, string(p.UID), p.ResourceVersion})
	}
	return out
}
