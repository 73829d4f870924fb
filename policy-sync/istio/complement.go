package istio

import (
	"fmt"
	"math/bits"
	"slices"

	securityapi "istio.io/api/security/v1beta1"

	"github.com/keelson-project/keelson/policy-sync/desired"
)

// operation is what a flow permits: requests to one of the ports, by one of the methods, to one of the paths. An empty field
// means every one. Its lists are sorted.
type operation struct {
	ports          []int32
	methods, paths []string
}

// permitted returns the operations that flows of one principal permit, merged where that loses nothing. Its time is n log n in
// the length of the flows, because a list of HTTP rules that many flows share counts once.
func permitted(flows []desired.Flow) []operation {
	var ops []operation
	seen := map[string]bool{}
	for _, f := range flows {
		if key := flowKey(f); seen[key] {
			continue
		} else {
			seen[key] = true
		}
		if len(f.HTTP) == 0 {
			ops = append(ops, operation{ports: union(f.Ports, nil)})
		}
		for _, h := range f.HTTP {
			ops = append(ops, operation{union(f.Ports, nil), union(h.Methods, nil), union(h.Paths, nil)})
		}
	}
	return merged(ops)
}

// flowKey is the same for flows with the same ports and the same list of HTTP rules. The address of that list stands for its
// content: flows of one rule share it.
func flowKey(f desired.Flow) string {
	if len(f.HTTP) == 0 {
		return fmt.Sprint(f.Ports)
	}
	return fmt.Sprintf("%v %p %d", f.Ports, &f.HTTP[0], len(f.HTTP))
}

// merged joins operations that differ in one field alone, until that joins nothing more or has been tried often enough.
func merged(ops []operation) []operation {
	for range 8 {
		before := len(ops)
		ops = joinBy(ops, func(o operation) string { return fmt.Sprintf("%v %q", o.ports, o.methods) },
			func(a, b operation) operation { a.paths = either(a.paths, b.paths); return a })
		ops = joinBy(ops, func(o operation) string { return fmt.Sprintf("%v %q", o.ports, o.paths) },
			func(a, b operation) operation { a.methods = either(a.methods, b.methods); return a })
		ops = joinBy(ops, func(o operation) string { return fmt.Sprintf("%q %q", o.methods, o.paths) },
			func(a, b operation) operation { a.ports = either(a.ports, b.ports); return a })
		if len(ops) <= maxForbidden {
			ops = widestOperations(ops)
		}
		if len(ops) == before {
			break
		}
	}
	return ops
}

// joinBy joins operations with the same key, in the order of the first of each. Lists are concatenated as a tree, so that
// joining n of them sorts each value log n times at most.
func joinBy(ops []operation, key func(operation) string, join func(a, b operation) operation) []operation {
	groups := map[string][]operation{}
	var order []string
	for _, o := range ops {
		k := key(o)
		if groups[k] == nil {
			order = append(order, k)
		}
		groups[k] = append(groups[k], o)
	}
	out := make([]operation, 0, len(order))
	for _, k := range order {
		g := groups[k]
		for len(g) > 1 {
			var next []operation
			for i := 0; i < len(g); i += 2 {
				if i+1 < len(g) {
					next = append(next, join(g[i], g[i+1]))
				} else {
					next = append(next, g[i])
				}
			}
			g = next
		}
		out = append(out, g[0])
	}
	return out
}

// widestOperations leaves out operations that another one permits whole.
func widestOperations(ops []operation) []operation {
	var out []operation
	for i, o := range ops {
		wider := false
		for j, other := range ops {
			wider = wider || i != j && within(o, other) && (j < i || !within(other, o))
		}
		if !wider {
			out = append(out, o)
		}
	}
	return out
}

func within(a, b operation) bool {
	return part(a.ports, b.ports) && part(a.methods, b.methods) && part(a.paths, b.paths)
}

// part reports whether what a field permits is permitted by another one.
func part[T int32 | string](a, b []T) bool { return len(b) == 0 || len(a) > 0 && subset(a, b) }

