package kube

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/plan"
)

// Report is what a pass has to say to people.
type Report struct {
	Policies []PolicyStatus
	// Changes are operations that were carried out; each becomes one event.
	Changes []plan.Operation
}

// PolicyStatus is what one TrustPolicy's status should say. Its conditions carry no transition time.
type PolicyStatus struct {
	Namespace, Name string
	UID             string
	Status          v1alpha1.TrustPolicyStatus
}

// Report writes the statuses that differ from what is there, and one event per change. It tries all of them.
func (s *Store) Report(ctx context.Context, r Report) error {
	var problems []error
	for _, p := range r.Policies {
		if err := s.status(ctx, p); err != nil {
			problems = append(problems, fmt.Errorf("kube: status of TrustPolicy %s/%s: %w", p.Namespace, p.Name, stale(err)))
		}
	}
	if s.recorder != nil {
		for _, o := range r.Changes {
			s.event(ctx, o)
		}
	}
	return errors.Join(problems...)
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

// event tells those who look at a Node, a Pod or a TrustPolicy what was done about it and why. Other objects' events go to
// the policy that they were made for.
func (s *Store) event(ctx context.Context, o plan.Operation) {
	regarding := &corev1.ObjectReference{APIVersion: o.Target.GroupVersion().String(), Kind: o.Target.Kind,
		Namespace: o.Target.Namespace, Name: o.Target.Name, UID: types.UID(o.Target.UID)}
	if o.Action != plan.Patch {
		policy, ok := s.source(ctx, o)
		if !ok {
			return // of no single policy: the log has it
		}
		regarding = policy
	}
	kind, reason := corev1.EventTypeNormal, "TrustGranted"
	if o.Phase.Closing() {
		kind, reason = corev1.EventTypeWarning, "TrustWithdrawn"
	}
	if o.Action != plan.Patch {
		kind, reason = corev1.EventTypeNormal, "Programmed"
	}
	const maxNote = 1024 // events.k8s.io/v1
	note := fmt.Sprintf("%s %s: %s", o.Action, o.Target, o.Reason)
	s.recorder.Eventf(regarding, nil, kind, reason, "Sync", "%s", note[:min(len(note), maxNote)])
}

// source is the TrustPolicy that an object was made for.
func (s *Store) source(ctx context.Context, o plan.Operation) (*corev1.ObjectReference, bool) {
	key, ok := Source(o)
	if !ok {
		return nil, false
	}
	policy := &v1alpha1.TrustPolicy{}
	if err := s.reader.Get(ctx, key, policy); err != nil {
		return nil, false
	}
	return &corev1.ObjectReference{APIVersion: v1alpha1.GroupVersion.String(), Kind: "TrustPolicy",
		Namespace: policy.Namespace, Name: policy.Name, UID: policy.UID}, true
}
