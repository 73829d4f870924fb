package trustgraph_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

func askedOf(s snapshot.Snapshot) []string {
	var out []string
	for _, q := range trustgraph.ImageQuestions(s) {
		out = append(out, strings.TrimPrefix(q.Image, "registry.example/"))
	}
	slices.Sort(out)
	return out
}

// TestWhoseImagesAreAskedAbout: those of pods that could be attested, by what their specs bring along.
func TestWhoseImagesAreAskedAbout(t *testing.T) {
	other := func(account, node string) *corev1.Pod {
		return snapshottest.Pod("payments", "another", account, node, "10.1.0.77")
	}
	cases := map[string]struct {
		change func(s *snapshot.Snapshot)
		want   []string
	}{
		"the demo":                     {func(*snapshot.Snapshot) {}, []string{"api:1", "frontend:1"}},
		"a pod that no policy selects": {func(s *snapshot.Snapshot) { s.Pods = append(s.Pods, other("x", "fra-1")) }, []string{"api:1", "frontend:1"}},
		"a pod on a node that is proved bad": {func(s *snapshot.Snapshot) {
			p := other("api", "evil-1")
			p.Status.ContainerStatuses[0] = snapshottest.Status("main", "flood")
			s.Pods = append(s.Pods, p)
		}, []string{"api:1", "frontend:1"}},
		"pods on a node that is held": {func(s *snapshot.Snapshot) {
			s.Config.MaxHold = time.Hour
			for i := range s.NodeTrusts {
				s.NodeTrusts[i].Spec.ValidUntil = metav1.NewMicroTime(s.At)
			}
		}, []string{"api:1", "frontend:1"}},
		"pods on nodes whose proofs have ended": {func(s *snapshot.Snapshot) {
			for i := range s.NodeTrusts {
				s.NodeTrusts[i].Spec.ValidUntil = metav1.NewMicroTime(s.At)
			}
		}, nil},
		"a namespace that is not enrolled": {func(s *snapshot.Snapshot) { delete(s.Namespaces[0].Labels, v1alpha1.ModeLabel) }, []string{"frontend:1"}},
		"a mirror pod": {func(s *snapshot.Snapshot) {
			for i := range s.Pods {
				s.Pods[i].Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"}
			}
		}, nil},
		"statuses of containers that are not there": {func(s *snapshot.Snapshot) {
			st := &s.Pods[apiFra].Status
			st.ContainerStatuses = append(st.ContainerStatuses, snapshottest.Status("flood", "flood"))
			st.InitContainerStatuses = []corev1.ContainerStatus{snapshottest.Status("main", "flood")}
		}, []string{"api:1", "frontend:1"}},
		"an image volume, and a container that waits for an image by digest": {func(s *snapshot.Snapshot) {
			p := s.Pods[apiFra]
			p.Spec.Volumes = []corev1.Volume{volume("models", "registry.example/models@"+snapshottest.Digest("models"))}
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{SecurityContext: snapshottest.Hardened(), Name: "late", Image: "registry.example/late@" + snapshottest.Digest("late")})
		}, []string{"api:1", "frontend:1", "late@" + snapshottest.Digest("late"), "models@" + snapshottest.Digest("models")}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := snapshottest.Demo()
			c.change(&s)
			if got := askedOf(s); !slices.Equal(got, c.want) {
				t.Errorf("asked about %v, want %v", got, c.want)
			}
		})
	}
}

func volume(name, reference string) corev1.Volume {
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: reference}}}
}

// TestQuestionsAreBounded: by pod, node and namespace, and labelled pods come first.
func TestQuestionsAreBounded(t *testing.T) {
	s := labelled(t)
	flood := func(namespace, account, node string, pods int) {
		for n := range pods {
			p := snapshottest.Pod(namespace, fmt.Sprintf("a%05d", n), account, node, "")
			p.CreationTimestamp = metav1.NewTime(time.Unix(0, 0))
			p.Spec.Containers, p.Status.ContainerStatuses = nil, nil
			for c := range 100 {
				name := fmt.Sprint("c", c)
				p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: name, SecurityContext: snapshottest.Hardened()})
				p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, corev1.ContainerStatus{Name: name, Image: node, ImageID: fmt.Sprintf("x.example/%s-%d-%d@sha256:%064x", namespace, n, c, n)})
			}
			s.Pods = append(s.Pods, p)
		}
	}
	flood("payments", "api", "fra-1", 60)
	flood("shop", "frontend", "par-1", 80)
	got := trustgraph.ImageQuestions(s)
	if len(got) > 2*2048 {
		t.Errorf("%d questions", len(got))
	}
	for _, image := range []string{"registry.example/api:1", "registry.example/frontend:1"} {
		if !slices.ContainsFunc(got, func(q snapshot.ImageQuestion) bool { return q.Image == image }) {
			t.Errorf("nobody asks about %s, which an attested pod runs", image)
		}
	}
}

// TestASpecsNameIsAPlaceToLook: a node may know an image by another name than the pod's author, or by none.
func TestASpecsNameIsAPlaceToLook(t *testing.T) {
	s := snapshottest.Demo()
	s.Pods[apiFra].Status.ContainerStatuses[0].Image = "elsewhere.example/api:1"
	for _, q := range trustgraph.ImageQuestions(s) {
		if q.Image == "elsewhere.example/api:1" && q.Asked == "registry.example/api:1" {
			return
		}
	}
	t.Errorf("%+v", trustgraph.ImageQuestions(s))
}