// subset reports whether each value of a sorted list is in another one.
func subset[T int32 | string](a, b []T) bool {
	for _, v := range a {
		i, ok := slices.BinarySearch(b, v)
		if !ok {
			return false
		}
		b = b[i:]
	}
	return true
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

// Bounds on what all DENY rules of one policy may cost beyond the short form.
const (
	maxExactBytes = 128 << 10
	maxExactSteps = 1 << 18
)

// exactness is what is left of the two bounds.
type exactness struct{ bytes, steps int }

func newExactness() *exactness { return &exactness{bytes: maxExactBytes, steps: maxExactSteps} }

// forbidden returns everything that none of the operations permits, as operations of a DENY rule, of which one has to match: that
// is each choice of one field of each permitted operation, whose value the request has not. None means that everything is
// permitted. The HTTP fields count for nothing where a proxy sees TCP alone, so that such a rule denies more there, never less
// (Istio, AuthorizationPolicy reference, "DENY with HTTP-only fields for a TCP port").
func forbidden(ops []operation) []*securityapi.Operation { return newExactness().forbidden(ops) }

func (x *exactness) forbidden(ops []operation) []*securityapi.Operation {
	if len(ops) == 0 {
		return nil
	}
	short := short(ops)
	if exact, ok := x.complement(ops); ok {
		if size := sizeOf(exact) - sizeOf(short); size <= x.bytes {
			x.bytes -= max(0, size)
			short = exact
		}
	}
	out := make([]*securityapi.Operation, 0, len(short))
	for _, o := range short {
		out = append(out, &securityapi.Operation{NotPorts: texts(o.ports), NotMethods: o.methods, NotPaths: o.paths})
	}
	return out
}

// short denies all that lies outside of every permitted port, method and path, each taken alone.
func short(ops []operation) []operation {
	var all operation
	for i, o := range ops {
		if i == 0 {
			all = o
			continue
		}
		all = operation{slices.Concat(all.ports, o.ports), slices.Concat(all.methods, o.methods), slices.Concat(all.paths, o.paths)}
	}
	var out []operation
	every := func(empty func(o operation) bool) bool { return slices.ContainsFunc(ops, empty) }
	if !every(func(o operation) bool { return len(o.ports) == 0 }) {
		out = append(out, operation{ports: union(all.ports, nil)})
	}
	if !every(func(o operation) bool { return len(o.methods) == 0 }) {
		out = append(out, operation{methods: union(all.methods, nil)})
	}
	if !every(func(o operation) bool { return len(o.paths) == 0 }) {
		out = append(out, operation{paths: union(all.paths, nil)})
	}
	return out
}

func sizeOf(ops []operation) int {
	size := 0
	for _, o := range ops {
		size += 64 + 8*len(o.ports)
		for _, v := range o.methods {
			size += len(v) + 3
		}
		for _, v := range o.paths {
			size += len(v) + 3
		}
	}
	return size
}

// term is a conjunction of values that a request must not have: of each field, the lists of the operations whose bits are set.
type term struct{ ports, methods, paths uint64 }

func (t term) within(o term) bool {
	return t.ports&^o.ports == 0 && t.methods&^o.methods == 0 && t.paths&^o.paths == 0
}

// complement is forbidden, exactly, as values that a request must not have; false when that is too much.
func (x *exactness) complement(ops []operation) ([]operation, bool) {
	if len(ops) > maxForbidden {
		return nil, false
	}
	ports, methods, paths := contained(ops, func(o operation) []int32 { return o.ports }),
		contained(ops, func(o operation) []string { return o.methods }), contained(ops, func(o operation) []string { return o.paths })
	terms := []term{{}}
	for i, o := range ops {
		var next []term
		for _, t := range terms {
			if len(o.ports) > 0 {
				next = append(next, term{t.ports | ports[i], t.methods, t.paths})
			}
			if len(o.methods) > 0 {
				next = append(next, term{t.ports, t.methods | methods[i], t.paths})
			}
			if len(o.paths) > 0 {
				next = append(next, term{t.ports, t.methods, t.paths | paths[i]})
			}
		}
		if x.steps -= len(next) * len(next); x.steps < 0 {
			return nil, false
		}
		if terms = widest(next); len(terms) > maxForbidden {
			return nil, false
		}
	}
	if x.steps -= weightOf(ops) * len(terms); x.steps < 0 {
		return nil, false
	}
	out := make([]operation, 0, len(terms))
	for _, t := range terms {
		var o operation
		for i := range ops {
			if t.ports>>i&1 == 1 {
				o.ports = append(o.ports, ops[i].ports...)
			}
			if t.methods>>i&1 == 1 {
				o.methods = append(o.methods, ops[i].methods...)
			}
			if t.paths>>i&1 == 1 {
				o.paths = append(o.paths, ops[i].paths...)
			}
		}
		out = append(out, operation{union(o.ports, nil), union(o.methods, nil), union(o.paths, nil)})
	}
	return out, true
}

// weightOf counts the values of operations.
func weightOf(ops []operation) int {
	n := 0
	for _, o := range ops {
		n += len(o.ports) + len(o.methods) + len(o.paths)
	}
	return n
}

// contained returns, for each operation, the operations whose values of one field are all among its own.
func contained[T int32 | string](ops []operation, field func(operation) []T) []uint64 {
	out := make([]uint64, len(ops))
	for i := range ops {
		for j := range ops {
			if a, b := field(ops[j]), field(ops[i]); len(a) > 0 && subset(a, b) {
				out[i] |= 1 << j
			}
		}
	}
	return out
}

// widest leaves out terms that match only what another one matches too: those that name more.
func widest(terms []term) []term {
	weight := func(t term) int {
		return bits.OnesCount64(t.ports) + bits.OnesCount64(t.methods) + bits.OnesCount64(t.paths)
	}
	slices.SortStableFunc(terms, func(a, b term) int { return weight(a) - weight(b) })
	var out []term
	for _, t := range terms {
		if !slices.ContainsFunc(out, func(o term) bool { return o.within(t) }) {
			out = append(out, t)
		}
	}
	return out
}
