package kube_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/kube"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

func store(t *testing.T) (*kube.Store, client.Client, *events.FakeRecorder) {
	t.Helper()
	c := as(t, policySync)
	recorder := events.NewFakeRecorder(100)
	return kube.New(c, c, recorder, snapshot.Config{Calico: true, Istio: true}), c, recorder
}

func globalSet(name string, labels map[string]any) *unstructured.Unstructured {
	return set("projectcalico.org/v3", "GlobalNetworkSet", "", name, labels)
}

func target(o client.Object) plan.Target {
	return plan.Target{GroupVersionKind: o.GetObjectKind().GroupVersionKind(), Namespace: o.GetNamespace(), Name: o.GetName(),
		UID: string(o.GetUID()), ResourceVersion: o.GetResourceVersion()}
}

func TestInvariant04_DeletesTouchOnlyWhatIsOurs(t *testing.T) {
	s, c, _ := store(t)
	name := objectName(t)
	ours := globalSet(name+"-ours", map[string]any{v1alpha1.OwnerLabel: v1alpha1.OwnerValue})
	theirs := globalSet(name+"-theirs", map[string]any{"team": "a"})
	secret := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "payments", Name: name, Labels: map[string]string{v1alpha1.OwnerLabel: v1alpha1.OwnerValue}}}
	for _, o := range []client.Object{ours, theirs, secret} {
		if err := c.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	secret.SetGroupVersionKind(schema.GroupVersionKind{Version: "v1", Kind: "ConfigMap"})
	anonymous := target(ours)
	anonymous.UID = ""
	older := target(ours)
	older.UID = "00000000-0000-0000-0000-000000000000"
	for what, tc := range map[string]plan.Target{
		"if it has no owner label, refuse":              target(theirs),
		"if it is of a kind that we never make, refuse": target(secret),
		"if the plan names no UID, refuse":              anonymous,
		"if the plan saw another object, refuse":        older,
	} {
		t.Run(what, func(t *testing.T) {
			if err := s.Apply(t.Context(), plan.Operation{Action: plan.Delete, Target: tc}); err == nil {
				t.Error("deleted")
			}
		})
	}
	if err := s.Apply(t.Context(), plan.Operation{Action: plan.Delete, Target: target(ours)}); err != nil {
		t.Errorf("ours: %v", err)
	}
	for o, there := range map[*unstructured.Unstructured]bool{ours: false, theirs: true} {
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(o), o.DeepCopy()); (err == nil) != there {
			t.Errorf("%s: %v, want it there: %t", o.GetName(), err, there)
		}
	}
}

func TestInvariant11_AWriteFromAnOldReadingIsStale(t *testing.T) {
	s, c, _ := store(t)
	someone := as(t, alice)
	name := objectName(t)
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if err := someone.Create(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	n.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Node"))
	patch := func(uid, version string) plan.Operation {
		body, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": uid, "resourceVersion": version, "labels": map[string]any{v1alpha1.NodeVerdictLabel: "trusted"}}})
		if err != nil {
			t.Fatal(err)
		}
		return plan.Operation{Action: plan.Patch, Target: target(n), MergePatch: body}
	}
	old := n.DeepCopy()
	if err := patchOf(someone, n, `{"metadata":{"labels":{"team":"a"}}}`)(t.Context()); err != nil {
		t.Fatal(err)
	}
	tier := globalSet(name, map[string]any{v1alpha1.OwnerLabel: v1alpha1.OwnerValue})
	if err := c.Create(t.Context(), tier); err != nil {
		t.Fatal(err)
	}
	outdated := tier.DeepCopy()
	if err := c.Update(t.Context(), func() *unstructured.Unstructured {
		o := tier.DeepCopy()
		_ = unstructured.SetNestedStringSlice(o.Object, []string{"192.0.2.1/32"}, "spec", "nets")
		return o
	}()); err != nil {
		t.Fatal(err)
	}
	for what, o := range map[string]plan.Operation{
		"if the Node changed since":             patch(string(old.UID), old.ResourceVersion),
		"if the Node is another one":            patch("00000000-0000-0000-0000-000000000000", ""),
		"if the object exists by now":           {Action: plan.Create, Target: target(tier), Object: globalSet(name, nil)},
		"if the object to update changed since": {Action: plan.Update, Target: target(outdated), Object: outdated},
		"if the object to patch is gone": {Action: plan.Patch, MergePatch: []byte(`{"metadata":{"labels":{"a":null}}}`),
			Target: plan.Target{GroupVersionKind: n.GroupVersionKind(), Name: "gone-" + name}},
	} {
		t.Run(what+", it is stale", func(t *testing.T) {
			if err := s.Apply(t.Context(), o); !errors.Is(err, kube.ErrStale) {
				t.Errorf("got %v, want ErrStale", err)
			}
		})
	}
	live := &corev1.Node{}
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(n), live); err != nil {
		t.Fatal(err)
	}
	if live.Labels[v1alpha1.NodeVerdictLabel] != "" {
		t.Error("a stale write was carried out")
	}
	if err := s.Apply(t.Context(), patch(string(live.UID), live.ResourceVersion)); err != nil {
		t.Errorf("a fresh one: %v", err)
	}
	if err := s.Apply(t.Context(), plan.Operation{Action: plan.DeleteAgent}); err == nil || errors.Is(err, kube.ErrStale) {
		t.Errorf("an action that is not Kubernetes': %v", err)
	}
}

