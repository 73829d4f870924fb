package desired_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/desired"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

func from(t *testing.T, s snapshot.Snapshot) desired.Intents {
	t.Helper()
	g, err := trustgraph.Build(s)
	if err != nil {
		t.Fatal(err)
	}
	return desired.From(g)
}

func nodeOf(in desired.Intents, name string) desired.Node {
	for _, n := range in.Nodes {
		if n.Name == name {
			return n
		}
	}
	return desired.Node{}
}

func TestEveryIntentHasItsReason(t *testing.T) {
	in := from(t, snapshottest.Demo())
	for _, n := range in.Nodes {
		if n.Reason == "" {
			t.Errorf("node %s", n.Name)
		}
	}
	for _, p := range in.Pods {
		if p.Reason == "" {
			t.Errorf("pod %s/%s", p.Namespace, p.Name)
		}
	}
	for _, w := range in.Workloads {
		if w.Reason == "" {
			t.Errorf("workload %s/%s", w.Namespace, w.Policy)
		}
	}
}

func TestATagOrReferenceThatCannotBeALabelOpensNothing(t *testing.T) {
	s := snapshottest.Demo()
	s.NodeTrusts[0].Spec.Tags = map[string]string{"country": "DE", "a b": "c", "place": "Frankfurt am Main", "empty": ""}
	want := map[string]string{v1alpha1.NodeVerdictLabel: "trusted", v1alpha1.NodeTagPrefix + "country": "DE", v1alpha1.NodeReferenceLabel: "prod"}
	if diff := cmp.Diff(want, nodeOf(from(t, s), "fra-1").Labels); diff != "" {
		t.Error(diff)
	}
	delete(want, v1alpha1.NodeReferenceLabel)
	for _, name := range []string{"prod 2026", strings.Repeat("x", 64), ""} {
		s.NodeTrusts[0].Spec.Reference = name
		if diff := cmp.Diff(want, nodeOf(from(t, s), "fra-1").Labels); diff != "" {
			t.Errorf("reference %q: %s", name, diff)
		}
	}
}

func TestANodeOnHoldIsKeptFreeOfNewPods(t *testing.T) {
	s := snapshottest.Demo()
	s.Config.MaxHold, s.At = time.Hour, s.At.Add(2*time.Minute)
	n := nodeOf(from(t, s), "fra-1")
	if len(n.Labels) != 0 || n.Taint == nil || !*n.Taint || !strings.Contains(n.Reason, "the brake holds its pods until 2026-11-02T13:01:00Z") {
		t.Errorf("%+v", n)
	}
}

func TestTaintsAreLeftAloneUnlessAsked(t *testing.T) {
	s := snapshottest.Demo()
	s.Config.Taint = false
	for _, n := range from(t, s).Nodes {
		if n.Taint != nil {
			t.Errorf("node %s", n.Name)
		}
	}
}

// TestNodesThatWereThereBeforeAreTaintedOnRequest: and any other that is not trusted always, whatever it bears by now.
func TestNodesThatWereThereBeforeAreTaintedOnRequest(t *testing.T) {
	label := map[string]string{v1alpha1.NodeVerdictLabel: "trusted"}
	tainted := []corev1.Taint{{Key: v1alpha1.UntrustedTaint, Effect: corev1.TaintEffectNoSchedule}}
	for name, tc := range map[string]struct {
		labels  map[string]string
		taints  []corev1.Taint
		trust   func(*v1alpha1.NodeTrustSpec) // nil: no NodeTrust
		asked   bool
		want    bool
		nothing bool
	}{
		"a node that nobody has judged is left alone":        {nothing: true},
		"it is tainted when that is asked for":               {asked: true, want: true},
		"with a taint of a team's, it is left alone":         {taints: []corev1.Taint{{Key: "team"}}, nothing: true},
		"a node that was created tainted stays so":           {taints: tainted, want: true},
		"one whose NodeTrust was deleted is tainted":         {labels: label, want: true},
		"one that is proved bad is tainted":                  {trust: func(s *v1alpha1.NodeTrustSpec) { s.Verdict = v1alpha1.VerdictUntrusted }, want: true},
		"one whose proof ended is tainted":                   {trust: func(s *v1alpha1.NodeTrustSpec) { s.ValidUntil = s.AttestedAt }, want: true},
		"one whose proof is about an earlier one is tainted": {trust: func(s *v1alpha1.NodeTrustSpec) { s.NodeUID = "another" }, want: true},
		"one whose proof nobody can read is tainted":         {trust: func(s *v1alpha1.NodeTrustSpec) { s.EKHash = "?" }, want: true},
		"one that is trusted is not":                         {trust: func(*v1alpha1.NodeTrustSpec) {}, taints: tainted},
	} {
		t.Run(name, func(t *testing.T) {
			s := snapshottest.Demo()
			s.Config.TaintExisting = tc.asked
			s.Nodes[0].Labels, s.Nodes[0].Spec.Taints = tc.labels, tc.taints
			if tc.trust == nil {
				s.NodeTrusts = s.NodeTrusts[1:]
			} else {
				tc.trust(&s.NodeTrusts[0].Spec)
			}
			n := nodeOf(from(t, s), "fra-1")
			if tc.nothing {
				if n.Taint != nil {
					t.Errorf("taint wanted: %v", *n.Taint)
				}
				return
			}
			if n.Taint == nil || *n.Taint != tc.want {
				t.Errorf("%+v", n)
			}
		})
	}
}

func TestCallersMayLeaveForWhoeverLetsThemIn(t *testing.T) {
	for _, w := range from(t, snapshottest.Demo()).Workloads {
		if w.Policy != "frontend" {
			continue
		}
		want := []desired.Flow{{Namespace: "payments", PolicyLabel: v1alpha1.PolicyLabel("api"), Ports: []int32{8443}}}
		if diff := cmp.Diff(want, w.Egress); diff != "" {
			t.Error(diff)
		}
		return
	}
	t.Error("no workload")
}

func TestAPolicyThatIsNotAcceptedOpensNothing(t *testing.T) {
	s := snapshottest.Demo()
	s.Policies[0].Spec.Ingress[0].Ports = []int32{0}
	for _, w := range from(t, s).Workloads {
		if w.Policy == "api" || len(w.Egress) > 0 {
			t.Errorf("%+v", w)
		}
	}
}
