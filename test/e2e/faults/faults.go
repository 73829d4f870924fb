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

	"github.com/keelson-project/keelson/test/e2e/doors"
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
		if err := doors.During(ctx, s, all, func(ctx context.Context) error {
			err := kill(ctx, s, t, length, rand.New(rand.NewPCG(seed, 0))) // #nosec G404 -- so that a run can be repeated
			sleep(ctx, 5*time.Second)
			return err
		}); err != nil {
			return err
		}
		t.Say("the killing is over")
		for _, p := range all {
			p.Judge(t, Recovery)
		}
		if err := recovered(ctx, s, t, all); err != nil {
			return err
		}
		return s.Delete(ctx, outcasts...)
	}
}

// more is how much longer than it was told kill goes on until everything has been killed once: what is down at the moment has to come
// back before it can be.
const more = 2 * time.Minute

// kill kills one thing after the other, the first once all paths are being tried: each kind once, in an order that is drawn, and then
// any. It expects that it found each.
func kill(ctx context.Context, s *stage.Stage, t *script.Script, length time.Duration, r *rand.Rand) error {
	victims := victims()
	r.Shuffle(len(victims), func(i, j int) { victims[i], victims[j] = victims[j], victims[i] })
	killed, first := map[string]int{}, slices.Clone(victims)
	for begun := time.Now(); ; {
		sleep(ctx, between)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		over := time.Now().Add(between).Sub(begun)
		if over > length+more || over > length && len(first) == 0 {
			break
		}
		var next victim
		if len(first) > 0 {
			next, first = first[0], first[1:]
		} else {
			next = victims[r.IntN(len(victims))]
		}
		what, err := next.kill(ctx, s, r)
		switch {
		case err == nil:
			killed[next.kind]++
			t.Say("killed %s", what)
		case !errors.Is(err, errNotThere):
			return err
		case killed[next.kind] == 0:
			t.Say("%s is down at the moment, and will be killed later: %v", next.kind, err)
			first = append(first, next)
		}
	}
	for _, v := range victims {
		t.Expect(killed[v.kind] > 0, v.kind+" was killed", "%d times", killed[v.kind])
	}
	return nil
}

// sleep pauses, for less when the context ends.
func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// errNotThere says that a victim was down at the moment.
var errNotThere = errors.New("it is down already")

// victim is a kind of thing that is killed; kill says which one it was.
type victim struct {
	kind string
	kill func(context.Context, *stage.Stage, *rand.Rand) (string, error)
}

func victims() []victim {
	return []victim{
		{"SPIRE's server", container("spire", "app=spire-server", "spire-server")},
		{"a SPIRE agent", container("spire", "app=spire-agent", "spire-agent")},
		{"the SPIFFE CSI driver", container("spire", "app=spiffe-csi-driver", "spiffe-csi-driver")},
		{"the CSI driver's registrar", container("spire", "app=spiffe-csi-driver", "node-driver-registrar")},
		{"policy-sync", container(stage.Namespace, "app.kubernetes.io/name=keelson-policy-sync", "")},
		{"istiod", container("istio-system", "app=istiod", "discovery")},
		{"the caller's Envoy", container("shop", "app=frontend", "istio-proxy")},
		{"the API's Envoy", container("payments", "app=api", "istio-proxy")},
		{"Felix", felix},
		{"kube-apiserver", apiServer},
	}
}

// container kills a container of one of the pods that a selector finds; the last one where it is not named.
func container(namespace, selector, name string) func(context.Context, *stage.Stage, *rand.Rand) (string, error) {
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
func recovered(ctx context.Context, s *stage.Stage, t *script.Script, all []*doors.Door) error {
	begun := time.Now()
	if err := doors.Open(ctx, s, all, Recovery); err != nil {
		return err
	}
	t.Expect(true, "every allowed path is open", "after %.1f s", time.Since(begun).Seconds())
	return nil
}
