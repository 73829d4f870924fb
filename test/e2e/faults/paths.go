package faults

import (
	"context"
	"time"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/test/e2e/doors"
	"github.com/keelson-project/keelson/test/e2e/stage"
	"github.com/keelson-project/keelson/test/e2e/wrongboot"
)

// Those who are nobody: a pod of an enrolled namespace on a machine that has booted something else, and one from an image that nobody
// signed on a machine that is trusted.
var (
	onBad    = stage.Pod{Namespace: "bank", Name: "faults-on-bad", Account: "teller", Node: wrongboot.Node, Force: true}
	unsigned = stage.Pod{Namespace: "bank", Name: "faults-unsigned", Account: "teller", Node: "fra-2", Repository: stage.Unsigned}
	outcasts = []stage.Pod{onBad, unsigned}
)

// castOut has them run.
func castOut(ctx context.Context, s *stage.Stage) error {
	if err := s.JoinOnce(ctx, wrongboot.Node); err != nil {
		return err
	}
	if err := s.Verdict(ctx, wrongboot.Node, v1alpha1.VerdictUntrusted); err != nil {
		return err
	}
	if err := s.ForcePods(ctx, onBad); err != nil {
		return err
	}
	if err := s.Create(ctx, unsigned); err != nil {
		return err
	}
	for _, p := range outcasts {
		if err := s.PodReady(ctx, p.Namespace, p.Name, 2*time.Minute); err != nil {
			return err
		}
	}
	return nil
}

// paths are those that are tried all the time: the cast's, and those of the outcasts and of a stranger on the bad machine.
func paths(ctx context.Context, s *stage.Stage) ([]*doors.Door, error) {
	all, err := doors.Cast(ctx, s)
	if err != nil {
		return nil, err
	}
	if err := castOut(ctx, s); err != nil {
		return nil, err
	}
	stranger, err := s.Stranger(ctx, wrongboot.Node)
	if err != nil {
		return nil, err
	}
	ledger, err := s.Address(ctx, stage.Ledger, stage.TCPPort)
	if err != nil {
		return nil, err
	}
	api, err := s.Address(ctx, stage.API, stage.HTTPPort)
	if err != nil {
		return nil, err
	}
	for _, from := range append(outcasts, stranger) {
		all = append(all, doors.L4(from, ledger, stage.Ledger.String(), false), doors.L4(from, api, stage.API.String(), false))
	}
	return all, nil
}