func TestReportWritesOnlyWhatChanged(t *testing.T) {
	s, c, recorder := store(t)
	p := &v1alpha1.TrustPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "payments", Name: objectName(t)},
		Spec: v1alpha1.TrustPolicySpec{Workloads: v1alpha1.Workloads{ServiceAccount: "x"}}}
	if err := as(t, alice).Create(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	status := kube.PolicyStatus{Namespace: p.Namespace, Name: p.Name, UID: string(p.UID), Status: v1alpha1.TrustPolicyStatus{Selected: 2, Attested: 1,
		Conditions: []metav1.Condition{{Type: v1alpha1.ConditionProgrammed, Status: metav1.ConditionTrue, Reason: "Programmed"}}}}
	write := func() *v1alpha1.TrustPolicy {
		t.Helper()
		if err := s.Report(t.Context(), kube.Report{Policies: []kube.PolicyStatus{status}}); err != nil {
			t.Fatal(err)
		}
		live := &v1alpha1.TrustPolicy{}
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(p), live); err != nil {
			t.Fatal(err)
		}
		return live
	}
	first := write()
	if first.Status.Selected != 2 || len(first.Status.Conditions) != 1 || first.Status.Conditions[0].LastTransitionTime.IsZero() {
		t.Errorf("status: %+v", first.Status)
	}
	if second := write(); second.ResourceVersion != first.ResourceVersion {
		t.Error("the same status was written twice")
	}
	status.UID = "another"
	status.Status.Selected = 5
	if third := write(); third.Status.Selected != 2 {
		t.Error("the status of an earlier policy of this name was written")
	}
	status.Name = "gone"
	if err := s.Report(t.Context(), kube.Report{Policies: []kube.PolicyStatus{status}}); err != nil {
		t.Errorf("a policy that is gone: %v", err)
	}
	made := globalSet("x", nil)
	made.SetAnnotations(map[string]string{v1alpha1.SourceAnnotation: p.Namespace + "/" + p.Name})
	changes := []plan.Operation{
		{Phase: plan.Tighten, Action: plan.Patch, Target: plan.Target{GroupVersionKind: corev1.SchemeGroupVersion.WithKind("Node"), Name: "n"}, Reason: "node n is proved bad"},
		{Phase: plan.Program, Action: plan.Create, Target: target(made), Object: made, Reason: "it is asked for"},
		{Phase: plan.Program, Action: plan.Create, Target: target(made), Object: globalSet("y", nil), Reason: "of no policy"},
	}
	if err := s.Report(t.Context(), kube.Report{Changes: changes}); err != nil {
		t.Fatal(err)
	}
	close(recorder.Events)
	var got []string
	for e := range recorder.Events {
		got = append(got, e)
	}
	if len(got) != 2 || !strings.Contains(got[0], "TrustWithdrawn") || !strings.Contains(got[1], "Programmed") {
		t.Errorf("events: %s", fmt.Sprint(got))
	}
}

// TestANamespaceThatIsNotThereIsNoStaleReading: no later plan finds one, so statuses must not wait for it.
func TestANamespaceThatIsNotThereIsNoStaleReading(t *testing.T) {
	s, _, _ := store(t)
	o := set("projectcalico.org/v3", "NetworkSet", "nowhere", objectName(t), map[string]any{v1alpha1.OwnerLabel: v1alpha1.OwnerValue})
	err := s.Apply(t.Context(), plan.Operation{Action: plan.Create, Target: target(o), Object: o})
	if err == nil || errors.Is(err, kube.ErrStale) {
		t.Errorf("got %v, want an error that is not stale", err)
	}
}
