package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/plan"
)

// Report is what a pass has to say to people.
type Report struct {
	Policies []PolicyStatus
	// NodeTrusts are those whose status is to change.
	NodeTrusts []NodeTrustStatus
	// Changes are operations that were carried out, in order.
	Changes []plan.Operation
}

// PolicyStatus is what one TrustPolicy's status should say. Its conditions carry no transition time.
type PolicyStatus struct {
	Namespace, Name string
	UID             string
	Status          v1alpha1.TrustPolicyStatus
}

// NodeTrustStatus is what one NodeTrust's status should say.
type NodeTrustStatus struct {
	Name   string
	Status v1alpha1.NodeTrustStatus
}

// Report writes the statuses that differ from what is there, and one event per object that people look at and what happened
// to it. It tries all of them.
func (s *Store) Report(ctx context.Context, r Report) error {
	var problems []error
	for _, p := range r.Policies {
		if err := s.status(ctx, p); err != nil {
			problems = append(problems, fmt.Errorf("kube: status of TrustPolicy %s/%s: %w", p.Namespace, p.Name, stale(err)))
		}
	}
	for _, n := range r.NodeTrusts {
		if err := s.nodeTrust(ctx, n); err != nil {
			problems = append(problems, fmt.Errorf("kube: status of NodeTrust %s: %w", n.Name, stale(err)))
		}
	}
	if s.recorder != nil {
		s.events(ctx, r.Changes)
	}
	return errors.Join(problems...)
}

// nodeTrust patches the status alone, so that it takes no part in the races of those who write verdicts. One that is gone needs
// no status; one that was made again under its name gets its own in the next pass.
func (s *Store) nodeTrust(ctx context.Context, n NodeTrustStatus) error {
	status := map[string]any{"verdict": n.Status.Verdict, "why": n.Status.Why, "since": n.Status.Since}
	patch, err := json.Marshal(map[string]any{"status": status})
	if err != nil {
		return err
	}
	target := &v1alpha1.NodeTrust{ObjectMeta: metav1.ObjectMeta{Name: n.Name}}
	return client.IgnoreNotFound(s.writer.Status().Patch(ctx, target, client.RawPatch(types.MergePatchType, patch), fieldOwner))
}

func (s *Store) status(ctx context.Context, p PolicyStatus) error {
	live := &v1alpha1.TrustPolicy{}
	if err := s.reader.Get(ctx, client.ObjectKey{Namespace: p.Namespace, Name: p.Name}, live); err != nil {
		return client.IgnoreNotFound(err) // deleted since: nobody to tell
	}
	if string(live.UID) != p.UID {
		return nil // another policy of the same name: its own pass comes
	}
	want := live.DeepCopy()
	conditions := want.Status.Conditions
	want.Status = p.Status
	want.Status.Conditions = conditions
	for _, c := range p.Status.Conditions {
		meta.SetStatusCondition(&want.Status.Conditions, c)
	}
	if equality.Semantic.DeepEqual(live.Status, want.Status) {
		return nil
	}
	return s.writer.Status().Update(ctx, want, client.FieldOwner(v1alpha1.FieldManager))
}

// about is what one event is about.
type about struct {
	regarding    corev1.ObjectReference
	kind, reason string
}

// events tells those who look at a Node, a Pod or a TrustPolicy what was done about it and why. Other objects' changes go to
// the policy that they were made for. Changes of one sort on one object become one event, because the recorder would keep the
// text of the first one only.
func (s *Store) events(ctx context.Context, changes []plan.Operation) {
	var order []about
	notes := map[about][]string{}
	for _, o := range changes {
		a, ok := s.about(ctx, o)
		if !ok {
			continue // of no single policy: the log has it
		}
		if notes[a] == nil {
			order = append(order, a)
		}
		notes[a] = append(notes[a], fmt.Sprintf("%s %s: %s", o.Action, o.Target, o.Reason))
	}
	for _, a := range order {
		const maxNote = 1024 // events.k8s.io/v1
		note := strings.Join(notes[a], "; ")
		s.recorder.Eventf(&a.regarding, nil, a.kind, a.reason, "Sync", "%s", strings.ToValidUTF8(note[:min(len(note), maxNote)], ""))
	}
}

func (s *Store) about(ctx context.Context, o plan.Operation) (about, bool) {
	if o.Action != plan.Patch {
		policy, ok := s.source(ctx, o)
		return about{policy, corev1.EventTypeNormal, "Programmed"}, ok
	}
	regarding := corev1.ObjectReference{APIVersion: o.Target.GroupVersion().String(), Kind: o.Target.Kind,
		Namespace: o.Target.Namespace, Name: o.Target.Name, UID: types.UID(o.Target.UID)}
	if o.Phase.Closing() {
		return about{regarding, corev1.EventTypeWarning, "TrustWithdrawn"}, true
	}
	return about{regarding, corev1.EventTypeNormal, "TrustGranted"}, true
}

// source is the TrustPolicy that an object was made for.
func (s *Store) source(ctx context.Context, o plan.Operation) (corev1.ObjectReference, bool) {
	key, ok := Source(o)
	if !ok {
		return corev1.ObjectReference{}, false
	}
	policy := &v1alpha1.TrustPolicy{}
	if err := s.reader.Get(ctx, key, policy); err != nil {
		return corev1.ObjectReference{}, false
	}
	return corev1.ObjectReference{APIVersion: v1alpha1.GroupVersion.String(), Kind: "TrustPolicy",
		Namespace: policy.Namespace, Name: policy.Name, UID: policy.UID}, true
}
