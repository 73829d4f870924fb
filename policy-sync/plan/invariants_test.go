package plan_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
)

func demo() *world { return &world{Snapshot: snapshottest.Demo()} }

func settled(t *testing.T) *world {
	t.Helper()
	w := demo()
	w.settle(t, nil)
	return w
}

func (w *world) podNamed(key string) *corev1.Pod {
	i := slices.IndexFunc(w.Pods, func(p *corev1.Pod) bool { return snapshot.Key(p) == key })
	return w.Pods[i]
}

func (w *world) nodeNamed(name string) *corev1.Node {
	i := slices.IndexFunc(w.Nodes, func(n corev1.Node) bool { return n.Name == name })
	return &w.Nodes[i]
}

func TestTheDemoReachesWhatItsPolicySays(t *testing.T) {
	w := settled(t)
	d := newDataplane(w.Snapshot)
	for _, c := range []struct {
		src, dst     string
		port         int
		method, path string
		want         bool
	}{
		{"shop/frontend-fra-1", "payments/api-fra-1", 8443, "POST", "/charge", true},
		{"shop/frontend-par-1", "payments/api-fra-1", 8443, "POST", "/charge", true},
		{"shop/frontend-fra-1", "payments/api-fra-1", 8443, "GET", "/charge", false},
		{"shop/frontend-fra-1", "payments/api-fra-1", 8443, "POST", "/refund", false},
		{"shop/frontend-fra-1", "payments/api-fra-1", 9090, "POST", "/charge", false},
		{"shop/frontend-fra-1", "payments/api-par-1", 8443, "POST", "/charge", false},
		{"shop/frontend-fra-1", "payments/api-evil-1", 8443, "POST", "/charge", false},
		{"shop/frontend-evil-1", "payments/api-fra-1", 8443, "POST", "/charge", false},
		{"payments/api-fra-1", "shop/frontend-fra-1", 8443, "POST", "/charge", false},
		{"other/stranger-fra-1", "payments/api-fra-1", 8443, "POST", "/charge", false},
		{"payments/api-fra-1", "other/stranger-fra-1", 80, "GET", "/", true},
		{"payments/api-evil-1", "payments/api-fra-1", 8443, "POST", "/charge", false},
	} {
		if got := calls(w.Snapshot, d, w.podNamed(c.src), w.podNamed(c.dst), c.port, c.method, c.path); got != c.want {
			t.Errorf("%s -> %s:%d %s %s is %v, want %v", c.src, c.dst, c.port, c.method, c.path, got, c.want)
		}
	}
	if ids := svids(w.Snapshot, w.podNamed("payments/api-fra-1")); !slices.Equal(ids, []string{"spiffe://demo.example/ns/payments/sa/api"}) {
		t.Errorf("api on fra-1 has SVIDs %q", ids)
	}
	for _, key := range []string{"payments/api-par-1", "payments/api-evil-1", "shop/frontend-evil-1", "other/stranger-fra-1"} {
		if ids := svids(w.Snapshot, w.podNamed(key)); len(ids) > 0 {
			t.Errorf("%s has SVIDs %q, want none", key, ids)
		}
	}
}

func TestInvariant01_DefaultDenyStandsBeforeTheFirstTrustLabel(t *testing.T) {
	w := demo()
	plans := w.settle(t, nil)
	label, lastDeny := -1, -1
	for i, o := range plans[0].Operations {
		if o.Action == plan.Patch && o.Target.Kind == "Pod" && label < 0 {
			label = i
		}
		if o.Action == plan.Create && closesWhenThere(o.Object) {
			lastDeny = i
		}
	}
	if label < 0 || lastDeny < 0 || lastDeny > label {
		t.Fatalf("the first label is operation %d, the last deny operation %d:\n%s", label, lastDeny, plans[0])
	}
	for _, o := range plans[0].Closing() {
		if o.Target.Kind == "Pod" && strings.Contains(string(o.MergePatch), `"true"`) {
			t.Errorf("a closing operation sets a label: %s", o)
		}
	}
}

