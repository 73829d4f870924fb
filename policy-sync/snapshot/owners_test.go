package snapshot_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
)

// TestWhoseImagesAreAskedAbout: as many questions as there are differences between owners.
func TestWhoseImagesAreAskedAbout(t *testing.T) {
	s := snapshottest.Demo()
	one := s.Pods[0]
	two, three, four := *one.DeepCopy(), *one.DeepCopy(), *one.DeepCopy()
	two.Name, two.Namespace = "two", "other"
	three.Name, three.Spec.ServiceAccountName = "three", "else"
	four.Name, four.Spec.ImagePullSecrets = "four", []corev1.LocalObjectReference{{Name: "a"}, {Name: "b"}}
	pods := []*corev1.Pod{one, &two, &three, &four}
	for owners, want := range map[snapshot.ImageOwners]int{snapshot.ImagesOfAll: 1, snapshot.ImagesOfNamespaces: 2, snapshot.ImagesOfAccounts: 4} {
		c := snapshot.Config{ImageOwners: owners}
		questions := snapshot.AskAbout(c, pods, s.Nodes, func(*corev1.Pod) ([]string, bool) { return nil, true })
		if len(questions) != want {
			t.Errorf("%q: %d questions, want %d: %+v", owners, len(questions), want, questions)
		}
		asked := map[snapshot.ImageKey]bool{}
		for _, q := range questions {
			asked[q.ImageKey] = true
		}
		for i := range pods {
			for _, image := range c.ImagesOf(pods[i], "") {
				if !asked[image.Key] {
					t.Errorf("%q: %s is judged by an answer that is not asked for: %+v", owners, pods[i].Name, image.Key)
				}
			}
		}
	}
	account := snapshot.Config{ImageOwners: snapshot.ImagesOfAccounts}.ImagesOf(&four, "")[0].Key.Owner
	if want := (snapshot.ImageOwner{Namespace: four.Namespace, Account: one.Spec.ServiceAccountName, PullSecrets: "a,b"}); account != want {
		t.Errorf("%+v, want %+v", account, want)
	}
}
