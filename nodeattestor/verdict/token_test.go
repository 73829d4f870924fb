package verdict_test

import (
	"context"
	"errors"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/keelson-project/keelson/nodeattestor/verdict"
	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

func TestThreat25_ATokenIsReviewedInTimeOrNotAtAll(t *testing.T) {
	policy := verdict.TokenPolicy{Audience: "keelson", ServiceAccounts: []string{"spire/spire-agent"}}
	bound := authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: []string{"keelson"}, User: authenticationv1.UserInfo{
		Username: "system:serviceaccount:spire:spire-agent", Extra: map[string]authenticationv1.ExtraValue{
			"authentication.kubernetes.io/pod-name": {"a"}, "authentication.kubernetes.io/pod-uid": {"b"},
			"authentication.kubernetes.io/node-name": {"fra-1"}, "authentication.kubernetes.io/node-uid": {"uid-1"}}}}
	for name, tc := range map[string]struct{ reviewHangs, nodeHangs bool }{
		"the API answers":         {},
		"the review hangs":        {reviewHangs: true},
		"the read of Nodes hangs": {nodeHangs: true},
	} {
		t.Run(name, func(t *testing.T) {
			hang := func(ctx context.Context, hangs bool) error {
				end, limited := ctx.Deadline()
				if left := time.Until(end); !limited || left > 10*time.Second {
					t.Errorf("the request may take %s (limited: %t)", left, limited)
				}
				if hangs {
					return context.DeadlineExceeded
				}
				return nil
			}
			s := runtime.NewScheme()
			if err := errors.Join(corev1.AddToScheme(s), authenticationv1.AddToScheme(s), v1alpha1.AddToScheme(s)); err != nil {
				t.Fatal(err)
			}
			c := fake.NewClientBuilder().WithScheme(s).WithObjects(node()).WithInterceptorFuncs(interceptor.Funcs{
				Create: func(ctx context.Context, _ client.WithWatch, obj client.Object, _ ...client.CreateOption) error {
					obj.(*authenticationv1.TokenReview).Status = bound //nolint:forcetypeassert // nothing else is created.
					return hang(ctx, tc.reviewHangs)
				},
				Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
					return errors.Join(hang(ctx, tc.nodeHangs), c.Get(ctx, key, obj, opts...))
				},
			}).Build()
			got, err := verdict.NewStoreFor(c).ReviewToken(t.Context(), []byte("token"), policy)
			if hangs := tc.reviewHangs || tc.nodeHangs; hangs != errors.Is(err, context.DeadlineExceeded) || !hangs && (got != "fra-1" || err != nil) {
				t.Errorf("node %q, %v", got, err)
			}
		})
	}
}