func closesWhenThere(o *unstructured.Unstructured) bool {
	return strings.Contains(o.GetName(), "default-deny") && !strings.Contains(o.GetName(), "audit") ||
		o.GetKind() == "PeerAuthentication" || strings.HasSuffix(o.GetName(), ".deny") || o.GetName() == "keelson.allow-nothing"
}

// TestInvariant02_TightenBeforeLoosen: a policy that changes its one peer for another
// first loses the old one and then gets the new one; never are both let in, and never
// one on the other's terms. (The property test does this for random changes.)
func TestInvariant02_TightenBeforeLoosen(t *testing.T) {
	for name, planes := range map[string]snapshot.Config{"Calico and Istio": {Calico: true, Istio: true}, "Calico": {Calico: true}, "Istio": {Istio: true}} {
		t.Run(name, func(t *testing.T) { swapPeers(t, planes.Calico, planes.Istio) })
	}
}

func swapPeers(t *testing.T, calico, istio bool) {
	w := demo()
	w.Config.Calico, w.Config.Istio = calico, istio
	w.settle(t, nil)
	w.Policies[0].Spec.Ingress[0].From[0] = v1alpha1.Peer{Namespace: "shop", ServiceAccount: "backend"}
	w.Pods = append(w.Pods, snapshottest.Pod("shop", "backend-fra-1", "backend", "fra-1", "10.1.0.13"))
	snapshottest.Verify(&w.Snapshot)
	back := snapshottest.Frontend()
	back.Name, back.UID, back.Spec.Workloads.ServiceAccount = "backend", "b", "backend"
	w.Policies = append(w.Policies, back)
	closed := false
	plans := w.settle(t, func(phase plan.Phase) {
		d := newDataplane(w.Snapshot)
		front := calls(w.Snapshot, d, w.podNamed("shop/frontend-fra-1"), w.podNamed("payments/api-fra-1"), 8443, "POST", "/charge")
		back := calls(w.Snapshot, d, w.podNamed("shop/backend-fra-1"), w.podNamed("payments/api-fra-1"), 8443, "POST", "/charge")
		if front && back || closed && front || phase.Closing() && back {
			t.Fatalf("in phase %s: frontend %v, backend %v", phase, front, back)
		}
		closed = closed || !front
	})
	if len(plans) != 2 || !plans[0].Again || plans[1].Again {
		t.Errorf("%d plans, want one that closes and one that opens", len(plans))
	}
	d := newDataplane(w.Snapshot)
	if !calls(w.Snapshot, d, w.podNamed("shop/backend-fra-1"), w.podNamed("payments/api-fra-1"), 8443, "POST", "/charge") {
		t.Error("the new peer does not get in at the end")
	}
}

func TestInvariant03_APartialReadChangesNothing(t *testing.T) {
	s := snapshottest.Demo()
	s.Unread = []string{"trustpolicies: connection refused"}
	if r, err := plan.Make(s); err == nil || !r.Plan.Empty() {
		t.Errorf("plan %v, error %v; want no plan and an error", r.Plan, err)
	}
}

func TestInvariant03_WithoutSPIRENothingOpensAndDoorsStillClose(t *testing.T) {
	w := settled(t)
	w.SPIRE = nil
	w.NodeTrusts[0].Spec.Verdict = v1alpha1.VerdictUntrusted                                            // must close
	w.Pods = append(w.Pods, snapshottest.Pod("shop", "frontend-new", "frontend", "par-1", "10.2.0.13")) // would open
	w.NodeTrusts[1].Spec.Tags = map[string]string{"country": "FR", "rack": "7"}                         // would open
	p := mustMake(t, w.Snapshot).Plan
	for _, o := range p.Operations {
		if !o.Phase.Closing() || o.Entry != nil || o.AgentID != "" {
			t.Errorf("not only closing: %s", o)
		}
	}
	if !strings.Contains(p.String(), "Pod payments/api-fra-1") || len(p.Withheld) == 0 {
		t.Errorf("the plan does not close the tampered node's pod, or does not say what waits:\n%s", p)
	}
}

