package syncer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// object is an operation that writes an object of a policy.
func object(phase plan.Phase, namespace, policy string, i int) plan.Operation {
	u := &unstructured.Unstructured{Object: map[string]any{"kind": "AuthorizationPolicy", "metadata": map[string]any{"namespace": namespace, "name": fmt.Sprintf("%s.%d", policy, i)}}}
	o := plan.Operation{Phase: phase, Action: plan.Create, Object: u, Domain: plan.Domain{Holds: true, Parts: []plan.Part{{Kind: plan.Policy, Name: namespace + "/" + policy}}}}
	o.Target.Group, o.Target.Kind, o.Target.Namespace, o.Target.Name = "security.istio.io", "AuthorizationPolicy", namespace, u.GetName()
	if !phase.Closing() {
		o.Domain.Needs = []plan.Part{{Kind: plan.Cluster}, {Kind: plan.Namespace, Name: namespace}}
	}
	return o
}

// entry is an operation that makes the SPIRE entry of an account.
func entry(namespace string, i int) plan.Operation {
	id := fmt.Sprintf("spiffe://example.org/ns/%s/sa/%d", namespace, i)
	return plan.Operation{Phase: plan.Program, Action: plan.CreateEntry, Entry: &snapshot.Entry{ID: "keelson.test." + namespace + fmt.Sprint(i), SPIFFEID: id},
		Domain: plan.Domain{Holds: true, Parts: []plan.Part{{Kind: plan.Identity, Name: id}}, Needs: []plan.Part{{Kind: plan.Cluster}}}}
}

// label is an operation that gives a pod its label: it needs a policy, and the identity of account 0.
func label(namespace, policy, pod string) plan.Operation {
	o := plan.Operation{Phase: plan.Trust, Action: plan.Patch, MergePatch: []byte(`{"metadata":{"labels":{"a":"b"}}}`), Domain: plan.Domain{
		Parts: []plan.Part{{Kind: plan.Labels, Name: namespace + "/" + policy}},
		Needs: []plan.Part{{Kind: plan.Cluster}, {Kind: plan.Namespace, Name: namespace}, {Kind: plan.Policy, Name: namespace + "/" + policy},
			{Kind: plan.Identity, Name: "spiffe://example.org/ns/" + namespace + "/sa/0"}}}}
	o.Target.Kind, o.Target.Namespace, o.Target.Name = "Pod", namespace, pod
	return o
}

// realTime lets the fake's clock run.
func (w *fakeWorld) realTime(s *Syncer) {
	begun, now := time.Now(), w.now
	s.o.Now = func() time.Time { return now.Add(time.Since(begun)) }
}

// carriedOut returns the operations so far.
func (w *fakeWorld) carriedOut() []plan.Operation {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.ops)
}

// opens opens operations in one pass and returns what was done of each namespace, and how long it took.
func (w *fakeWorld) opens(s *Syncer, operations ...plan.Operation) (done map[string]int, p *progress, took time.Duration) {
	w.mu.Lock()
	w.ops = nil // calls that outlast a pass go on beside
	w.mu.Unlock()
	p = s.progress(evidence{})
	begun := time.Now()
	p.open(w.t.Context(), operations)
	took = time.Since(begun)
	s.refused.sweep()
	done = map[string]int{}
	for _, o := range p.changes {
		done[plan.NamespaceOf(o)]++
	}
	return done, p, took
}

func slowIn(namespace string, d time.Duration) func(plan.Operation) time.Duration {
	return func(o plan.Operation) time.Duration {
		if o.Target.Namespace == namespace {
			return d
		}
		return 0
	}
}

func refuseIn(namespace string, err error) func(plan.Operation) error {
	return func(o plan.Operation) error {
		if o.Target.Namespace == namespace && o.Object != nil {
			return err
		}
		return nil
	}
}

// stall is how long a busy computer may stand still within a pass. Without bounds the passes below
// would take longer by far.
const stall = 4 * time.Second

