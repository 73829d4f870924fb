package trustgraph_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

func statusOf(t *testing.T, s snapshot.Snapshot, namespace, name string, applied error) v1alpha1.TrustPolicyStatus {
	t.Helper()
	g, err := trustgraph.Build(s)
	if err != nil {
		t.Fatal(err)
	}
	p, ok := g.Policy(namespace, name)
	if !ok {
		t.Fatalf("no policy %s/%s", namespace, name)
	}
	return g.Status(p, applied)
}

// TestALongMessageIsCutBetweenCharacters: a half character is stored otherwise than it was sent, so that each pass would write it.
func TestALongMessageIsCutBetweenCharacters(t *testing.T) {
	for n := range 8 {
		text := strings.Repeat("x", n) + strings.Repeat("é€😀", 300) + "\xff"
		s := snapshottest.Demo()
		snapshottest.WithoutHTTP(&s)
		c := meta.FindStatusCondition(statusOf(t, s, "payments", "api", errors.New(text)).Conditions, v1alpha1.ConditionProgrammed)
		if !utf8.ValidString(c.Message) || strings.ContainsRune(c.Message, utf8.RuneError) || len(c.Message) > 1024 || len(c.Message) < 1016 {
			t.Errorf("with %d letters before: %d bytes, valid %t", n, len(c.Message), utf8.ValidString(c.Message))
		}
	}
}

func TestStatusSaysInOneLineWhy(t *testing.T) {
	good := func() snapshot.Snapshot {
		s := snapshottest.Demo()
		snapshottest.WithoutHTTP(&s)
		s.Pods = slices.DeleteFunc(s.Pods, func(p *corev1.Pod) bool { return p.Spec.NodeName != "fra-1" })
		return s
	}
	none := good()
	none.Pods = nil
	unenrolled := good()
	unenrolled.Namespaces = nil
	for name, tc := range map[string]struct {
		s        snapshot.Snapshot
		applied  error
		why      string
		attested metav1.ConditionStatus
	}{
		"if nothing is wrong, nothing":                      {good(), nil, "", metav1.ConditionTrue},
		"if an operation failed, that":                      {good(), errors.New("denied"), "denied", metav1.ConditionTrue},
		"if there is no pod, it waits for one":              {none, nil, "", metav1.ConditionFalse},
		"if the namespace is not enrolled, how to enrol it": {unenrolled, nil, "kubectl label namespace payments trust.keelson.io/mode=audit", metav1.ConditionFalse},
	} {
		t.Run(name, func(t *testing.T) {
			st := statusOf(t, tc.s, "payments", "api", tc.applied)
			if st.Why != tc.why && (tc.why == "" || !strings.Contains(st.Why, tc.why)) {
				t.Errorf("why: %q", st.Why)
			}
			if c := meta.FindStatusCondition(st.Conditions, v1alpha1.ConditionAttested); c == nil || c.Status != tc.attested {
				t.Errorf("attested: %+v", c)
			}
		})
	}
}

// TestAVerdictsStatusNamesTheGenerationThatItIsAbout: a proof that is renewed is another one.
func TestAVerdictsStatusNamesTheGenerationThatItIsAbout(t *testing.T) {
	s := snapshottest.Demo()
	for i := range s.NodeTrusts {
		s.NodeTrusts[i].Generation = 3
	}
	states := build(t, s).NodeTrusts
	if len(states) != len(s.NodeTrusts) {
		t.Fatalf("%d statuses are written", len(states))
	}
	for i := range s.NodeTrusts {
		for _, state := range states {
			if state.Name == s.NodeTrusts[i].Name {
				s.NodeTrusts[i].Status = state.Status
			}
		}
		if got := s.NodeTrusts[i].Status.ObservedGeneration; got != 3 {
			t.Errorf("%s: generation %d", s.NodeTrusts[i].Name, got)
		}
	}
	if states = build(t, s).NodeTrusts; len(states) != 0 {
		t.Errorf("written again: %+v", states)
	}
	s.NodeTrusts[0].Generation = 4
	if states = build(t, s).NodeTrusts; len(states) != 1 || states[0].Status.ObservedGeneration != 4 || !states[0].Status.Since.Equal(s.NodeTrusts[0].Status.Since) {
		t.Errorf("after a renewal: %+v", states)
	}
}
