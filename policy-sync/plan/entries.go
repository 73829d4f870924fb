package plan

import (
	"cmp"
	"slices"

	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// entries compares SPIRE entries by ID. An ID is a hash of what the entry grants, so a
// live entry of a wanted ID that grants something else was changed by hand and is put
// right at once; otherwise only lifetimes can differ.
func (d *differ) entries(want []snapshot.Entry) {
	if d.s.SPIRE == nil {
		return
	}
	live := map[string]snapshot.Entry{}
	for _, e := range d.s.SPIRE.Entries {
		if snapshot.OwnedEntry(e) {
			live[e.ID] = e
			d.owned++
		}
	}
	wanted := map[string]bool{}
	for _, w := range want {
		wanted[w.ID] = true
		d.entry(live, w)
	}
	for _, e := range d.s.SPIRE.Entries {
		if !snapshot.OwnedEntry(e) || wanted[e.ID] {
			continue
		}
		d.deletes++
		d.add(Operation{Phase: Tighten, Action: DeleteEntry, Entry: &e, Reason: "no policy asks for it any more"})
	}
}

func (d *differ) entry(live map[string]snapshot.Entry, w snapshot.Entry) {
	have, ok := live[w.ID]
	switch {
	case !ok:
		if foreign := d.twin(w); foreign != "" {
			d.withhold("SPIRE entry %s for %s: entry %s, which is not ours, grants the same", w.ID, w.SPIFFEID, foreign)
			return
		}
		d.add(Operation{Phase: Program, Action: CreateEntry, Entry: &w, Reason: "policies ask for " + w.SPIFFEID})
	case have.SPIFFEID != w.SPIFFEID || have.ParentID != w.ParentID || have.Extra || !slices.Equal(sortedSelectors(have), sortedSelectors(w)):
		d.add(Operation{Phase: Tighten, Action: UpdateEntry, Entry: &w, Reason: "it was changed by somebody else"})
	case have.X509SVIDTTL != w.X509SVIDTTL || have.Hint != w.Hint:
		d.add(Operation{Phase: Program, Action: UpdateEntry, Entry: &w, Reason: "its lifetime is configured otherwise"})
	}
}

// twin finds a stranger's entry with the same ID, parent and selectors: SPIRE refuses a
// second one.
func (d *differ) twin(w snapshot.Entry) string {
	var ids []string
	for _, e := range d.s.SPIRE.Entries {
		if !snapshot.OwnedEntry(e) && e.SPIFFEID == w.SPIFFEID && e.ParentID == w.ParentID && slices.Equal(sortedSelectors(e), sortedSelectors(w)) {
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
