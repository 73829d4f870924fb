package trustgraph

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// gathered is the last graph of all parts together. Where a part has changed in nothing that concerns
// other namespaces, only that namespace's place in the graph is made again. All lists of a graph that
// was given out stay as they are.
type gathered struct {
	// stale is true when the graph has to be made from all parts.
	stale bool
	// news are namespaces whose part may be another.
	news  map[string]bool
	whole *whole
	graph Graph
	wides []*wide // in the order of the graph's parts
	// at is a namespace's place among the parts; policies and identities are where its own begin.
	at                   map[string]int
	policies, identities []int
	// remembered counts what all namespaces remember; cut is true when that was too much.
	remembered int
	cut        bool
}

// build returns the graph.
func (j *gathered) build(c *common, parts map[string]*part, spire *spireFacts) Graph {
	if j.stale || j.whole.s.SPIRE != c.s.SPIRE || !snapshot.Same(j.whole.s.Objects, c.s.Objects) || !j.fits(c, parts) {
		*j = gathered{stale: true}
		j.join(newWhole(c, parts, spire))
	} else {
		j.stale = true // until it is done
		j.patch(c, parts)
	}
	j.stale = false
	return j.graph
}

// fits reports whether what has changed concerns no other namespace.
func (j *gathered) fits(c *common, parts map[string]*part) bool {
	entries, remembered := j.whole.entries, j.remembered
	for name := range j.news {
		i, there := j.at[name]
		now := parts[name]
		if !there || now == nil {
			return false
		}
		had := j.wides[i].from
		if had == now {
			continue
		}
		if !had.concernsOthersAs(now) || len(j.whole.full) > 0 || now.entries > c.s.Config.MaxNamespaceEntries {
			return false
		}
		entries += now.entries - had.entries
		if !sameMemory(had.attested, now.attested) {
			remembered += len(now.attested) - len(had.attested)
			if j.cut || remembered > maxRemembered {
				return false
			}
		}
	}
	return entries <= c.s.Config.MaxEntries
}

// concernsOthersAs reports whether two parts of one namespace are the same to all other namespaces.
func (p *part) concernsOthersAs(o *part) bool {
	sameID := func(x, y Identity) bool { return x.ServiceAccount == y.ServiceAccount }
	return slices.EqualFunc(p.policies, o.policies, sameToOthers) && slices.EqualFunc(p.identities, o.identities, sameID) &&
		maps.Equal(p.runs, o.runs) && maps.Equal(p.ambientAccounts, o.ambientAccounts) && slices.Equal(p.reports, o.reports) &&
		slices.Equal(p.revoked, o.revoked) && maps.EqualFunc(p.disbelieved, o.disbelieved, slices.Equal)
}

// sameToOthers reports whether two states of a policy let in the same callers to the same accounts.
func sameToOthers(x, y Policy) bool {
	return x.Name == y.Name && x.Accepted == y.Accepted && x.Mode == y.Mode && slices.Equal(x.ServiceAccounts, y.ServiceAccounts) &&
		reflect.DeepEqual(x.Spec.Ingress, y.Spec.Ingress)
}

// join makes the graph of all parts.
func (j *gathered) join(w *whole) {
	g := Graph{At: w.s.At, Config: w.s.Config, SPIRERead: w.s.SPIRE != nil, Namespaces: w.enrolled, Nodes: w.nodeList, NodeTrusts: w.states,
		Attested: snapshot.Memory{}, AmbientAccounts: map[string]bool{}, Evict: w.evict, OwnEntries: w.own}
	var reports []string
	j.whole, j.news, j.at = w, map[string]bool{}, make(map[string]int, len(w.order))
	for i, name := range w.order {
		p, of := w.parts[name], w.widen(name)
		j.at[name], j.wides = i, append(j.wides, of)
		j.policies, j.identities = append(j.policies, len(g.Policies)), append(j.identities, len(g.Identities))
		g.Parts, g.ByNamespace = append(g.Parts, p.public), append(g.ByNamespace, of.policies)
		g.Policies, g.Identities = append(g.Policies, of.policies...), append(g.Identities, of.identities...)
		g.Revoked = append(g.Revoked, p.revoked...)
		reports = append(reports, p.reports...)
		if len(p.attested) > 0 {
			g.Attested[name] = p.attested
		}
		for account := range p.ambientAccounts {
			g.AmbientAccounts[name+"/"+account] = true
		}
	}
	j.remembered = g.Attested.Count()
	if j.cut = j.remembered > maxRemembered; j.cut {
		g.Attested = boundMemory(g.Attested)
	}
	g.Revoked = inOrderOnce(g.Revoked)
	if len(g.Revoked) > MaxRevoked {
		reports = append(reports, fmt.Sprintf("more than %d addresses are revoked, the most that %d sets hold: the last set takes the rest, the API may refuse it, and keelson-node ends the connections of %d: "+
			"take the machines that are proved bad out of the cluster", MaxRevoked, v1alpha1.MaxRevokedSets, MaxRevoked))
	}
	g.Reports = sorted(slices.Concat(w.common.reports, w.reports, reports))
	j.graph = g
}

// inOrderOnce sorts revoked addresses, and leaves one record of each.
func inOrderOnce(list []Revoked) []Revoked {
	slices.SortFunc(list, func(x, y Revoked) int {
		return cmp.Or(cmp.Compare(x.Address, y.Address), cmp.Compare(x.Reason, y.Reason), cmp.Compare(x.Node, y.Node))
	})
	return slices.CompactFunc(list, func(x, y Revoked) bool { return x.Address == y.Address })
}

// patch makes the places of the namespaces again whose parts are others.
func (j *gathered) patch(c *common, parts map[string]*part) {
	g := &j.graph
	j.whole.common, j.whole.parts = c, parts
	g.At, g.Config, g.NodeTrusts = c.s.At, c.s.Config, c.states
	var copied struct{ parts, policies, lists, identities, attested bool }
	for name := range j.news {
		i, now := j.at[name], parts[name]
		was := j.wides[i]
		if was.from == now {
			continue
		}
		of := j.whole.widen(name)
		j.wides[i] = of
		set(&g.Parts, &copied.parts, i, []*Part{now.public})
		if reflect.DeepEqual(was.policies, of.policies) {
			of.policies = was.policies
		} else {
			set(&g.Policies, &copied.policies, j.policies[i], of.policies)
			set(&g.ByNamespace, &copied.lists, i, [][]Policy{of.policies})
		}
		if reflect.DeepEqual(was.identities, of.identities) {
			of.identities = was.identities
		} else {
			set(&g.Identities, &copied.identities, j.identities[i], of.identities)
		}
		j.remember(name, was.from.attested, now.attested, &copied.attested)
	}
	clear(j.news)
}

// remember replaces what a namespace remembers.
func (j *gathered) remember(namespace string, had, now []snapshot.Attested, copied *bool) {
	if sameMemory(had, now) {
		return
	}
	g := &j.graph
	if !*copied {
		g.Attested, *copied = maps.Clone(g.Attested), true
	}
	j.remembered += len(now) - len(had)
	if g.Attested[namespace] = now; len(now) == 0 {
		delete(g.Attested, namespace)
	}
}

// set replaces elements of a list, in a copy of it that is made once.
func set[T any](list *[]T, copied *bool, at int, now []T) {
	if !*copied {
		*list, *copied = slices.Clone(*list), true
	}
	copy((*list)[at:], now)
}
