package desired

import (
	"encoding/json"
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	utiljson "k8s.io/apimachinery/pkg/util/json"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// Class says what an object's existence does, which decides when it is written.
type Class int

// The classes.
const (
	// Barrier closes: it is put up before anything opens and taken down last.
	Barrier Class = iota
	// Gate opens: it is put up late and taken down early.
	Gate
	// Blacklist cuts off what is proved bad: it comes before everything else.
	Blacklist
)

// Object is a Kubernetes object that should be, with what the plan needs to know to
// change it without ever opening more than before and after.
type Object struct {
	*unstructured.Unstructured
	Class Class
	// Opens are lists in the object (path from its root) of which every element opens
	// something on its own; Closes are lists of which every element closes something.
	// From an old to a new state, a plan first goes to the lists' intersection (Opens)
	// or union (Closes). Neither depends on the elements' order.
	Opens, Closes [][]string
	// Split, if set, takes an element of those lists apart whose meaning is that of one element for each member of a set: into
	// the rest, the members, and a way to make the element with other members. A plan then goes to the intersection or union of
	// members. ok is false for an element without such a set.
	Split  func(element any) (rest string, members []string, join func(members []string) any, ok bool) `json:"-"`
	Reason string
}

// Make turns a typed object into an Object: owner label, source annotation, and plain
// JSON values as an API server would send them.
func Make(typed runtime.Object, class Class, source, reason string) (Object, error) {
	data, err := json.Marshal(typed)
	if err != nil {
		return Object{}, fmt.Errorf("desired: render: %w", err)
	}
	u := &unstructured.Unstructured{}
	if err := utiljson.Unmarshal(data, &u.Object); err != nil {
		return Object{}, fmt.Errorf("desired: render: %w", err)
	}
	unstructured.RemoveNestedField(u.Object, "metadata", "creationTimestamp")
	unstructured.RemoveNestedField(u.Object, "status")
	labels := u.GetLabels()
	if labels == nil {
		labels = map[string]string{}
	}
	labels[v1alpha1.OwnerLabel] = v1alpha1.OwnerValue
	u.SetLabels(labels)
	if source != "" {
		annotations := u.GetAnnotations()
		if annotations == nil {
			annotations = map[string]string{}
		}
		annotations[v1alpha1.SourceAnnotation] = source
		u.SetAnnotations(annotations)
	}
	return Object{Unstructured: u, Class: class, Reason: reason}, nil
}
