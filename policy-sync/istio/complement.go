package istio

import (
	"slices"

	securityapi "istio.io/api/security/v1beta1"

	"github.com/keelson-project/keelson/policy-sync/desired"
)

// operation is what a flow permits: requests to one of the ports, by one of the methods, to one of the paths. An empty field
// means every one.
type operation struct {
	ports          []int32
	methods, paths []string
}

// permitted are the operations that flows of one principal permit, merged where that loses nothing.
func permitted(flows []desired.Flow) []operation {
	var out []operation
	for _, f := range flows {
		if len(f.HTTP) == 0 {
			out = append(out, operation{ports: union(f.Ports, nil)})
		}
		for _, h := range f.HTTP {
			out = append(out, operation{union(f.Ports, nil), union(h.Methods, nil), union(h.Paths, nil)})
		}
	}
	for merged := true; merged; {
		merged = false
		for i := range out {
			for j := len(out) - 1; j > i; j-- {
				if m, ok := merge(out[i], out[j]); ok {
					out[i], out, merged = m, slices.Delete(out, j, j+1), true
				}
			}
		}
	}
	return out
}

// merge joins two operations that differ in one field at most, or of which one is within the other.
func merge(a, b operation) (operation, bool) {
	ports, methods, paths := slices.Equal(a.ports, b.ports), slices.Equal(a.methods, b.methods), slices.Equal(a.paths, b.paths)
	switch {
	case within(b, a):
		return a, true
	case within(a, b):
		return b, true
	case methods && paths:
		a.ports = either(a.ports, b.ports)
	case ports && paths:
		a.methods = either(a.methods, b.methods)
	case ports && methods:
		a.paths = either(a.paths, b.paths)
	default:
		return operation{}, false
	}
	return a, true
}

func within(a, b operation) bool {
	return part(a.ports, b.ports) && part(a.methods, b.methods) && part(a.paths, b.paths)
}

// part reports whether what a field permits is permitted by another one.
func part[T comparable](a, b []T) bool {
	return len(b) == 0 || len(a) > 0 && !slices.ContainsFunc(a, func(v T) bool { return !slices.Contains(b, v) })
}

// either is what one of two fields permits.
func either[T int32 | string](a, b []T) []T {
	if len(a) == 0 || len(b) == 0 {
		return nil
	}
	return union(a, b)
}

func union[T int32 | string](a, b []T) []T {
	all := slices.Concat(a, b)
	slices.Sort(all)
	return slices.Compact(all)
}

// maxForbidden bounds the operations of one DENY rule. With more, what is denied is all that lies outside of every permitted
// port, method and path, each taken alone.
const maxForbidden = 64

// forbidden is everything that none of the operations permits, as operations of a DENY rule, of which one has to match: that is
// each choice of one field of each permitted operation, whose value the request has not. None means that everything is permitted.
// The HTTP fields count for nothing where a proxy sees TCP alone, so that such a rule denies more there, never less (Istio,
// AuthorizationPolicy reference, "DENY with HTTP-only fields for a TCP port").
func forbidden(ops []operation) []*securityapi.Operation {
	out, ok := complement(ops)
	if !ok {
		all := operation{}
		for i, o := range ops {
			if i == 0 {
				all = o
			}
			all = operation{either(all.ports, o.ports), either(all.methods, o.methods), either(all.paths, o.paths)}
		}
		out, _ = complement([]operation{all})
	}
	var rules []*securityapi.Operation
	for _, o := range out {
		rules = append(rules, &securityapi.Operation{NotPorts: texts(o.ports), NotMethods: o.methods, NotPaths: o.paths})
	}
	return rules
}

// complement is forbidden as values that a request must not have; false when there are too many.
func complement(ops []operation) ([]operation, bool) {
	terms := []operation{{}}
	for _, o := range ops {
		var next []operation
		for _, t := range terms {
			if len(o.ports) > 0 {
				next = append(next, operation{union(t.ports, o.ports), t.methods, t.paths})
			}
			if len(o.methods) > 0 {
				next = append(next, operation{t.ports, union(t.methods, o.methods), t.paths})
			}
			if len(o.paths) > 0 {
				next = append(next, operation{t.ports, t.methods, union(t.paths, o.paths)})
			}
		}
		if terms = widest(next); len(terms) > maxForbidden {
			return nil, false
		}
	}
	return terms, true
}

// widest leaves out terms that match only what another one matches too: those that name more.
func widest(terms []operation) []operation {
	subset := func(a, b operation) bool {
		return all(a.ports, b.ports) && all(a.methods, b.methods) && all(a.paths, b.paths)
	}
	var out []operation
	for i, t := range terms {
		wider := func(j int) bool {
			return j != i && subset(terms[j], t) && (j < i || !subset(t, terms[j]))
		}
		if !slices.ContainsFunc(indices(terms), wider) {
			out = append(out, t)
		}
	}
	return out
}

func indices(terms []operation) []int {
	out := make([]int, len(terms))
	for i := range out {
		out[i] = i
	}
	return out
}

// all reports whether each of a is in b.
func all[T comparable](a, b []T) bool {
	return !slices.ContainsFunc(a, func(v T) bool { return !slices.Contains(b, v) })
}
