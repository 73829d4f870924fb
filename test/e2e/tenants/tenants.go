// Package tenants is a scenario: one team does its worst, and another's world is as if nothing happened.
package tenants

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/test/e2e/lives"
	"github.com/keelson-project/keelson/test/e2e/script"
	"github.com/keelson-project/keelson/test/e2e/stage"
)

// Proves is what the scenario shows.
const Proves = "a team whose quota refuses what policy-sync writes applies its largest policy every second, policies with slips, for nobody and by the dozen: another team's new pods, labels, policies and a verdict elsewhere are as if nothing happened, and the team's own status says what is withheld and why"

// runs is how many pods are timed before and meanwhile.
const runs = 3

const (
	before    = "a new pod of another team: created → label and identity, before"
	meanwhile = "a new pod of another team: created → label and identity, meanwhile"
	toClosed  = "verdict → label gone, meanwhile"
)

// closed bounds the last, and slower and grace the second: a computer with two cores is busy with the team itself.
const (
	closed = 10 * time.Second
	slower = 3
	grace  = 10000.0 // milliseconds
)

// Play plays it.
func Play(ctx context.Context, s *stage.Stage, t *script.Script) error {
	w, err := lives.Start(ctx, s, "bank", "payments", "shop")
	if err != nil {
		return err
	}
	defer w.Stop()
	if err := newcomers(ctx, s, t, before); err != nil {
		return err
	}
	if err := s.CreateTeam(ctx, team); err != nil {
		return err
	}
	if err := s.Cluster.Apply(ctx, []byte(quota)); err != nil {
		return err
	}
	for _, p := range []stage.Pod{worker, clerk} {
		if err := s.Create(ctx, p); err != nil {
			return err
		}
	}
	templates(ctx, s, t)
	if s.IstiodValidates() {
		istiodRefuses(ctx, s, t)
	}
	if err := beside(ctx, s, t, func(ctx context.Context, read func()) error {
		sleep(ctx, 3*time.Second)
		if err := newcomers(ctx, s, t, meanwhile); err != nil {
			return err
		}
		if err := withheld(ctx, s, t); err != nil {
			return err
		}
		lost, seen, err := w.Losses(nil)
		if err != nil {
			return err
		}
		t.Expect(len(lost) == 0, "no pod of another team lost its label or its address", "%d labels were seen: %v", seen, lost)
		read() // what a verdict does to others' policies is not the team's doing
		return verdict(ctx, s, t)
	}); err != nil {
		return err
	}
	t.Table([]string{before, meanwhile, toClosed})
	b, m := script.Quantile(t.Measures[before], 0.5), script.Quantile(t.Measures[meanwhile], 0.5)
	t.Expect(m <= slower*b+grace, "another team's new pods are attested in about the time that it took before", "p50 %.1f s, before %.1f s", m/1000, b/1000)
	if err := s.Kubernetes.CoreV1().Namespaces().Delete(ctx, namespace, metav1.DeleteOptions{}); err != nil {
		return fmt.Errorf("tenants: %w", err)
	}
	return heal(ctx, s)
}

// beside does its worst while play runs, and reads another team's policies until play says that they have been read.
func beside(ctx context.Context, s *stage.Stage, t *script.Script, play func(ctx context.Context, read func()) error) error {
	group, limited := errgroup.WithContext(ctx)
	worst, enough := context.WithCancel(limited)
	defer enough()
	reading, read := context.WithCancel(worst)
	defer read()
	var turns int
	var others others
	group.Go(func() (err error) {
		turns, err = harass(worst, s)
		return err
	})
	group.Go(func() error { return others.read(reading, s) })
	group.Go(func() error {
		defer enough()
		return play(limited, read)
	})
	if err := group.Wait(); err != nil {
		return err
	}
	t.Say("the team wrote its largest policy %d times", turns)
	t.Expect(turns > 0 && others.reads > 0 && len(others.bad) == 0, "another team's policies stay programmed, and say nothing of this team", "read %d times: %q", others.reads, others.bad)
	return nil
}

