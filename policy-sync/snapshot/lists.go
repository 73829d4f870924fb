package snapshot

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Same reports whether two lists are one list in memory. Lists of snapshots are not changed, so one
// that is the same holds the same. Two empty lists are the same.
func Same[T any](x, y []T) bool {
	return len(x) == len(y) && (len(x) == 0 || &x[0] == &y[0])
}

// SameMap reports whether two maps are one map in memory.
func SameMap[K comparable, V any](x, y map[K]V) bool {
	return reflect.ValueOf(x).Pointer() == reflect.ValueOf(y).Pointer()
}

// PodChanges are the namespaces in which the pods are others than in an earlier Snapshot.PodLists.
type PodChanges struct {
	Before     map[string][]*corev1.Pod
	Namespaces []string
}

// ChangedPods returns the namespaces whose pods may be others than in the lists before, and false where
// that is not known.
func (s Snapshot) ChangedPods(before map[string][]*corev1.Pod) ([]string, bool) {
	switch {
	case before == nil || s.PodLists == nil:
	case SameMap(before, s.PodLists):
		return nil, true
	case s.PodChanges != nil && SameMap(before, s.PodChanges.Before):
		return s.PodChanges.Namespaces, true
	}
	return nil, false
}

// AllPods lists the pods of all namespaces.
func (s Snapshot) AllPods() []*corev1.Pod {
	if s.PodLists == nil {
		return s.Pods
	}
	var out []*corev1.Pod
	for _, namespace := range slices.Sorted(maps.Keys(s.PodLists)) {
		out = append(out, s.PodLists[namespace]...)
	}
	return out
}

// PodsByNamespace returns the pods by namespace, each list sorted by name. It fails where a pod of
// Pods is there twice.
func (s Snapshot) PodsByNamespace() (map[string][]*corev1.Pod, error) {
	if s.PodLists != nil {
		return s.PodLists, nil
	}
	out := map[string][]*corev1.Pod{}
	for _, pod := range s.Pods {
		out[pod.Namespace] = append(out[pod.Namespace], pod)
	}
	var problems []error
	for _, list := range out {
		SortPods(list)
		for i := 1; i < len(list); i++ {
			if list[i].Name == list[i-1].Name {
				problems = append(problems, fmt.Errorf("snapshot: Pod %s was read twice", Key(list[i])))
			}
		}
	}
	return out, errors.Join(problems...)
}

// SortPods sorts the pods of one namespace in place, as PodLists has them.
func SortPods(list []*corev1.Pod) {
	slices.SortFunc(list, func(x, y *corev1.Pod) int { return strings.Compare(x.Name, y.Name) })
}
