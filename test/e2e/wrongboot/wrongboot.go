// Package wrongboot is a scenario: a machine that has booted something else joins.
package wrongboot

import (
	"context"
	"fmt"
	"strings"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/test/e2e/script"
	"github.com/keelson-project/keelson/test/e2e/stage"
	"github.com/keelson-project/keelson/test/e2e/workload/said"
)

// Proves is what the scenario shows.
const Proves = "a machine with another kernel command line is refused by name; nothing is scheduled there, its kubelet refuses what is bound to it, and a pod that runs there all the same gets no identity and reaches nobody"

// Node is the machine, whose kernel was started with one word more.
const Node = "evil-1"

var (
	scheduled = stage.Pod{Namespace: "bank", Name: "scheduled-" + Node, Account: "teller", Node: Node}
	bound     = stage.Pod{Namespace: "bank", Name: "bound-" + Node, Account: "teller", Node: Node, Force: true}
	// Those below run there, as on a machine whose kubelet does not ask.
	forced = stage.Pod{Namespace: "bank", Name: "forced-" + Node, Account: "teller", Node: Node, Force: true}
	// bait has the ledger's account: if anything were wrong with the trusted ends' egress, they would call it.
	bait = stage.Pod{Namespace: "bank", Name: "bait-" + Node, Account: "ledger", Node: Node, Force: true}
)

// Play plays it.
func Play(ctx context.Context, s *stage.Stage, t *script.Script) error {
	if err := s.Join(ctx, Node); err != nil {
		return err
	}
	if err := s.Ready(ctx); err != nil {
		return err
	}
	t.Say("machine %s has joined; its kubelet is as ready as the others", Node)
	if err := refused(ctx, s, t); err != nil {
		return err
	}
	if err := unplaced(ctx, s, t); err != nil {
		return err
	}
	if err := s.ForcePods(ctx, forced, bait); err != nil {
		return err
	}
	for _, p := range []stage.Pod{forced, bait} {
		if err := s.PodReady(ctx, p.Namespace, p.Name, time.Minute); err != nil {
			return err
		}
	}
	t.Say("pods %s and %s run: bound past the scheduler, and without the affinity that admission adds", forced, bait)
	if err := closed(ctx, s, t); err != nil {
		return err
	}
	return s.Delete(ctx, scheduled, bound, forced, bait)
}

// unplaced: neither the scheduler nor an honest kubelet takes a pod of a policy there.
func unplaced(ctx context.Context, s *stage.Stage, t *script.Script) error {
	for _, p := range []stage.Pod{scheduled, bound} {
		if err := s.Create(ctx, p); err != nil {
			return err
		}
	}
	why, err := s.Waits(ctx, scheduled)
	if err != nil {
		return err
	}
	t.Expect(strings.Contains(why, "taint") || strings.Contains(why, "affinity"), "the scheduler puts nothing there", "%s", why)
	if why, err = s.Rejected(ctx, bound); err != nil {
		return err
	}
	t.Expect(strings.Contains(why, "affinity"), "its kubelet refuses a pod that is bound to it past the scheduler", "%s", why)
	return nil
}

func refused(ctx context.Context, s *stage.Stage, t *script.Script) error {
	var trust v1alpha1.NodeTrust
	if err := s.Until(ctx, time.Minute, "a verdict on "+Node, func(ctx context.Context) error {
		return s.Client.Get(ctx, client.ObjectKey{Name: Node}, &trust)
	}); err != nil {
		return err
	}
	var why []string
	for _, r := range trust.Spec.Reasons {
		why = append(why, r.Check+": "+r.Reason)
	}
	text := strings.Join(why, "; ")
	t.Expect(trust.Spec.Verdict == v1alpha1.VerdictUntrusted, "the verdict is untrusted", "%s", trust.Spec.Verdict)
	t.Expect(strings.Contains(text, "kernel command line"), "the reason names the kernel command line", "%s", text)
	n, err := s.GetNode(ctx, Node)
	if err != nil {
		return fmt.Errorf("wrongboot: %w", err)
	}
	t.Expect(stage.Tainted(n), "the node is tainted", "%v", n.Spec.Taints)
	t.Expect(n.Labels[v1alpha1.NodeVerdictLabel] != string(v1alpha1.VerdictTrusted), "it has no verdict label that says trusted", "%q", n.Labels[v1alpha1.NodeVerdictLabel])
	return nil
}

// uncalled: who may call the ledger does not call the bait, and does reach somebody on the same machine who is not enrolled.
func uncalled(ctx context.Context, s *stage.Stage, t *script.Script) error {
	address, err := s.Address(ctx, bait, stage.TCPPort)
	if err != nil {
		return err
	}
	stranger, err := s.Stranger(ctx, Node)
	if err != nil {
		return err
	}
	other, err := s.Address(ctx, stranger, stage.TCPPort)
	if err != nil {
		return err
	}
	for _, from := range []stage.Pod{stage.Teller, stage.Mirror} {
		if err := s.Control(ctx, t, fmt.Sprintf("%s reaches %s, which is not enrolled, there", from, stranger), func(ctx context.Context) (said.Try, error) {
			return s.Dial(ctx, from, other)
		}); err != nil {
			return err
		}
		try, err := s.Dial(ctx, from, address)
		if err != nil {
			return err
		}
		t.Expect(stage.Dropped(try), fmt.Sprintf("%s does not call the bait, though it has the ledger's account", from), "%s: %s", try.Kind, try.Error)
	}
	return nil
}

func closed(ctx context.Context, s *stage.Stage, t *script.Script) error {
	for _, p := range []stage.Pod{forced, bait} {
		if err := s.ShutOut(ctx, t, p, stage.Controls{}); err != nil {
			return err
		}
	}
	if err := uncalled(ctx, s, t); err != nil {
		return err
	}
	object, err := s.GetPod(ctx, scheduled.Namespace, scheduled.Name)
	if err != nil {
		return err
	}
	t.Expect(object.Spec.NodeName == "", "the scheduler has put nothing there since", "%s", object.Spec.NodeName)
	return nil
}
