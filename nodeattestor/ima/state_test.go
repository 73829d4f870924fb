package ima_test

import (
	"crypto/sha256"
	"fmt"
	"runtime"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

var thisBoot = ima.Boot{AKName: "\x00\x0bname", ResetCount: 7, RestartCount: 2}

func keep(to []ima.Entry, views []ima.View) []ima.Entry {
	for i := range views {
		to = append(to, views[i].Entry())
	}
	return to
}

// stateOf is the state after a list that replays.
func stateOf(t testing.TB, l *list) ima.State {
	t.Helper()
	r := ima.NewStream(l.quoted(t), ima.Options{}, func([]ima.View) {})
	if _, err := r.Write(l.raw); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Finish(); err != nil {
		t.Fatal(err)
	}
	s, ok := r.State(thisBoot)
	if !ok {
		t.Fatal("no state of a list that was proven")
	}
	return s
}

func TestAStreamSeesWhatAReplayerKeeps(t *testing.T) {
	l := newList(nodeclaim.SHA1, nodeclaim.SHA256).file("/a", "a").violation("/v").ng("ima-sig", "/s", "sha1", make20(), []byte("sig"))
	kept, err := replay(l.quoted(t), l.raw, ima.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var seen []ima.Entry
	r := ima.NewStream(l.quoted(t), ima.Options{}, func(v []ima.View) { seen = keep(seen, v) })
	for _, b := range l.raw {
		if _, err := r.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	res, err := r.Finish()
	if err != nil || res.Entries != nil || res.Count != len(kept.Entries) || res.Violations != kept.Violations {
		t.Errorf("%+v, %v", res, err)
	}
	if diff := cmp.Diff(kept.Entries, seen); diff != "" {
		t.Errorf("seen (-kept +seen):\n%s", diff)
	}
}

func make20() []byte { return []byte("12345678901234567890") }

func TestAResumedListSeesOnlyWhatIsNew(t *testing.T) {
	l := newList(nodeclaim.SHA1, nodeclaim.SHA256).file("/a", "a").violation("/v")
	s := stateOf(t, l)
	if want := uint64(len(l.raw)); s.Offset() != want || s.Boot() != thisBoot {
		t.Fatalf("state at %d of %v, want %d", s.Offset(), s.Boot(), want)
	}
	l.file("/new", "new")
	var seen []ima.Entry
	r, ok := ima.Resume(s, thisBoot, l.quoted(t), ima.Options{}, func(v []ima.View) { seen = keep(seen, v) })
	if !ok || r.Reached() {
		t.Fatalf("resumed %v", ok)
	}
	if _, err := r.Write(append(l.raw[s.Offset():], "later"...)); err != nil {
		t.Fatal(err)
	}
	res, err := r.Finish()
	if err != nil || res.Count != 4 || res.Violations != 1 || res.Unproven != 5 {
		t.Errorf("%+v, %v", res, err)
	}
	if len(seen) != 1 || seen[0].Index != 3 || seen[0].Path != "/new" {
		t.Errorf("saw %+v", seen)
	}
	next, ok := r.State(thisBoot)
	if !ok || !next.Equal(stateOf(t, l)) {
		t.Error("the state after a resumed list differs from that of the whole list")
	}
}

func TestAResumedListThatHasNotGrownNeedsNothing(t *testing.T) {
	l := newList(nodeclaim.SHA256).file("/a", "a")
	s := stateOf(t, l)
	r, ok := ima.Resume(s, thisBoot, l.quoted(t), ima.Options{}, nil)
	if !ok || !r.Reached() {
		t.Fatal("not reached")
	}
	if res, err := r.Finish(); err != nil || res.Count != 2 {
		t.Errorf("%+v, %v", res, err)
	}
	if again, ok := r.State(thisBoot); !ok || !again.Equal(s) {
		t.Error("the state changed")
	}
}

func TestAStateIsOfOneBootKeyBankAndOptions(t *testing.T) {
	l := newList(nodeclaim.SHA256).file("/a", "a")
	s := stateOf(t, l)
	both := newList(nodeclaim.SHA1, nodeclaim.SHA256).file("/a", "a")
	none := emptyList(nodeclaim.SHA256)
	delete(none.values[nodeclaim.SHA256], 10)
	for name, c := range map[string]struct {
		state ima.State
		boot  ima.Boot
		list  *list
		opt   ima.Options
	}{
		"another AK":            {s, ima.Boot{AKName: "other", ResetCount: 7, RestartCount: 2}, l, ima.Options{}},
		"a reset":               {s, ima.Boot{AKName: thisBoot.AKName, ResetCount: 8, RestartCount: 2}, l, ima.Options{}},
		"a restart":             {s, ima.Boot{AKName: thisBoot.AKName, ResetCount: 7, RestartCount: 3}, l, ima.Options{}},
		"one more bank":         {s, thisBoot, both, ima.Options{}},
		"another bank":          {s, thisBoot, newList(nodeclaim.SHA1), ima.Options{}},
		"PCR 10 not quoted":     {s, thisBoot, none, ima.Options{}},
		"another way to extend": {s, thisBoot, l, ima.Options{PaddedSHA1: true}},
		"other limits":          {s, thisBoot, l, ima.Options{Limits: ima.Limits{Entry: 10, Entries: 10, Total: 10}}},
		"the zero state":        {ima.State{}, ima.Boot{}, l, ima.Options{}},
	} {
		if _, ok := ima.Resume(c.state, c.boot, c.list.quoted(t), c.opt, nil); ok {
			t.Errorf("resumed with %s", name)
		}
	}
}

func TestThreat11_AResumedListThatDoesNotLeadToTheQuoteIsRefused(t *testing.T) {
	grown := newList(nodeclaim.SHA256).file("/a", "a")
	s := stateOf(t, grown)
	quoted := grown.file("/evil", "evil").file("/b", "b").quoted(t)
	at := s.Offset()
	for name, raw := range map[string][]byte{
		"nothing new is shown":           nil,
		"the tail is dropped":            grown.raw[at:grown.ends[2]],
		"an entry is dropped":            grown.raw[grown.ends[2]:],
		"the offset is rewound":          grown.raw[grown.ends[0]:],
		"the whole list from its start":  grown.raw,
		"the list ends inside an entry":  grown.raw[at : len(grown.raw)-1],
		"the offset is inside an entry":  grown.raw[at+1:],
		"other entries in place of them": newList(nodeclaim.SHA256).file("/x", "x").raw[at:],
	} {
		r, ok := ima.Resume(s, thisBoot, quoted, ima.Options{}, func([]ima.View) {})
		if !ok {
			t.Fatal("not resumed")
		}
		if _, err := r.Write(raw); err != nil {
			continue
		}
		if _, err := r.Finish(); len(nodeclaim.AsRefusals(err)) != 1 {
			t.Errorf("accepted: %s: %v", name, err)
		}
		if _, ok := r.State(thisBoot); ok {
			t.Errorf("a state of what is refused: %s", name)
		}
	}
}

func TestThreat11_AResumedListAnswersForItsBootAggregate(t *testing.T) {
	l := newList(nodeclaim.SHA256).file("/a", "a")
	s := stateOf(t, l)
	l.values[nodeclaim.SHA256][8][0] ^= 1
	r, ok := ima.Resume(s, thisBoot, l.quoted(t), ima.Options{}, nil)
	if !ok {
		t.Fatal("not resumed")
	}
	_, err := r.Finish()
	refusedFor(t, err, "ima.aggregate")
}

func TestThreat09_LimitsCountWhatCameBeforeAState(t *testing.T) {
	l := newList(nodeclaim.SHA256).file("/a", "a")
	opt := ima.Options{Limits: ima.Limits{Entry: 1000, Entries: 3, Total: int64(len(l.raw)) * 3}}
	first := ima.NewStream(l.quoted(t), opt, func([]ima.View) {})
	if _, err := first.Write(l.raw); err != nil {
		t.Fatal(err)
	}
	s, _ := first.State(thisBoot)
	l.file("/b", "b").file("/c", "c")
	r, ok := ima.Resume(s, thisBoot, l.quoted(t), opt, func([]ima.View) {})
	if !ok {
		t.Fatal("not resumed")
	}
	_, err := r.Write(l.raw[s.Offset():])
	refusedFor(t, err, "ima.limit")
	r, _ = ima.Resume(s, thisBoot, l.quoted(t), opt, func([]ima.View) {})
	_, err = r.Write(make([]byte, 2*s.Offset()+1))
	refusedFor(t, err, "ima.limit")
}

func TestNoStateOfAnEmptyOrUnfinishedList(t *testing.T) {
	empty := ima.NewReplayer(emptyList(nodeclaim.SHA256).quoted(t), ima.Options{})
	if _, ok := empty.State(thisBoot); ok {
		t.Error("a state of an empty list")
	}
	l := newList(nodeclaim.SHA256).file("/a", "a")
	r := ima.NewReplayer(l.quoted(t), ima.Options{})
	if _, err := r.Write(l.raw[:l.ends[0]]); err != nil {
		t.Fatal(err)
	}
	if _, ok := r.State(thisBoot); ok {
		t.Error("a state before quoted PCR 10")
	}
}

// TestThreat09_AMillionEntriesStayWithin64MiB streams a block of entries again and again. That entries differ makes
// no difference here, where none is kept; test/bench measures with a list of different ones.
func TestThreat09_AMillionEntriesStayWithin64MiB(t *testing.T) {
	const entries, blocks, bound = 10_000, 100, 64 << 20
	block := emptyList(nodeclaim.SHA256)
	for i := range entries {
		block.file(fmt.Sprintf("/var/lib/containerd/overlayfs/snapshots/%d/fs/usr/bin/program", i), "x")
	}
	first := newList(nodeclaim.SHA256)
	for range blocks {
		from := 0
		for _, end := range block.ends {
			digest := sha256.Sum256(block.raw[from+4+20+4+len("ima-ng")+4 : end])
			pcr := sha256.Sum256(append(first.values[nodeclaim.SHA256][10], digest[:]...))
			first.values[nodeclaim.SHA256][10] = pcr[:]
			from = end
		}
	}
	seen := 0
	opt := ima.Options{Limits: ima.Limits{Entry: 1000, Entries: entries*blocks + 1, Total: 1 << 30}}
	r := ima.NewStream(first.quoted(t), opt, func(v []ima.View) { seen += len(v) })
	before := heap()
	peak := before
	put := func(p []byte) {
		if _, err := r.Write(p); err != nil {
			t.Fatal(err)
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		peak = max(peak, m.HeapInuse)
	}
	put(first.raw)
	for range blocks {
		for rest := block.raw; len(rest) > 0; rest = rest[min(384<<10, len(rest)):] {
			put(rest[:min(384<<10, len(rest))])
		}
	}
	res, err := r.Finish()
	if err != nil || res.Count != entries*blocks+1 || seen != res.Count {
		t.Fatalf("%d entries, %d seen: %v", res.Count, seen, err)
	}
	t.Logf("%d entries: %.1f MiB above start at most", res.Count, float64(peak-before)/(1<<20))
	if peak-before > bound {
		t.Errorf("peak is %d bytes above start, bound is %d", peak-before, bound)
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse
}

// FuzzResume: no bytes lead a resumed replay to a later quote but the list's own.
func FuzzResume(f *testing.F) {
	l := newList(nodeclaim.SHA256).file("/a", "a")
	s := stateOf(f, l)
	quoted := l.file("/b", "b").violation("/v").quoted(f)
	whole, err := replay(quoted, l.raw, ima.Options{})
	if err != nil {
		f.Fatal(err)
	}
	want := whole.Entries[2:]
	f.Add(l.raw[s.Offset():], uint16(7))
	f.Add(l.raw, uint16(50))
	f.Add([]byte{}, uint16(1))
	f.Fuzz(func(t *testing.T, raw []byte, chunk uint16) {
		var seen []ima.Entry
		r, ok := ima.Resume(s, thisBoot, quoted, ima.Options{}, func(v []ima.View) { seen = keep(seen, v) })
		if !ok {
			t.Fatal("not resumed")
		}
		size := int(chunk) + 1
		for rest := raw; len(rest) > 0; rest = rest[min(size, len(rest)):] {
			if _, err := r.Write(rest[:min(size, len(rest))]); err != nil {
				break
			}
		}
		if _, err := r.Finish(); err == nil && !slices.EqualFunc(want, seen, func(a, b ima.Entry) bool { return a.Digest == b.Digest && (a.Violation || a.Path == b.Path) }) {
			t.Errorf("other entries reach the quote: %+v", seen)
		}
	})
}
