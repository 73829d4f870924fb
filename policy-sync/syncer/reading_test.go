package syncer

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
)

// TestAReadingServesPassesWhileItIsFresh: with what they write there; a verdict, a failure and time have the server read anew.
func TestAReadingServesPassesWhileItIsFresh(t *testing.T) {
	w := newFake(t)
	s := w.syncer()
	s.o.SPIREFresh = 5 * time.Second
	w.sync(s)
	readings := func() int {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.spireReads
	}
	before := readings()
	w.mu.Lock()
	w.s.Pods = append(w.s.Pods, snapshottest.Pod("shop", "another", "frontend", "par-1", "10.2.0.80"))
	snapshottest.Verify(&w.s)
	w.mu.Unlock()
	w.sync(s)
	if got := readings(); got != before {
		t.Errorf("the server was read %d times for a pod", got-before)
	}
	if !slices.Contains(w.attestedPods(), "shop/another") {
		t.Errorf("attested: %v", w.attestedPods())
	}
	for what, happens := range map[string]func(){
		"a verdict": w.proveBad,
		"time":      func() { w.mu.Lock(); w.now = w.now.Add(6 * time.Second); w.mu.Unlock() },
		"a failure": func() {
			s.wrote(plan.Operation{Action: plan.CreateEntry, Entry: &snapshot.Entry{}}, errors.New("refused"))
		},
	} {
		before = readings()
		happens()
		w.sync(s)
		if readings() == before {
			t.Errorf("%s: the server was not read anew", what)
		}
	}
}

// TestAReadingFromBeforeAVerdictIsFollowedByAnother: an agent that attested after the reading began is evicted by the next pass,
// which is asked for at once.
func TestAReadingFromBeforeAVerdictIsFollowedByAnother(t *testing.T) {
	w := newFake(t)
	s := w.syncer()
	s.o.SPIREFresh = time.Minute
	w.sync(s)
	hang := make(chan struct{})
	w.mu.Lock()
	w.now, w.hang = w.now.Add(2*time.Minute), hang
	w.mu.Unlock()
	if _, err := s.Sync(t.Context()); err != nil || s.reading == nil {
		t.Fatalf("a reading is under way: %t; %v", s.reading != nil, err)
	}
	w.mu.Lock()
	w.now, w.hang = w.now.Add(time.Second), nil
	w.mu.Unlock()
	w.proveBad()
	close(hang)
	<-s.reading.done
	select {
	case <-s.trigger:
	default:
	}
	if _, err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.trigger:
	default:
		t.Error("no pass is asked for")
	}
	w.mu.Lock()
	before := w.spireReads
	w.mu.Unlock()
	if _, err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.spireReads == before {
		t.Error("the server was not read again")
	}
}

// TestWhatWasWrittenIsKnownWithoutReading: creations, updates and deletions, the last of several for one entry.
func TestWhatWasWrittenIsKnownWithoutReading(t *testing.T) {
	entry := func(id, spiffeID string) snapshot.Entry { return snapshot.Entry{ID: id, SPIFFEID: spiffeID} }
	read := &snapshot.SPIRE{Entries: []snapshot.Entry{entry("a", "1"), entry("b", "1"), entry("c", "1")}, OwnID: "own",
		Agents: []snapshot.Agent{{ID: "x"}, {ID: "y"}}}
	op := func(action plan.Action, id, spiffeID string) plan.Operation {
		e := entry(id, spiffeID)
		return plan.Operation{Action: action, Entry: &e}
	}
	got := carriedOut(read, []plan.Operation{op(plan.DeleteEntry, "a", "1"), op(plan.UpdateEntry, "b", "2"), op(plan.CreateEntry, "d", "1"),
		op(plan.CreateEntry, "e", "1"), op(plan.DeleteEntry, "e", "1"), {Action: plan.DeleteAgent, AgentID: "x"}})
	var have []string
	for _, e := range got.Entries {
		have = append(have, e.ID+e.SPIFFEID)
	}
	slices.Sort(have)
	if text := strings.Join(have, " "); text != "b2 c1 d1" || len(got.Agents) != 1 || got.Agents[0].ID != "y" || got.OwnID != "own" {
		t.Errorf("entries %s, agents %v, own ID %q", text, got.Agents, got.OwnID)
	}
	if len(read.Entries) != 3 || read.Entries[1].SPIFFEID != "1" {
		t.Errorf("the reading itself was changed: %v", read.Entries)
	}
	if carriedOut(read, nil) != read {
		t.Error("nothing was written, and it is another reading")
	}
}
