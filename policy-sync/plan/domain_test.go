package plan_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
)

// clusterBarriers are all that everything rests on. A further one needs a reason: whoever can have it refused stops the cluster.
var clusterBarriers = []string{
	"GlobalNetworkPolicy keelson.attested-egress", "GlobalNetworkPolicy keelson.default-deny", "GlobalNetworkPolicy keelson.revoked", "Tier keelson",
}

func TestOnlyNamedBarriersAreEverybodys(t *testing.T) {
	var got []string
	for _, o := range mustMake(t, snapshottest.Demo()).Plan.Operations {
		if o.Domain.Holds && slices.Contains(o.Domain.Parts, plan.Part{Kind: plan.Cluster}) {
			got = append(got, o.Target.String())
		}
	}
	if slices.Sort(got); !slices.Equal(got, clusterBarriers) {
		t.Errorf("everything rests on %q, want %q", got, clusterBarriers)
	}
}

// TestWhatOpensRestsOnWhatCloses: no operation that opens goes without the cluster's barriers, none that closes needs anything.
func TestWhatOpensRestsOnWhatCloses(t *testing.T) {
	for _, o := range mustMake(t, snapshottest.Demo()).Plan.Operations {
		needs := slices.Contains(o.Domain.Needs, plan.Part{Kind: plan.Cluster})
		if needs == o.Phase.Closing() || len(o.Domain.Needs) > 0 == o.Phase.Closing() {
			t.Errorf("%s needs %v", o, o.Domain.Needs)
		}
		if len(o.Domain.Parts) == 0 {
			t.Errorf("%s is nobody's", o)
		}
	}
}

// TestWhatAFailureHoldsBack: for each operation of the demo's plan, what waits when it alone fails.
func TestWhatAFailureHoldsBack(t *testing.T) {
	operations := mustMake(t, snapshottest.Demo()).Plan.Operations
	waiting := func(match string) []string {
		var m plan.Missing
		var out []string
		for _, o := range operations {
			switch {
			case strings.Contains(o.String(), match):
				m.Add(o, errors.New("denied"))
			default:
				if why := m.Holds(o); why != nil {
					m.Add(o, why)
					out = append(out, o.String())
				}
			}
		}
		return out
	}
	opening := 0
	for _, o := range operations {
		if !o.Phase.Closing() {
			opening++
		}
	}
	if n := len(waiting("Tier keelson")); n != opening {
		t.Errorf("without the tier %d operations wait, want all %d", n, opening)
	}
	for match, only := range map[string]string{
		"AuthorizationPolicy payments/keelson.api.deny":      "payments/api",
		"AuthorizationPolicy payments/keelson.api.allow":     "payments/api",
		"NetworkPolicy payments/keelson.default-deny":        "payments",
		"AuthorizationPolicy payments/keelson.allow-nothing": "payments",
	} {
		got := waiting(match)
		if len(got) == 0 {
			t.Errorf("nothing waits for %s", match)
		}
		for _, o := range got {
			if !strings.Contains(o, only) && !strings.Contains(o, "/ns/payments/") {
				t.Errorf("for %s waits %s", match, o)
			}
		}
	}
	for _, match := range []string{"Node fra-1", "Pod payments/api-fra-1", "StagedGlobalNetworkPolicy keelson.audit-default-deny"} {
		if got := waiting(match); len(got) > 0 {
			t.Errorf("for %s waits %v", match, got)
		}
	}
}

// TestADeniedDeleteHoldsBackNothingNew: what is superseded is in nobody's way, but what closes in its place stays.
func TestADeniedDeleteHoldsBackNothingNew(t *testing.T) {
	w := settled(t)
	w.Policies = w.Policies[1:]
	w.Config.MaxDeletePercent = 0
	w.Pods = append(w.Pods, snapshottest.Pod("shop", "new", "frontend", "fra-1", "10.1.0.99"))
	snapshottest.Verify(&w.Snapshot)
	var m plan.Missing
	for _, o := range mustMake(t, w.Snapshot).Plan.Operations {
		if o.Action == plan.Delete && o.Phase.Closing() {
			m.Add(o, errors.New("denied"))
			continue
		}
		why := m.Holds(o)
		if retire := o.Action == plan.Delete; retire != (why != nil) {
			t.Errorf("%s: %v", o, why)
		}
	}
}

// TestTheRailCountsPerNamespace: a team that deletes what is its own keeps no other team from tightening, deleting or opening.
func TestTheRailCountsPerNamespace(t *testing.T) {
	w := demo()
	w.Config.MaxDeletePercent = 30
	for i := range 20 {
		tp := snapshottest.Frontend()
		tp.Name, tp.UID = "p"+string(rune('a'+i)), snapshottest.UID("TrustPolicy", string(rune('a'+i)))
		tp.Spec.Workloads.ServiceAccount = "sa" + string(rune('a'+i))
		w.Policies = append(w.Policies, tp)
	}
	w.settle(t, nil)
	w.Policies = w.Policies[:2]
	for i := range w.Policies {
		if p := &w.Policies[i]; p.Name == "api" {
			p.Spec.Ingress = nil
		}
	}
	w.Pods = append(w.Pods, snapshottest.Pod("payments", "new", "api", "fra-1", "10.1.0.99"))
	snapshottest.Verify(&w.Snapshot)
	p := mustMake(t, w.Snapshot).Plan
	has := func(match func(plan.Operation) bool) bool { return slices.ContainsFunc(p.Operations, match) }
	if has(func(o plan.Operation) bool { return o.Action == plan.Delete && o.Target.Namespace == "shop" }) {
		t.Errorf("shop's deletes passed:\n%s", p)
	}
	if !has(func(o plan.Operation) bool {
		return o.Action == plan.Update && o.Phase == plan.Tighten && o.Target.Namespace == "payments" && o.Target.Kind == "NetworkPolicy"
	}) {
		t.Errorf("payments' ingress stays open:\n%s", p)
	}
	if !has(func(o plan.Operation) bool { return o.Phase == plan.Trust && o.Target.Namespace == "payments" }) {
		t.Errorf("payments' new pod waits:\n%s", p)
	}
	if len(p.Withheld) != 1 || !strings.Contains(p.Withheld[0], "shop") || strings.Contains(p.Withheld[0], "payments") {
		t.Errorf("withheld: %q", p.Withheld)
	}
}
