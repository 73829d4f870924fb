// Package join is a scenario: a new node joins.
package join

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/test/e2e/script"
	"github.com/keelson-project/keelson/test/e2e/stage"
)

// Proves is what the scenario shows.
const Proves = "a new node is tainted from its first moment, attests, and only then takes workloads and opens"

// Node is the machine that joins.
const Node = "fra-3"

var newcomer = stage.Pod{Namespace: "bank", Name: "teller-" + Node, Account: "teller", Node: Node}

// Play plays it.
func Play(ctx context.Context, s *stage.Stage, t *script.Script) error {
	if err := s.Create(ctx, newcomer); err != nil {
		return err
	}
	why, err := s.Waits(ctx, newcomer)
	if err != nil {
		return err
	}
	t.Expect(why != "", newcomer.String()+", which can run on "+Node+" alone, waits: the machine is not there", "%s", why)
	nodes, err := s.Kubernetes.CoreV1().Nodes().Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + Node})
	if err != nil {
		return fmt.Errorf("join: %w", err)
	}
	defer nodes.Stop()
	pods, err := s.Kubernetes.CoreV1().Pods(newcomer.Namespace).Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + newcomer.Name})
	if err != nil {
		return fmt.Errorf("join: %w", err)
	}
	defer pods.Stop()
	t.Say("machine %s starts its kubelet", Node)
	if err := s.Join(ctx, Node); err != nil {
		return err
	}
	trusted, err := follow(ctx, s, t, nodes.ResultChan())
	if err != nil {
		return err
	}
	if err := s.PodReady(ctx, newcomer.Namespace, newcomer.Name, time.Minute); err != nil {
		return err
	}
	if err := s.Attested(ctx, newcomer); err != nil {
		return err
	}
	if err := after(ctx, t, trusted, pods.ResultChan()); err != nil {
		return err
	}
	if err := show(ctx, s, t); err != nil {
		return err
	}
	return s.Delete(ctx, newcomer)
}

// follow goes through what happens to the Node, event by event: at no moment may it be without both the taint and the verdict, and as
// long as it has no verdict nothing of ours is placed there. It returns the Node as it was when it
// became trusted.
func follow(ctx context.Context, s *stage.Stage, t *script.Script, events <-chan watch.Event) (trusted *corev1.Node, err error) {
	first, placed, looked := true, "", 0
	limit := time.After(90 * time.Second)
	look := time.NewTicker(200 * time.Millisecond)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return trusted, ctx.Err()
		case <-limit:
			return trusted, errors.New("join: the node is not trusted after 90 s")
		case <-look.C:
			// The pod first: what is read of it is then older than the verdict that is not there yet.
			pod, err := s.GetPod(ctx, newcomer.Namespace, newcomer.Name)
			if err != nil {
				return trusted, err
			}
			n, err := s.GetNode(ctx, Node)
			if err != nil || isTrusted(n) { // not registered yet
				continue
			}
			looked++
			if pod.Spec.NodeName != "" {
				placed = pod.Spec.NodeName
			}
		case e := <-events:
			n, ok := e.Object.(*corev1.Node)
			if !ok {
				return trusted, fmt.Errorf("join: watch: %v", e.Object)
			}
			if first {
				t.Expect(stage.Tainted(n) && !isTrusted(n), "the Node is tainted in the moment of its creation", "%v", n.Spec.Taints)
				first = false
			}
			if !stage.Tainted(n) && !isTrusted(n) {
				t.Expect(false, "the taint stays until there is a verdict", "neither taint nor verdict: %v", n.Labels)
			}
			if isTrusted(n) && !stage.Tainted(n) {
				t.Expect(placed == "" && looked > 0, "before the verdict "+newcomer.String()+" was not placed", "looked %d times since the Node was there; placed on %q", looked, placed)
				t.Expect(true, "the node is trusted and the taint is gone", "%s", labels(n))
				return n, nil
			}
		}
	}
}

func isTrusted(n *corev1.Node) bool {
	return n.Labels[v1alpha1.NodeVerdictLabel] == string(v1alpha1.VerdictTrusted)
}

// after: the pod was placed where it belongs, and that was written after the verdict's label. The order is that in which the API server
// stored things (their resource versions), not that of anybody's clock.
func after(ctx context.Context, t *script.Script, trusted *corev1.Node, events <-chan watch.Event) error {
	limit := time.After(30 * time.Second)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-limit:
			return fmt.Errorf("join: no event places %s", newcomer)
		case e := <-events:
			pod, ok := e.Object.(*corev1.Pod)
			if !ok {
				return fmt.Errorf("join: watch: %v", e.Object)
			}
			if pod.Spec.NodeName == "" {
				continue
			}
			verdict, err := strconv.ParseUint(trusted.ResourceVersion, 10, 64)
			placed, placedErr := strconv.ParseUint(pod.ResourceVersion, 10, 64)
			if err := errors.Join(err, placedErr); err != nil {
				return fmt.Errorf("join: resource version: %w", err)
			}
			t.Expect(pod.Spec.NodeName == Node && placed > verdict, "after the verdict "+newcomer.String()+" was placed; it runs and has its trust label",
				"on %s; stored as number %d, the verdict as %d", pod.Spec.NodeName, placed, verdict)
			return nil
		}
	}
}

func labels(n *corev1.Node) string {
	var found []string
	for k, v := range n.Labels {
		if strings.HasPrefix(k, v1alpha1.NodeLabelPrefix) {
			found = append(found, k+"="+v)
		}
	}
	return strings.Join(found, ", ")
}

// show lets the newcomer prove itself from inside.
func show(ctx context.Context, s *stage.Stage, t *script.Script) error {
	if err := s.Until(ctx, time.Minute, newcomer.String()+" has an identity", func(ctx context.Context) error {
		svid, err := s.SVID(ctx, newcomer)
		if err == nil && !svid.OK {
			err = errors.New(svid.Error)
		}
		if err == nil {
			t.Expect(svid.SPIFFEID == newcomer.ID(), "it gets its identity", "%s", svid.SPIFFEID)
		}
		return err
	}); err != nil {
		return err
	}
	address, err := s.Address(ctx, stage.Ledger, stage.TCPPort)
	if err != nil {
		return err
	}
	return s.Until(ctx, 20*time.Second, newcomer.String()+" reaches the ledger", func(ctx context.Context) error {
		try, err := s.Dial(ctx, newcomer, address)
		if err == nil && !try.OK {
			err = errors.New(try.Error)
		}
		if err == nil {
			t.Expect(true, "it reaches the ledger", "%s", address)
		}
		return err
	})
}
