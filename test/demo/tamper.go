package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/test/cluster/node"
)

// intruder is the program that is run on fra-1: its kernel measures it, and no reference set has it.
const intruder = "/usr/local/bin/intruder"

// event is something that has to follow the tampering.
type event struct {
	name  string
	check func(context.Context) (detail string, err error)
}

// showTampering runs a program on fra-1 that nobody allowed, and watches what follows. Nothing is told to anybody: the agent
// attests again by itself, within half of agentTTL.
func (d *demo) showTampering(ctx context.Context, s *Step) error {
	m, victim := d.machine("fra-1"), d.pod("api-fra")
	before, err := d.nodeTrust(ctx, m.name)
	if err != nil {
		return err
	}
	say(s.out, "  %s is run on %s: its kernel adds it to the IMA list and extends PCR 10", intruder, m.name)
	if err := node.RunFile(ctx, m.tpm.Device, m.path("binary_runtime_measurements"), intruder, []byte("#!/bin/sh\necho hello\n")); err != nil {
		return err
	}
	begun := time.Now()
	for _, e := range d.consequences(m, victim, before) {
		if err := d.follow(ctx, s, begun, e); err != nil {
			return err
		}
	}
	return d.showOthersUnharmed(ctx, s)
}

// follow waits for an event, and puts it on the timeline with the time since the tampering.
func (d *demo) follow(ctx context.Context, s *Step, begun time.Time, e event) error {
	var detail string
	_, err := until(ctx, 90*time.Second, e.name, func(ctx context.Context) (err error) {
		if err := d.alive(); err != nil {
			return err
		}
		detail, err = e.check(ctx)
		return err
	})
	if ctx.Err() != nil {
		return err
	}
	moment := Moment{Event: e.name, Seconds: since(begun), Detail: detail}
	if err != nil {
		moment.Detail = err.Error()
	}
	d.report.Timeline = append(d.report.Timeline, moment)
	s.expect(err == nil, fmt.Sprintf("+%5.1f s  %s", moment.Seconds, e.name), "%s", short(moment.Detail))
	return nil
}

func (d *demo) consequences(m *machine, victim *pod, before *v1alpha1.NodeTrust) []event {
	return []event{
		{"re-attestation is refused; the reason names the program", func(ctx context.Context) (string, error) { return d.seeRefusal(ctx, m) }},
		{"the node's trusted label is gone", func(ctx context.Context) (string, error) {
			n, err := d.node(ctx, m.name)
			if err == nil && n.Labels[v1alpha1.NodeVerdictLabel] == string(v1alpha1.VerdictTrusted) {
				err = errors.New("it still says trusted")
			}
			return "", err
		}},
		{"the node is tainted", func(ctx context.Context) (string, error) {
			n, err := d.node(ctx, m.name)
			if err == nil && !isTainted(n) {
				err = errors.New("no taint yet")
			}
			return v1alpha1.UntrustedTaint, err
		}},
		{"its pods' trust labels are gone", func(ctx context.Context) (string, error) { return d.seeUnlabelled(ctx, m) }},
		{"its address is in Calico's set of revoked ones", func(ctx context.Context) (string, error) { return d.seeRevoked(ctx, victim) }},
		{"its agent is evicted from SPIRE", func(ctx context.Context) (string, error) {
			agents, err := d.spire.Agents(ctx)
			if err == nil && slices.ContainsFunc(agents, func(a cluster.Agent) bool { return a.ID == before.Spec.AgentID }) {
				err = errors.New("SPIRE still knows it")
			}
			return before.Spec.AgentID, err
		}},
		{"its agent has ended and was started again", func(context.Context) (string, error) {
			starts := m.agent.Starts()
			if starts < 2 {
				return "", errors.New("it still runs")
			}
			return fmt.Sprintf("%d starts; each has to attest, and none succeeds", starts), m.agent.Err()
		}},
		{"its workloads get no identity", func(ctx context.Context) (string, error) {
			a, err := d.in(ctx, victim, "svid")
			if err == nil && a.OK {
				err = fmt.Errorf("there is one until %s", a.NotAfter.Format(time.TimeOnly))
			}
			return a.Error, err
		}},
		{"nobody reaches it any more: its last identity has ended", func(ctx context.Context) (string, error) {
			a, err := d.in(ctx, d.pod("frontend-par"), "call", "-expect-id", victim.id(), victim.url())
			if err == nil && a.OK {
				err = errors.New("the call succeeded")
			}
			return a.Error, err
		}},
	}
}

