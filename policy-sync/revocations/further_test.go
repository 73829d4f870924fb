package revocations_test

import (
	"context"
	"slices"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/flows"
)

// TestFurtherSetsAreReadToo: more addresses than one set holds. Sets come and go, and one may be missing in between.
func TestFurtherSetsAreReadToo(t *testing.T) {
	a := newAPI(t)
	a.set(v1alpha1.RevokedSet, "10.1.0.1/32")
	a.set(v1alpha1.RevokedSetName(3), "10.1.0.4/32") // the third is not there
	a.Cleanup(func() {
		for i := 1; i < 4; i++ {
			_ = a.admin.Resource(sets).Delete(context.Background(), v1alpha1.RevokedSetName(i), metav1.DeleteOptions{})
		}
	})
	var w worlds
	a.watch(a.own(), w.update)
	nets := func(want ...string) func(flows.World) bool {
		return func(w flows.World) bool { return w.Known && slices.Equal(w.Nets, want) }
	}
	a.until(&w, "a set behind a gap", nets("10.1.0.1/32", "10.1.0.4/32"))
	a.set(v1alpha1.RevokedSetName(1), "10.1.0.2/32")
	a.until(&w, "a second set", nets("10.1.0.1/32", "10.1.0.2/32", "10.1.0.4/32"))
	a.set(v1alpha1.RevokedSetName(2), "10.1.0.3/32")
	a.until(&w, "a third set", nets("10.1.0.1/32", "10.1.0.2/32", "10.1.0.3/32", "10.1.0.4/32"))
	if err := a.admin.Resource(sets).Delete(t.Context(), v1alpha1.RevokedSetName(1), metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	a.until(&w, "that the second is gone", nets("10.1.0.1/32", "10.1.0.3/32", "10.1.0.4/32"))
}