func TestInvariant04_DeletesTouchOnlyWhatBearsOurOwnerLabel(t *testing.T) {
	w := settled(t)
	for _, kind := range []string{"NetworkPolicy", "AuthorizationPolicy"} {
		for _, o := range w.Objects {
			if o.GetKind() == kind {
				stranger := o.DeepCopy()
				stranger.SetName("keelson.stranger-" + kind)
				stranger.SetLabels(map[string]string{v1alpha1.OwnerLabel: "somebody-else"})
				w.Objects = append(w.Objects, stranger)
				break
			}
		}
	}
	w.SPIRE.Entries = append(w.SPIRE.Entries, snapshot.Entry{ID: "stranger", SPIFFEID: "spiffe://demo.example/x"})
	w.Policies, w.Config.MaxDeletePercent = nil, 0
	p := mustMake(t, w.Snapshot).Plan
	deletes := 0
	for _, o := range p.Operations {
		if o.Action == plan.Delete || o.Action == plan.DeleteEntry {
			deletes++
			if strings.Contains(o.String(), "stranger") {
				t.Errorf("deletes what is not ours: %s", o)
			}
		}
	}
	if deletes == 0 {
		t.Error("nothing of ours is deleted")
	}
}

func TestInvariant05_UnknownStaleAndUnparsableAreNotTrusted(t *testing.T) {
	cases := map[string]func(w *world){
		"unknown":    func(w *world) { w.NodeTrusts = w.NodeTrusts[1:] },
		"stale":      func(w *world) { w.NodeTrusts[0].Spec.ValidUntil = metav1.NewMicroTime(w.At) },
		"unparsable": func(w *world) { w.NodeTrusts[0].Spec.Verdict = "yes" },
	}
	for name, change := range cases {
		t.Run(name, func(t *testing.T) {
			w := settled(t)
			if w.podNamed("payments/api-fra-1").Labels[v1alpha1.PodAttestedLabel] != v1alpha1.True {
				t.Fatal("the pod is not attested to begin with")
			}
			change(w)
			w.settle(t, nil)
			for k := range w.podNamed("payments/api-fra-1").Labels {
				if strings.Contains(k, v1alpha1.Group) {
					t.Errorf("the pod still bears %s", k)
				}
			}
			n := w.nodeNamed("fra-1")
			if _, ok := n.Labels[v1alpha1.NodeVerdictLabel]; ok || len(n.Spec.Taints) != 1 {
				t.Errorf("the node has labels %v, taints %v", n.Labels, n.Spec.Taints)
			}
			if evict := mustMake(t, w.Snapshot).Graph.Evict; len(evict) != 0 {
				t.Errorf("agents are evicted without proof: %v", evict)
			}
		})
	}
}

func TestInvariant06_ProvedBadActsNow(t *testing.T) {
	w := settled(t)
	w.Config.MaxHold = time.Hour // a brake must not hold it back
	w.Config.MaxDeletePercent = 1
	bad := &w.NodeTrusts[0].Spec
	bad.Verdict, bad.Reasons = v1alpha1.VerdictUntrusted, []v1alpha1.Reason{{Check: "ima.file", Reason: "/usr/bin/evil is in no reference"}}
	p := mustMake(t, w.Snapshot).Plan
	text := p.String()
	order := []string{"GlobalNetworkSet keelson.revoked", snapshottest.AgentID("fra-1"), "Node fra-1", "Pod payments/api-fra-1"}
	at := -1
	for _, want := range order {
		i := strings.Index(text, want)
		if i < 0 || i < at {
			t.Fatalf("%q is missing or comes too early in:\n%s", want, text)
		}
		at = i
	}
	w.settle(t, nil)
	d := newDataplane(w.Snapshot)
	for _, addr := range []string{"10.1.0.10", "10.1.0.11"} {
		if !revoked(d, addr) {
			t.Errorf("address %s is not revoked", addr)
		}
	}
	if calls(w.Snapshot, d, w.podNamed("shop/frontend-fra-1"), w.podNamed("payments/api-fra-1"), 8443, "POST", "/charge") {
		t.Error("still reachable")
	}
}

