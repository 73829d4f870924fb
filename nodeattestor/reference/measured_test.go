package reference_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/reference"
)

// streamed is evidence whose list was not kept.
func streamed(ev reference.Evidence, sets reference.Sets) reference.Evidence {
	m := sets.Measure()
	for _, e := range ev.IMA.Entries {
		m.Add([]ima.View{e.View()})
	}
	return withoutEntries(ev, m)
}

func withoutEntries(ev reference.Evidence, m *reference.Measured) reference.Evidence {
	list := *ev.IMA
	list.Entries, list.Count = nil, len(ev.IMA.Entries)
	ev.IMA, ev.Measured = &list, m
	return ev
}

func sets(t *testing.T, list ...reference.Set) reference.Sets {
	t.Helper()
	s, err := reference.NewSets(list...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// lists are IMA lists that sets accept or refuse, each for another reason.
func lists(t *testing.T) map[string]reference.Evidence {
	t.Helper()
	ev := evidence(t, "good")
	with := func(e ...ima.Entry) reference.Evidence {
		res := *ev.IMA
		res.Entries = slices.Concat(res.Entries, e)
		return reference.Evidence{Boot: ev.Boot, PCRs: ev.PCRs, IMA: &res}
	}
	var many []ima.Entry
	for i := range 50 {
		many = append(many, ima.Entry{Index: 14 + i, Path: fmt.Sprint("/x", i), Digest: "sha256:" + strings.Repeat("ab", 32)})
	}
	short := *ev.IMA
	short.Entries = short.Entries[:1]
	return map[string]reference.Evidence{
		"good":                    ev,
		"a violation":             with(ima.Entry{Index: 14, Path: "/v", Violation: true}),
		"a second boot_aggregate": with(ima.Entry{Index: 14, Path: "boot_aggregate", Digest: "sha256:" + strings.Repeat("ab", 32)}),
		"many files":              with(many...),
		"nothing that is needed":  {Boot: ev.Boot, PCRs: ev.PCRs, IMA: &short},
	}
}

func TestAStreamedListIsJudgedAsAKeptOne(t *testing.T) {
	all := sets(t, edited(t, "good", "violations: deny", "violations: deny\n  required: [/init, /bin/busybox]"), capture(t, "cmdline"))
	for name, ev := range lists(t) {
		got := streamed(ev, all)
		for _, s := range all {
			if diff := cmp.Diff(s.Check(ev, now), s.Check(got, now)); diff != "" {
				t.Errorf("%s, %s (-kept +streamed):\n%s", name, s.Name(), diff)
			}
		}
	}
}

func TestAResumedListIsJudgedAsAWholeOne(t *testing.T) {
	all := sets(t, edited(t, "good", "violations: deny", "violations: deny\n  required: [/init, /bin/busybox]"), capture(t, "cmdline"))
	for name, ev := range lists(t) {
		for cut := 1; cut < len(ev.IMA.Entries); cut++ {
			first := all.Measure()
			for _, e := range ev.IMA.Entries[:cut] {
				first.Add([]ima.View{e.View()})
			}
			m, ok := all.Resume(first.Judged())
			if !ok {
				t.Fatal("not resumed")
			}
			for _, e := range ev.IMA.Entries[cut:] {
				m.Add([]ima.View{e.View()})
			}
			got := withoutEntries(ev, m)
			for _, s := range all {
				if want := len(s.Check(ev, now)) > 0; want != (len(s.Check(got, now)) > 0) {
					t.Errorf("%s, %s, resumed at %d: %v", name, s.Name(), cut, s.Check(got, now))
				}
			}
		}
	}
}

func TestWhatWasJudgedCountsOnlyWithTheSetsThatJudged(t *testing.T) {
	ev := evidence(t, "good")
	good, other := capture(t, "good"), capture(t, "cmdline")
	m := sets(t, good).Measure()
	for _, e := range ev.IMA.Entries {
		m.Add([]ima.View{e.View()})
	}
	for name, s := range map[string]reference.Sets{
		"more sets":                   sets(t, good, other),
		"no set":                      nil,
		"another set of the one name": sets(t, capture(t, "good")),
		"a set of another name":       sets(t, other),
	} {
		if _, ok := s.Resume(m.Judged()); ok {
			t.Errorf("resumed with %s", name)
		}
		for _, set := range s {
			r := set.Check(withoutEntries(ev, m), now)
			if name != "more sets" && !strings.Contains(r.Error(), "no measured file is proven") {
				t.Errorf("%s judges by what another set learned: %v", name, r)
			}
		}
	}
	if _, ok := sets(t, good).Resume(reference.Judged{}); ok {
		t.Error("resumed from nothing")
	}
	if _, ok := sets(t, good).Resume(m.Judged()); !ok {
		t.Error("not resumed with the same sets")
	}
	partly := withoutEntries(ev, m)
	partly.IMA.Count++
	if r := good.Check(partly, now); !strings.Contains(r.Error(), "no measured file is proven") {
		t.Errorf("a list of which not every entry was judged is accepted: %v", r)
	}
}
