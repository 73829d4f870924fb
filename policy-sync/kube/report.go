package kube

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// Report is what a pass has to say to people.
type Report struct {
	Policies []PolicyStatus
	// NodeTrusts are those whose status is to change.
	NodeTrusts []NodeTrustStatus
	// Changes are operations that were carried out, in order.
	Changes []plan.Operation
	// Findings are what people have to know about pods and policies for which nothing was carried out.
	Findings []Finding
}

// Finding is one event of type Warning.
type Finding struct {
	Regarding corev1.ObjectReference
	// Reason is a word ("NotAttested", "Refused"), Note a sentence.
	Reason, Note string
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
	if len(s.said) > 2*len(r.Policies)+1000 {
		s.said = map[client.ObjectKey]said{} // of policies that are gone
	}
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
		s.findings(r.Findings)
	}
	return errors.Join(problems...)
}

// nodeTrust patches the status alone, so that it takes no part in the races of those who write verdicts. One that is gone needs
// no status; one that was made again under its name gets its own in the next pass.
func (s *Store) nodeTrust(ctx context.Context, n NodeTrustStatus) error {
	status := map[string]any{"observedGeneration": n.Status.ObservedGeneration, "verdict": n.Status.Verdict, "why": n.Status.Why, "since": n.Status.Since}
	patch, err := json.Marshal(map[string]any{"status": status})
	if err != nil {
		return err
	}
	target := &v1alpha1.NodeTrust{ObjectMeta: metav1.ObjectMeta{Name: n.Name}}
	return client.IgnoreNotFound(s.writer.Status().Patch(ctx, target, client.RawPatch(types.MergePatchType, patch), fieldOwner))
}

func (s *Store) status(ctx context.Context, p PolicyStatus) error {
	key := client.ObjectKey{Namespace: p.Namespace, Name: p.Name}
	live, err := s.policy(ctx, key)
	if err != nil {
		return client.IgnoreNotFound(err) // deleted since: nobody to tell
	}
	if string(live.UID) != p.UID {
		return nil // another policy of the same name: its own pass comes
	}
	if said := s.said[key]; said.live == live && (sameStatus(said.status, p.Status) || equality.Semantic.DeepEqual(said.status, p.Status)) {
		return nil // compared before
	}
	want := live.DeepCopy()
	conditions := want.Status.Conditions
	want.Status = p.Status
	want.Status.Conditions = conditions
	for _, c := range p.Status.Conditions {
		meta.SetStatusCondition(&want.Status.Conditions, c)
	}
	want.Status.LastSynced = live.Status.LastSynced
	if equality.Semantic.DeepEqual(live.Status, want.Status) {
		s.said[key] = said{live, p.Status}
		return nil
	}
	delete(s.said, key)
	now := metav1.Now().Rfc3339Copy()
	want.Status.LastSynced = &now
	return s.writer.Status().Update(ctx, want, client.FieldOwner(v1alpha1.FieldManager))
}

// said is a status that a policy of the cache has already.
type said struct {
	live   *v1alpha1.TrustPolicy
	status v1alpha1.TrustPolicyStatus
}

// sameStatus reports whether two statuses are one in memory; false says nothing.
func sameStatus(x, y v1alpha1.TrustPolicyStatus) bool {
	return x.ObservedGeneration == y.ObservedGeneration && x.Selected == y.Selected && x.Attested == y.Attested && x.Why == y.Why &&
		x.LastAccepted == y.LastAccepted && x.LastSynced == y.LastSynced &&
		snapshot.Same(x.Conditions, y.Conditions) && snapshot.Same(x.Refused, y.Refused) && snapshot.Same(x.Notes, y.Notes)
}

// policy reads a policy: the cache's own object where there is a cache, which nobody may change.
func (s *Store) policy(ctx context.Context, key client.ObjectKey) (*v1alpha1.TrustPolicy, error) {
	index, err := indexer(ctx, s.reader, &v1alpha1.TrustPolicy{})
	if err != nil {
		return nil, err
	}
	if index != nil {
		o, there, err := index.GetByKey(key.String())
		if err != nil {
			return nil, err
		}
		if live, ok := o.(*v1alpha1.TrustPolicy); there && ok {
			return live, nil
		}
		return nil, apierrors.NewNotFound(v1alpha1.GroupVersion.WithResource("trustpolicies").GroupResource(), key.String())
	}
	live := &v1alpha1.TrustPolicy{}
	return live, s.reader.Get(ctx, key, live)
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
	for _, a := range order[:min(len(order), maxEvents)] {
		s.event(a.regarding, a.kind, a.reason, strings.Join(notes[a], "; "))
	}
}

// maxEvents is how many events one pass writes about changes, and maxFindings how many about findings: 100,000 pods that lose
// their labels at once must not become as many events. The log has every change, and a policy's status counts its pods.
const (
	maxEvents   = 256
	maxFindings = 64
)

func (s *Store) findings(findings []Finding) {
	for _, f := range findings[:min(len(findings), maxFindings)] {
		s.event(f.Regarding, corev1.EventTypeWarning, f.Reason, f.Note)
	}
}

// event writes one. The recorder makes a series of events that differ in their note alone, and keeps the first note, so the cause
// is put into the action as well: another cause is another event (events.k8s.io/v1: an action of at most 128 characters).
func (s *Store) event(regarding corev1.ObjectReference, kind, reason, note string) {
	sum := sha256.Sum256([]byte(note))
	s.recorder.Eventf(&regarding, nil, kind, reason, "Sync-"+hex.EncodeToString(sum[:4]), "%s", clip(note))
}

// clip cuts a note between characters, at what events.k8s.io/v1 takes.
func clip(note string) string {
	const maxNote = 1024
	note = strings.ToValidUTF8(note, "\uFFFD")
	if len(note) <= maxNote {
		return note
	}
	end := maxNote - len("...")
	for !utf8.RuneStart(note[end]) {
		end--
	}
	return note[:end] + "..."
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
