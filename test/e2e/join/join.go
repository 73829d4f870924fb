// Package join is a scenario: a new node joins.
package join

import (
	"context"
	"errors"
	"fmt"
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
	nodes, err := s.Kubernetes.CoreV1().Nodes().Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + Node})
	if err != nil {
		return fmt.Errorf("join: %w", err)
	}
	defer nodes.Stop()
	t.Say("machine %s starts its kubelet; a pod that wants to run there waits", Node)
	if err := s.Join(ctx, Node); err != nil {
		return err
	}
	if err := follow(ctx, t, nodes.ResultChan()); err != nil {
		return err
	}
	if err := s.PodReady(ctx, newcomer.Namespace, newcomer.Name, time.Minute); err != nil {
		return err
	}
	if err := s.Attested(ctx, newcomer); err != nil {
		return err
	}
	t.Say("pod %s runs and has its trust label", newcomer)
	if err := show(ctx, s, t); err != nil {
		return err
	}
	return s.Delete(ctx, newcomer)
}

// follow goes through what happens to the Node, event by event: at no moment may it be without both the taint and the verdict.
func follow(ctx context.Context, t *script.Script, events <-chan watch.Event) error {
	first := true
	limit := time.After(90 * time.Second)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-limit:
			return errors.New("join: the node is not trusted after 90 s")
		case e := <-events:
			n, ok := e.Object.(*corev1.Node)
			if !ok {
				return fmt.Errorf("join: watch: %v", e.Object)
			}
			trusted := n.Labels[v1alpha1.NodeVerdictLabel] == string(v1alpha1.VerdictTrusted)
			if first {
				t.Expect(stage.Tainted(n) && !trusted, "the Node is tainted in the moment of its creation", "%v", n.Spec.Taints)
				first = false
			}
			if !stage.Tainted(n) && !trusted {
				t.Expect(false, "the taint stays until there is a verdict", "neither taint nor verdict: %v", n.Labels)
			}
			if trusted && !stage.Tainted(n) {
				t.Expect(true, "the node is trusted and the taint is gone", "%s", labels(n))
				return nil
			}
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
