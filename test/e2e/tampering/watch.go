package tampering

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	kubewatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/test/e2e/stage"
)

// watcher sees objects change at the API, in the moment when they do.
type watcher struct {
	address string
	streams []kubewatch.Interface
	events  chan moment
}

type moment struct {
	kubewatch.Event
	at time.Time
}

// seen is when what happened.
type seen struct {
	verdict, revoked, unlabelled time.Time
	reason                       string

	node, tainted, api, ledger bool
}

func watch(ctx context.Context, s *stage.Stage) (*watcher, error) {
	address, err := s.Address(ctx, stage.Ledger, stage.TCPPort)
	if err != nil {
		return nil, err
	}
	client, err := dynamic.NewForConfig(s.Cluster.RESTConfig())
	if err != nil {
		return nil, fmt.Errorf("tampering: %w", err)
	}
	w := &watcher{events: make(chan moment, 100)}
	w.address, _, _ = strings.Cut(address, ":")
	pods := schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	for _, target := range []struct {
		resource        schema.GroupVersionResource
		namespace, name string
	}{
		{v1alpha1.GroupVersion.WithResource("nodetrusts"), "", node},
		{schema.GroupVersionResource{Group: "projectcalico.org", Version: "v3", Resource: "globalnetworksets"}, "", "keelson.revoked"},
		{schema.GroupVersionResource{Version: "v1", Resource: "nodes"}, "", node},
		{pods, stage.API.Namespace, stage.API.Name},
		{pods, stage.Ledger.Namespace, stage.Ledger.Name},
	} {
		var resource dynamic.ResourceInterface = client.Resource(target.resource)
		if target.namespace != "" {
			resource = client.Resource(target.resource).Namespace(target.namespace)
		}
		stream, err := resource.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + target.name})
		if err != nil {
			w.stop()
			return nil, fmt.Errorf("tampering: watch %s: %w", target.resource.Resource, err)
		}
		w.streams = append(w.streams, stream)
		go func() {
			for e := range stream.ResultChan() {
				w.events <- moment{e, time.Now()}
			}
		}()
	}
	return w, nil
}

func (w *watcher) stop() {
	for _, s := range w.streams {
		s.Stop()
	}
}

// wait goes through the events until all has happened.
func (w *watcher) wait(ctx context.Context, limit time.Duration) (seen, error) {
	var s seen
	end := time.After(limit)
	for s.verdict.IsZero() || s.revoked.IsZero() || s.unlabelled.IsZero() {
		select {
		case <-ctx.Done():
			return s, ctx.Err()
		case <-end:
			return s, fmt.Errorf("tampering: after %s: verdict %s, revoked %s, unlabelled %s", limit, s.verdict, s.revoked, s.unlabelled)
		case m := <-w.events:
			if err := s.take(m, w.address); err != nil {
				return s, err
			}
		}
	}
	return s, nil
}

func (s *seen) take(m moment, address string) error {
	o, ok := m.Object.(*unstructured.Unstructured)
	if !ok {
		return errors.New("tampering: a watch broke off")
	}
	labels := o.GetLabels()
	switch o.GetKind() {
	case "NodeTrust":
		verdict, _, _ := unstructured.NestedString(o.Object, "spec", "verdict") // absent is another text than the one that is wanted
		if verdict == string(v1alpha1.VerdictUntrusted) && s.verdict.IsZero() {
			s.verdict = m.at
			s.reason = reason(o)
		}
	case "GlobalNetworkSet":
		nets, _, _ := unstructured.NestedStringSlice(o.Object, "spec", "nets") // as above
		for _, n := range nets {
			if n == address+"/32" && s.revoked.IsZero() {
				s.revoked = m.at
			}
		}
	case "Node":
		s.node = labels[v1alpha1.NodeVerdictLabel] != string(v1alpha1.VerdictTrusted)
		s.tainted = tainted(o)
	case "Pod":
		gone := labels[v1alpha1.PodAttestedLabel] == ""
		if o.GetName() == stage.API.Name {
			s.api = gone
		} else {
			s.ledger = gone
		}
	}
	if s.node && s.tainted && s.api && s.ledger && s.unlabelled.IsZero() {
		s.unlabelled = m.at
	}
	return nil
}

func tainted(o *unstructured.Unstructured) bool {
	taints, _, _ := unstructured.NestedSlice(o.Object, "spec", "taints") // none is an answer
	for _, t := range taints {
		if m, ok := t.(map[string]any); ok && m["key"] == v1alpha1.UntrustedTaint && m["effect"] == string(corev1.TaintEffectNoSchedule) {
			return true
		}
	}
	return false
}

func reason(o *unstructured.Unstructured) string {
	reasons, _, _ := unstructured.NestedSlice(o.Object, "spec", "reasons") // none says nothing
	for _, r := range reasons {
		if m, ok := r.(map[string]any); ok {
			return fmt.Sprintf("%v: %v", m["check"], m["reason"])
		}
	}
	return ""
}
