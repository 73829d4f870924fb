package snapshot_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
)

func TestImageQuestions(t *testing.T) {
	s := snapshottest.Demo()
	s.Policies[1].Spec.Require.Image.VerifiedBy = []string{"b", "a", "b"}
	ended := snapshottest.Pod("shop", "done", "batch", "fra-1", "10.1.0.30")
	ended.Status.Phase = corev1.PodSucceeded
	waiting := snapshottest.Pod("shop", "waiting", "later", "fra-1", "10.1.0.31")
	waiting.Status.ContainerStatuses[0].ImageID = ""
	s.Pods = append(s.Pods, ended, waiting)
	p := s.Pods[0]
	p.Spec.InitContainers = []corev1.Container{{Name: "i"}}
	p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "e"}}}
	p.Status.InitContainerStatuses = []corev1.ContainerStatus{snapshottest.Status("i", "setup")}
	p.Status.EphemeralContainerStatuses = []corev1.ContainerStatus{snapshottest.Status("e", "debug")}
	got := map[string][]string{}
	for _, q := range snapshot.ImageQuestions(s.Pods, s.Policies, s.Nodes) {
		got[q.Image] = q.Verifiers
	}
	want := map[string][]string{
		"registry.example/api:1": {"release-key"}, "registry.example/setup:1": {"release-key"}, "registry.example/debug:1": {"release-key"},
		"registry.example/frontend:1": {"a", "b"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestKindsAreThoseOfTheDataPlanes(t *testing.T) {
	if n := len(snapshot.Kinds(snapshot.Config{})); n != 0 {
		t.Errorf("%d kinds without a data plane", n)
	}
	seen := map[string]bool{}
	for _, k := range snapshot.Kinds(snapshot.Config{Calico: true, Istio: true}) {
		if k.Resource == "" || seen[k.String()] {
			t.Errorf("%+v", k)
		}
		seen[k.String()] = true
	}
}

func TestServiceAccountDefaults(t *testing.T) {
	if got := snapshot.ServiceAccount(&corev1.Pod{}); got != "default" {
		t.Errorf("a pod without one has service account %q", got)
	}
}
