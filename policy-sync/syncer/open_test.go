package syncer

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
)

func TestOpeningDoesNotKeepARevocationWaiting(t *testing.T) {
	w := newFake(t)
	w.applyErr = func(o plan.Operation) error { // under the fake's lock
		if !o.Phase.Closing() {
			w.now = w.now.Add(openFor / 2)
		}
		return nil
	}
	s := w.syncer()
	next, err := s.Sync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	opened := func() (n int) {
		for _, o := range w.ops {
			if !o.Phase.Closing() && !onSPIRE(o) {
				n++
			}
		}
		return n
	}
	if n := opened(); n > 3 || next.After(w.clock()) {
		t.Errorf("%d objects opened in one pass; the next one is due at %s, now is %s", n, next, w.clock())
	}
	w.proveBad()
	if _, err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := w.node("fra-1"); n.Labels[v1alpha1.NodeVerdictLabel] != string(v1alpha1.VerdictUntrusted) {
		t.Error("fra-1 was opened after it was proved bad")
	}
	if !slices.ContainsFunc(w.ops, func(o plan.Operation) bool { return o.Phase == plan.Revoke && o.AgentID != "" }) {
		t.Error("the agent of fra-1 was not evicted while opening was under way")
	}
	for range 100 { // and in the end everything is open that should be
		before := len(w.ops)
		if _, err := s.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(w.ops) == before {
			break
		}
	}
	if !slices.Contains(w.attestedPods(), "shop/frontend-par-1") {
		t.Errorf("attested: %v", w.attestedPods())
	}
}

func TestAPodThatNobodyCanLabelKeepsNoOtherWaiting(t *testing.T) {
	w := newFake(t)
	refused := errors.New("admission webhook of a team denied the request")
	w.applyErr = func(o plan.Operation) error {
		if o.Target.Kind == "Pod" && o.Target.Namespace == "payments" {
			return refused
		}
		return nil
	}
	s := w.syncer()
	var err error
	for range 3 {
		w.now = w.now.Add(time.Millisecond)
		_, err = s.Sync(t.Context())
	}
	if !errors.Is(err, refused) {
		t.Errorf("got %v", err)
	}
	pods := strings.Join(w.attestedPods(), " ")
	if pods != "shop/frontend-fra-1 shop/frontend-par-1" {
		t.Errorf("attested: %s", pods)
	}
}

// TestTheWarmUpSparesOnlyWhatWaitsForAnAnswer: a restart must not spare labels that are wrong whatever the registry says.
func TestTheWarmUpSparesOnlyWhatWaitsForAnAnswer(t *testing.T) {
	const key = "payments/api-fra-1"
	cases := map[string]struct {
		change func(w *fakeWorld)
		spared bool
	}{
		"if nothing else has changed, keep it": {func(*fakeWorld) {}, true},
		"if its policy asks for another place, take it away": {func(w *fakeWorld) {
			w.s.Policies = slices.Clone(w.s.Policies)
			w.s.Policies[0].Spec.Require.Node.Tags = map[string][]string{"country": {"FR"}}
		}, false},
		"if its policy is gone, take it away": {func(w *fakeWorld) { w.s.Policies = w.s.Policies[1:] }, false},
		"if it bears a label of a policy that never selected it, take it away": {func(w *fakeWorld) {
			w.s.Pods[0].Labels[v1alpha1.PolicyLabel("other")] = v1alpha1.True
		}, false},
		"if a container was added that has not been created, keep it": {func(w *fakeWorld) {
			w.s.Pods[0].Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
				Name: "debug", SecurityContext: snapshottest.Hardened()}}}
		}, true},
		"if the digest is one that its policy lists, keep it": {func(w *fakeWorld) {
			w.s.Policies = slices.Clone(w.s.Policies)
			w.s.Policies[0].Spec.Require.Image.Digests = []string{snapshottest.Digest("api")}
		}, true},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			w := newFake(t)
			w.sync(w.syncer())
			if !slices.Contains(w.attestedPods(), key) {
				t.Fatal("not attested to begin with")
			}
			w.s.Images = nil // a new replica knows no image yet
			tc.change(w)
			if _, err := w.syncer().Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := slices.Contains(w.attestedPods(), key); got != tc.spared {
				t.Errorf("attested %t, want %t", got, tc.spared)
			}
		})
	}
}
