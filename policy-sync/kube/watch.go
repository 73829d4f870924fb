package kube

import (
	"context"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/panics"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// CacheOptions makes a cache hold what Read reads and no more.
func CacheOptions(config snapshot.Config) cache.Options {
	out := cache.Options{DefaultTransform: cache.TransformStripManagedFields(), ReaderFailOnMissingInformer: true,
		ByObject: map[client.Object]cache.ByObject{}}
	for _, k := range snapshot.Kinds(config) {
		if s := selector(k); s != nil {
			out.ByObject[object(k)] = cache.ByObject{Label: s}
		}
	}
	if config.Istio {
		out.ByObject[object(meshConfigKind)] = meshConfigCache(config)
	}
	volumeCache(&out)
	return out
}

func object(k snapshot.Kind) *unstructured.Unstructured {
	o := &unstructured.Unstructured{}
	o.SetGroupVersionKind(k.GroupVersionKind)
	return o
}

// Watch calls trigger whenever something that Read reads has changed, and from then on has Read read only what has changed. The
// cache is the store's reader. Watch decides nothing: what is to be done about a change is found out from all that is there.
//
// A panic while a change is looked at counts as a change. Watch is called before the first Read.
func (s *Store) Watch(ctx context.Context, c cache.Cache, trigger func(), caught *panics.Recorder) error {
	config := s.config
	s.watched = true
	objects := []client.Object{&corev1.Node{}, &corev1.Namespace{}, &corev1.Pod{}, &v1alpha1.NodeTrust{}, &v1alpha1.TrustPolicy{},
		&networkingv1.ServiceCIDR{}}
	objects = append(objects, volumeObjects()...)
	kinds := snapshot.Kinds(config)
	if config.Calico {
		kinds = append(kinds, blockAffinity, ipPool)
	}
	if config.Istio {
		kinds = append(kinds, meshConfigKind)
	}
	for _, k := range kinds {
		objects = append(objects, object(k))
	}
	for _, o := range objects {
		kind := kindOf(o)
		// Not blocking: the cache starts later; Read waits for it.
		informer, err := c.GetInformer(ctx, o, cache.BlockUntilSynced(false))
		if err != nil {
			return fmt.Errorf("kube: watch %T %s: %w", o, o.GetObjectKind().GroupVersionKind().Kind, err)
		}
		_, err = informer.AddEventHandler(handler(func(object any) { s.changes.note(kind, object) }, trigger, caught))
		if err != nil {
			return fmt.Errorf("kube: watch %T %s: %w", o, o.GetObjectKind().GroupVersionKind().Kind, err)
		}
	}
	return nil
}

// handler notes each change before it calls trigger, so that the reading that follows sees it.
func handler(note func(object any), trigger func(), caught *panics.Recorder) toolscache.ResourceEventHandlerFuncs {
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { defer trigger(); note(o) },
		DeleteFunc: func(o any) { defer trigger(); note(o) },
		UpdateFunc: func(before, after any) {
			defer caught.Catch("looking at a change", func(error) { trigger() })
			note(after)
			if !heartbeat(before, after) {
				trigger()
			}
		},
	}
}

// heartbeat tells whether a Node's update is its kubelet's sign of life: nothing that Read's reader looks at changed.
func heartbeat(before, after any) bool {
	a, isNode := before.(*corev1.Node)
	b, stillNode := after.(*corev1.Node)
	return isNode && stillNode && a.UID == b.UID && maps.Equal(a.Labels, b.Labels) &&
		slices.EqualFunc(a.Spec.Taints, b.Spec.Taints, func(x, y corev1.Taint) bool { return x.MatchTaint(&y) && x.Value == y.Value }) &&
		slices.Equal(a.Status.Addresses, b.Status.Addresses) &&
		a.Status.NodeInfo.OperatingSystem == b.Status.NodeInfo.OperatingSystem && a.Status.NodeInfo.Architecture == b.Status.NodeInfo.Architecture && a.Spec.PodCIDR == b.Spec.PodCIDR && slices.Equal(a.Spec.PodCIDRs, b.Spec.PodCIDRs)
}
