package plan_test

import (
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
)

func TestAuditModeDeniesNothingAndShowsWhatItWould(t *testing.T) {
	w := demo()
	for i := range w.Namespaces {
		if _, ok := w.Namespaces[i].Labels[v1alpha1.ModeLabel]; ok {
			w.Namespaces[i].Labels[v1alpha1.ModeLabel] = v1alpha1.ModeAudit
		}
	}
	w.settle(t, nil)
	d := newDataplane(w.Snapshot)
	if !calls(w.Snapshot, d, w.podNamed("other/stranger-fra-1"), w.podNamed("payments/api-fra-1"), 8443, "GET", "/") {
		t.Error("audit mode denies")
	}
	kinds := map[string]int{}
	for _, o := range w.Objects {
		kinds[o.GetKind()]++
		if o.GetKind() == "AuthorizationPolicy" && o.GetAnnotations()["istio.io/dry-run"] != "true" {
			t.Errorf("%s is no dry run", o.GetName())
		}
	}
	if kinds["PeerAuthentication"] != 0 || kinds["NetworkPolicy"] != 0 || kinds["StagedNetworkPolicy"] != 2 || kinds["StagedGlobalNetworkPolicy"] != 2 {
		t.Errorf("objects %v", kinds)
	}
	p, _ := mustMake(t, w.Snapshot).Graph.Policy("payments", "api")
	if len(p.Selected) != 3 || len(p.Attested) != 1 {
		t.Errorf("status does not say what would be denied: %v of %v", p.Attested, p.Selected)
	}
}

func TestHostNetworkPodsAreNeverLabelledAndReported(t *testing.T) {
	w := demo()
	p := w.podNamed("payments/api-fra-1")
	p.Spec.HostNetwork = true
	p.Labels[v1alpha1.PodAttestedLabel] = "true"
	w.settle(t, nil)
	if _, ok := w.podNamed("payments/api-fra-1").Labels[v1alpha1.PodAttestedLabel]; ok {
		t.Error("labelled")
	}
	policy, _ := mustMake(t, w.Snapshot).Graph.Policy("payments", "api")
	if !strings.Contains(strings.Join(policy.Notes, "; "), "network policy does not bind it") {
		t.Errorf("notes %q", policy.Notes)
	}
}

func TestAnImageChangeTakesTheLabelAway(t *testing.T) {
	w := settled(t)
	w.podNamed("payments/api-fra-1").Status.ContainerStatuses[0].ImageID = "registry.example/api@" + snapshottest.Digest("other")
	w.settle(t, nil)
	if _, ok := w.podNamed("payments/api-fra-1").Labels[v1alpha1.PodAttestedLabel]; ok {
		t.Error("still labelled")
	}
}

// TestTheRailStopsASuspiciousPlan: a list of policies that comes back empty would take
// everything down; what is proved still acts.
func TestTheRailStopsASuspiciousPlan(t *testing.T) {
	w := settled(t)
	w.Policies, w.Namespaces = nil, nil
	w.NodeTrusts[0].Spec.Verdict = v1alpha1.VerdictUntrusted
	p := mustMake(t, w.Snapshot).Plan
	if len(p.Withheld) == 0 {
		t.Fatalf("no rail:\n%s", p)
	}
	for _, o := range p.Operations {
		if !o.Proved {
			t.Errorf("done all the same: %s", o)
		}
	}
	if !strings.Contains(p.String(), snapshottest.AgentID("fra-1")) {
		t.Errorf("the proof does not act:\n%s", p)
	}
}

func TestAStrangersObjectUnderOurNameIsTakenOver(t *testing.T) {
	w := demo()
	squat := foreign("projectcalico.org/v3", "GlobalNetworkPolicy", "", "keelson.default-deny")
	squat.SetUID("squat")
	squat.SetResourceVersion("1")
	_ = unstructured.SetNestedSlice(squat.Object, []any{map[string]any{"action": "Allow"}}, "spec", "ingress")
	w.Objects = append(w.Objects, squat)
	w.settle(t, nil)
	if p := mustMake(t, w.Snapshot).Plan; !p.Empty() {
		t.Error(p)
	}
	i := slices.IndexFunc(w.Objects, func(o *unstructured.Unstructured) bool { return o.GetUID() == "squat" })
	if i < 0 || !snapshot.Owned(w.Objects[i]) || strings.Contains(render(w.Objects[i:i+1]), "Allow") {
		t.Error("the stranger's rules stand")
	}
}

func TestAForeignPolicyInOurTierIsReported(t *testing.T) {
	w := settled(t)
	o := foreign("projectcalico.org/v3", "NetworkPolicy", "payments", "keelson.zz")
	_ = unstructured.SetNestedField(o.Object, "keelson", "spec", "tier")
	tier := foreign("projectcalico.org/v3", "Tier", "", "first")
	_ = unstructured.SetNestedField(tier.Object, int64(10), "spec", "order")
	w.Objects = append(w.Objects, o, tier)
	g := mustMake(t, w.Snapshot).Graph
	text := strings.Join(g.Reports, "\n")
	if !strings.Contains(text, "keelson.zz stands in tier keelson") || !strings.Contains(text, "Calico tier first (order 10) comes before") {
		t.Errorf("reports:\n%s", text)
	}
}
