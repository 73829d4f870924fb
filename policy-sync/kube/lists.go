package kube

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// changes notes which kinds have changed since they were read, and of pods the namespaces. A cache
// calls its handlers after it has taken a change up. So what is taken before a list is read is in that
// list, and what comes later is noted for the next reading.
type changes struct {
	mu sync.Mutex
	changed
}

// changed are kinds with a change, and namespaces with a changed pod.
type changed struct {
	kinds map[string]bool
	pods  map[string]bool
	// all is true when nothing is known: everything counts as changed.
	all bool
}

// kindOf names the kind of a watched object, as changed.kinds has it.
func kindOf(o client.Object) string {
	if u, ok := o.(*unstructured.Unstructured); ok {
		return u.GroupVersionKind().String()
	}
	return fmt.Sprintf("%T", o)
}

// note takes up that an object of a kind came, went or changed. Where it cannot tell which namespace a
// pod is of, everything counts as changed.
func (c *changes) note(kind string, object any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kinds == nil {
		c.kinds, c.pods = map[string]bool{}, map[string]bool{}
	}
	c.kinds[kind] = true
	if kind != podKind {
		return
	}
	if pod, ok := object.(*corev1.Pod); ok && pod != nil {
		c.pods[pod.Namespace] = true
		return
	}
	gone, ok := object.(toolscache.DeletedFinalStateUnknown)
	namespace, _, err := toolscache.SplitMetaNamespaceKey(gone.Key)
	c.all = c.all || !ok || err != nil
	c.pods[namespace] = true
}

// take returns what has changed, and forgets it.
func (c *changes) take() changed {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.changed
	c.changed = changed{}
	return out
}

// giveBack notes again what could not be read.
func (c *changes) giveBack(was changed) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kinds == nil {
		c.kinds, c.pods = map[string]bool{}, map[string]bool{}
	}
	maps.Copy(c.kinds, was.kinds)
	maps.Copy(c.pods, was.pods)
	c.all = c.all || was.all
}

// The kinds that are read into typed lists.
var (
	podKind       = kindOf(&corev1.Pod{})
	nodeKind      = kindOf(&corev1.Node{})
	namespaceKind = kindOf(&corev1.Namespace{})
	trustKind     = kindOf(&v1alpha1.NodeTrust{})
	policyKind    = kindOf(&v1alpha1.TrustPolicy{})
	serviceKind   = kindOf(&networkingv1.ServiceCIDR{})
)

// lists are what the last reading found. A list in which nothing has changed is the same list in the
// next reading. It is never changed.
type lists struct {
	read     bool
	snapshot snapshot.Snapshot
	// pods are by namespace, sorted by name; nil where they are not kept so.
	pods       map[string][]*corev1.Pod
	podChanges *snapshot.PodChanges
	// objects are by kind, mesh is Istio's configuration.
	objects map[schema.GroupVersionKind][]*unstructured.Unstructured
	mesh    []*unstructured.Unstructured
}

// reread reads what has changed into the lists.
func (s *Store) reread(ctx context.Context, what changed) error {
	k := &s.kept
	fresh := func(kind string) bool { return !k.read || what.all || !s.watched || what.kinds[kind] }
	if err := s.rereadTyped(ctx, fresh); err != nil {
		return err
	}
	if fresh(podKind) {
		if err := s.rereadPods(ctx, what); err != nil {
			return err
		}
	}
	if err := s.rereadObjects(ctx, fresh); err != nil {
		return err
	}
	if slices.ContainsFunc(volumeObjects(), func(o client.Object) bool { return fresh(kindOf(o)) }) {
		if err := s.readVolumes(ctx, &k.snapshot); err != nil {
			return err
		}
	}
	if s.config.Calico && (fresh(kindOf(object(blockAffinity))) || fresh(kindOf(object(ipPool)))) {
		if err := s.readBlocks(ctx, &k.snapshot); err != nil {
			return err
		}
	}
	k.read = true
	return nil
}

