package kube_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/kube"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
)

// settler applies plans to the real API servers; SPIRE is kept in memory.
type settler struct {
	store *kube.Store
	demo  snapshot.Snapshot
	spire snapshot.SPIRE
}

func (s *settler) make(t *testing.T) plan.Result {
	t.Helper()
	snap, err := s.store.Read(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	snap.At, snap.Images, snap.SPIRE = time.Now(), s.demo.Images, &s.spire
	r, err := plan.Make(snap)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// settle applies plans until there is nothing to do, which is what invariant 9 promises,
// and returns how many there were.
func (s *settler) settle(t *testing.T) int {
	t.Helper()
	for n := range 6 {
		p := s.make(t).Plan
		if p.Empty() {
			return n
		}
		for _, o := range p.Operations {
			switch o.Action {
			case plan.CreateEntry:
				s.spire.Entries = append(s.spire.Entries, *o.Entry)
			case plan.DeleteEntry:
				s.spire.Entries = slices.DeleteFunc(s.spire.Entries, func(e snapshot.Entry) bool { return e.ID == o.Entry.ID })
			case plan.Create, plan.Update, plan.Patch, plan.Delete:
				if err := s.store.Apply(context.Background(), o); err != nil {
					t.Fatalf("%s: %v", o, err)
				}
			default:
				t.Fatalf("not expected here: %s", o)
			}
		}
	}
	t.Fatalf("not settled:\n%s", s.make(t).Plan)
	return 0
}

// TestInvariant09_SteadyStateWritesNothingOnRealAPIServers: what Calico's API server and
// Istio's definitions make of our objects does not look like drift, through a revocation,
// a changed policy and a change of mode.
func TestInvariant09_SteadyStateWritesNothingOnRealAPIServers(t *testing.T) {
	root := admin(t)
	s := &settler{demo: snapshottest.Demo()}
	s.store = kube.New(root, as(t, policySync), events.NewFakeRecorder(1000), s.demo.Config)
	for key, image := range s.demo.Images {
		image.Verifiers = map[string]snapshot.Verification{"release-key": {Accepted: true}}
		s.demo.Images[key] = image
	}
	populate(t, root, s.demo)
	if n := s.settle(t); n == 0 {
		t.Fatal("nothing was written")
	}
	var pod corev1.Pod
	get(t, root, "payments", "api-fra-1", &pod)
	if pod.Labels[v1alpha1.PodAttestedLabel] != v1alpha1.True {
		t.Fatalf("the pod is not attested: %v", s.make(t).Graph.Pods())
	}

	var trust v1alpha1.NodeTrust
	get(t, root, "", "fra-1", &trust)
	trust.Spec.Verdict, trust.Spec.AttestedAt = v1alpha1.VerdictUntrusted, metav1.NewMicroTime(trust.Spec.AttestedAt.Add(time.Second))
	update(t, as(t, spire), &trust)
	s.settle(t)
	get(t, root, "payments", "api-fra-1", &pod)
	if _, ok := pod.Labels[v1alpha1.PodAttestedLabel]; ok {
		t.Error("a pod on a node that is proved bad keeps its label")
	}

	var policy v1alpha1.TrustPolicy
	get(t, root, "payments", "api", &policy)
	policy.Spec.Ingress[0].From[0].ServiceAccount = "backend"
	update(t, root, &policy)
	if n := s.settle(t); n != 2 {
		t.Errorf("%d plans for another peer, want one that closes and one that opens", n)
	}

	var ns corev1.Namespace
	get(t, root, "", "shop", &ns)
	ns.Labels[v1alpha1.ModeLabel] = v1alpha1.ModeAudit
	update(t, root, &ns)
	s.settle(t)
	if p := s.make(t).Plan; !p.Empty() || strings.TrimSpace(p.String()) != "nothing to do" {
		t.Errorf("still something to do:\n%s", p)
	}
}

func get(t *testing.T, c client.Client, namespace, name string, into client.Object) {
	t.Helper()
	if err := c.Get(context.Background(), client.ObjectKey{Namespace: namespace, Name: name}, into); err != nil {
		t.Fatal(err)
	}
}

func update(t *testing.T, c client.Client, o client.Object) {
	t.Helper()
	if err := c.Update(context.Background(), o); err != nil {
		t.Fatal(err)
	}
}

// populate creates the demo's cluster as its parties would, and deletes it at the end.
func populate(t *testing.T, root client.Client, demo snapshot.Snapshot) {
	t.Helper()
	mesh := corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "istio-system"}} // where Istio's root namespace is, it exists
	if err := root.Create(context.Background(), &mesh); client.IgnoreAlreadyExists(err) != nil {
		t.Fatal(err)
	}
	shop := snapshottest.Namespace("shop", v1alpha1.ModeEnforce)
	create(t, root, &shop)
	create(t, root, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "payments", Name: "api"}})
	create(t, root, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "frontend"}})
	for i := range demo.Nodes {
		demo.Nodes[i].Spec.Taints = nil // admission puts it on
		create(t, root, &demo.Nodes[i])
	}
	now := time.Now()
	for i := range demo.NodeTrusts {
		trust := &demo.NodeTrusts[i]
		trust.Spec.NodeUID = string(demo.Nodes[i].UID)
		trust.Spec.AttestedAt, trust.Spec.ValidUntil = metav1.NewMicroTime(now), metav1.NewMicroTime(now.Add(time.Hour))
		create(t, as(t, spire), trust)
	}
	for i := range demo.Policies {
		create(t, root, &demo.Policies[i])
	}
	for i := range demo.Pods {
		pod := demo.Pods[i]
		if pod.Namespace == "other" {
			continue
		}
		status := pod.Status
		create(t, root, pod)
		pod.Status = status
		if err := root.Status().Update(context.Background(), pod); err != nil {
			t.Fatal(err)
		}
	}
}

// create takes off what only an API server gives, and deletes the object at the end.
func create(t *testing.T, c client.Client, o client.Object) {
	t.Helper()
	o.SetUID("")
	o.SetResourceVersion("")
	o.SetCreationTimestamp(metav1.Time{})
	if err := c.Create(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.IgnoreNotFound(admin(t).Delete(context.Background(), o, client.GracePeriodSeconds(0))); err != nil {
			t.Error(err)
		}
	})
}
