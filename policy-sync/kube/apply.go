package kube

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// Apply does one operation on a Kubernetes object. An error that wraps ErrStale asks for a new plan.
func (s *Store) Apply(ctx context.Context, o plan.Operation) error {
	err := s.apply(ctx, o)
	switch {
	case err == nil:
		return nil
	case o.Action == plan.Create && apierrors.IsNotFound(err) && s.homeless(ctx, o.Target.Namespace):
		return fmt.Errorf("kube: %s %s: %w", o.Action, o.Target, err) // no newer reading finds it: no reason to wait for one
	default:
		return fmt.Errorf("kube: %s %s: %w", o.Action, o.Target, stale(err))
	}
}

// homeless tells whether the reader knows no such namespace.
func (s *Store) homeless(ctx context.Context, namespace string) bool {
	return namespace != "" && apierrors.IsNotFound(s.reader.Get(ctx, client.ObjectKey{Name: namespace}, &corev1.Namespace{}))
}

var fieldOwner = client.FieldOwner(v1alpha1.FieldManager)

func (s *Store) apply(ctx context.Context, o plan.Operation) error {
	switch o.Action {
	case plan.Create:
		err := s.writer.Create(ctx, o.Object.DeepCopy(), fieldOwner)
		if apierrors.IsAlreadyExists(err) {
			return s.takeOver(ctx, o, err)
		}
		return err
	case plan.Update:
		// The object carries the live one's resourceVersion and UID; see the package comment for why it is not merged.
		return s.writer.Update(ctx, o.Object.DeepCopy(), fieldOwner)
	case plan.Patch:
		target := &metav1.PartialObjectMetadata{}
		target.SetGroupVersionKind(o.Target.GroupVersionKind)
		target.SetNamespace(o.Target.Namespace)
		target.SetName(o.Target.Name)
		return s.writer.Patch(ctx, target, client.RawPatch(types.MergePatchType, o.MergePatch), fieldOwner)
	case plan.Delete:
		return s.remove(ctx, o.Target)
	default:
		return fmt.Errorf("%q is not an action on a Kubernetes object", o.Action)
	}
}

// takeOver replaces an object that stands under one of our names in our tier and that no reading finds, because it lacks the
// tier's label (see selector): a plan would create it again for ever. Whoever may not write in our tier could not make one, and
// the plan replaces what stands under our names anyway. refused is the API server's answer to its creation.
func (s *Store) takeOver(ctx context.Context, o plan.Operation, refused error) error {
	by := selector(snapshot.Kind{GroupVersionKind: o.Target.GroupVersionKind})
	if by == nil {
		return refused
	}
	live := &unstructured.Unstructured{}
	live.SetGroupVersionKind(o.Target.GroupVersionKind)
	if err := s.writer.Get(ctx, client.ObjectKeyFromObject(o.Object), live); err != nil {
		return err
	}
	if by.Matches(labels.Set(live.GetLabels())) {
		return refused // the reader is late, and sees it soon
	}
	object := o.Object.DeepCopy()
	object.SetUID(live.GetUID())
	object.SetResourceVersion(live.GetResourceVersion())
	return s.writer.Update(ctx, object, fieldOwner)
}

// remove deletes an object that is ours, and only the very object that the plan saw. The plan never says otherwise; this is
// the last line before somebody else's object is gone.
func (s *Store) remove(ctx context.Context, t plan.Target) error {
	writable := func(k snapshot.Kind) bool { return k.GroupVersionKind == t.GroupVersionKind && k.Written }
	if !slices.ContainsFunc(s.kinds, writable) {
		return fmt.Errorf("refused: %s is not a kind that Keelson makes", t.Kind)
	}
	live := &unstructured.Unstructured{}
	live.SetGroupVersionKind(t.GroupVersionKind)
	key := client.ObjectKey{Namespace: t.Namespace, Name: t.Name}
	err := s.reader.Get(ctx, key, live)
	if apierrors.IsNotFound(err) && selector(snapshot.Kind{GroupVersionKind: t.GroupVersionKind}) != nil {
		err = s.writer.Get(ctx, key, live) // one without the tier's label is not in the cache
	}
	if err != nil {
		return err
	}
	if live.GetLabels()[v1alpha1.OwnerLabel] != v1alpha1.OwnerValue {
		return fmt.Errorf("refused: it has no label %s=%s, so it is not ours", v1alpha1.OwnerLabel, v1alpha1.OwnerValue)
	}
	if t.UID == "" {
		return fmt.Errorf("refused: the plan does not say which UID")
	}
	uid := types.UID(t.UID)
	preconditions := client.Preconditions{UID: &uid}
	if t.ResourceVersion != "" {
		preconditions.ResourceVersion = &t.ResourceVersion
	}
	return client.IgnoreNotFound(s.writer.Delete(ctx, live, preconditions))
}
