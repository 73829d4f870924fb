package replicas

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

const own = "keelson-system"

// world is a cluster with one replica on a machine that is proved bad.
type world struct {
	objects []client.Object
	now     time.Time
	deleted []string // pod, and " at once" without grace
	err     error
}

func pod(name, node string, ready corev1.ConditionStatus) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: own, Name: name, UID: types.UID("uid-of-" + name), Labels: map[string]string{"app": "x"}},
		Spec:       corev1.PodSpec{NodeName: node, ServiceAccountName: "sync"}, Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}},
	}
}

func trust(node string, v v1alpha1.Verdict) *v1alpha1.NodeTrust {
	return &v1alpha1.NodeTrust{ObjectMeta: metav1.ObjectMeta{Name: node}, Spec: v1alpha1.NodeTrustSpec{Verdict: v}}
}

func (w *world) mover(t *testing.T) *Mover {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	c := fake.NewClientBuilder().WithScheme(scheme).WithObjects(w.objects...).WithInterceptorFuncs(interceptor.Funcs{
		Delete: func(_ context.Context, _ client.WithWatch, o client.Object, options ...client.DeleteOption) error {
			var with client.DeleteOptions
			with.ApplyOptions(options)
			if with.Preconditions == nil || with.Preconditions.UID == nil || *with.Preconditions.UID != o.GetUID() {
				t.Errorf("%s is deleted whatever its UID", o.GetName())
			}
			name := o.GetName()
			if with.GracePeriodSeconds != nil {
				name += " at once"
			}
			w.deleted = append(w.deleted, name)
			return w.err
		},
	}).Build()
	return &Mover{Reader: c, Client: c, Whoami: func(context.Context) (string, error) { return "system:serviceaccount:" + own + ":sync", nil }, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return w.now }}
}

func TestThreat25_ReplicasLeaveMachinesThatAreProvedBad(t *testing.T) {
	ending := pod("a", "evil", corev1.ConditionTrue)
	ending.DeletionTimestamp, ending.Finalizers = &metav1.Time{Time: time.Unix(1000, 0)}, []string{"example.org/kept"}
	foreign := pod("a", "evil", corev1.ConditionTrue)
	foreign.Spec.ServiceAccountName = "other"
	hidden := pod("a", "evil", corev1.ConditionTrue)
	hidden.Labels = nil
	elsewhere := pod("a", "evil", corev1.ConditionTrue)
	elsewhere.Namespace = "shop"
	other := pod("b", "good", corev1.ConditionTrue)
	evil := trust("evil", v1alpha1.VerdictUntrusted)
	for name, tc := range map[string]struct {
		objects []client.Object
		after   time.Duration // from the first look
		want    []string
	}{
		"the leader has a moment to close":                        {[]client.Object{evil, pod("a", "evil", corev1.ConditionTrue), other}, toClose - 1, nil},
		"then it is asked to go":                                  {[]client.Object{evil, pod("a", "evil", corev1.ConditionTrue), other}, toClose, []string{"a"}},
		"what does not end is taken away":                         {[]client.Object{evil, ending, other}, toEnd, []string{"a at once"}},
		"but not before its grace period is over":                 {[]client.Object{evil, ending, other}, toEnd - 1, nil},
		"a replica that is not ready is none":                     {[]client.Object{evil, pod("a", "evil", corev1.ConditionTrue), pod("b", "good", corev1.ConditionFalse)}, toClose, nil},
		"nor is one on the bad machine, whatever it says":         {[]client.Object{evil, pod("a", "evil", corev1.ConditionTrue), pod("b", "evil", corev1.ConditionTrue)}, toClose, nil},
		"a machine that is trusted keeps its own":                 {[]client.Object{trust("evil", v1alpha1.VerdictTrusted), pod("a", "evil", corev1.ConditionTrue), other}, toClose, nil},
		"what is not policy-sync's is nobody's business":          {[]client.Object{evil, foreign, other}, toClose, nil},
		"one that hides behind other labels is found":             {[]client.Object{evil, hidden, other}, toClose, []string{"a"}},
		"nor is what has its account's name in another namespace": {[]client.Object{evil, elsewhere, other}, toClose, nil},
		"of two that are there, the one on the good one stays":    {[]client.Object{evil, pod("a", "evil", corev1.ConditionTrue), other, pod("c", "evil", corev1.ConditionFalse)}, toClose, []string{"a", "c"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := &world{objects: tc.objects, now: time.Unix(1000, 0)}
			m := w.mover(t)
			if err := m.Look(t.Context()); err != nil || w.deleted != nil {
				t.Fatalf("at first: %v, %v", w.deleted, err)
			}
			w.now = w.now.Add(tc.after)
			if err := m.Look(t.Context()); err != nil || !slices.Equal(w.deleted, tc.want) {
				t.Errorf("deleted %q, %v; want %q", w.deleted, err, tc.want)
			}
		})
	}
}

func TestAVerdictThatIsTakenBackStartsTheClockAnew(t *testing.T) {
	w := &world{objects: []client.Object{trust("evil", v1alpha1.VerdictUntrusted), pod("a", "evil", corev1.ConditionTrue), pod("b", "good", corev1.ConditionTrue)}, now: time.Unix(1000, 0)}
	m := w.mover(t)
	if err := m.Look(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.note(nil)
	w.now = w.now.Add(toClose)
	if err := m.Look(t.Context()); err != nil || w.deleted != nil {
		t.Errorf("deleted %q, %v", w.deleted, err)
	}
}

func TestARefusalOfTheAPIIsSaid(t *testing.T) {
	w := &world{objects: []client.Object{trust("evil", v1alpha1.VerdictUntrusted), pod("a", "evil", corev1.ConditionTrue), pod("b", "good", corev1.ConditionTrue)},
		now: time.Unix(1000, 0), err: context.DeadlineExceeded}
	m := w.mover(t)
	if err := m.Look(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.now = w.now.Add(toClose)
	if err := m.Look(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestWhoIsNoServiceAccountMovesNothing(t *testing.T) {
	w := &world{objects: []client.Object{trust("evil", v1alpha1.VerdictUntrusted), pod("a", "evil", corev1.ConditionTrue), pod("b", "good", corev1.ConditionTrue)}, now: time.Unix(1000, 0)}
	m := w.mover(t)
	var failure error
	m.Whoami = func(context.Context) (string, error) { return "alice", failure }
	for range 2 {
		if err := m.Look(t.Context()); err != nil || w.deleted != nil {
			t.Errorf("deleted %q, %v", w.deleted, err)
		}
		w.now = w.now.Add(toClose)
	}
	failure = context.DeadlineExceeded
	if err := m.Look(t.Context()); !errors.Is(err, failure) || w.deleted != nil {
		t.Errorf("an API server that does not say who policy-sync is: deleted %q, %v", w.deleted, err)
	}
}
