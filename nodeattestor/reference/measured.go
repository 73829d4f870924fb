package reference

import (
	"slices"

	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// Measured is what sets need to know of an IMA list, learned entry by entry (ima.NewStream), so that
// a list of any length takes no more memory than its refusals do. It judges as a kept list
// is judged, by the same code. It proves nothing before the replay has succeeded, and counts
// only with the sets that made it.
type Measured struct {
	tallies []*tally
	count   int
}

// Measure begins to learn about a list, from its first entry.
func (s Sets) Measure() *Measured {
	m := &Measured{}
	for _, set := range s {
		if set.ima != nil {
			m.tallies = append(m.tallies, newTally(set))
		}
	}
	return m
}

// Add takes the list's next entry.
func (m *Measured) Add(e ima.Entry) {
	m.count++
	if m.count == 1 {
		return // boot_aggregate, recomputed by the replay
	}
	for _, t := range m.tallies {
		t.add(e)
	}
}

// Judged is what a later appraisal in the same boot, which reads the new entries only, must know of
// those before. It is never changed.
type Judged struct {
	count int
	sets  []judgedSet
}

type judgedSet struct {
	name    string
	policy  *imaPolicy
	seen    []bool // of each required path, in the policy's order
	refused bool
}

// Judged is what was learned so far. It stands for proven entries only if the replay has succeeded.
func (m *Measured) Judged() Judged {
	j := Judged{count: m.count}
	for _, t := range m.tallies {
		s := judgedSet{name: t.set.name, policy: t.set.ima, refused: t.before || t.more > 0 || len(t.refusals) > 0}
		for _, p := range t.set.ima.required {
			s.seen = append(s.seen, t.seen[p])
		}
		j.sets = append(j.sets, s)
	}
	return j
}

// Size is about how many bytes of memory it takes.
func (j Judged) Size() int {
	const fixed, each = 64, 80 // the structs
	n := fixed
	for _, s := range j.sets {
		n += each + cap(s.seen)
	}
	return n
}

// Resume goes on from what was judged by the very same sets; it is false with any other. A set that
// refused the list before refuses it still, but gives one reason only.
func (s Sets) Resume(j Judged) (*Measured, bool) {
	m := s.Measure()
	if j.count == 0 || len(m.tallies) != len(j.sets) {
		return nil, false
	}
	m.count = j.count
	for i, t := range m.tallies {
		old := j.sets[i]
		if old.name != t.set.name || old.policy != t.set.ima {
			return nil, false
		}
		t.before = old.refused
		for k, p := range t.set.ima.required {
			t.seen[p] = t.seen[p] || old.seen[k]
		}
	}
	return m, true
}

// of is the tally of a set, nil when the set did not make it, or when it is not of the list.
func (m *Measured) of(s Set, list *ima.Result) *tally {
	for _, t := range m.tallies {
		if t.set.ima == s.ima && t.set.name == s.name && list.Count == m.count {
			return t
		}
	}
	return nil
}

// tallyOf judges a list that was kept.
func tallyOf(s Set, entries []ima.Entry) *tally {
	t := newTally(s)
	for i := 1; i < len(entries); i++ { // 0 is boot_aggregate, recomputed by the replay
		t.add(entries[i])
	}
	return t
}

// tally is one set's judgement of a list.
type tally struct {
	checker
	required map[string]bool // what must be measured
	seen     map[string]bool // of that, what was, with an allowed digest
	told     map[string]bool // what is refused by name, at most maxFileRefusals
	more     int             // measurements that are refused besides
	before   bool            // entries of an earlier appraisal in this boot are refused
}

func newTally(s Set) *tally {
	t := &tally{checker: checker{set: s}, required: map[string]bool{}, seen: map[string]bool{}, told: map[string]bool{}}
	for _, p := range s.ima.required {
		t.required[p] = true
	}
	return t
}

// add checks an entry: its path must be listed with its digest. What is not listed, is listed with
// another digest or was violated is refused.
func (t *tally) add(e ima.Entry) {
	switch {
	case e.Violation:
		if !t.set.ima.allowViolations && t.tell("violation "+e.Path) {
			t.violation(e)
		}
	case ima.IsBootAggregate(e):
		if t.tell("kexec") {
			t.kexec(e)
		}
	case t.set.ima.allows(e):
		if len(t.required) > 0 && t.required[e.Path] {
			t.seen[e.Path] = true
		}
	case t.tell(e.Path + e.Digest):
		t.file(e)
	}
}

// tell tells whether something is refused for the first time and to be named; the node chooses how much is.
func (t *tally) tell(key string) bool {
	if t.told[key] {
		return false
	}
	if len(t.told) >= maxFileRefusals {
		t.more++
		return false
	}
	t.told[key] = true
	return true
}

// judgement is what the set refuses in the list, required files that are missing included.
func (t *tally) judgement() nodeclaim.Refusals {
	c := checker{set: t.set, refusals: slices.Clone(t.refusals)}
	if t.before {
		c.refuse("ima.file", "files measured earlier in this boot are not in %s; the next attestation reads the whole list and names them", &c)
	}
	if t.more > 0 {
		c.refuse("ima.file", "%d more measurements are not in %s", t.more, &c)
	}
	for _, p := range t.set.ima.required {
		if !t.seen[p] {
			c.refuse("ima.required", "%s %s was not measured, %s requires it", kind(p), p, &c)
		}
	}
	return c.refusals
}