// rereadTyped reads the kinds that have a list of their own in a snapshot, but for pods.
func (s *Store) rereadTyped(ctx context.Context, fresh func(kind string) bool) error {
	var (
		nodes      corev1.NodeList
		namespaces corev1.NamespaceList
		trusts     v1alpha1.NodeTrustList
		policies   v1alpha1.TrustPolicyList
		services   networkingv1.ServiceCIDRList
	)
	out := &s.kept.snapshot
	for _, one := range []struct {
		kind, name string
		list       client.ObjectList
		done       func()
	}{
		{nodeKind, "nodes", &nodes, func() { out.Nodes = nodes.Items }},
		{namespaceKind, "namespaces", &namespaces, func() { out.Namespaces = namespaces.Items }},
		{trustKind, "nodetrusts", &trusts, func() { out.NodeTrusts = trusts.Items }},
		{policyKind, "trustpolicies", &policies, func() { out.Policies = policies.Items }},
		{serviceKind, "servicecidrs", &services, func() { out.ServiceCIDRs = serviceCIDRs(services.Items) }},
	} {
		if !fresh(one.kind) {
			continue
		}
		if err := s.reader.List(ctx, one.list, client.UnsafeDisableDeepCopy); err != nil {
			return fmt.Errorf("kube: list %s: %w", one.name, err)
		}
		one.done()
	}
	return nil
}

// rereadPods reads the pods of the namespaces in which one has changed, or all pods.
func (s *Store) rereadPods(ctx context.Context, what changed) error {
	k := &s.kept
	index, err := indexer(ctx, s.reader, &corev1.Pod{})
	if err != nil {
		return fmt.Errorf("kube: list pods: %w", err)
	}
	if index == nil {
		if k.snapshot.Pods, err = s.pods(ctx); err != nil {
			return err
		}
		return nil
	}
	if k.pods == nil || what.all || !s.watched {
		all, err := s.pods(ctx)
		if err != nil {
			return err
		}
		k.podChanges = nil
		k.pods, err = snapshot.Snapshot{Pods: all}.PodsByNamespace()
		return err
	}
	k.podChanges = &snapshot.PodChanges{Before: k.pods}
	k.pods = maps.Clone(k.pods) // an earlier snapshot has the map
	for namespace := range what.pods {
		k.podChanges.Namespaces = append(k.podChanges.Namespaces, namespace)
		found, err := index.ByIndex(toolscache.NamespaceIndex, namespace)
		if err != nil {
			return fmt.Errorf("kube: list pods of namespace %s: %w", namespace, err)
		}
		list := make([]*corev1.Pod, 0, len(found))
		for _, o := range found {
			pod, ok := o.(*corev1.Pod)
			if !ok {
				return fmt.Errorf("kube: list pods of namespace %s: the cache holds a %T", namespace, o)
			}
			list = append(list, pod)
		}
		snapshot.SortPods(list)
		if k.pods[namespace] = list; len(list) == 0 {
			delete(k.pods, namespace)
		}
	}
	return nil
}

// rereadObjects reads the kinds of Snapshot.Objects, and joins them to one list when one is another.
func (s *Store) rereadObjects(ctx context.Context, fresh func(kind string) bool) error {
	k := &s.kept
	another := !k.read
	if k.objects == nil {
		k.objects = map[schema.GroupVersionKind][]*unstructured.Unstructured{}
	}
	for _, kind := range s.kinds {
		if !fresh(kindOf(object(kind))) {
			continue
		}
		list, err := s.list(ctx, kind)
		if err != nil {
			return err
		}
		k.objects[kind.GroupVersionKind], another = list, true
	}
	if s.config.Istio && fresh(kindOf(object(meshConfigKind))) {
		mesh, err := s.meshConfig(ctx)
		if err != nil {
			return err
		}
		k.mesh, another = mesh, true
	}
	if another {
		var all []*unstructured.Unstructured
		for _, kind := range s.kinds {
			all = append(all, k.objects[kind.GroupVersionKind]...)
		}
		k.snapshot.Objects = append(all, k.mesh...)
	}
	return nil
}
