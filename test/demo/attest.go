package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// showAttestation waits for every node's verdict and compares it with what is known of its boot.
func (d *demo) showAttestation(ctx context.Context, s *Step) error {
	for _, m := range d.machines {
		var trust *v1alpha1.NodeTrust
		took, err := until(ctx, 60*time.Second, "a verdict on "+m.name, func(ctx context.Context) (err error) {
			if err := d.alive(); err != nil {
				return err
			}
			trust, err = d.nodeTrust(ctx, m.name)
			return err
		})
		if err != nil {
			return fmt.Errorf("%w\nthe agent says:\n%s\nthe server says:\n%s", err, m.agent.Process().Tail(8), d.spire.Process.Tail(8))
		}
		if m.trusted {
			err = d.checkTrusted(ctx, s, m, trust, took)
		} else {
			err = d.checkRefused(ctx, s, m, trust)
		}
		if err != nil {
			return err
		}
	}
	table, err := d.kubectl(ctx, "get", "nodetrust")
	if err != nil {
		return err
	}
	say(s.out, "  $ kubectl get nodetrust")
	s.show(table)
	return nil
}

func (d *demo) checkTrusted(ctx context.Context, s *Step, m *machine, trust *v1alpha1.NodeTrust, took time.Duration) error {
	spec := trust.Spec
	ok := spec.Verdict == v1alpha1.VerdictTrusted && spec.Reference == "prod" && strings.EqualFold(spec.Tags["country"], m.country)
	s.expect(ok, m.name+" is trusted", "verdict %s, reference set %q, country %s, after %.1f s", spec.Verdict, spec.Reference, spec.Tags["country"], took.Seconds())
	if !ok {
		s.show(reasons(trust))
	}
	s.expect(slices.Contains(m.ekHashes, spec.EKHash), m.name+" is bound to its TPM", "EK %.16s…", spec.EKHash)
	return d.checkAgent(ctx, s, m, trust)
}

// checkAgent looks at the identity that SPIRE gave the agent.
func (d *demo) checkAgent(ctx context.Context, s *Step, m *machine, trust *v1alpha1.NodeTrust) error {
	agents, err := d.spire.Agents(ctx)
	if err != nil {
		return err
	}
	for _, a := range agents {
		if a.ID == trust.Spec.AgentID {
			s.expect(slices.Contains(a.Selectors, "keelson_tpm:ref:prod"), m.name+"'s agent has an identity", "%d selectors, among them keelson_tpm:ref:prod: %s",
				len(a.Selectors), strings.Join(a.Selectors, " "))
			return nil
		}
	}
	s.expect(false, m.name+"'s agent has an identity", "SPIRE knows no agent %s", trust.Spec.AgentID)
	return nil
}

func (d *demo) checkRefused(ctx context.Context, s *Step, m *machine, trust *v1alpha1.NodeTrust) error {
	why := reasons(trust)
	s.expect(trust.Spec.Verdict == v1alpha1.VerdictUntrusted, m.name+" is refused", "verdict %s", trust.Spec.Verdict)
	s.expect(strings.Contains(strings.ToLower(why), "command line"), "the reason names the kernel command line", "%s", short(why))
	agents, err := d.spire.Agents(ctx)
	if err != nil {
		return err
	}
	for _, a := range agents {
		if a.ID == trust.Spec.AgentID {
			s.expect(false, m.name+"'s agent has no identity", "SPIRE knows it as %s", a.ID)
			return nil
		}
	}
	s.expect(true, m.name+"'s agent has no identity", "SPIRE knows %d agents, not this one", len(agents))
	return nil
}

func reasons(trust *v1alpha1.NodeTrust) string {
	var all []error
	for _, r := range trust.Spec.Reasons {
		all = append(all, fmt.Errorf("%s: %s", r.Check, r.Reason))
	}
	if len(all) == 0 {
		return "no reason is given"
	}
	return errors.Join(all...).Error()
}
