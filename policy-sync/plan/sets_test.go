package plan_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/calico"
	"github.com/keelson-project/keelson/policy-sync/desired"
	"github.com/keelson-project/keelson/policy-sync/istio"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

// addresses are n revoked addresses.
func addresses(n int) []trustgraph.Revoked {
	out := make([]trustgraph.Revoked, 0, n)
	a := netip.MustParseAddr("10.64.0.1")
	for range n {
		out, a = append(out, trustgraph.Revoked{Address: a.String(), Reason: "its node's proof has ended"}), a.Next()
	}
	return out
}

// revokeAll is the plan of a cluster in which these addresses are revoked.
func revokeAll(t tb, w *world, revoked []trustgraph.Revoked) plan.Result {
	t.Helper()
	r := mustMake(t, w.Snapshot)
	in := r.Intents
	in.Revoked = revoked
	return outcome(t, w, in)
}

// program applies plans until everything of r is written.
func program(t tb, w *world, r plan.Result) {
	t.Helper()
	for !r.Plan.Empty() {
		for _, o := range r.Plan.Operations {
			if err := w.apply(o); err != nil {
				t.Fatal(err)
			}
		}
		in := r.Intents
		in.RevokedSets = mustMake(t, w.Snapshot).Intents.RevokedSets
		r = outcome(t, w, in)
	}
}

func outcome(t tb, w *world, in desired.Intents) plan.Result {
	t.Helper()
	a, err := calico.Render(in)
	if err != nil {
		t.Fatal(err)
	}
	b, err := istio.Render(in)
	if err != nil {
		t.Fatal(err)
	}
	r := plan.Result{Intents: in, Objects: append(a, b...)}
	if r.Plan, err = plan.Diff(w.Snapshot, in, r.Objects, nil); err != nil {
		t.Fatal(err)
	}
	r.Plan.Operations = slices.DeleteFunc(r.Plan.Operations, func(o plan.Operation) bool { return o.Entry != nil })
	return r
}

func TestAHundredThousandAddressesAreRevoked(t *testing.T) {
	w := settled(t)
	all := addresses(100_000)[:99_990]
	begun := time.Now()
	r := revokeAll(t, w, all)
	t.Logf("rendered and compared in %s", time.Since(begun).Round(time.Millisecond))
	withinLimits(t, r)
	program(t, w, r)
	d := newDataplane(w.Snapshot)
	for _, a := range []trustgraph.Revoked{all[0], all[50_000], all[99_989]} {
		addr := netip.MustParseAddr(a.Address)
		if d.allows(d.pod("payments/api-fra-1"), true, addr, "TCP", 8443) || d.allows(d.pod("payments/api-fra-1"), false, addr, "TCP", 8443) {
			t.Errorf("%s is not denied at L4", addr)
		}
		if proxyAllows(w.Snapshot, w.podNamed("payments/api-fra-1"), request{principal: "demo.example/ns/shop/sa/frontend", address: addr, port: 8443, method: "POST", path: "/charge"}) {
			t.Errorf("%s is not denied at L7", addr)
		}
	}
	// One more and one less write one set in each data plane.
	for name, revoked := range map[string][]trustgraph.Revoked{
		"one more": append(slices.Clone(all), trustgraph.Revoked{Address: "10.99.0.1"}), "one less": slices.Delete(slices.Clone(all), 5, 6),
	} {
		before := revokeAll(t, w, revoked).Plan.Operations
		if len(before) != 2 {
			var lines []string
			for _, o := range before {
				lines = append(lines, fmt.Sprintf("%s %s", o.Action, o.Target))
			}
			t.Errorf("%s: %d operations: %s", name, len(before), strings.Join(lines, ", "))
		}
		withinLimits(t, plan.Result{Plan: plan.Plan{Operations: before}})
	}
}

// TestAFlapWritesOneObjectOfEachDataPlane, however many namespaces are enrolled: what is revoked is written once each way.
func TestAFlapWritesOneObjectOfEachDataPlane(t *testing.T) {
	w := demo()
	for i := range 20 {
		w.Namespaces = append(w.Namespaces, snapshottest.Namespace(fmt.Sprintf("team-%d", i), v1alpha1.ModeEnforce))
	}
	w.settle(t, nil)
	good := slices.Clone(w.NodeTrusts)
	writes := func() (n int) {
		for _, p := range w.settle(t, nil) {
			for _, o := range p.Operations {
				if o.Object != nil || o.Action == plan.Delete {
					n++
				}
			}
		}
		return n
	}
	w.NodeTrusts = slices.Clone(good)
	w.NodeTrusts[0].Spec.Verdict = v1alpha1.VerdictUntrusted
	if n := writes(); n > 2 {
		t.Errorf("a node that turns bad writes %d objects", n)
	}
	w.NodeTrusts = good
	if n := writes(); n > 2 {
		t.Errorf("a node that is trusted again writes %d objects", n)
	}
}

// TestAuditIsNotDeniedByWhatIsRevokedElsewhere: the policy in the mesh's root namespace is for pods of namespaces that enforce.
func TestAuditIsNotDeniedByWhatIsRevokedElsewhere(t *testing.T) {
	w := demo()
	for i := range w.Namespaces {
		if w.Namespaces[i].Name == "shop" {
			w.Namespaces[i] = snapshottest.Namespace("shop", v1alpha1.ModeAudit)
		}
	}
	w.settle(t, nil)
	evil := request{principal: "demo.example/ns/shop/sa/frontend", address: netip.MustParseAddr("10.3.0.10"), port: 8443, method: "POST", path: "/charge"}
	if pod := w.podNamed("shop/frontend-fra-1"); pod.Labels[v1alpha1.PodAttestedLabel] != v1alpha1.True || !proxyAllows(w.Snapshot, pod, evil) {
		t.Errorf("a pod of a namespace in audit mode (labels %v) refuses a revoked address", pod.Labels)
	}
	if proxyAllows(w.Snapshot, w.podNamed("payments/api-fra-1"), evil) {
		t.Error("payments/api takes calls from a revoked address")
	}
}

// TestAnAddressStaysInItsSet while others come and go, and the number of sets with them.
func TestAnAddressStaysInItsSet(t *testing.T) {
	all := addresses(25_000)
	w := settled(t)
	program(t, w, revokeAll(t, w, all))
	rest := all[9_000:] // most of the first set goes
	changed := map[string]bool{}
	for _, o := range outcome(t, w, func() desired.Intents {
		in := mustMake(t, w.Snapshot).Intents
		in.Revoked = rest
		return in
	}()).Plan.Operations {
		if o.Object != nil {
			changed[o.Target.Name] = true
		}
	}
	if len(changed) != 1 || !changed[v1alpha1.RevokedSet] {
		t.Errorf("changed %v, want %s alone", changed, v1alpha1.RevokedSet)
	}
}

func BenchmarkRevoked(b *testing.B) {
	for _, n := range []int{10_000, 100_000} {
		w := &world{Snapshot: snapshottest.Demo()}
		w.settle(b, nil)
		all := addresses(n)
		program(b, w, revokeAll(b, w, all))
		in := mustMake(b, w.Snapshot).Intents
		in.Revoked = append(slices.Clone(all), trustgraph.Revoked{Address: "10.99.0.1"})
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				outcome(b, w, in)
			}
		})
	}
}
