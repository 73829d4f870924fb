package reference

import (
	"slices"

	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// Measured is what sets need to know of an IMA list, learned entry by entry (ima.NewStream), so
// that a list of any length takes no more memory than its refusals do. It judges as a kept list is
// judged, by the same code. It proves nothing before the replay has succeeded, and counts only with
// the sets that made it.
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

// Recall looks up the list's next entries before they are hashed (ima.Replayer.Recall).
func (m *Measured) Recall(views []ima.View) {
	for _, t := range m.tallies {
		t.lookUp(views)
	}
}

// Add takes the list's next entries, and keeps nothing of them.
func (m *Measured) Add(views []ima.View) {
	first := m.count == 0
	m.count += len(views)
	if first && len(views) > 0 {
		views = views[1:] // boot_aggregate, recomputed by the replay
	}
	for _, t := range m.tallies {
		t.add(views)
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
	watched *watched // what conditions read; nil where none do
}

// Judged is what was learned so far. It stands for proven entries only if the replay has succeeded.
func (m *Measured) Judged() Judged {
	j := Judged{count: m.count}
	for _, t := range m.tallies {
		s := judgedSet{name: t.set.name, policy: t.set.ima, refused: t.before || t.more > 0 || len(t.refusals) > 0}
		s.seen, s.watched = slices.Clone(t.seen), t.watched.keep()
		j.sets = append(j.sets, s)
	}
	return j
}

// Size is about how many bytes of memory it takes.
func (j Judged) Size() int {
	const fixed, each = 64, 80 // the structs
	n := fixed
	for _, s := range j.sets {
		n += each + cap(s.seen) + s.watched.size()
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
		copy(t.seen, old.seen)
		t.watched = old.watched.resume()
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
	views := make([]ima.View, 0, len(entries))
	for i := 1; i < len(entries); i++ { // 0 is boot_aggregate, recomputed by the replay
		views = append(views, entries[i].View())
	}
	t.add(views)
	return t
}

// tally is one set's judgement of a list.
type tally struct {
	checker
	seen   []bool          // of each required path, in the policy's order: was it measured, with an allowed digest
	told   map[string]bool // what is refused by name, at most maxFileRefusals
	more   int             // measurements that are refused besides
	before bool            // entries of an earlier appraisal in this boot are refused
	budget int             // signatures that may yet be verified in vain
	// found is what the set's book says of the entries that were looked up last: as many as ahead,
	// from one on.
	found [ima.Lookups]int32
	from  int
	ahead int
	// watched is what the set's conditions read of the list; nil where none do.
	watched *watched
}

func newTally(s Set) *tally {
	t := &tally{checker: checker{set: s}, seen: make([]bool, len(s.ima.required)), told: map[string]bool{}, budget: maxBadSignatures}
	if s.Reads("ima") {
		t.watched = newWatched()
	}
	return t
}

// add checks entries: the path of each must be listed with its digest. What is not listed, is
// listed with another digest or was violated is refused. One look-up settles nearly every entry of
// a healthy machine.
func (t *tally) add(views []ima.View) {
	for part := range slices.Chunk(views, ima.Lookups) {
		found := t.foundOf(part)
		for i := range part {
			if found[i] == ima.Missing {
				t.unlisted(&part[i])
				continue
			}
			t.watched.add(&part[i])
			if found[i] != notRequired {
				t.seen[found[i]] = true
			}
		}
	}
}

// lookUp looks up entries that add will be given next, or the first of them.
func (t *tally) lookUp(views []ima.View) {
	t.ahead = 0
	if len(views) > 0 && len(views) <= ima.Lookups {
		t.set.ima.book.Find(views, &t.found)
		t.from, t.ahead = views[0].Index, len(views)
	}
}

// foundOf is what the set's book says of entries: they were looked up right before, or are now.
func (t *tally) foundOf(views []ima.View) []int32 {
	at := views[0].Index - t.from
	if at < 0 || at+len(views) > t.ahead {
		t.lookUp(views)
		at = 0
	}
	t.ahead = 0 // what was looked up is of these entries alone
	return t.found[at : at+len(views)]
}

// unlisted checks an entry that the files of the set do not have.
func (t *tally) unlisted(v *ima.View) {
	switch {
	case v.Violation:
		if !t.set.ima.allowViolations && t.tell("violation "+string(v.Path)) {
			t.violation(v.Entry())
		}
	case v.IsBootAggregate():
		if t.tell("kexec") {
			t.kexec(v.Entry())
		}
	case v.Unknown && t.set.ima.allowViolations: // neither tells what the file holds
	default:
		t.file(v)
	}
}

// file checks a file that is not listed with that digest.
func (t *tally) file(v *ima.View) {
	_, listed := t.set.ima.files[string(v.Path)]
	var unsigned error
	if !listed {
		if t.set.ima.ignores(v.Path) && !kernelRecord(v) {
			return
		}
		if unsigned = t.set.ima.signed(v, &t.budget); unsigned == nil {
			t.watched.add(v)
			return
		}
	}
	switch e := v.Entry(); {
	case !t.tell(e.Path + e.Digest):
	case e.Unknown:
		t.unhashed(e)
	default:
		t.unknown(e, unsigned)
	}
}

// tell tells whether something is refused for the first time and to be named; the node chooses how
// much is.
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
	for i, p := range t.set.ima.required {
		if !t.seen[i] {
			c.refuse("ima.required", "%s %s was not measured, %s requires it", kind(p), p, &c)
		}
	}
	return c.refusals
}