// others is what another team's policies said meanwhile that they should not have.
type others struct {
	reads int
	bad   []string
}

func (o *others) read(ctx context.Context, s *stage.Stage) error {
	for ctx.Err() == nil {
		var list v1alpha1.TrustPolicyList
		if err := s.Client.List(ctx, &list, client.InNamespace("bank")); err != nil {
			return unlessOver(ctx, err)
		}
		o.reads++
		for i := range list.Items {
			if text := said(&list.Items[i]); text != "" && len(o.bad) < 8 {
				o.bad = append(o.bad, text)
			}
		}
		sleep(ctx, 300*time.Millisecond)
	}
	return nil
}

// unlessOver is the error, unless there was enough anyway.
func unlessOver(ctx context.Context, err error) error {
	select {
	case <-ctx.Done():
		return nil
	default:
		return fmt.Errorf("tenants: %w", err)
	}
}

// said is what a policy says of not being programmed, or of the team.
func said(p *v1alpha1.TrustPolicy) string {
	for _, c := range p.Status.Conditions {
		if c.Type == v1alpha1.ConditionProgrammed && c.Status != metav1.ConditionTrue || strings.Contains(c.Message, namespace) {
			return fmt.Sprintf("%s: %s %s: %s", p.Name, c.Type, c.Status, c.Message)
		}
	}
	for _, note := range append(p.Status.Notes, p.Status.Why) {
		if strings.Contains(note, namespace) {
			return p.Name + ": " + note
		}
	}
	return ""
}

// newcomers measures how long new pods of another team wait for what they are due.
func newcomers(ctx context.Context, s *stage.Stage, t *script.Script, what string) error {
	for i := range runs {
		p := stage.Pod{Namespace: "bank", Name: fmt.Sprintf("newcomer-%d-%d", i, time.Now().UnixNano()), Account: "teller", Node: "fra-2"}
		begun := time.Now()
		if err := s.Create(ctx, p); err != nil {
			return err
		}
		if err := s.Attested(ctx, p); err != nil {
			return err
		}
		if err := s.Until(ctx, time.Minute, p.String()+" gets its identity", func(ctx context.Context) error {
			svid, err := s.SVID(ctx, p)
			if err == nil && svid.SPIFFEID != p.ID() {
				err = errors.New(svid.Error)
			}
			return err
		}); err != nil {
			return err
		}
		t.Measure(what, time.Since(begun))
		if err := s.Delete(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// node is tampered with while the team does its worst; watched runs there.
const node = "par-1"

var watched = stage.Mirror

// verdict: what closes does not wait for the team.
func verdict(ctx context.Context, s *stage.Stage, t *script.Script) error {
	if err := s.Machines[node].RunFile(ctx, "/usr/local/bin/intruder", fmt.Appendf(nil, "#!/bin/sh\necho %d\n", time.Now().UnixNano())); err != nil {
		return err
	}
	t.Say("a program that no reference set has is run on %s", node)
	if err := s.Verdict(ctx, node, v1alpha1.VerdictUntrusted); err != nil {
		return err
	}
	seen := time.Now()
	if err := s.Until(ctx, 30*time.Second, watched.String()+" loses its label", func(ctx context.Context) error { return s.Unlabelled(ctx, watched) }); err != nil {
		return err
	}
	took := time.Since(seen)
	t.Measure(toClosed, took)
	t.Expect(took < closed, "a verdict elsewhere acts while the team does its worst", "%.1f s", took.Seconds())
	return nil
}

// heal boots the machine anew, as an operator would.
func heal(ctx context.Context, s *stage.Stage) error {
	if err := s.Factory.Reboot(ctx, s.Machines[node]); err != nil {
		return err
	}
	if err := s.RestartAgent(ctx, node); err != nil {
		return err
	}
	if err := s.UntilTrusted(ctx, node); err != nil {
		return err
	}
	return s.Attested(ctx, watched, stage.Frontend)
}

func contains(err error, want string) bool { return err != nil && strings.Contains(err.Error(), want) }

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
