package plan

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/desired"
	"github.com/keelson-project/keelson/policy-sync/registration"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

// entries compares SPIRE entries. An entry's ID says what it is for, so a live one that grants something else than it should is
// changed in place: at once where it grants too much, after what closes where it grants too little.
//
// What is not wanted any more goes in one of two ways. Where another entry that is wanted gives an agent the same or more, the old
// one is only superseded, and goes when the new one stands, so that no identity is taken away in between. Everything else closes,
// and goes at once.
func (d *differ) entries(in desired.Intents, want, keep []snapshot.Entry) {
	if d.s.SPIRE == nil {
		return
	}
	live := map[string]snapshot.Entry{}
	d.own = map[string]bool{}
	for _, id := range in.OwnEntries {
		d.own[id] = true
	}
	for _, e := range want {
		d.own[e.ID] = true // whatever somebody has made of it
	}
	for _, e := range d.s.SPIRE.Entries {
		if d.own[e.ID] {
			live[e.ID] = e
			d.rail.owned(entryNamespace(e))
		}
	}
	wanted := map[string]bool{}
	instead := map[string][]snapshot.Entry{} // by SPIFFE ID
	for _, w := range want {
		wanted[w.ID] = true
		instead[w.SPIFFEID] = append(instead[w.SPIFFEID], w)
		d.entry(live, w)
	}
	for _, k := range keep {
		if _, ok := live[k.ID]; ok {
			wanted[k.ID] = true
			instead[k.SPIFFEID] = append(instead[k.SPIFFEID], k)
			d.entry(live, k)
		}
	}
	d.surplus(in, wanted, instead)
}

// surplus deletes this cluster's live entries that are not wanted.
func (d *differ) surplus(in desired.Intents, wanted map[string]bool, instead map[string][]snapshot.Entry) {
	why := newEntryReasons(d.s, in)
	for _, e := range d.s.SPIRE.Entries {
		if !d.own[e.ID] || wanted[e.ID] {
			continue
		}
		d.rail.delete(entryNamespace(e))
		if registration.IsClass(e) || slices.ContainsFunc(instead[e.SPIFFEID], func(w snapshot.Entry) bool { return supersedes(w, e) }) {
			d.entryOperation(Retire, DeleteEntry, e, false, "entries of the nodes that run the workload stand in its place")
			continue
		}
		reason, proved := why.of(e)
		d.entryOperation(Tighten, DeleteEntry, e, proved, reason)
	}
}

// supersedes reports whether all that the old entry gave to the new one's agent the new one gives as well, so that the old one may
// stay until the new one stands. SPIRE holds one entry for a SPIFFE ID, a parent and selectors, so of two equal ones the old one has
// to go first. An entry under no single agent is one of an earlier version.
func supersedes(w, old snapshot.Entry) bool {
	have := sortedSelectors(old)
	if slices.ContainsFunc(w.Selectors, func(s snapshot.Selector) bool { return !slices.Contains(have, s) }) {
		return false
	}
	if w.ParentID == old.ParentID {
		return len(sortedSelectors(w)) < len(have)
	}
	return !strings.Contains(old.ParentID, "/spire/agent/")
}

// entryReasons says why an entry closes.
type entryReasons struct {
	bad        map[string]string // agent -> the node that is proved bad
	identities map[string]bool   // SPIFFE IDs that policies ask for
}

func newEntryReasons(s snapshot.Snapshot, in desired.Intents) entryReasons {
	out := entryReasons{badAgents(s.NodeTrusts), map[string]bool{}}
	for _, id := range in.Identities {
		if id.Problem == "" {
			out.identities[trustgraph.SPIFFEID(in.Config.TrustDomain, id.Namespace, id.ServiceAccount)] = true
		}
	}
	return out
}

// badAgents are the nodes that are proved bad, by their agents.
func badAgents(trusts []v1alpha1.NodeTrust) map[string]string {
	out := map[string]string{}
	for i := range trusts {
		if t := &trusts[i]; t.Spec.Verdict == v1alpha1.VerdictUntrusted {
			out[t.Spec.AgentID] = t.Name
		}
	}
	return out
}

func (r entryReasons) of(e snapshot.Entry) (reason string, proved bool) {
	if node, ok := r.bad[e.ParentID]; ok {
		return fmt.Sprintf("node %s is proved bad", node), true
	}
	if !r.identities[e.SPIFFEID] {
		return "no policy asks for it any more", false
	}
	return "its node runs no such workload any more, or does not meet what is asked", false
}

func (d *differ) entry(live map[string]snapshot.Entry, w snapshot.Entry) {
	have, ok := live[w.ID]
	if !ok {
		if foreign := d.twin(w); foreign != "" {
			d.withhold("SPIRE entry %s for %s: entry %s, which is not ours, grants the same", w.ID, w.SPIFFEID, foreign)
			return
		}
		d.entryOperation(Program, CreateEntry, w, false, "policies ask for "+w.SPIFFEID)
		return
	}
	others := have.SPIFFEID != w.SPIFFEID || have.ParentID != w.ParentID || have.Extra || have.Admin
	switch before, after := sortedSelectors(have), sortedSelectors(w); {
	case !others && slices.Equal(before, after):
		if have.X509SVIDTTL != w.X509SVIDTTL || have.Hint != w.Hint {
			d.entryOperation(Program, UpdateEntry, w, false, "its lifetime is configured otherwise")
		}
	case !others && !slices.ContainsFunc(after, func(s snapshot.Selector) bool { return !slices.Contains(before, s) }):
		d.entryOperation(Program, UpdateEntry, w, false, "policies ask for less than it does")
	default:
		d.entryOperation(Tighten, UpdateEntry, w, false, "it grants what policies do not")
	}
}

func (d *differ) entryOperation(phase Phase, action Action, e snapshot.Entry, proved bool, reason string) {
	d.add(Operation{Phase: phase, Action: action, Entry: &e, Proved: proved, Domain: entryDomain(e, action, phase), Reason: reason})
}

// twin finds an entry that this cluster did not make with the same ID, parent and selectors: SPIRE refuses a second one.
func (d *differ) twin(w snapshot.Entry) string {
	if d.foreign == nil {
		d.foreign = map[string][]snapshot.Entry{}
		for _, e := range d.s.SPIRE.Entries {
			if !d.own[e.ID] {
				d.foreign[e.SPIFFEID] = append(d.foreign[e.SPIFFEID], e)
			}
		}
	}
	var ids []string
	for _, e := range d.foreign[w.SPIFFEID] {
		if e.ParentID == w.ParentID && slices.Equal(sortedSelectors(e), sortedSelectors(w)) {
			ids = append(ids, e.ID)
		}
	}
	if len(ids) == 0 {
		return ""
	}
	return slices.Min(ids)
}

func sortedSelectors(e snapshot.Entry) []snapshot.Selector {
	out := slices.Clone(e.Selectors)
	slices.SortFunc(out, func(a, b snapshot.Selector) int {
		return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Value, b.Value))
	})
	return slices.Compact(out)
}
