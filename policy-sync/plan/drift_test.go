package plan_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// TestDriftIsPutRight: whatever somebody changes on our objects is found and undone.
func TestDriftIsPutRight(t *testing.T) {
	cases := map[string]struct {
		name   string
		change func(o *unstructured.Unstructured)
	}{
		"a rule is added to a policy": {"keelson.api", func(o *unstructured.Unstructured) {
			list, _, _ := unstructured.NestedSlice(o.Object, "spec", "ingress")
			_ = unstructured.SetNestedSlice(o.Object, append(list, map[string]any{"action": "Allow"}), "spec", "ingress")
		}},
		"a rule is taken away": {"keelson.api", func(o *unstructured.Unstructured) { unstructured.RemoveNestedField(o.Object, "spec", "ingress") }},
		"a policy selects others": {"keelson.api", func(o *unstructured.Unstructured) {
			_ = unstructured.SetNestedField(o.Object, "all()", "spec", "selector")
		}},
		"a field is added to default deny": {"keelson.default-deny", func(o *unstructured.Unstructured) {
			_ = unstructured.SetNestedField(o.Object, true, "spec", "doNotTrack")
		}},
		"default deny comes last": {"keelson.default-deny", func(o *unstructured.Unstructured) {
			_ = unstructured.SetNestedField(o.Object, int64(99999), "spec", "order")
		}},
		"the tier denies by default": {"keelson", func(o *unstructured.Unstructured) {
			_ = unstructured.SetNestedField(o.Object, "Deny", "spec", "defaultAction")
		}},
		"a DENY is made a dry run": {"keelson.api.deny", func(o *unstructured.Unstructured) { o.SetAnnotations(map[string]string{"istio.io/dry-run": "true"}) }},
		"a DENY is given to another istiod": {"keelson.api.deny", func(o *unstructured.Unstructured) {
			l := o.GetLabels()
			l["istio.io/rev"] = "other"
			o.SetLabels(l)
		}},
		"mutual TLS is made permissive": {"keelson.strict", func(o *unstructured.Unstructured) {
			_ = unstructured.SetNestedField(o.Object, "PERMISSIVE", "spec", "mtls", "mode")
		}},
		"the owner label is taken away":  {"keelson.api.allow", func(o *unstructured.Unstructured) { o.SetLabels(nil) }},
		"a revoked address is taken out": {"keelson.revoked", func(o *unstructured.Unstructured) { unstructured.RemoveNestedField(o.Object, "spec", "nets") }},
		"the set of revoked addresses is given trust": {"keelson.revoked", func(o *unstructured.Unstructured) {
			l := o.GetLabels()
			l[v1alpha1.PodAttestedLabel] = "true"
			o.SetLabels(l)
		}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := settled(t)
			want := render(w.Objects)
			changed := 0
			for i, o := range w.Objects {
				if o.GetName() == c.name {
					o = o.DeepCopy()
					c.change(o)
					w.Objects[i] = o
					changed++
				}
			}
			if changed == 0 {
				t.Fatalf("no object %s", c.name)
			}
			if mustMake(t, w.Snapshot).Plan.Empty() {
				t.Fatal("not found")
			}
			w.settle(t, nil)
			if got := render(w.Objects); got != want {
				t.Errorf("not put right:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

// render is what objects say, without what a server counts.
func render(objects []*unstructured.Unstructured) string {
	var out []string
	for _, o := range objects {
		out = append(out, fmt.Sprintf("%s %s/%s %v %v %v", o.GetKind(), o.GetNamespace(), o.GetName(), o.GetLabels(), o.GetAnnotations(), o.Object["spec"]))
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}
