// Package faults is a scenario: everything dies at random, and the doors stay as they were.
package faults

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/keelson-project/keelson/test/e2e/script"
	"github.com/keelson-project/keelson/test/e2e/stage"
)

// Proves is what the scenario shows.
const Proves = "SPIRE server and agents, the SPIFFE CSI driver, policy-sync, kube-apiserver, Felix, istiod and Envoy are killed at random (kill -9): no forbidden connection ever succeeds, and allowed ones come back"

// Recovery is how long an allowed path may be shut after something died, as the README states it.
const Recovery = 90 * time.Second

// between is the pause between two kills.
const between = 8 * time.Second

// Play returns a scenario that kills for that long.
func Play(length time.Duration, seed uint64) func(context.Context, *stage.Stage, *script.Script) error {
	return func(ctx context.Context, s *stage.Stage, t *script.Script) error {
		t.Say("for %s, seed %d", length, seed)
		all, err := paths(ctx, s)
		if err != nil {
			return err
		}
		if err := recovered(ctx, s, t, all); err != nil { // whatever came before
			return err
		}
		deadline := time.Now().Add(length)
		group, limited := errgroup.WithContext(ctx)
		for _, p := range all {
			group.Go(func() error { return p.watch(limited, s, deadline.Add(5*time.Second)) })
		}
		group.Go(func() error { return kill(limited, s, t, deadline, rand.New(rand.NewPCG(seed, 0))) }) // #nosec G404 -- so that a run can be repeated
		if err := group.Wait(); err != nil {
			return err
		}
		t.Say("the killing is over")
		for _, p := range all {
			p.judge(t)
		}
		return recovered(ctx, s, t, all)
	}
}

// kill kills one thing after the other, the first once all paths are being tried.
func kill(ctx context.Context, s *stage.Stage, t *script.Script, deadline time.Time, r *rand.Rand) error {
	victims := victims()
	for time.Now().Add(2 * between).Before(deadline) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(between):
		}
		what, err := victims[r.IntN(len(victims))](ctx, s, r)
		if err != nil && !errors.Is(err, errNotThere) {
			return err
		}
		if err == nil {
			t.Say("killed %s", what)
		}
	}
	return nil
}

// errNotThere says that a victim was down at the moment.
var errNotThere = errors.New("it is down already")

type victim func(context.Context, *stage.Stage, *rand.Rand) (string, error)

func victims() []victim {
	return []victim{
		container("spire", "app=spire-server", "spire-server"),
		container("spire", "app=spire-agent", "spire-agent"),
		container("spire", "app=spiffe-csi-driver", "spiffe-csi-driver"),
		container("spire", "app=spiffe-csi-driver", "node-driver-registrar"),
		container(stage.Namespace, "app.kubernetes.io/name=keelson-policy-sync", ""),
		container("istio-system", "app=istiod", "discovery"),
		container("shop", "app=frontend", "istio-proxy"),
		container("payments", "app=api", "istio-proxy"),
		felix,
		apiServer,
	}
}

// container kills a container of one of the pods that a selector finds; the last one where it is not named.
func container(namespace, selector, name string) victim {
	return func(ctx context.Context, s *stage.Stage, r *rand.Rand) (string, error) {
		pods, err := s.Pods(ctx, namespace, selector)
		if err != nil {
			return "", fmt.Errorf("faults: %w: %w", errNotThere, err) // the API itself may be down
		}
		if len(pods) == 0 {
			return "", fmt.Errorf("faults: no pod %s in %s", selector, namespace)
		}
		p := pods[r.IntN(len(pods))]
		if err := s.KillContainer(ctx, &p, name); err != nil {
			return "", fmt.Errorf("faults: %w: %w", errNotThere, err)
		}
		return strings.TrimSpace(fmt.Sprintf("%s/%s %s on %s", p.Namespace, p.Name, name, p.Spec.NodeName)), nil
	}
}

func felix(_ context.Context, s *stage.Stage, r *rand.Rand) (string, error) {
	n := s.Nodes[r.IntN(len(s.Nodes))]
	n.Services["felix"].Kill()
	return "Felix on " + n.Name, nil
}

func apiServer(ctx context.Context, s *stage.Stage, _ *rand.Rand) (string, error) {
	return "kube-apiserver, for 2 s", s.Cluster.KillAPIServer(ctx, 2*time.Second)
}

// recovered waits until every allowed path is open once more.
func recovered(ctx context.Context, s *stage.Stage, t *script.Script, all []*path) error {
	begun := time.Now()
	for _, p := range slices.DeleteFunc(slices.Clone(all), func(p *path) bool { return !p.allowed }) {
		if err := s.Until(ctx, Recovery, p.name+" is open again", func(ctx context.Context) error { return p.once(ctx, s) }); err != nil {
			return err
		}
	}
	t.Expect(true, "every allowed path is open", "after %.1f s", time.Since(begun).Seconds())
	return nil
}
