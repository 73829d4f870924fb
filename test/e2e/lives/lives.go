// Package lives watches what is taken from pods while they live: a trust label that goes, an address that is revoked.
package lives

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	kubewatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/test/e2e/stage"
)

// Loss is something that was taken from a pod that lived.
type Loss struct {
	At        time.Time
	Namespace string
	Pod       string
	What      string
}

func (l Loss) String() string {
	return fmt.Sprintf("%s of %s/%s at %s", l.What, l.Namespace, l.Pod, l.At.UTC().Format("15:04:05.000"))
}

// Watch sees pods and sets of revoked addresses change at the API.
type Watch struct {
	streams []kubewatch.Interface
	reading sync.WaitGroup

	mu      sync.Mutex
	stopped bool
	err     error
	pods    map[types.UID]*pod
	revoked map[string][]netip.Prefix // by the set's name
	losses  []Loss
	labels  int // how many pods were seen to have their label
}

// pod is what was last seen of one.
type pod struct {
	namespace, name   string
	labelled, revoked bool
	lives             bool
	addresses         []netip.Addr
}

// The resources that are watched.
var (
	podResource = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	setResource = schema.GroupVersionResource{Group: "projectcalico.org", Version: "v3", Resource: "globalnetworksets"}
)

// Start begins to watch the pods of namespaces. What they have already counts as seen.
func Start(ctx context.Context, s *stage.Stage, namespaces ...string) (*Watch, error) {
	client, err := dynamic.NewForConfig(s.Cluster.RESTConfig())
	if err != nil {
		return nil, fmt.Errorf("lives: %w", err)
	}
	w := newWatch()
	for _, namespace := range namespaces {
		if err := w.follow(ctx, client.Resource(podResource).Namespace(namespace), w.sawPod); err != nil {
			w.Stop()
			return nil, fmt.Errorf("lives: pods of %s: %w", namespace, err)
		}
	}
	if err := w.follow(ctx, client.Resource(setResource), w.sawSet); err != nil {
		w.Stop()
		return nil, fmt.Errorf("lives: sets of addresses: %w", err)
	}
	return w, nil
}

func newWatch() *Watch {
	return &Watch{pods: map[types.UID]*pod{}, revoked: map[string][]netip.Prefix{}}
}

// follow reads a resource and then watches it from there.
func (w *Watch) follow(ctx context.Context, r dynamic.ResourceInterface, saw func(o *unstructured.Unstructured, gone bool) error) error {
	list, err := r.List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for i := range list.Items {
		if err := saw(&list.Items[i], false); err != nil {
			return err
		}
	}
	stream, err := r.Watch(ctx, metav1.ListOptions{ResourceVersion: list.GetResourceVersion()})
	if err != nil {
		return err
	}
	w.streams = append(w.streams, stream)
	w.reading.Go(func() {
		for e := range stream.ResultChan() {
			o, ok := e.Object.(*unstructured.Unstructured)
			if !ok || e.Type == kubewatch.Error {
				w.fail(fmt.Errorf("lives: a watch was told %v", e.Object))
				return
			}
			if e.Type == kubewatch.Bookmark {
				continue
			}
			if err := saw(o, e.Type == kubewatch.Deleted); err != nil {
				w.fail(err)
				return
			}
		}
		w.fail(fmt.Errorf("lives: a watch ended before it was stopped"))
	})
	return nil
}

func (w *Watch) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.stopped && w.err == nil {
		w.err = err
	}
}

// Stop ends the watch.
func (w *Watch) Stop() {
	w.mu.Lock()
	w.stopped = true
	w.mu.Unlock()
	for _, s := range w.streams {
		s.Stop()
	}
	w.reading.Wait()
}

// Losses are what was taken so far, without that of pods that except names; labels is how many pods were seen with their label. The
// error says that not everything was seen.
func (w *Watch) Losses(except func(namespace, pod string) bool) (lost []Loss, labels int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range w.losses {
		if except == nil || !except(l.Namespace, l.Pod) {
			lost = append(lost, l)
		}
	}
	return lost, w.labels, w.err
}

func (w *Watch) sawPod(o *unstructured.Unstructured, gone bool) error {
	var object corev1.Pod
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &object); err != nil {
		return fmt.Errorf("lives: pod: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.pods[object.UID]
	if p == nil {
		p = &pod{namespace: object.Namespace, name: object.Name}
		w.pods[object.UID] = p
	}
	p.lives = !gone && object.Status.Phase != corev1.PodSucceeded && object.Status.Phase != corev1.PodFailed
	labelled := object.Labels[v1alpha1.PodAttestedLabel] == v1alpha1.True
	switch {
	case !p.lives:
	case p.labelled && !labelled:
		w.lost(p, "the trust label")
	case labelled && !p.labelled:
		w.labels++
	}
	p.labelled = labelled
	p.addresses = p.addresses[:0]
	for _, ip := range object.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			p.addresses = append(p.addresses, a)
		}
	}
	w.compare()
	return nil
}

func (w *Watch) sawSet(o *unstructured.Unstructured, gone bool) error {
	if _, ok := o.GetLabels()[v1alpha1.RevokedLabel]; !ok {
		return nil
	}
	nets, _, err := unstructured.NestedStringSlice(o.Object, "spec", "nets")
	if err != nil {
		return fmt.Errorf("lives: set %s: %w", o.GetName(), err)
	}
	var prefixes []netip.Prefix
	for _, text := range nets {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return fmt.Errorf("lives: set %s: %w", o.GetName(), err)
		}
		prefixes = append(prefixes, p)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.revoked[o.GetName()] = prefixes; gone {
		delete(w.revoked, o.GetName())
	}
	w.compare()
	return nil
}

// compare notes which pods that live and bear their label have an address that is revoked, each once while that is so.
func (w *Watch) compare() {
	for _, p := range w.pods {
		revoked := slices.ContainsFunc(p.addresses, w.isRevoked)
		if revoked && !p.revoked && p.lives && p.labelled {
			w.lost(p, "the address")
		}
		p.revoked = revoked && p.lives && p.labelled
	}
}

func (w *Watch) isRevoked(a netip.Addr) bool {
	for _, set := range w.revoked {
		if slices.ContainsFunc(set, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return true
		}
	}
	return false
}

func (w *Watch) lost(p *pod, what string) {
	w.losses = append(w.losses, Loss{At: time.Now(), Namespace: p.namespace, Pod: p.name, What: what})
}
