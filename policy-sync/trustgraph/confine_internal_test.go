package trustgraph

import (
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
)

// breaking is an engine in which the judgement of some subjects panics, and the subjects whose panic
// was noted.
func breaking(subjects ...string) (e *Engine, noted *[]string) {
	noted = &[]string{}
	return &Engine{
		judging: func(subject string) {
			if slices.Contains(subjects, subject) {
				panic("index out of range")
			}
		},
		Panicked: func(subject string, _ any, _ []byte) { *noted = append(*noted, subject) },
	}, noted
}

func built(t *testing.T, e *Engine, s snapshot.Snapshot) Graph {
	t.Helper()
	g, err := e.Build(s)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// attestedPods are the keys of the attested pods of a graph.
func attestedPods(g Graph) []string {
	var out []string
	for _, p := range g.Pods() {
		if p.Attested {
			out = append(out, p.Key())
		}
	}
	return out
}

// TestAPanicAboutANodeClosesThatNode: its pods are not attested, and all others are.
func TestAPanicAboutANodeClosesThatNode(t *testing.T) {
	s := snapshottest.Demo()
	e, noted := breaking("node fra-1")
	before, after := attestedPods(built(t, new(Engine), s)), built(t, e, s)
	if n, _ := after.Node("fra-1"); n.Verdict != v1alpha1.VerdictUnknown || !strings.Contains(strings.Join(n.Why, "\n"), "fault of Keelson's") {
		t.Errorf("the node: %+v", n)
	}
	want := slices.DeleteFunc(before, func(key string) bool { return strings.HasSuffix(key, "fra-1") })
	if got := attestedPods(after); !slices.Equal(got, want) || len(want) == 0 {
		t.Errorf("attested are %q, want %q", got, want)
	}
	if !slices.Contains(*noted, "node fra-1") {
		t.Errorf("noted are %q", *noted)
	}
}

// TestAPanicAboutAnUntrustedNodeSparesItNothing: what it has is revoked.
func TestAPanicAboutAnUntrustedNodeSparesItNothing(t *testing.T) {
	s := snapshottest.Demo()
	e, _ := breaking("node evil-1")
	before, after := built(t, new(Engine), s), built(t, e, s)
	if len(before.Revoked) == 0 || !slices.Equal(before.Revoked, after.Revoked) {
		t.Errorf("revoked are %+v, want %+v", after.Revoked, before.Revoked)
	}
}

// TestAPanicAboutAPolicyIsThatPolicys: its status says so and withholds Programmed, and nothing else
// changes.
func TestAPanicAboutAPolicyIsThatPolicys(t *testing.T) {
	s := snapshottest.Demo()
	s.SPIRE = &snapshot.SPIRE{}
	e, _ := breaking("TrustPolicy payments/api")
	before, after := built(t, new(Engine), s), built(t, e, s)
	if got, want := attestedPods(after), attestedPods(before); !slices.Equal(got, want) || len(want) == 0 {
		t.Errorf("attested are %q, want %q", got, want)
	}
	for _, p := range before.Policies {
		now, _ := after.Policy(p.Namespace, p.Name)
		names := strings.Contains(strings.Join(now.Blockers, "\n"), "fault of Keelson's")
		if broken := p.Key() == "payments/api"; names != broken || !broken && len(now.Blockers) != len(p.Blockers) {
			t.Errorf("%s is withheld because %q", p.Key(), now.Blockers)
		}
		if !now.Accepted {
			t.Errorf("%s is not in force", p.Key())
		}
	}
	// The callers of payments/api are under shop/frontend: their way out to it is not opened.
	had, _ := before.Policy("shop", "frontend")
	now, _ := after.Policy("shop", "frontend")
	if len(had.Answers) == 0 || len(now.Answers) != 0 {
		t.Errorf("the callers' ways out are %+v, were %+v", now.Answers, had.Answers)
	}
}

// TestAPanicAboutAnObjectWithholdsProgrammedInItsNamespace: what it changes is not known there.
func TestAPanicAboutAnObjectWithholdsProgrammedInItsNamespace(t *testing.T) {
	for namespace, withheld := range map[string][]string{"payments": {"payments/api"}, "": {"payments/api", "shop/frontend"}} {
		s := snapshottest.Demo()
		s.SPIRE = &snapshot.SPIRE{}
		o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "x/v1", "kind": "EnvoyFilter"}}
		o.SetNamespace(namespace)
		o.SetName("odd")
		s.Objects = append(s.Objects, o)
		e, noted := breaking("EnvoyFilter " + namespace + "/odd")
		g := built(t, e, s)
		var got []string
		for _, p := range g.Policies {
			if strings.Contains(strings.Join(p.Blockers, "\n"), "could not be looked at") {
				got = append(got, p.Key())
			}
		}
		if !slices.Equal(got, withheld) || len(*noted) != 1 {
			t.Errorf("in namespace %q: withheld from %q, want %q; noted %q", namespace, got, withheld, *noted)
		}
		if !strings.Contains(strings.Join(g.Reports, "\n"), "odd could not be looked at") {
			t.Error("no finding names it")
		}
	}
}

// TestAfterAPanicNothingThatWasKeptIsUsed: a graph that was not finished is made from the beginning.
func TestAfterAPanicNothingThatWasKeptIsUsed(t *testing.T) {
	s := snapshottest.Demo()
	e := new(Engine)
	built(t, e, s)
	broken := s
	broken.NodeTrusts = slices.Clone(s.NodeTrusts)
	broken.NodeTrusts[0].Spec.Verdict = v1alpha1.VerdictUntrusted
	func() {
		defer func() { _ = recover() }()
		e.judging = func(string) { panic("index out of range") }
		e.Panicked = func(string, any, []byte) { panic("index out of range") }
		_, _ = e.Build(broken)
		t.Error("it did not panic")
	}()
	e.judging, e.Panicked = nil, nil
	got, want := built(t, e, broken), built(t, new(Engine), broken)
	if !slices.Equal(attestedPods(got), attestedPods(want)) || !slices.Equal(got.Revoked, want.Revoked) {
		t.Errorf("attested %q, revoked %+v; want %q, %+v", attestedPods(got), got.Revoked, attestedPods(want), want.Revoked)
	}
}