// TestALargeTeamsOpeningsKeepNoOtherTeamWaiting: another team's object, entry and label are in place after one pass, whatever the
// first team's thousand operations do.
func TestALargeTeamsOpeningsKeepNoOtherTeamWaiting(t *testing.T) {
	for name, prepare := range map[string]func(w *fakeWorld){
		"they take 20 ms each": func(w *fakeWorld) { w.takes = slowIn("large", 20*time.Millisecond) },
		"each is refused after 20 ms": func(w *fakeWorld) {
			w.takes, w.applyErr = slowIn("large", 20*time.Millisecond), refuseIn("large", errors.New("over quota"))
		},
		"each is refused after 300 ms": func(w *fakeWorld) {
			w.takes, w.applyErr = slowIn("large", 300*time.Millisecond), refuseIn("large", errors.New("over quota"))
		},
		"none is answered":                    func(w *fakeWorld) { w.hangs = func(o plan.Operation) bool { return o.Target.Namespace == "large" } },
		"its entries take long at the server": func(w *fakeWorld) { w.takes = slowIn("", 50*time.Millisecond) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newFake(t)
			prepare(w)
			s := w.syncer()
			s.o.Patience = 200 * time.Millisecond
			s.lanes = newLanes(s.o.Patience, s.Trigger)
			w.realTime(s)
			var operations []plan.Operation
			for i := range 1000 {
				operations = append(operations, object(plan.Program, "large", "p", i))
			}
			operations = append(operations, object(plan.Program, "small", "p", 0))
			for i := range 5000 {
				operations = append(operations, entry("large", i))
			}
			operations = append(operations, entry("small", 0), label("large", "p", "a"), label("small", "p", "a"))
			var done map[string]int
			var p *progress
			var took time.Duration
			for range 3 { // a busy computer may stand still for as long as a pass
				if done, p, took = w.opens(s, operations...); done["small"] == 3 {
					break
				}
			}
			if done["small"] != 3 {
				t.Fatalf("of the small team's three operations %d were done", done["small"])
			}
			if most := openFor + s.o.Patience + stall; took > most {
				t.Errorf("the pass opened for %s, more than %s", took, most)
			}
			if !p.unfinished && len(p.failed) == 0 {
				t.Error("the pass says that it is through")
			}
			i := slices.IndexFunc(p.changes, func(o plan.Operation) bool { return o.Target.Kind == "Pod" })
			if i < 0 || p.changes[i].Target.Namespace != "small" {
				t.Error("the large team's pod got its label before its objects and entries were there")
			}
		})
	}
}

// TestEntriesOfASmallTeamTravelFirst: a call of the SPIRE server has entries of each team, and the operations of each team stay in
// order.
func TestEntriesOfASmallTeamTravelFirst(t *testing.T) {
	w := newFake(t)
	s := w.syncer()
	var operations []plan.Operation
	for i := range 5000 {
		operations = append(operations, entry("large", i))
	}
	for i := range 3 {
		operations = append(operations, entry("small", i))
	}
	w.opens(s, operations...)
	var small, large []string
	for n, batch := range w.batches {
		if len(batch) > entriesATurn {
			t.Errorf("call %d has %d entries", n, len(batch))
		}
		for _, o := range batch {
			if plan.NamespaceOf(o) == "small" {
				if small = append(small, o.Entry.ID); n > 0 {
					t.Errorf("%s travels in call %d", o.Entry.ID, n)
				}
			} else {
				large = append(large, o.Entry.ID)
			}
		}
	}
	if len(small) != 3 || len(large) != 5000 || large[0] != "keelson.test.large0" || large[4999] != "keelson.test.large4999" {
		t.Errorf("%d and %d entries, or in another order", len(small), len(large))
	}
}

// TestEveryNamespaceHasItsTurn: where the time of a pass is not enough, the next pass begins with those that had no turn.
func TestEveryNamespaceHasItsTurn(t *testing.T) {
	w := newFake(t)
	w.takes = func(plan.Operation) time.Duration { return 40 * time.Millisecond }
	s := w.syncer()
	s.o.Patience = time.Second
	w.realTime(s)
	const namespaces = 150
	left := map[string][]plan.Operation{}
	for n := range namespaces {
		name := fmt.Sprintf("ns-%d", n)
		for i := range 20 {
			left[name] = append(left[name], object(plan.Program, name, "p", i))
		}
	}
	served := map[string]bool{}
	for pass := range 6 {
		var operations []plan.Operation
		for n := range namespaces {
			operations = append(operations, left[fmt.Sprintf("ns-%d", n)]...)
		}
		done, _, _ := w.opens(s, operations...)
		again := 0
		for namespace, n := range done {
			if served[namespace] {
				again++
			}
			served[namespace] = true
			left[namespace] = left[namespace][n:]
		}
		if len(served) == namespaces {
			return
		}
		if again > 0 {
			t.Errorf("pass %d gave %d namespaces another turn before all had one", pass, again)
		}
	}
	t.Errorf("after six passes %d of %d namespaces had a turn", len(served), namespaces)
}

