package kube_test

import (
	"context"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/kube"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// until reads again and again until what was read is as it should be.
func until(t *testing.T, s *kube.Store, what string, check func(snapshot.Snapshot) bool) snapshot.Snapshot {
	t.Helper()
	for range 600 {
		got, err := s.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if check(got) {
			return got
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("no reading shows %s", what)
	return snapshot.Snapshot{}
}

// TestAStoreThatIsWatchedReadsWhatHasChanged: each change is seen, and what has not changed is the same list as before.
func TestAStoreThatIsWatchedReadsWhatHasChanged(t *testing.T) {
	inForce(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	scheme, err := kube.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	options := kube.CacheOptions(snapshot.Config{})
	options.Scheme = scheme
	c, err := cache.New(real.RESTConfig(), options)
	if err != nil {
		t.Fatal(err)
	}
	s := kube.New(c, nil, nil, snapshot.Config{})
	if err := s.Watch(ctx, c, func() {}, nil); err != nil {
		t.Fatal(err)
	}
	go func() { _ = c.Start(ctx) }()
	if !c.WaitForCacheSync(ctx) {
		t.Fatal("the cache is not filled")
	}
	api, name := admin(t), objectName(t)
	has := func(s snapshot.Snapshot) bool {
		return slices.ContainsFunc(s.PodLists["watching"], func(p *corev1.Pod) bool { return p.Name == name })
	}
	trust := nodeTrust(name)
	if err := as(t, spire).Create(ctx, trust); err != nil {
		t.Fatal(err)
	}
	before := until(t, s, "the NodeTrust", func(s snapshot.Snapshot) bool {
		return slices.ContainsFunc(s.NodeTrusts, func(n v1alpha1.NodeTrust) bool { return n.Name == name })
	})
	if err := client.IgnoreAlreadyExists(api.Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "watching", Name: "default"}})); err != nil {
		t.Fatal(err)
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "watching", Name: name},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "registry.test/app:1"}}}}
	if err := api.Create(ctx, pod); err != nil {
		t.Fatal(err)
	}
	with := until(t, s, "the pod", has)
	if changed, known := with.ChangedPods(before.PodLists); has(before) || known && !slices.Contains(changed, "watching") {
		t.Errorf("changed are %q; the reading before shows the pod: %t", changed, has(before))
	}
	if !snapshot.Same(before.NodeTrusts, with.NodeTrusts) || len(with.NodeTrusts) == 0 {
		t.Error("NodeTrusts were read again, of which none has changed")
	}
	for namespace, list := range before.PodLists {
		if namespace != "watching" && !snapshot.Same(list, with.PodLists[namespace]) {
			t.Errorf("the pods of %s were read again", namespace)
		}
	}
	none := int64(0)
	if err := api.Delete(ctx, pod, &client.DeleteOptions{GracePeriodSeconds: &none}); err != nil {
		t.Fatal(err)
	}
	until(t, s, "that the pod is gone", func(s snapshot.Snapshot) bool { return !has(s) })
	if !has(with) {
		t.Error("an earlier reading was changed")
	}
	if err := api.Delete(ctx, trust); err != nil {
		t.Fatal(err)
	}
	until(t, s, "that the NodeTrust is gone", func(s snapshot.Snapshot) bool {
		return !slices.ContainsFunc(s.NodeTrusts, func(n v1alpha1.NodeTrust) bool { return n.Name == name })
	})
}
