package revocations_test

import (
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// TestLeastRights: what a bad node's token can and cannot read.
func TestLeastRights(t *testing.T) {
	a := newAPI(t)
	a.set(v1alpha1.RevokedSet, "10.1.0.2/32")
	a.set("other", "10.66.0.1/32")
	client, err := dynamic.NewForConfig(a.own())
	if err != nil {
		t.Fatal(err)
	}
	core := func(r string) schema.GroupVersionResource {
		return schema.GroupVersionResource{Version: "v1", Resource: r}
	}
	one := metav1.ListOptions{FieldSelector: "metadata.name=" + v1alpha1.RevokedSet}
	ctx := t.Context()
	for name, c := range map[string]struct {
		try     func() error
		allowed bool
	}{
		"list the one set": {func() error { _, err := client.Resource(sets).List(ctx, one); return err }, true},
		"list all sets":    {func() error { _, err := client.Resource(sets).List(ctx, metav1.ListOptions{}); return err }, false},
		"read another set": {func() error { _, err := client.Resource(sets).Get(ctx, "other", metav1.GetOptions{}); return err }, false},
		"delete the set":   {func() error { return client.Resource(sets).Delete(ctx, v1alpha1.RevokedSet, metav1.DeleteOptions{}) }, false},
		"list nodes":       {func() error { _, err := client.Resource(core("nodes")).List(ctx, metav1.ListOptions{}); return err }, true},
		"list pods":        {func() error { _, err := client.Resource(core("pods")).List(ctx, metav1.ListOptions{}); return err }, false},
		"list secrets":     {func() error { _, err := client.Resource(core("secrets")).List(ctx, metav1.ListOptions{}); return err }, false},
		"list policies": {func() error {
			_, err := client.Resource(schema.GroupVersionResource{Group: "projectcalico.org", Version: "v3", Resource: "globalnetworkpolicies"}).List(ctx, metav1.ListOptions{})
			return err
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.try()
			if c.allowed && err != nil || !c.allowed && !apierrors.IsForbidden(err) {
				t.Errorf("got %v, want allowed %t", err, c.allowed)
			}
		})
	}
}