// TestWhatIsRefusedSlowlyKeepsItsOwnNamespaceWaitingOnce: a namespace for which the time was not enough goes on, in the next pass,
// after what was refused; once it is through, all of it is tried again.
func TestWhatIsRefusedSlowlyKeepsItsOwnNamespaceWaitingOnce(t *testing.T) {
	w := newFake(t)
	refused := errors.New("denied")
	w.takes = slowIn("team", 30*time.Millisecond)
	w.applyErr = func(o plan.Operation) error {
		if strings.HasPrefix(o.Target.Name, "bad.") {
			return refused
		}
		return nil
	}
	s := w.syncer()
	s.o.Patience = time.Second
	w.realTime(s)
	var operations []plan.Operation
	for i := range 60 {
		operations = append(operations, object(plan.Program, "team", "bad", i))
	}
	operations = append(operations, object(plan.Program, "team", "good", 0), label("team", "bad", "a"), label("team", "good", "b"))
	opened := 0
	for pass := range 10 {
		done, p, _ := w.opens(s, operations...)
		if pass == 0 && done["team"] > 0 {
			t.Fatal("the first pass had time for everything: the test shows nothing")
		}
		if opened += done["team"]; opened < 2 {
			if opened == 1 { // a slow computer had no time for the label
				operations = slices.DeleteFunc(operations, func(o plan.Operation) bool { return o.Target.Name == "good.0" })
			}
			continue
		}
		if got := p.changes[len(p.changes)-1].Target.Name; opened != 2 || got != "b" {
			t.Errorf("%d operations were done, the last on %s", opened, got)
		}
		if len(p.failed) != 60 || !errors.Is(p.failed[0].Err, refused) {
			t.Errorf("%d operations failed", len(p.failed))
		}
		if w.applyErr = nil; len(s.refused.of) > 0 {
			t.Errorf("remembered: %v", s.refused.of)
		}
		return
	}
	t.Error("the other policy of the namespace never opened")
}

// TestWhatEverythingRestsOnOpensFirst: while a part of the cluster's is refused, nothing opens; what retires for the cluster is last.
func TestWhatEverythingRestsOnOpensFirst(t *testing.T) {
	global := func(phase plan.Phase, name string) plan.Operation {
		o := plan.Operation{Phase: phase, Action: plan.Update, Object: &unstructured.Unstructured{Object: map[string]any{"kind": "GlobalNetworkPolicy"}},
			Domain: plan.Domain{Holds: true, Parts: []plan.Part{{Kind: plan.Cluster}}}}
		o.Target.Kind, o.Target.Name = "GlobalNetworkPolicy", name
		return o
	}
	operations := []plan.Operation{object(plan.Program, "a", "p", 0), global(plan.Program, "deny"), entry("a", 0), label("a", "p", "x"), global(plan.Retire, "old")}
	for name, refuse := range map[string]bool{"if it is refused, nothing opens": true, "if it is written, all opens": false} {
		t.Run(name, func(t *testing.T) {
			w := newFake(t)
			w.applyErr = func(o plan.Operation) error {
				if refuse && o.Target.Name == "deny" {
					return errors.New("denied")
				}
				return nil
			}
			done, p, _ := w.opens(w.syncer(), operations...)
			if refuse {
				if done["a"] > 0 || len(p.withheld) != 3 {
					t.Errorf("%d operations were done, %d withheld", done["a"], len(p.withheld))
				}
				return
			}
			if done["a"] != 3 || p.changes[0].Target.Name != "deny" || p.changes[4].Target.Name != "old" {
				t.Errorf("done: %v", p.changes)
			}
		})
	}
}

