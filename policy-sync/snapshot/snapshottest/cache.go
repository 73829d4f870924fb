package snapshottest

import (
	"maps"
	"reflect"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// Cache shows a cluster that a test changes in place as a client's cache would: a pod that has not
// changed is the same pointer in the next reading, a node or a policy that has changed has another
// resourceVersion, a list in which nothing has changed is the same list, and nothing that was read
// changes afterwards. The zero value is ready for use.
type Cache struct {
	version  int
	pods     map[string]*corev1.Pod
	nodes    map[string]shown[corev1.Node]
	policies map[string]shown[v1alpha1.TrustPolicy]
	last     snapshot.Snapshot
}

// shown is an object as the test had it, and as the cache shows it.
type shown[T any] struct{ had, as *T }

// Read returns the snapshot as the cache shows it.
func (c *Cache) Read(s snapshot.Snapshot) snapshot.Snapshot {
	pods, nodes, policies := c.pods, c.nodes, c.policies
	c.pods, c.nodes, c.policies = map[string]*corev1.Pod{}, map[string]shown[corev1.Node]{}, map[string]shown[v1alpha1.TrustPolicy]{}
	s.Pods, s.Nodes, s.Policies = slices.Clone(s.Pods), slices.Clone(s.Nodes), slices.Clone(s.Policies)
	for i, p := range s.Pods {
		had := pods[snapshot.Key(p)]
		if had == nil || !reflect.DeepEqual(had, p) {
			had = p.DeepCopy()
		}
		s.Pods[i], c.pods[snapshot.Key(p)] = had, had
	}
	for i := range s.Nodes {
		one := show(c, nodes[s.Nodes[i].Name], s.Nodes[i].DeepCopy(), func(n *corev1.Node) *string { return &n.ResourceVersion })
		c.nodes[s.Nodes[i].Name] = one
		s.Nodes[i] = *one.as
	}
	for i := range s.Policies {
		key := snapshot.Key(&s.Policies[i])
		one := show(c, policies[key], s.Policies[i].DeepCopy(), func(p *v1alpha1.TrustPolicy) *string { return &p.ResourceVersion })
		c.policies[key] = one
		s.Policies[i] = *one.as
	}
	s = apart(s)
	had := c.last
	s.Pods, s.Objects = same(had.Pods, s.Pods), same(had.Objects, s.Objects)
	s.Nodes, s.Policies, s.Namespaces = alike(had.Nodes, s.Nodes), alike(had.Policies, s.Policies), alike(had.Namespaces, s.Namespaces)
	s.NodeTrusts, s.Images, s.Blocks, s.SPIRE = alike(had.NodeTrusts, s.NodeTrusts), alike(had.Images, s.Images), alike(had.Blocks, s.Blocks), alike(had.SPIRE, s.SPIRE)
	c.last = s
	return s
}

// same is the list before where the two hold the same pointers.
func same[T comparable](before, now []T) []T {
	if slices.Equal(before, now) && (before == nil) == (now == nil) {
		return before
	}
	return now
}

// alike is what was shown before where the two say the same.
func alike[T any](before, now T) T {
	if reflect.DeepEqual(before, now) {
		return before
	}
	return now
}

// show shows an object: as before if it is the same, and with another version if it is not.
func show[T any](c *Cache, before shown[T], now *T, version func(*T) *string) shown[T] {
	if before.had != nil && reflect.DeepEqual(before.had, now) {
		return before
	}
	as := *now
	if before.had != nil && *version(before.had) == *version(now) {
		c.version++
		*version(&as) += "." + strconv.Itoa(c.version)
	}
	return shown[T]{now, &as}
}

// apart copies what is small.
func apart(s snapshot.Snapshot) snapshot.Snapshot {
	s.Namespaces, s.NodeTrusts, s.Objects = slices.Clone(s.Namespaces), slices.Clone(s.NodeTrusts), slices.Clone(s.Objects)
	for i := range s.Namespaces {
		s.Namespaces[i] = *s.Namespaces[i].DeepCopy()
	}
	for i := range s.NodeTrusts {
		s.NodeTrusts[i] = *s.NodeTrusts[i].DeepCopy()
	}
	s.Images = maps.Clone(s.Images)
	for key, image := range s.Images {
		image.Verifiers = maps.Clone(image.Verifiers)
		s.Images[key] = image
	}
	s.Blocks = maps.Clone(s.Blocks)
	if s.SPIRE != nil {
		s.SPIRE = &snapshot.SPIRE{Entries: slices.Clone(s.SPIRE.Entries), Agents: slices.Clone(s.SPIRE.Agents), OwnID: s.SPIRE.OwnID}
	}
	return s
}

// Lists shows the pods of one snapshot after another by namespace, as a reader does that follows a
// cache: a list in which nothing has changed is the same list. The zero value is ready for use.
type Lists map[string][]*corev1.Pod

// Read returns the snapshot with PodLists instead of Pods.
func (l *Lists) Read(s snapshot.Snapshot) snapshot.Snapshot {
	now, err := snapshot.Snapshot{Pods: s.Pods}.PodsByNamespace()
	if err != nil {
		return s // what was read twice is for others to find
	}
	changes := &snapshot.PodChanges{Before: *l}
	for namespace, list := range now {
		if had := (*l)[namespace]; slices.Equal(had, list) {
			now[namespace] = had
		} else {
			changes.Namespaces = append(changes.Namespaces, namespace)
		}
	}
	for namespace := range *l {
		if _, still := now[namespace]; !still {
			changes.Namespaces = append(changes.Namespaces, namespace)
		}
	}
	*l, s.Pods, s.PodLists, s.PodChanges = now, nil, now, changes
	return s
}
