package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// showPolicies shows what policy-sync wrote, as the real API servers serve it.
func (d *demo) showPolicies(ctx context.Context, s *Step) error {
	owned := v1alpha1.OwnerLabel + "=" + v1alpha1.OwnerValue
	for _, q := range []struct{ what, kinds, must string }{
		{"Calico's API server serves our tier", "tiers.projectcalico.org", "keelson"},
		{"Calico's API server accepted our policies", "globalnetworkpolicies.projectcalico.org,networkpolicies.projectcalico.org", "keelson."},
		{"Istio's AuthorizationPolicies are there", "authorizationpolicies.security.istio.io", "payments"},
		{"Istio's PeerAuthentications are there", "peerauthentications.security.istio.io", "payments"},
	} {
		out, err := d.kubectl(ctx, "get", q.kinds, "-A", "-l", owned, "-o", "name")
		if err != nil {
			return err
		}
		all, err := d.kubectl(ctx, "get", q.kinds, "-A", "-l", owned)
		if err != nil {
			return err
		}
		say(s.out, "  $ kubectl get %s -A -l %s", q.kinds, owned)
		s.show(all)
		s.expect(strings.Contains(all, q.must), q.what, "%d objects", strings.Count(out, "\n"))
	}
	for _, kinds := range []string{"networkpolicies.projectcalico.org", "authorizationpolicies.security.istio.io", "peerauthentications.security.istio.io"} {
		out, err := d.kubectl(ctx, "get", kinds, "-n", "payments", "-l", owned, "-o", "yaml")
		if err != nil {
			return err
		}
		say(s.out, "  $ kubectl get %s -n payments -o yaml", kinds)
		s.show(withoutNoise(out))
	}
	if err := d.showLabels(ctx, s); err != nil {
		return err
	}
	if err := d.showForgeries(ctx, s); err != nil {
		return err
	}
	return d.showPlan(ctx, s)
}

// showPlan asks our own program what policy-sync would do now: nothing, since nothing happens.
func (d *demo) showPlan(ctx context.Context, s *Step) error {
	out, err := d.keelson(ctx, "plan", "-o", "json", "--kubeconfig", d.cluster.AdminKubeconfig(), "--config", d.path("policy-sync.yaml"))
	if err != nil {
		return err
	}
	var plan struct {
		Operations []struct {
			Action, Subject, Reason string
		} `json:"operations"`
	}
	if err := json.Unmarshal([]byte(out), &plan); err != nil {
		return fmt.Errorf("demo: keelson plan: %w", err)
	}
	for _, o := range plan.Operations {
		s.show(fmt.Sprintf("%s %s: %s", o.Action, o.Subject, o.Reason))
	}
	s.expect(len(plan.Operations) == 0, "keelson plan has nothing left to do", "%d operations", len(plan.Operations))
	return nil
}

// showLabels looks at nodes and pods.
func (d *demo) showLabels(ctx context.Context, s *Step) error {
	for _, command := range [][]string{
		{"get", "nodes", "-L", v1alpha1.NodeVerdictLabel + "," + v1alpha1.NodeTagPrefix + "country"},
		{"get", "pods", "-A", "-o", "wide", "-L", v1alpha1.PodAttestedLabel},
		{"get", "trustpolicies", "-A"},
	} {
		out, err := d.kubectl(ctx, command...)
		if err != nil {
			return err
		}
		say(s.out, "  $ kubectl %s", strings.Join(command, " "))
		s.show(out)
	}
	for _, m := range d.machines {
		n, err := d.node(ctx, m.name)
		if err != nil {
			return err
		}
		label, tainted := n.Labels[v1alpha1.NodeVerdictLabel], isTainted(n)
		s.expect((label == string(v1alpha1.VerdictTrusted)) == m.trusted && tainted == !m.trusted, m.name+"'s label and taint",
			"verdict=%s, tainted %t", label, tainted)
	}
	for _, p := range d.pods {
		labels, err := d.podLabels(ctx, p)
		if err != nil {
			return err
		}
		has := labels[v1alpha1.PodAttestedLabel] == v1alpha1.True
		s.expect(has == p.identity, p.String()+"'s trust label", "%t", has)
	}
	return nil
}

// withoutNoise leaves out what the API server keeps for itself.
func withoutNoise(yaml string) string {
	var b strings.Builder
	for line := range strings.Lines(yaml) {
		key, _, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch key {
		case "creationTimestamp", "generation", "resourceVersion", "uid", "selfLink":
			continue
		}
		b.WriteString(line)
	}
	return b.String()
}