// TestAnAPIThatTakesLongIsNotWaitedFor: what a team's API has not answered within the limit goes on beside; its last answer is in the
// error, and the next passes do not wait.
func TestAnAPIThatTakesLongIsNotWaitedFor(t *testing.T) {
	w := newFake(t)
	refused := errors.New("over quota")
	w.takes, w.applyErr = slowIn("team", 400*time.Millisecond), refuseIn("team", refused)
	s := w.syncer()
	w.realTime(s)
	operations := []plan.Operation{object(plan.Program, "team", "p", 0), object(plan.Program, "other", "p", 0)}
	done, p, took := w.opens(s, operations...)
	if done["other"] != 1 || took > 350*time.Millisecond || len(p.failed) != 1 || !errors.Is(p.failed[0].Err, context.DeadlineExceeded) {
		t.Errorf("after %s: done %v, failed %v", took, done, p.failed)
	}
	within(t, "the refusal is named once it came", func() bool {
		_, p, took := w.opens(s, operations...)
		if took > 350*time.Millisecond {
			t.Errorf("a later pass took %s", took)
		}
		return len(p.failed) == 1 && errors.Is(p.failed[0].Err, refused)
	})
	w.mu.Lock()
	w.takes, w.applyErr = nil, nil
	w.mu.Unlock()
	within(t, "it is written once the API is quick", func() bool {
		done, _, _ := w.opens(s, operations[0])
		return done["team"] == 1
	})
}

// TestALargeTeamsClosingKeepsNoOtherTeamWaiting: objects that only close, and are many or refused slowly, bound neither the pass nor
// others' opening, and nothing of their own policy opens meanwhile.
func TestALargeTeamsClosingKeepsNoOtherTeamWaiting(t *testing.T) {
	w := newFake(t)
	w.takes, w.applyErr = slowIn("large", 20*time.Millisecond), refuseIn("large", errors.New("over quota"))
	s := w.syncer()
	w.realTime(s)
	var closing []plan.Operation
	for i := range 80 {
		closing = append(closing, object(plan.Tighten, "large", "p", i))
	}
	opening := []plan.Operation{entry("large", 0), entry("small", 0), label("large", "p", "a"), label("small", "p", "a")}
	tried := map[string]bool{}
	for pass := range 30 {
		begun := time.Now()
		p := s.progress(evidence{})
		p.close(t.Context(), closing)
		p.open(t.Context(), opening)
		s.refused.sweep()
		if took := time.Since(begun); took > closeFor+openFor+stall {
			t.Errorf("pass %d took %s", pass, took)
		}
		labels := slices.DeleteFunc(slices.Clone(p.changes), func(o plan.Operation) bool { return o.Target.Kind != "Pod" })
		if len(labels) != 1 || labels[0].Target.Namespace != "small" {
			t.Fatalf("pass %d changed %v", pass, labels)
		}
		for _, f := range p.failed {
			tried[f.Operation.Target.Name] = true
		}
		if !p.unfinished {
			break
		}
	}
	if len(tried) != len(closing) {
		t.Errorf("%d of %d operations were tried before the first one was tried again", len(tried), len(closing))
	}
}

// TestEntriesThatGoAreClosedInTurns: agents are evicted first, and a small team's entry goes with the first of a large team's.
func TestEntriesThatGoAreClosedInTurns(t *testing.T) {
	w := newFake(t)
	w.takes = func(plan.Operation) time.Duration { return 200 * time.Millisecond }
	s := w.syncer()
	w.realTime(s)
	var closing []plan.Operation
	gone := func(namespace string, i int) {
		o := entry(namespace, i)
		o.Phase, o.Action, o.Domain.Needs = plan.Tighten, plan.DeleteEntry, nil
		closing = append(closing, o)
	}
	for i := range 1000 {
		gone("large", i)
	}
	gone("small", 0)
	for i := range 120 {
		closing = append(closing, plan.Operation{Phase: plan.Revoke, Action: plan.DeleteAgent, AgentID: fmt.Sprint("spiffe://example.org/spire/agent/", i)})
	}
	p := s.progress(evidence{})
	p.close(t.Context(), closing)
	evicted := slices.IndexFunc(w.carriedOut(), func(o plan.Operation) bool { return o.Entry != nil })
	if evicted != 120 {
		t.Fatalf("%d agents were evicted before the first entry went", evicted)
	}
	if len(w.batches) > 8 || !p.unfinished {
		t.Errorf("one pass made %d calls; unfinished: %t", len(w.batches), p.unfinished)
	}
	if !slices.ContainsFunc(w.carriedOut(), func(o plan.Operation) bool { return plan.NamespaceOf(o) == "small" }) {
		t.Error("the small team's entry waits for the large team's")
	}
}
