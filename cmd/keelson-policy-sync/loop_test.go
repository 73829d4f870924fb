package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// TestTheWholeLoop runs the real program against real API servers. The steps build on each other.
func TestTheWholeLoop(t *testing.T) {
	w := newWorld(t)
	w.create(w.namespace("payments", v1alpha1.ModeEnforce), w.namespace("shop", v1alpha1.ModeEnforce),
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "payments", Name: "api"}},
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "frontend"}},
		node("fra-1", "10.1.0.0/24"), node("par-1", "10.2.0.0/24"),
		w.pod("payments", "api-fra", "api", "fra-1", "10.1.0.5"), w.pod("payments", "api-par", "api", "par-1", "10.2.0.5"),
		w.pod("shop", "frontend-fra", "frontend", "fra-1", "10.1.0.6"))
	w.start()

	for _, step := range []struct {
		name string
		run  func(*testing.T, *world)
	}{
		{"nodes that never proved themselves are tainted", stepUnknown},
		{"a trusted verdict labels the node and lifts the taint", stepTrusted},
		{"policies become objects, entries and labels", stepPolicies},
		{"the command line explains and has nothing to plan", stepExplain},
		{"the command line finds the installed configuration by itself", stepInstalled},
		{"without verifiers, the command line says what it cannot tell", stepUntold},
		{"the command line says that policy-sync does not run", stepNotRunning},
		{"a steady state writes nothing, also when a second replica takes over from a killed one", stepSteady},
		{"TestThreat17_AForgedPodLabelIsRemoved", stepForgedLabel},
		{"what others change in our objects is put back", stepDrift},
		{"a proved-bad verdict closes everything within a second", stepBad},
		{"TestThreat25_ItsOwnReplicasLeaveAMachineThatIsProvedBad", stepMoved},
		{"TestThreat33_WithSPIREAwayAVerdictStillCloses", stepSilence},
		{"a verdict that nobody renews closes on time", stepStale},
		{"TestThreat16_ARecreatedNodeInheritsNothing", stepRecreated},
		{"metrics and health are served", stepMetrics},
		{"deleted policies leave nothing behind", stepDeleted},
	} {
		if !t.Run(step.name, func(t *testing.T) {
			w.t = t
			step.run(t, w)
		}) {
			t.Fatalf("the following steps build on %q; policy-sync said last:\n%s", step.name, w.sync.Tail(4))
		}
	}
}

func stepUnknown(_ *testing.T, w *world) {
	w.eventually("both tainted", func() error {
		if err := w.bears("fra-1", false)(); err != nil {
			return err
		}
		return w.bears("par-1", false)()
	})
}

func stepTrusted(t *testing.T, w *world) {
	w.create(trusted("fra-1", time.Hour, map[string]string{"country": "DE"}), trusted("par-1", time.Hour, map[string]string{"country": "FR"}))
	w.eventually("fra-1 is trusted", w.bears("fra-1", true))
	w.eventually("par-1 is trusted", w.bears("par-1", true))
	n := &corev1.Node{}
	w.must(w.api.Get(t.Context(), client.ObjectKey{Name: "fra-1"}, n))
	if got := n.Labels[v1alpha1.NodeTagPrefix+"country"]; got != "DE" {
		t.Errorf("tag label: %q, want DE; labels %v", got, n.Labels)
	}
}

func policies() []client.Object {
	return []client.Object{
		&v1alpha1.TrustPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "payments", Name: "api"}, Spec: v1alpha1.TrustPolicySpec{
			Workloads: v1alpha1.Workloads{ServiceAccount: "api"},
			Require: v1alpha1.Requirements{
				Node:  v1alpha1.NodeRequirement{References: []string{"prod"}, Tags: map[string][]string{"country": {"DE"}}},
				Image: v1alpha1.ImageRequirement{VerifiedBy: []string{"release"}}, Runtime: v1alpha1.RuntimeRestricted},
			Ingress: []v1alpha1.IngressRule{{From: []v1alpha1.Peer{{Namespace: "shop", ServiceAccount: "frontend",
				Tags: map[string][]string{"country": {"DE", "FR"}}}}, Ports: []int32{8443}}}}},
		&v1alpha1.TrustPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "frontend"}, Spec: v1alpha1.TrustPolicySpec{
			Workloads: v1alpha1.Workloads{ServiceAccount: "frontend"},
			Require:   v1alpha1.Requirements{Image: v1alpha1.ImageRequirement{VerifiedBy: []string{"release"}}}}},
	}
}

