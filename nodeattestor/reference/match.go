package reference

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// Sets are reference sets in the order of their names, each name once. Make them with
// NewSets; a nil Sets accepts nothing.
type Sets []Set

// NewSets orders sets by name and refuses two of one name.
func NewSets(sets ...Set) (Sets, error) {
	out := slices.Clone(sets)
	slices.SortStableFunc(out, func(a, b Set) int { return strings.Compare(a.name, b.name) })
	for i := range out {
		if out[i].name == "" {
			return nil, fmt.Errorf("reference: a set has no name; make sets with ParseSet or Capture")
		}
		if i > 0 && out[i-1].name == out[i].name {
			return nil, fmt.Errorf("reference: two sets are named %q; give each its own name", out[i].name)
		}
	}
	return out, nil
}

// For are the sets that may accept a machine of which only these names are allowed, each of which may end with "*"; nil allows
// every set. A machine that may match sets of another class could fall back to the weakest of all.
func (s Sets) For(names []string) Sets {
	if names == nil {
		return s
	}
	var out Sets
	for _, set := range s {
		if slices.ContainsFunc(names, set.named) {
			out = append(out, set)
		}
	}
	return out
}

// named tells whether the set has a name, or a name that begins so where "*" follows.
func (s Set) named(pattern string) bool {
	if begin, open := strings.CutSuffix(pattern, "*"); open {
		return strings.HasPrefix(s.name, begin)
	}
	return s.name == pattern
}

// Match is the first set, in the order of names, that accepts the evidence. Without one, the
// refusals are those of the set that has the fewest: the nearest, whose name every reason has.
func (s Sets) Match(ev Evidence, now time.Time) (Set, nodeclaim.Refusals) {
	if len(s) == 0 {
		return Set{}, nodeclaim.Refusals{*nodeclaim.Refuse("reference.none", "there is no reference set to accept the machine by: capture one on a known-good machine (keelson reference capture)")}
	}
	var nearest nodeclaim.Refusals
	for i, set := range s {
		refusals := set.Check(ev, now)
		if len(refusals) == 0 {
			return set, nil
		}
		if i == 0 || len(refusals) < len(nearest) {
			nearest = refusals
		}
	}
	return Set{}, nearest
}
