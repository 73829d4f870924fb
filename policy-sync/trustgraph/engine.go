package trustgraph

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"runtime/debug"
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
// It tells what has changed by identity where the snapshot shares its objects with a cache (pods), by
// UID and resourceVersion (policies, namespaces), and by value (nodes, images). The zero value is ready
// for use. One goroutine uses it.
type Engine struct {
	// Panicked is told of a panic in the judgement of a namespace, and where it was; nil is fine.
	Panicked func(namespace string, value any, stack []byte)

	common     *common
	namespaces map[string]*keptPart
	parts      map[string]*part
	spire      spireFacts
	questions  questions
	addresses  addresses
	ranges     ranges
	byAffinity *blocks
	byCIDR     *blocks
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
}

// policyKey tells one state of a policy from another.
type policyKey struct{ name, uid, version string }

// Build works out the graph of a snapshot. It fails only when no plan may be made from the snapshot.
func (e *Engine) Build(s snapshot.Snapshot) (Graph, error) {
	if err := s.Validate(); err != nil {
		return Graph{}, fmt.Errorf("trustgraph: %w", err)
	}
	s.Config = s.Config.WithDefaults()
	s.Config.ClusterName = s.ClusterName()
	before := e.common
	c := newCommon(s)
	sources, err := sourcesOf(s)
	if err != nil {
		return Graph{}, fmt.Errorf("trustgraph: %w", err)
	}
	if before != nil && !alikeFor(before, c) {
		before = nil
	}
	if before == nil {
		e.forget()
	}
	d := e.changes(before, c, sources)
	e.common, e.parts = c, make(map[string]*part, len(sources))
	for name, from := range sources {
		k := e.namespaces[name]
		if k.part == nil || d.touches(k) || k.stale(c, name, from) {
			k.part, k.at = e.judge(c, name, from), s.At
			k.labels, k.policyKeys = c.labels(name), policyKeys(from.policies)
		}
		k.source = from
		e.parts[name] = k.part
	}
	return e.join(s.SPIRE)
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
	return join(&c, e.parts, &e.spire), nil
}

// forget begins anew.
func (e *Engine) forget() {
	e.namespaces, e.byAffinity, e.byCIDR, e.ranges = map[string]*keptPart{}, nil, nil, ranges{}
	e.addresses = addresses{reporters: map[netip.Addr][]*claim{}, tally: map[string]*votes{}}
}

// judge makes a part. A panic is the failure of its namespace: nothing of it is attested.
func (e *Engine) judge(c *common, namespace string, from source) (out *part) {
	defer func() {
		if p := recover(); p != nil {
			if e.Panicked != nil {
				e.Panicked(namespace, p, debug.Stack())
			}
			out = failedPart(c, namespace, from, p)
		}
	}()
	return newPart(c, namespace, from)
}

// sourcesOf deals a snapshot out to its namespaces.
func sourcesOf(s snapshot.Snapshot) (map[string]source, error) {
	out := map[string]source{}
	for _, pod := range s.Pods {
		of := out[pod.Namespace]
		of.pods = append(of.pods, pod)
		out[pod.Namespace] = of
	}
	for i := range s.Policies {
		of := out[s.Policies[i].Namespace]
		of.policies = append(of.policies, &s.Policies[i])
		out[s.Policies[i].Namespace] = of
	}
	for namespace, had := range s.Attested {
		of := out[namespace]
		of.had = had
		out[namespace] = of
	}
	var problems []error
	for name, of := range out {
		slices.SortFunc(of.pods, func(x, y *corev1.Pod) int { return strings.Compare(x.Name, y.Name) })
		for i := 1; i < len(of.pods); i++ {
			if of.pods[i].Name == of.pods[i-1].Name {
				problems = append(problems, fmt.Errorf("snapshot: Pod %s was read twice", snapshot.Key(of.pods[i])))
			}
		}
		slices.SortFunc(of.policies, func(x, y *v1alpha1.TrustPolicy) int { return strings.Compare(x.Name, y.Name) })
		out[name] = of
	}
	return out, errors.Join(problems...)
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

// changes takes up the snapshot's claims and blocks, and says what has changed with them.
func (e *Engine) changes(before, c *common, sources map[string]source) dirt {
	d := dirt{nodes: map[string]bool{}, touched: map[netip.Addr]bool{}, all: before == nil}
	if before != nil {
		changedNodes(before, c, d.nodes)
	}
	byAffinity, byCIDR, moved := e.index(c, &d)
	a := &e.addresses
	a.c, a.known = c, map[netip.Addr]resolved{}
	c.addresses = a
	for name := range e.namespaces {
		if _, there := sources[name]; !there {
			e.claim(name, nil, &d)
			delete(e.namespaces, name)
		}
	}
	for name, from := range sources {
		k := e.namespaces[name]
		if k == nil {
			k = &keptPart{}
			e.namespaces[name] = k
		}
		if !slices.Equal(k.pods, from.pods) {
			e.claim(name, from.pods, &d)
			k.part = nil
		}
	}
	if moved {
		a.tally = map[string]*votes{}
		for _, k := range e.namespaces {
			for _, one := range k.claims {
				a.count(one, byAffinity, byCIDR, 1)
			}
		}
	}
	a.readNodes(c.s.Nodes)
	e.byAffinity, e.byCIDR = byAffinity, byCIDR
	used := a.blocks
	a.blocks = c.newBlocks(e.ranges, byAffinity, a.tally)
	if used != nil && used.affinities != a.blocks.affinities {
		d.all = true
	}
	if len(d.nodes) > 0 {
		e.touchNodes(before, c, &d)
	}
	return d
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

// touches reports whether a namespace's part rests on something that has changed.
func (d dirt) touches(k *keptPart) bool {
	if d.all {
		return true
	}
	for node := range k.part.nodes {
		if d.nodes[node] {
			return true
		}
	}
	if len(d.touched) == 0 && len(d.within) == 0 {
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

func (d dirt) concerns(addr netip.Addr) bool {
	return d.touched[addr] || slices.ContainsFunc(d.within, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// stale reports whether a namespace's own objects, the answers about its images or the time make
// another part of it.
func (k *keptPart) stale(c *common, namespace string, from source) bool {
	p := k.part
	switch {
	case p.contested, c.s.At.Before(k.at), !p.until.IsZero() && !c.s.At.Before(p.until):
		return true
	case !slices.Equal(k.pods, from.pods), !sameMemory(k.had, from.had):
		return true
	}
	keys := policyKeys(from.policies)
	if !maps.Equal(k.labels, c.labels(namespace)) || !slices.Equal(k.policyKeys, keys) ||
		slices.ContainsFunc(keys, func(p policyKey) bool { return p.version == "" }) {
		return true
	}
	for key, had := range p.images {
		if image, ok := c.s.Images[key]; ok != had.ok || !reflect.DeepEqual(image, had.image) {
			return true
		}
	}
	for asked, had := range p.volumes {
		if c.volumes.Claim(asked.pod, asked.volume) != had {
			return true
		}
	}
	return false
}

// sameMemory reports whether two lists are one.
func sameMemory(x, y []snapshot.Attested) bool {
	return len(x) == len(y) && (len(x) == 0 || &x[0] == &y[0])
}

func policyKeys(policies []*v1alpha1.TrustPolicy) []policyKey {
	out := make([]policyKey, 0, len(policies))
	for _, p := range policies {
		out = append(out, policyKey{p.Name, string(p.UID), p.ResourceVersion})
	}
	return out
}
