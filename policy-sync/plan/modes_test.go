package plan_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
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

// TestTheRailKeepsNoPodTrusted: an app team that deletes many policies of its own stops the plan, and must not thereby keep
// trusted what has lost its proof elsewhere.
func TestTheRailKeepsNoPodTrusted(t *testing.T) {
	w := demo()
	for i := range 30 {
		p := snapshottest.Frontend()
		p.Name, p.UID = fmt.Sprintf("many-%d", i), types.UID(fmt.Sprint(i))
		w.Policies = append(w.Policies, p)
	}
	w.settle(t, nil)
	w.Policies = w.Policies[:2]
	w.podNamed("payments/api-fra-1").Status.ContainerStatuses[0].ImageID = "registry.example/api@" + snapshottest.Digest("other")
	w.NodeTrusts[1].Spec.ValidUntil = metav1.NewMicroTime(w.At) // par-1's proof has ended
	p := mustMake(t, w.Snapshot).Plan
	if len(p.Withheld) == 0 {
		t.Fatalf("no rail:\n%s", p)
	}
	for _, o := range p.Operations {
		if o.Phase != plan.Revoke && (o.Action != plan.Patch || !o.Phase.Closing()) {
			t.Errorf("done all the same: %s", o)
		}
		if err := w.apply(o); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range []string{"payments/api-fra-1", "shop/frontend-par-1"} {
		if trustgraph.BearsTrust(w.podNamed(key).Labels) {
			t.Errorf("%s keeps its label", key)
		}
	}
	if !trustgraph.BearsTrust(w.podNamed("shop/frontend-fra-1").Labels) {
		t.Error("the rail did not hold a pod whose policies alone are gone")
	}
}

// TestANamespaceThatIsBeingDeletedHoldsUpNobody: it takes no new objects, for as long as somebody's finalizer keeps it.
func TestANamespaceThatIsBeingDeletedHoldsUpNobody(t *testing.T) {
	w := settled(t)
	now := metav1.NewTime(w.At)
	for i := range w.Namespaces {
		if w.Namespaces[i].Name == "shop" {
			w.Namespaces[i].DeletionTimestamp = &now
		}
	}
	w.Objects = slices.DeleteFunc(w.Objects, func(o *unstructured.Unstructured) bool { return o.GetNamespace() == "shop" })
	p := mustMake(t, w.Snapshot).Plan
	for _, o := range p.Operations {
		if o.Action == plan.Create {
			t.Errorf("would be refused: %s", o)
		}
	}
	if !strings.Contains(strings.Join(p.Withheld, "; "), "its namespace is being deleted") {
		t.Errorf("withheld %q", p.Withheld)
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
