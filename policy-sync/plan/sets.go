package plan

import (
	"encoding/json"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/desired"
	"github.com/keelson-project/keelson/policy-sync/istio"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// piece is the smallest thing in a list that opens or closes on its own: an element, or an element with one member of its set.
type piece struct{ rest, member string }

// split takes an element of a list of an object apart. An element without a set has one nameless member.
func split(o desired.Object, element any) (rest string, members []string, join func([]string) any) {
	if s, ok := element.(string); ok {
		return "", []string{s}, func(members []string) any { return members[0] }
	}
	if o.Split != nil {
		if rest, members, join, ok := o.Split(normal(element)); ok {
			return "set " + rest, members, join
		}
	}
	data, err := json.Marshal(normal(element))
	if err != nil {
		return "", nil, nil
	}
	return "whole " + string(data), []string{""}, func([]string) any { return element }
}

func pieces(o desired.Object, list []any) map[piece]bool {
	out := make(map[piece]bool, len(list))
	for _, e := range list {
		rest, members, _ := split(o, e)
		for _, m := range members {
			out[piece{rest, m}] = true
		}
	}
	return out
}

// common returns what is wanted and live.
func common(o desired.Object, have, wanted []any) []any {
	return remaining(o, wanted, pieces(o, have), true)
}

// joined returns what is wanted, and what is live besides.
func joined(o desired.Object, have, wanted []any) []any {
	return append(slices.Clone(wanted), remaining(o, have, pieces(o, wanted), false)...)
}

// remaining returns of a list what is among some pieces, or what is not.
func remaining(o desired.Object, list []any, among map[piece]bool, is bool) []any {
	var out []any
	for _, e := range list {
		rest, members, join := split(o, e)
		left := slices.DeleteFunc(slices.Clone(members), func(m string) bool { return among[piece{rest, m}] != is })
		switch {
		case len(left) == len(members) && len(left) > 0:
			out = append(out, e)
		case len(left) > 0:
			out = append(out, join(left))
		}
	}
	return out
}

// alike reports whether the live object says what another state of the wanted one says, when the lists that open or close are
// taken as the sets that they are.
func alike(live, state *unstructured.Unstructured, want desired.Object) (bool, error) {
	out := live
	for _, path := range slices.Concat(want.Opens, want.Closes) {
		have, other := elements(live, path), elements(state, path)
		a, b := pieces(want, have), pieces(want, other)
		if len(a) != len(b) {
			return false, nil
		}
		for p := range a {
			if !b[p] {
				return false, nil
			}
		}
		if out == live {
			out = live.DeepCopy()
		}
		if err := put(out, path, other); err != nil {
			return false, err
		}
	}
	return same(out, state), nil
}

// revokedSet is in which set of revoked addresses an object of ours is, from 1; 0 for others.
func revokedSet(o *unstructured.Unstructured) int {
	if kind := o.GetKind(); kind != "GlobalNetworkSet" && kind != "AuthorizationPolicy" || !snapshot.Owned(o) {
		return 0
	}
	return 1 + slices.Index(v1alpha1.RevokedSetNames(), o.GetName())
}

// sets are in which set each revoked address stands in a list of objects.
type sets struct {
	objects []*unstructured.Unstructured
	of      map[string]int
}

// revokedSets says in which set each revoked address stands: Calico's, or without it Istio's.
func (k *kept) revokedSets(s snapshot.Snapshot) map[string]int {
	if k.sets.of == nil || !snapshot.Same(k.sets.objects, s.Objects) {
		k.sets = sets{s.Objects, k.readRevokedSets(s)}
	}
	return k.sets.of
}

func (k *kept) readRevokedSets(s snapshot.Snapshot) map[string]int {
	out := map[string]int{}
	add := func(i int, value any) {
		if text, ok := value.(string); ok {
			address, _, _ := strings.Cut(text, "/")
			out[address] = i
		}
	}
	for _, o := range s.Objects {
		f := k.facts(o)
		if f.revoked == 0 {
			continue
		}
		i := f.revoked - 1
		switch {
		case o.GetKind() == "GlobalNetworkSet":
			for _, v := range elements(o, []string{"spec", "nets"}) {
				add(i, v)
			}
		case !s.Config.Calico && f.namespace == s.Config.RootNamespace():
			for _, e := range elements(o, []string{"spec", "rules"}) {
				if _, blocks, _, ok := istio.Split(e); ok {
					for _, v := range blocks {
						add(i, v)
					}
				}
			}
		}
	}
	return out
}
