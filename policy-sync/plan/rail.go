package plan

import (
	"fmt"
	"slices"
	"strings"
)

// rail is a guard against a reading that is wrong without saying so: a list that came back empty makes everything look
// superfluous. It counts our policies and entries per namespace; the empty name is for what belongs to none. What it holds back
// is what follows from an absence, in that namespace alone: deletes, and labels of pods that no policy selects any more. What follows
// from something that was read passes: updates that tighten, labels of pods that do not meet a policy, taints.
// When most namespaces trip it at once, the reading is likelier to be wrong than they are, and nothing opens either.
type rail map[string]*struct{ owned, deletes int }

func (r rail) at(namespace string) *struct{ owned, deletes int } {
	if r[namespace] == nil {
		r[namespace] = &struct{ owned, deletes int }{}
	}
	return r[namespace]
}

// deletesAny reports whether anything would go.
func (r rail) deletesAny() bool {
	for _, n := range r {
		if n.deletes > 0 {
			return true
		}
	}
	return false
}

func (r rail) owned(namespace string)  { r.at(namespace).owned++ }
func (r rail) delete(namespace string) { r.at(namespace).deletes++ }

// minDeletes is how many deletes pass without the rail: small clusters change by whole percentages all the time.
const minDeletes = 5

// mostNamed is how many namespaces a sentence names.
const mostNamed = 8

// tripped are the namespaces that would lose more than the limit's share of what is theirs, sorted. Everywhere is true when that
// are several, and more than half of all.
func (r rail) tripped(limit int) (names []string, everywhere bool) {
	all := 0
	for namespace, n := range r {
		if namespace != "" && n.owned > 0 {
			all++
		}
		if n.deletes > minDeletes && n.deletes*100 > limit*n.owned {
			names = append(names, namespace)
		}
	}
	slices.Sort(names)
	own := len(names)
	if own > 0 && names[0] == "" {
		own--
	}
	small := 0 // namespaces of a handful of objects that lose all of them
	for namespace, n := range r {
		if namespace != "" && n.deletes <= minDeletes && n.deletes > 0 && n.deletes == n.owned {
			small++
		}
	}
	return names, own+small > 1 && 2*(own+small) > all && (own > 1 || small > minDeletes)
}

// guardDeletes leaves out what the rail holds back.
func (d *differ) guardDeletes() {
	limit := d.s.Config.MaxDeletePercent
	if limit == 0 {
		return
	}
	if !slices.ContainsFunc(append(d.rails, d.rail), rail.deletesAny) {
		return
	}
	sum := rail{}
	for _, r := range append(d.rails, d.rail) {
		for namespace, n := range r {
			at := sum.at(namespace)
			at.owned, at.deletes = at.owned+n.owned, at.deletes+n.deletes
		}
	}
	tripped, everywhere := sum.tripped(limit)
	if len(tripped) == 0 && !everywhere {
		return
	}
	held := 0
	d.p.Operations = d.without(func(o Operation) bool {
		hold := !o.Proved && d.absence(o) && (everywhere || slices.Contains(tripped, namespaceOf(o)))
		if hold {
			held++
		}
		return hold || everywhere && !o.Phase.Closing() && !o.Proved
	})
	d.p.Again = d.p.Again && !everywhere
	where := strings.Join(named(tripped), ", ")
	if everywhere {
		where = "most namespaces at once, so that nothing opens either"
	}
	d.withhold("%d deletes of our policies and entries and removals of labels are held back, since more than %d%% of what is there would go in %s: "+
		"check the reading, or raise the limit", held, limit, where)
}

// absence tells whether an operation follows from something that is not there (any more).
func (d *differ) absence(o Operation) bool {
	return o.Action == Delete || o.Action == DeleteEntry || o.Action == Patch && o.Target.Kind == "Pod" && !d.sure[subject(o)]
}

func namespaceOf(o Operation) string {
	if o.Entry != nil {
		return entryNamespace(*o.Entry)
	}
	return o.Target.Namespace
}

// named are namespaces for a sentence: not all of many.
func named(namespaces []string) []string {
	var out []string
	for _, n := range namespaces[:min(len(namespaces), mostNamed)] {
		if n == "" {
			n = "what belongs to no namespace"
		}
		out = append(out, n)
	}
	if more := len(namespaces) - len(out); more > 0 {
		out = append(out, fmt.Sprintf("%d more", more))
	}
	return out
}
