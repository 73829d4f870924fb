// Package spoofing is a scenario: people and machines with rights of their own try to take what only proof gives.
package spoofing

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/test/cluster/fleet"
	"github.com/keelson-project/keelson/test/e2e/script"
	"github.com/keelson-project/keelson/test/e2e/stage"
	"github.com/keelson-project/keelson/test/e2e/workload/said"
)

// Proves is what the scenario shows.
const Proves = "an app team with every right on pods, nodes, Calico's and Istio's objects, and the kubelet and Calico's node agent of a refused machine, try every way to a trust label, a verdict, a taint removed, a namespace un-enrolled: all refused, and what is not refused opens nothing"

// bad is the machine whose kubelet tries.
const bad = "evil-1"

// attempt is one way to cheat. It has to be refused by admission or authorisation, not because of a mistake in the request: the
// answer is "forbidden", or where want is set it holds that.
type attempt struct {
	what, want string
	do         func(context.Context, client.Client) error
	// harmless, where it is set, tells whether the attempt came to nothing though it was accepted.
	harmless func(context.Context, *stage.Stage) error
}

// Play plays it.
func Play(ctx context.Context, s *stage.Stage, t *script.Script) error {
	if err := s.JoinOnce(ctx, bad); err != nil {
		return err
	}
	victim := stage.Pod{Namespace: "bank", Name: "forced-" + bad, Account: "teller", Node: bad, Force: true}
	if err := s.ForcePods(ctx, victim); err != nil {
		return err
	}
	if err := s.PodReady(ctx, victim.Namespace, victim.Name, time.Minute); err != nil {
		return err
	}
	if err := s.Verdict(ctx, bad, v1alpha1.VerdictUntrusted); err != nil {
		return err
	}
	if err := s.Cluster.Apply(ctx, []byte(rights)); err != nil {
		return err
	}
	for _, who := range []struct {
		name     string
		user     string
		groups   []string
		attempts []attempt
	}{
		{"an app team", "alice", []string{"developers"}, team(victim)},
		{"the kubelet of " + bad, "system:node:" + bad, []string{"system:nodes"}, kubelet(victim)},
		{"Calico's node agent on " + bad, fleet.CalicoNode, []string{"system:serviceaccounts"}, calicoNode(victim)},
	} {
		config, err := s.Cluster.RESTConfigFor(who.user, who.groups...)
		if err != nil {
			return err
		}
		if err := try(ctx, s, t, config, who.name, who.attempts); err != nil {
			return err
		}
	}
	if err := harmless(ctx, s, t, victim); err != nil {
		return err
	}
	return s.Delete(ctx, victim)
}

func try(ctx context.Context, s *stage.Stage, t *script.Script, config *rest.Config, who string, attempts []attempt) error {
	c, err := client.New(config, client.Options{Scheme: s.Client.Scheme()})
	if err != nil {
		return fmt.Errorf("spoofing: %s: %w", who, err)
	}
	for _, a := range attempts {
		err := a.do(ctx, c)
		for tries := 0; apierrors.IsConflict(err) && tries < 10; tries++ {
			err = a.do(ctx, c) // somebody else wrote the object meanwhile, which refuses nothing
		}
		refused := apierrors.IsForbidden(err)
		if a.want != "" {
			refused = err != nil && contains(err, a.want)
		}
		text := "accepted"
		switch {
		case err != nil:
			text = err.Error()
		case a.harmless != nil:
			harm := a.harmless(ctx, s)
			if refused = harm == nil; refused {
				text = "accepted, and what it must not bring was dropped"
			} else {
				text = "accepted: " + harm.Error()
			}
		}
		t.Expect(refused, who+": "+a.what, "%s", text)
	}
	return nil
}

// harmless: some things may be written, and must not help.
func harmless(ctx context.Context, s *stage.Stage, t *script.Script, victim stage.Pod) error {
	config, err := s.Cluster.RESTConfigFor("alice", "developers")
	if err != nil {
		return err
	}
	alice, err := client.New(config, client.Options{Scheme: s.Client.Scheme()})
	if err != nil {
		return fmt.Errorf("spoofing: %w", err)
	}
	for _, play := range []func(context.Context, *stage.Stage, *script.Script, client.Client) error{
		otherAuthorities, foreignEntry, allowAll, custom, envoyFilter, excluded,
	} {
		if err := play(ctx, s, t, alice); err != nil {
			return err
		}
	}
	if err := brokenGlass(ctx, s, t); err != nil {
		return err
	}
	if err := debugged(ctx, s, t); err != nil {
		return err
	}
	return foreignAddress(ctx, s, t, victim)
}