func (d *demo) seeRefusal(ctx context.Context, m *machine) (string, error) {
	trust, err := d.nodeTrust(ctx, m.name)
	if err != nil {
		return "", err
	}
	why := reasons(trust)
	if trust.Spec.Verdict != v1alpha1.VerdictUntrusted {
		return "", fmt.Errorf("the verdict is %s", trust.Spec.Verdict)
	}
	if !strings.Contains(why, intruder) {
		return "", fmt.Errorf("the reason does not name it: %s", why)
	}
	return why, nil
}

func (d *demo) seeUnlabelled(ctx context.Context, m *machine) (string, error) {
	for _, p := range d.pods {
		if p.machine != m {
			continue
		}
		labels, err := d.podLabels(ctx, p)
		if err != nil {
			return "", err
		}
		for key := range labels {
			if strings.Contains(key, v1alpha1.Group+"/") {
				return "", fmt.Errorf("%s has label %s", p, key)
			}
		}
	}
	return "", nil
}

// seeRevoked looks for the pod's address among the GlobalNetworkSets.
func (d *demo) seeRevoked(ctx context.Context, p *pod) (string, error) {
	out, err := d.kubectl(ctx, "get", "globalnetworksets.projectcalico.org", "-o", "yaml")
	if err != nil {
		return "", err
	}
	if !strings.Contains(out, p.running.IP) {
		return "", fmt.Errorf("%s is in none", p.running.IP)
	}
	return p.running.IP, nil
}

// showOthersUnharmed looks at the node that nobody touched, and at the audit log.
func (d *demo) showOthersUnharmed(ctx context.Context, s *Step) error {
	par, err := d.nodeTrust(ctx, "par-1")
	if err != nil {
		return err
	}
	s.expect(par.Spec.Verdict == v1alpha1.VerdictTrusted, "par-1 stays trusted", "attested again at %s", par.Spec.AttestedAt.Format(time.TimeOnly))
	a, err := d.in(ctx, d.pod("frontend-par"), "svid")
	if err != nil {
		return err
	}
	s.expect(a.OK, "its workloads keep their identity", "%s until %s", a.SPIFFEID, a.NotAfter.Format(time.TimeOnly))
	audit, err := os.ReadFile(d.path("audit.jsonl"))
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	s.expect(bytes.Contains(audit, []byte(intruder)), "the audit log names the program", "%d lines", bytes.Count(audit, []byte("\n")))
	return d.explain(ctx, s, "fra-1")
}

func (d *demo) node(ctx context.Context, name string) (*corev1.Node, error) {
	var n corev1.Node
	if err := d.kube.Get(ctx, client.ObjectKey{Name: name}, &n); err != nil {
		return nil, fmt.Errorf("demo: node %s: %w", name, err)
	}
	return &n, nil
}

func isTainted(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == v1alpha1.UntrustedTaint })
}

func (d *demo) podLabels(ctx context.Context, p *pod) (map[string]string, error) {
	var object corev1.Pod
	if err := d.kube.Get(ctx, client.ObjectKey{Namespace: p.namespace, Name: p.name}, &object); err != nil {
		return nil, fmt.Errorf("demo: pod %s: %w", p, err)
	}
	return object.Labels, nil
}

// explain asks our own program why the node is not trusted.
func (d *demo) explain(ctx context.Context, s *Step, name string) error {
	out, err := d.keelson(ctx, "explain", "node", name, "--kubeconfig", d.cluster.AdminKubeconfig(), "--config", d.path("policy-sync.yaml"))
	if ctx.Err() != nil {
		return err
	}
	say(s.out, "  $ keelson explain node %s", name)
	s.show(out)
	s.expect(strings.Contains(out, intruder), "keelson explain names the program", "%s", errorText(err))
	return nil
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return short(err.Error())
}