func stepPolicies(t *testing.T, w *world) {
	w.create(policies()...)
	w.eventually("payments/api-fra is attested", w.attested("payments", "api-fra", true))
	w.eventually("shop/frontend-fra is attested", w.attested("shop", "frontend-fra", true))
	w.eventually("payments/api is programmed", w.programmed("payments", "api", metav1.ConditionTrue, 1))
	w.eventually("shop/frontend is programmed", w.programmed("shop", "frontend", metav1.ConditionTrue, 1))
	if err := w.attested("payments", "api-par", false)(); err != nil {
		t.Errorf("a node in FR is not what the policy asks for: %v", err)
	}
	p := &v1alpha1.TrustPolicy{}
	w.must(w.api.Get(t.Context(), client.ObjectKey{Namespace: "payments", Name: "api"}, p))
	if len(p.Status.Refused) != 1 || p.Status.Refused[0].Pod != "api-par" || !strings.Contains(p.Status.Refused[0].Reason, "country=FR") {
		t.Errorf("refused: %+v", p.Status.Refused)
	}
	owned := strings.Join(w.owned(), "\n")
	t.Logf("objects:\n%s", owned)
	for _, kind := range []string{"Tier ", "GlobalNetworkPolicy ", "NetworkPolicy payments/", "AuthorizationPolicy payments/", "PeerAuthentication payments/"} {
		if !strings.Contains(owned, kind) {
			t.Errorf("no %s among our objects", kind)
		}
	}
	ids := map[string]bool{}
	for _, e := range w.spireState().Entries {
		ids[e.SPIFFEID] = true
	}
	for _, want := range []string{"spiffe://keelson.test/ns/payments/sa/api", "spiffe://keelson.test/ns/shop/sa/frontend"} {
		if !ids[want] {
			t.Errorf("no SPIRE entry for %s; entries %v", want, ids)
		}
	}
}

// keelson runs the command line against the world.
func (w *world) keelson(args ...string) string {
	w.t.Helper()
	binary := filepath.Join(w.dir, "keelson")
	if _, err := os.Stat(binary); err != nil {
		if out, err := exec.CommandContext(w.t.Context(), "go", "build", "-o", binary, "../keelson").CombinedOutput(); err != nil {
			w.t.Fatalf("go build: %v\n%s", err, out)
		}
	}
	out, err := exec.CommandContext(w.t.Context(), binary, append(args, "--config", w.config)...).CombinedOutput()
	if err != nil {
		w.t.Fatalf("keelson %v: %v\n%s", args, err, out)
	}
	return string(out)
}

func stepExplain(t *testing.T, w *world) {
	w.settled()
	for _, tc := range []struct {
		args []string
		want []string
	}{
		{[]string{"plan"}, []string{"nothing to do"}},
		{[]string{"plan", "-o", "json"}, []string{`"operations": []`}},
		{[]string{"explain", "node", "fra-1"}, []string{"node fra-1 is trusted", "country=DE", "trusted label now     yes", "untrusted taint now   no", "pod payments/api-fra: attested"}},
		{[]string{"explain", "pod", "payments/api-par"}, []string{"pod payments/api-par is not attested", "country=FR", "policy api: not met", "spiffe://keelson.test/ns/payments/sa/api"}},
		{[]string{"explain", "pod", "payments/api-fra"}, []string{"pod payments/api-fra is attested", "may be called by attested pods of shop/frontend on nodes with country in (DE, FR), TCP ports [8443]"}},
		{[]string{"explain", "pod", "payments/api-fra", "-o", "json"}, []string{`"attested": true`, `"policy": "api"`}},
	} {
		got := w.keelson(tc.args...)
		for _, want := range tc.want {
			if !strings.Contains(got, want) {
				t.Errorf("keelson %v: no %q in\n%s", tc.args, want, got)
			}
		}
	}
	t.Logf("%s%s", w.keelson("explain", "node", "fra-1"), w.keelson("explain", "pod", "payments/api-par"))
}

// settled waits until a second has passed in which nothing was written.
func (w *world) settled() map[string]string {
	var before map[string]string
	w.eventually("settled", func() error {
		before = w.versions()
		time.Sleep(time.Second)
		if diff := cmp.Diff(before, w.versions()); diff != "" {
			return fmt.Errorf("still writing:\n%s", diff)
		}
		return nil
	})
	return before
}

func stepSteady(t *testing.T, w *world) {
	before := w.settled()
	time.Sleep(3 * time.Second) // several resyncs and image rechecks
	if diff := cmp.Diff(before, w.versions()); diff != "" {
		t.Errorf("a steady state was written to (-before +after):\n%s", diff)
	}
	first := w.sync
	w.start() // a second replica, which waits
	w.eventually("the second replica waits to lead", func() error {
		if !strings.Contains(w.sync.Tail(100), "has not yet expired") {
			return fmt.Errorf("not yet:\n%s", w.sync.Tail(5))
		}
		return nil
	})
	time.Sleep(time.Second)
	if strings.Contains(w.sync.Tail(100), `"verdict":`) {
		t.Error("the second replica acts while the first one leads")
	}
	first.Stop(0) // killed
	w.eventually("the second replica leads", func() error {
		if !strings.Contains(w.sync.Tail(100), `"verdict":"trusted"`) {
			return fmt.Errorf("not yet:\n%s", w.sync.Tail(5))
		}
		return nil
	})
	time.Sleep(3 * time.Second)
	if diff := cmp.Diff(before, w.versions()); diff != "" {
		t.Errorf("a replica that took over wrote (-before +after):\n%s", diff)
	}
}

