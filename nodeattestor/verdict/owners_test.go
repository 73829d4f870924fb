package verdict_test

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/keelson-project/keelson/nodeattestor/verdict"
	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// bindings is a store over an API that answers by EK as the real one does, and fails with *fails when that is set.
func bindings(t *testing.T, fails *error) (*verdict.Store, client.Client) {
	t.Helper()
	s := runtime.NewScheme()
	if err := errors.Join(corev1.AddToScheme(s), v1alpha1.AddToScheme(s)); err != nil {
		t.Fatal(err)
	}
	limited := func(ctx context.Context) {
		if end, ok := ctx.Deadline(); !ok || time.Until(end) > 10*time.Second {
			t.Error("a request for a binding may take longer than an attestation can wait")
		}
	}
	c := fake.NewClientBuilder().WithScheme(s).
		WithIndex(&v1alpha1.NodeTrust{}, v1alpha1.NodeTrustEKHash, func(o client.Object) []string {
			return []string{o.(*v1alpha1.NodeTrust).Spec.EKHash} //nolint:forcetypeassert // the index is of NodeTrusts.
		}).
		WithInterceptorFuncs(interceptor.Funcs{
			List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
				if limited(ctx); *fails != nil {
					return *fails
				}
				return c.List(ctx, list, opts...)
			},
		}).Build()
	return verdict.NewStoreFor(c), c
}

func bind(t *testing.T, c client.Client, node, ek string) *v1alpha1.NodeTrust {
	t.Helper()
	nt := &v1alpha1.NodeTrust{ObjectMeta: metav1.ObjectMeta{Name: node}, Spec: v1alpha1.NodeTrustSpec{Verdict: v1alpha1.VerdictTrusted, EKHash: ek}}
	if err := c.Create(t.Context(), nt); err != nil {
		t.Fatal(err)
	}
	return nt
}

func TestThreat07_TheNodesOfAnEKAreFoundAndForgottenWithTheirNodeTrusts(t *testing.T) {
	var fails error
	s, c := bindings(t, &fails)
	want := func(ek string, nodes ...string) {
		t.Helper()
		got, err := s.Owners(t.Context(), ek)
		if err != nil || !slices.Equal(got, nodes) {
			t.Errorf("EK %.4s… is bound to %v, %v; want %v", ek, got, err, nodes)
		}
	}
	want(ek1)
	first := bind(t, c, "fra-1", ek1)
	bind(t, c, "par-1", ek2)
	want(ek1, "fra-1")
	bind(t, c, "fra-2", ek1) // by another server at the same moment
	want(ek1, "fra-1", "fra-2")
	want(ek2, "par-1")
	if err := c.Delete(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	want(ek1, "fra-2")
}

func TestThreat25_WithoutTheAPIAnEKStaysWhereItWasAndNoNewOneIsBound(t *testing.T) {
	var fails error
	s, c := bindings(t, &fails)
	if _, err := s.Owners(t.Context(), ek2); err != nil { // bound to nothing, which is no answer that could stand
		t.Fatal(err)
	}
	if err := c.Create(t.Context(), node()); err != nil {
		t.Fatal(err)
	}
	if err := s.Write(t.Context(), result(true, start), start); err != nil {
		t.Fatal(err)
	}
	resource := schema.GroupResource{Group: v1alpha1.Group, Resource: "nodetrusts"}
	for name, tc := range map[string]struct {
		err  error
		says string
	}{
		"the API is away":                     {errors.New("connection refused"), "connection refused"},
		"the account may not list":            {apierrors.NewForbidden(resource, "", errors.New("no")), "needs list on nodetrusts.trust.keelson.io"},
		"an older definition of the resource": {apierrors.NewBadRequest("field label not supported: spec.ekHash"), "makes spec.ekHash selectable"},
	} {
		t.Run(name, func(t *testing.T) {
			fails = tc.err
			if got, err := s.Owners(t.Context(), ek1); err != nil || !slices.Equal(got, []string{"fra-1"}) {
				t.Errorf("the last known answer does not stand: %v, %v", got, err)
			}
			if got, err := s.Owners(t.Context(), ek2); err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("an EK of which nothing is known: %v, %v", got, err)
			}
		})
	}
}

func TestThreat07_AnEKThatWaitsToBeBoundIsKnown(t *testing.T) {
	api := &writer{err: errors.New("connection refused")}
	q, err := verdict.StartQueue(api, filepath.Join(t.TempDir(), "pending.json"), hclog.NewNullLogger(), clock)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	if got := q.Nodes(ek1); len(got) > 0 {
		t.Errorf("an empty queue binds %v", got)
	}
	for _, name := range []string{"fra-2", "fra-1"} {
		r := result(true, start)
		r.Node = name
		if err := q.Submit(r); err != nil {
			t.Fatal(err)
		}
	}
	if got := q.Nodes(ek1); !slices.Equal(got, []string{"fra-1", "fra-2"}) {
		t.Errorf("the queue binds %v", got)
	}
	if got := q.Nodes(ek2); len(got) > 0 {
		t.Errorf("another EK is bound to %v", got)
	}
}
