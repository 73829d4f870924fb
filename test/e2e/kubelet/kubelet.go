// Package kubelet is a scenario: what a kubelet may write, it writes, to harm others or to help its own pods.
package kubelet

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/test/e2e/lives"
	"github.com/keelson-project/keelson/test/e2e/script"
	"github.com/keelson-project/keelson/test/e2e/stage"
)

// Proves is what the scenario shows.
const Proves = "with the credentials of the kubelet of a refused machine and of a trusted one: mirror pods with a thousand invented containers each, other machines' addresses as its own, any pod CIDR, other pods' addresses, verdict labels and taints: nobody else loses anything, nothing is spared, nothing opens"

// The machines whose kubelets' credentials are used.
const (
	refused = "evil-1"
	trusted = "par-1"
)

// side is a machine and what its kubelet can do.
type side struct {
	name string
	// kubelet has the machine's credentials.
	kubelet client.Client
	// claimant is a pod of the machine that says what is not so.
	claimant stage.Pod
	// own is the claimant's true address.
	own string
}

// Play plays it.
func Play(ctx context.Context, s *stage.Stage, t *script.Script) error {
	sides, err := enter(ctx, s)
	if err != nil {
		return err
	}
	w, err := lives.Start(ctx, s, "bank", "payments", "shop")
	if err != nil {
		return err
	}
	defer w.Stop()
	for _, one := range sides {
		for _, play := range []func(context.Context, *stage.Stage, *script.Script) error{one.writes, one.nodeAddresses, one.podAddress, one.mirrors} {
			if err := play(ctx, s, t); err != nil {
				return fmt.Errorf("the kubelet of %s: %w", one.name, err)
			}
		}
	}
	lost, seen, err := w.Losses(func(_, pod string) bool { return pod == sides[0].claimant.Name || pod == sides[1].claimant.Name })
	if err != nil {
		return err
	}
	t.Expect(len(lost) == 0, "no attested pod lost its label, and no address of another's was revoked, at any moment", "%d labels were seen: %v", seen, lost)
	if err := shut(ctx, s, t, sides[0]); err != nil {
		return err
	}
	err = s.Attested(ctx, sides[1].claimant)
	t.Expect(err == nil, sides[1].claimant.String()+" is attested again once its kubelet says what is so", "%v", err)
	return s.Delete(ctx, sides[0].claimant, sides[1].claimant)
}

// enter makes a pod on each machine.
func enter(ctx context.Context, s *stage.Stage) ([]*side, error) {
	if err := s.JoinOnce(ctx, refused); err != nil {
		return nil, err
	}
	sides := []*side{
		{name: refused, claimant: stage.Pod{Namespace: "bank", Name: "claimant-" + refused, Account: "teller", Node: refused, Force: true}},
		{name: trusted, claimant: stage.Pod{Namespace: "bank", Name: "claimant-" + trusted, Account: "teller", Node: trusted}},
	}
	if err := s.ForcePods(ctx, sides[0].claimant); err != nil {
		return nil, err
	}
	if err := s.Create(ctx, sides[1].claimant); err != nil {
		return nil, err
	}
	for _, one := range sides {
		if err := s.PodReady(ctx, one.claimant.Namespace, one.claimant.Name, time.Minute); err != nil {
			return nil, err
		}
		address, err := s.Address(ctx, one.claimant, stage.TCPPort)
		if err != nil {
			return nil, err
		}
		one.own = host(address)
		config, err := s.Cluster.RESTConfigFor("system:node:"+one.name, "system:nodes")
		if err != nil {
			return nil, err
		}
		if one.kubelet, err = client.New(config, client.Options{Scheme: s.Client.Scheme()}); err != nil {
			return nil, fmt.Errorf("kubelet: %w", err)
		}
	}
	if err := s.Verdict(ctx, refused, v1alpha1.VerdictUntrusted); err != nil {
		return nil, err
	}
	return sides, errors.Join(s.Attested(ctx, sides[1].claimant), untilRevoked(ctx, s, sides[0].own))
}

func untilRevoked(ctx context.Context, s *stage.Stage, address string) error {
	return s.Until(ctx, 30*time.Second, address+" is revoked", func(ctx context.Context) error {
		ok, err := revoked(ctx, s, address)
		if err == nil && !ok {
			err = errors.New("it is not")
		}
		return err
	})
}

// shut expects that the refused machine's pod reaches nobody.
func shut(ctx context.Context, s *stage.Stage, t *script.Script, one *side) error {
	for _, to := range []stage.Pod{stage.Ledger, stage.Mirror} {
		try, err := s.DialService(ctx, one.claimant, to)
		if err != nil {
			return err
		}
		t.Expect(stage.Dropped(try), fmt.Sprintf("%s still does not reach %s", one.claimant, to), "%s: %s", try.Kind, try.Error)
	}
	err := s.Unlabelled(ctx, one.claimant)
	t.Expect(err == nil, one.claimant.String()+" has no trust label", "%v", err)
	return nil
}

// told is what the API answered.
func told(err error) string {
	if err == nil {
		return "accepted"
	}
	return err.Error()
}

// again does something every 200 ms for a while: a kubelet that runs puts right what was written under its name.
func again(ctx context.Context, length time.Duration, do func(context.Context) error) (times int, err error) {
	for end := time.Now().Add(length); ; times++ {
		if err := do(ctx); err != nil && !apierrors.IsConflict(err) {
			return times, err
		}
		if time.Now().After(end) {
			return times + 1, nil
		}
		select {
		case <-ctx.Done():
			return times, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}