// guardOff deletes the binding of a guard, as somebody might who may.
func (w *world) guardOff(names ...string) {
	w.t.Helper()
	for _, name := range names {
		w.must(w.api.Delete(w.t.Context(), &admissionv1.ValidatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: name}}))
	}
}

func stepForgedLabel(t *testing.T, w *world) {
	p := w.pod("payments", "forger", "api", "par-1", "10.2.0.9")
	p.Labels = map[string]string{v1alpha1.PodAttestedLabel: v1alpha1.True, v1alpha1.PolicyLabel("api"): v1alpha1.True, v1alpha1.PodTagPrefix + "country": "DE"}
	if err := w.api.Create(t.Context(), p.DeepCopy()); !apierrors.IsForbidden(err) {
		t.Fatalf("admission took a forged label: %v", err)
	}
	w.guardOff("keelson-pod-trust-labels")
	w.eventually("admission is off", func() error { return w.api.Create(t.Context(), p.DeepCopy()) })
	w.eventually("the forged labels are gone", func() error {
		live := &corev1.Pod{}
		if err := w.api.Get(w.t.Context(), client.ObjectKeyFromObject(p), live); err != nil {
			return err
		}
		if len(live.Labels) > 0 {
			return fmt.Errorf("labels %v", live.Labels)
		}
		return nil
	})
	w.must(w.api.Delete(w.t.Context(), p, client.GracePeriodSeconds(0)))
}

func stepDrift(t *testing.T, w *world) {
	before := w.settled()
	w.guardOff("keelson-istio-objects", "keelson-calico-objects")
	w.change("AuthorizationPolicy", "security.istio.io", "v1", func(o *unstructured.Unstructured) error {
		return unstructured.SetNestedField(o.Object, "AUDIT", "spec", "action")
	})
	w.change("NetworkPolicy", "projectcalico.org", "v3", func(o *unstructured.Unstructured) error {
		return unstructured.SetNestedSlice(o.Object, []any{map[string]any{"action": "Allow"}}, "spec", "ingress")
	})
	w.eventually("put back", func() error {
		after := w.versions()
		for key, version := range before {
			if strings.Contains(key, "Policy ") && after[key] == version {
				delete(after, key)
			}
		}
		return w.inOrder(after)
	})
	if after := w.settled(); len(after) < len(before) {
		t.Errorf("objects are missing: %d before, %d after", len(before), len(after))
	}
}

// inOrder checks that none of our policies allows what the step put there.
func (w *world) inOrder(map[string]string) error {
	for kind, gv := range map[string]string{"AuthorizationPolicy": "security.istio.io/v1", "NetworkPolicy": "projectcalico.org/v3"} {
		list := &unstructured.UnstructuredList{}
		list.SetAPIVersion(gv)
		list.SetKind(kind + "List")
		if err := w.api.List(w.t.Context(), list, client.InNamespace("payments")); err != nil {
			return err
		}
		for _, o := range list.Items {
			action, _, _ := unstructured.NestedString(o.Object, "spec", "action")
			rules, _, _ := unstructured.NestedSlice(o.Object, "spec", "ingress")
			open := func(r any) bool { m, ok := r.(map[string]any); return ok && m["action"] == "Allow" && len(m) == 1 }
			if action == "AUDIT" || slices.ContainsFunc(rules, open) {
				return fmt.Errorf("%s %s is still as it was changed", kind, o.GetName())
			}
		}
	}
	return nil
}

// change edits the first object of ours of a kind in namespace payments, once the guards that were taken away are gone.
func (w *world) change(kind, group, version string, edit func(*unstructured.Unstructured) error) {
	w.t.Helper()
	w.eventually("change a "+kind, func() error { return w.tryChange(kind, group, version, edit) })
}

func (w *world) tryChange(kind, group, version string, edit func(*unstructured.Unstructured) error) error {
	list := &unstructured.UnstructuredList{}
	list.SetAPIVersion(group + "/" + version)
	list.SetKind(kind + "List")
	if err := w.api.List(w.t.Context(), list, client.InNamespace("payments"), client.MatchingLabels{v1alpha1.OwnerLabel: v1alpha1.OwnerValue}); err != nil {
		return err
	}
	if len(list.Items) == 0 {
		return fmt.Errorf("no %s of ours in payments", kind)
	}
	o := &list.Items[0]
	o.SetAPIVersion(group + "/" + version)
	o.SetKind(kind)
	if err := edit(o); err != nil {
		return err
	}
	return w.api.Update(w.t.Context(), o)
}