// brokenGlass: an administrator, or whoever has rights on Keelson's tier, deletes the default deny. It is written again.
func brokenGlass(ctx context.Context, s *stage.Stage, t *script.Script) error {
	if err := s.Client.Delete(ctx, object(defaultDeny)); err != nil {
		return fmt.Errorf("spoofing: %w", err)
	}
	begun := time.Now()
	if err := s.Until(ctx, 20*time.Second, "the default deny is back", func(ctx context.Context) error {
		o := object(defaultDeny)
		return s.Client.Get(ctx, client.ObjectKeyFromObject(o), o)
	}); err != nil {
		return err
	}
	back := time.Since(begun)
	t.Measure("a deleted default deny is back", back)
	t.Expect(true, "an administrator deletes the default deny, and it is written again", "after %.1f s", back.Seconds())
	return nil
}

// debugged: an unsigned debug container in an attested pod costs it its label.
func debugged(ctx context.Context, s *stage.Stage, t *script.Script) error {
	pod := stage.Pod{Namespace: "bank", Name: "debugged", Account: "teller", Node: "fra-2"}
	if err := s.CreateReady(ctx, pod); err != nil {
		return err
	}
	if err := s.Attested(ctx, pod); err != nil {
		return err
	}
	if err := s.Debug(ctx, pod, s.Image(stage.Unsigned).Reference()); err != nil {
		return err
	}
	if err := s.Until(ctx, 30*time.Second, "the trust label of a pod with an unsigned debug container is gone", func(ctx context.Context) error {
		return s.Unlabelled(ctx, pod)
	}); err != nil {
		return err
	}
	t.Expect(true, "an unsigned debug container in an attested pod costs it its trust label", "%s", s.Why(ctx, pod))
	return s.Delete(ctx, pod)
}

// foreignAddress: the kubelet of a refused machine says that its pod has the ledger's address. Were it believed, the ledger would
// be cut off as a revoked address. The machine's true kubelet runs beside the claimant and puts the address right within ten
// seconds, or at once, so the claim is made again and again.
func foreignAddress(ctx context.Context, s *stage.Stage, t *script.Script, victim stage.Pod) error {
	address, err := s.Address(ctx, stage.Ledger, stage.TCPPort)
	if err != nil {
		return err
	}
	config, err := s.Cluster.RESTConfigFor("system:node:"+bad, "system:nodes")
	if err != nil {
		return err
	}
	c, err := client.New(config, client.Options{Scheme: s.Client.Scheme()})
	if err != nil {
		return fmt.Errorf("spoofing: %w", err)
	}
	insist := func(ctx context.Context) error {
		if err := claim(ctx, c, victim, host(address)); err != nil {
			return fmt.Errorf("spoofing: a kubelet may say what addresses its pods have: %w", err)
		}
		return nil
	}
	claimed := "a kubelet that claims another node's address cuts nobody off"
	// Were it believed, the ledger would be cut off for as long as the claim stands; a try that is slow is none that is cut off.
	var last said.Try
	tries, failed := 0, 0
	for deadline := time.Now().Add(4 * time.Second); tries == 0 || time.Now().Before(deadline) || !last.OK && time.Now().Before(deadline.Add(20*time.Second)); tries++ {
		if err := insist(ctx); err != nil {
			return err
		}
		revoked, err := s.Revoked(ctx)
		if err != nil {
			return err
		}
		if slices.Contains(revoked, host(address)+"/32") {
			t.Expect(false, claimed, "the ledger's address is among the revoked ones: %v", revoked)
			return nil
		}
		if last, err = s.Dial(ctx, stage.Mirror, address); err != nil {
			return err
		}
		if !last.OK {
			failed++
		}
	}
	t.Expect(last.OK, claimed, "%d of %d tries failed, the last: %s", failed, tries, cmp.Or(last.Error, "succeeded"))
	var why string
	if err := s.Until(ctx, 30*time.Second, "policy-sync reports the claim", func(ctx context.Context) error {
		if err := insist(ctx); err != nil {
			return err
		}
		why, err = s.Found(ctx, host(address), "not its own to give")
		return err
	}); err != nil {
		return err
	}
	t.Expect(true, "policy-sync reports the claim", "%s", why)
	return nil
}
