package trustgraph

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// common is what the judgements of all namespaces rest on: namespaces' modes, nodes' verdicts, and
// whose an address is. It says nothing about any policy or pod.
type common struct {
	confines
	s snapshot.Snapshot
	// namespaces are all, by name; modes those that are enrolled; enrolled the same, sorted.
	namespaces map[string]*corev1.Namespace
	modes      map[string]string
	enrolled   []Namespace
	nodes      map[string]Node
	nodeList   []Node
	states     []NodeTrustState
	// platforms are the nodes' own, by name.
	platforms map[string]string
	// causes say why the pods of a node are cut off; see lost.
	causes map[string]string
	// classes are the reference sets that nodes match (by ""), and the values of each of their tags.
	classes map[string][]string
	// volumes say what claims are; nil where the snapshot has none.
	volumes *volumeIndex
	// addresses say whose an address is.
	addresses *addresses
	reports   []string
	// nextVerdict is the first moment at which a verdict changes by itself; zero for never.
	nextVerdict time.Time
}

// newCommon judges namespaces and nodes. Addresses are added by the caller.
func newCommon(s snapshot.Snapshot, by confines) *common {
	c := &common{confines: by, s: s, modes: map[string]string{}, namespaces: map[string]*corev1.Namespace{}, platforms: snapshot.Platforms(s.Nodes)}
	c.buildNamespaces()
	c.buildNodes()
	c.causes = c.lost()
	c.classes = c.nodeClasses()
	c.volumes = newVolumeIndex(s.Volumes)
	c.nextVerdict = c.verdictChangesAt()
	return c
}

// after is what holds for a later snapshot in which all that common says is as it was; nil where
// something may be otherwise.
func (c *common) after(s snapshot.Snapshot) *common {
	if c == nil {
		return nil
	}
	had := &c.s
	if s.At.Before(had.At) || !c.nextVerdict.IsZero() && !s.At.Before(c.nextVerdict) || !s.InheritUntil.Equal(had.InheritUntil) ||
		!snapshot.Same(s.Nodes, had.Nodes) || !snapshot.Same(s.NodeTrusts, had.NodeTrusts) || !snapshot.Same(s.Namespaces, had.Namespaces) ||
		!snapshot.Same(s.ServiceCIDRs, had.ServiceCIDRs) || !snapshot.Same(s.Pools, had.Pools) || (s.Pools == nil) != (had.Pools == nil) ||
		!snapshot.SameMap(s.Blocks, had.Blocks) || s.Volumes != had.Volumes || !reflect.DeepEqual(s.Config, had.Config) {
		return nil
	}
	out := *c
	if out.s = s; len(out.states) > 0 {
		out.states = nil
		out.stateNodeTrusts() // a status says since when, which is now until it is written
	}
	return &out
}

// verdictChangesAt is the first moment after the snapshot at which judge says something else of a node.
func (c *common) verdictChangesAt() time.Time {
	var first time.Time
	for i := range c.s.NodeTrusts {
		t := &c.s.NodeTrusts[i].Spec
		for _, at := range []time.Time{t.AttestedAt.Add(-MaxSkew), t.ValidUntil.Time, t.ValidUntil.Add(c.s.Config.MaxHold)} {
			if at.After(c.s.At) && (first.IsZero() || at.Before(first)) {
				first = at
			}
		}
	}
	return first
}

func (c *common) report(format string, args ...any) {
	c.reports = append(c.reports, fmt.Sprintf(format, args...))
}

func (c *common) buildNamespaces() {
	for i := range c.s.Namespaces {
		ns := &c.s.Namespaces[i]
		c.namespaces[ns.Name] = ns
		mode, ok := ns.Labels[v1alpha1.ModeLabel]
		switch {
		case !ok:
			continue
		case mode != v1alpha1.ModeEnforce && mode != v1alpha1.ModeAudit:
			c.report("namespace %s: %s is %q, which is neither %s nor %s: it is not enrolled", ns.Name, v1alpha1.ModeLabel, mode, v1alpha1.ModeEnforce, v1alpha1.ModeAudit)
			continue
		}
		c.modes[ns.Name] = mode
		c.enrolled = append(c.enrolled, Namespace{Name: ns.Name, Mode: mode, Ambient: c.ambient(ns.Name)})
	}
	slices.SortFunc(c.enrolled, func(x, y Namespace) int { return cmp.Compare(x.Name, y.Name) })
}

// labels are a namespace's own.
func (c *common) labels(namespace string) map[string]string {
	if ns := c.namespaces[namespace]; ns != nil {
		return ns.Labels
	}
	return nil
}

// ambient reports whether Istio's ambient mode serves an enrolled namespace.
func (c *common) ambient(namespace string) bool {
	ns := c.namespaces[namespace]
	return ns != nil && c.modes[namespace] != "" && ns.Labels[dataplaneLabel] == "ambient"
}

// nodeClasses collects what NodeTrusts say of nodes, whatever their verdict is now, so that an outage
// changes nothing.
func (c *common) nodeClasses() map[string][]string {
	out := map[string][]string{}
	seen := map[[2]string]bool{}
	add := func(key, value string) {
		if at := [2]string{key, value}; !seen[at] {
			seen[at] = true
			out[key] = append(out[key], value)
		}
	}
	for i := range c.s.NodeTrusts {
		t := &c.s.NodeTrusts[i].Spec
		if t.Reference != "" {
			add("", t.Reference)
		}
		for k, v := range t.Tags {
			add(k, v)
		}
	}
	for k := range out {
		slices.Sort(out[k])
	}
	return out
}
