package verdict_test

import (
	"context"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// An API that is away and comes back keeps a request of one server waiting for seconds, and what another server wrote in these
// is newer than the beginning of the write. It is not of the future: the older untrusted result does not take its place.
func TestThreat29_AnAnswerThatIsWaitedForDoesNotMakeAnotherServersVerdictOneOfTheFuture(t *testing.T) {
	var meanwhile func(client.Object)
	s, c := store(t, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
			if _, ok := obj.(*v1alpha1.NodeTrust); ok && meanwhile != nil {
				meanwhile(obj)
			}
			return c.Get(ctx, key, obj, opts...)
		},
	}, node())
	begin := time.Now()
	if err := s.Write(t.Context(), result(true, begin.Add(-time.Minute)), begin); err != nil {
		t.Fatal(err)
	}
	meanwhile = func(client.Object) {
		meanwhile = nil
		time.Sleep(20 * time.Millisecond)
		newer := time.Now()
		other := result(true, newer)
		other.Tags = map[string]string{"country": "DE"} // something new, so that it is written
		if err := s.Write(t.Context(), other, newer); err != nil {
			t.Error(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err := s.Write(t.Context(), result(false, begin.Add(-time.Second)), time.Now()); err != nil {
		t.Fatal(err)
	}
	if got := stored(t, c); got.Verdict != v1alpha1.VerdictTrusted {
		t.Errorf("verdict %s as of %s, want the trusted one that was received later", got.Verdict, got.AttestedAt)
	}
}