func revoked(d *dataplane, addr string) bool {
	return slices.ContainsFunc(d.endpoints, func(e *endpoint) bool {
		return e.pod == "" && strings.Contains(fmt.Sprint(e.nets), addr+"/32")
	})
}

func TestInvariant06_TheBrakeDelaysExpiryAndAddsNothing(t *testing.T) {
	w := settled(t)
	w.Config.MaxHold = 10 * time.Minute
	w.At = w.At.Add(5 * time.Minute) // every verdict has expired, within the brake
	late := snapshottest.Pod("shop", "frontend-late", "frontend", "fra-1", "10.1.0.14")
	late.CreationTimestamp = metav1.NewTime(w.At)
	late.Labels[v1alpha1.PodAttestedLabel] = v1alpha1.True // forged, while admission was off
	w.Pods = append(w.Pods, late)
	before := w.podNamed("shop/frontend-par-1")
	delete(before.Labels, v1alpha1.PodAttestedLabel) // lost its label: must not get it back
	w.settle(t, nil)
	if w.podNamed("payments/api-fra-1").Labels[v1alpha1.PodAttestedLabel] != v1alpha1.True {
		t.Error("the brake did not hold")
	}
	for _, key := range []string{"shop/frontend-late", "shop/frontend-par-1"} {
		if _, ok := w.podNamed(key).Labels[v1alpha1.PodAttestedLabel]; ok {
			t.Errorf("the brake added trust to %s", key)
		}
	}
	w.At = w.At.Add(10 * time.Minute)
	w.settle(t, nil)
	if _, ok := w.podNamed("payments/api-fra-1").Labels[v1alpha1.PodAttestedLabel]; ok {
		t.Error("the brake held longer than it may")
	}
}

func TestInvariant09_SteadyStateWritesNothing(t *testing.T) {
	w := settled(t)
	if p := mustMake(t, w.Snapshot).Plan; !p.Empty() || p.Again {
		t.Errorf("still something to do:\n%s", p)
	}
	// What API servers add must not look like a difference.
	for i, o := range w.Objects {
		o = o.DeepCopy()
		o.SetGeneration(3)
		o.SetManagedFields([]metav1.ManagedFieldsEntry{{Manager: "x"}})
		o.SetCreationTimestamp(metav1.NewTime(w.At))
		labels := o.GetLabels()
		labels["projectcalico.org/tier"] = "keelson"
		o.SetLabels(labels)
		if strings.HasSuffix(o.GetKind(), "NetworkPolicy") {
			addEmpties(o)
		}
		w.Objects[i] = o
	}
	if p := mustMake(t, w.Snapshot).Plan; !p.Empty() {
		t.Errorf("defaults of the server look like drift:\n%s", p)
	}
}

// addEmpties writes the empty source and destination that older Calico servers return.
func addEmpties(o *unstructured.Unstructured) {
	for _, dir := range []string{"ingress", "egress"} {
		list, _, _ := unstructured.NestedSlice(o.Object, "spec", dir)
		for _, r := range list {
			m := r.(map[string]any)
			for _, side := range []string{"source", "destination"} {
				if _, ok := m[side]; !ok {
					m[side] = map[string]any{}
				}
			}
		}
		if len(list) > 0 {
			_ = unstructured.SetNestedSlice(o.Object, list, "spec", dir)
		}
	}
}
