package trustgraph

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// boundEntries takes the nodes away from identities that have more SPIRE entries than there is room for. First every namespace is
// bounded by itself; then, if all of them together have too many, the largest namespaces are cut to equal shares, and the others
// keep everything. Within a namespace identities with few entries come first, so that the largest loses.
func (w *whole) boundEntries() {
	w.full, w.entries = map[string]string{}, 0
	wanted := map[string]int{}
	for _, name := range w.order {
		if n := w.parts[name].entries; n > 0 {
			wanted[name] = n
			w.entries += n
		}
	}
	room := shares(wanted, w.s.Config.MaxNamespaceEntries, w.s.Config.MaxEntries)
	for name, all := range wanted {
		if all <= room[name] {
			continue
		}
		identities := slices.Clone(w.parts[name].identities)
		slices.SortFunc(identities, func(x, y Identity) int {
			return cmp.Or(cmp.Compare(x.entries(), y.entries()), cmp.Compare(x.ServiceAccount, y.ServiceAccount))
		})
		for i := range identities {
			id := &identities[i]
			n := id.entries()
			if n <= room[name] {
				room[name] -= n
				continue
			}
			w.full[id.Key()] = fmt.Sprintf("it needs %d SPIRE entries, and namespace %s needs %d in all: more than its share of the %d that a namespace, and the %d that the cluster may have",
				n, id.Namespace, all, w.s.Config.MaxNamespaceEntries, w.s.Config.MaxEntries)
		}
	}
}

func (i Identity) entries() int { return len(i.Nodes) * i.Alternatives() }

// shares divides all among the namespaces: each gets what it wants, up to each and, where that is too much in all, up to an equal
// share of what the smaller ones leave.
func shares(wanted map[string]int, each, all int) map[string]int {
	names := sortedKeys(wanted)
	slices.SortStableFunc(names, func(x, y string) int { return cmp.Compare(wanted[x], wanted[y]) })
	out := make(map[string]int, len(names))
	for i, name := range names {
		out[name] = min(wanted[name], each, all/(len(names)-i))
		all -= out[name]
	}
	return out
}

// spireFacts are what is worked out of one reading of the SPIRE server.
type spireFacts struct {
	read     *snapshot.SPIRE
	issuable issuable
	// by is what the rest was worked out by.
	by ownership
	// own are the IDs of the entries that this cluster's policy-sync made, sorted; foreign the IDs of
	// all others, by SPIFFE ID; left those of an earlier version that nobody claims.
	own     []string
	foreign map[string][]string
	left    []string
}

// ownEntries are the IDs of the live SPIRE entries that this cluster's policy-sync made, sorted. The ID of an entry says which
// cluster's it is. An entry of an earlier version, whose ID says nothing, is this cluster's where it gives an identity of this
// cluster, or is parented to an agent of it, and a node class where all entries under it are. Others may be another cluster's: they
// are left and reported.
func (w *whole) ownEntries() {
	if w.s.SPIRE == nil {
		return
	}
	o := ownership{cluster: w.s.Config.ClusterName, ids: map[string]bool{}, agents: make(map[string]bool, len(w.s.NodeTrusts))}
	for _, name := range w.order {
		for _, id := range w.parts[name].identities {
			o.ids[SPIFFEID(w.s.Config.TrustDomain, id.Namespace, id.ServiceAccount)] = true
		}
	}
	for i := range w.s.NodeTrusts {
		o.agents[w.s.NodeTrusts[i].Spec.AgentID] = true
	}
	f := w.spire
	if by := f.by; f.foreign == nil || by.cluster != o.cluster || !maps.Equal(by.ids, o.ids) || !maps.Equal(by.agents, o.agents) {
		f.divide(o)
	}
	w.own = f.own
	if len(f.left) > 0 {
		w.report("%d SPIRE entries of an earlier version of Keelson give nothing that is recognisably this cluster's (%s the first): they are left as they are; delete them when no other cluster of the SPIRE server needs them",
			len(f.left), slices.Min(f.left))
	}
}

// divide tells this cluster's entries from others.
func (f *spireFacts) divide(o ownership) {
	f.by, f.own, f.left, f.foreign = o, nil, nil, map[string][]string{}
	o.under = map[string]children{}
	for i := range f.read.Entries {
		e := &f.read.Entries[i]
		c := o.under[e.ParentID]
		c.all++
		if !nodeAlias(*e) && o.made(*e) {
			c.own++
		}
		o.under[e.ParentID] = c
	}
	for i := range f.read.Entries {
		e := &f.read.Entries[i]
		if o.made(*e) {
			f.own = append(f.own, e.ID)
			continue
		}
		f.foreign[e.SPIFFEID] = append(f.foreign[e.SPIFFEID], e.ID)
		if cluster, ok := snapshot.EntryCluster(*e); ok && cluster == "" {
			f.left = append(f.left, e.ID)
		}
	}
	slices.Sort(f.own)
}

type ownership struct {
	cluster string
	// ids are the SPIFFE IDs of this cluster's identities, agents those of its nodes.
	ids, agents map[string]bool
	// under counts the entries parented to a SPIFFE ID.
	under map[string]children
}

type children struct{ all, own int }

func (o ownership) made(e snapshot.Entry) bool {
	switch cluster, ok := snapshot.EntryCluster(e); {
	case !ok:
		return false
	case cluster != "":
		return cluster == o.cluster
	case nodeAlias(e):
		c := o.under[e.SPIFFEID]
		return c.all > 0 && c.all == c.own
	default:
		return o.ids[e.SPIFFEID] || o.agents[e.ParentID]
	}
}
