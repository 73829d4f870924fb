package kube_test

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/kube"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// TestOnlyPolicySyncSaysWhatAVerdictComesTo: and it disturbs no one who writes verdicts, nor the other way round.
func TestOnlyPolicySyncSaysWhatAVerdictComesTo(t *testing.T) {
	inForce(t)
	verifier, s := as(t, spire), kube.New(as(t, policySync), as(t, policySync), nil, snapshot.Config{})
	o := nodeTrust(objectName(t))
	if err := verifier.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	now := metav1.NewTime(instant)
	want := kube.NodeTrustStatus{Name: o.Name, Status: v1alpha1.NodeTrustStatus{ObservedGeneration: 7, Verdict: "stale", Why: "its proof ended", Since: &now}}
	if err := s.Report(t.Context(), kube.Report{NodeTrusts: []kube.NodeTrustStatus{want}}); err != nil {
		t.Fatal(err)
	}
	live := &v1alpha1.NodeTrust{}
	get := func() {
		t.Helper()
		if err := verifier.Get(t.Context(), client.ObjectKeyFromObject(o), live); err != nil {
			t.Fatal(err)
		}
		if live.Status.Verdict != "stale" || live.Status.Why != "its proof ended" || live.Status.Since == nil || live.Status.ObservedGeneration != 7 {
			t.Errorf("status %+v", live.Status)
		}
	}
	get()
	live.Spec.Reference = "canary"
	live.Status.Verdict = "trusted"
	if err := verifier.Update(t.Context(), live); err != nil {
		t.Fatal(err)
	}
	if get(); live.Spec.Reference != "canary" {
		t.Errorf("spec %+v", live.Spec)
	}
	for who, c := range map[string]client.Client{"the SPIRE server": verifier, "an app team": as(t, alice)} {
		o := live.DeepCopy()
		o.Status.Verdict = "trusted"
		if err := c.Status().Update(t.Context(), o); err == nil {
			t.Errorf("%s wrote the status", who)
		}
	}
	get()
	gone := want
	gone.Name += "-gone"
	if err := s.Report(t.Context(), kube.Report{NodeTrusts: []kube.NodeTrustStatus{gone}}); err != nil {
		t.Errorf("one that is gone: %v", err)
	}
}
