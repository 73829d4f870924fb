package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// trustPolicies are what the teams write: payments lets shop's frontend in, and wants to run in Germany.
const trustPolicies = `
apiVersion: trust.keelson.io/v1alpha1
kind: TrustPolicy
metadata: {name: api, namespace: payments}
spec:
  workloads: {serviceAccount: api}
  require:
    node: {references: [prod], tags: {country: [DE]}}
    image: {verifiedBy: [release-key]}
    runtime: restricted
  ingress:
  - from: [{namespace: shop, serviceAccount: frontend}]
    ports: [8443]
    http: [{methods: [POST], paths: [/charge]}]
---
apiVersion: trust.keelson.io/v1alpha1
kind: TrustPolicy
metadata: {name: frontend, namespace: shop}
spec:
  workloads: {serviceAccount: frontend}
  require: {node: {references: [prod]}, image: {verifiedBy: [release-key]}, runtime: restricted}
---
apiVersion: trust.keelson.io/v1alpha1
kind: TrustPolicy
metadata: {name: batch, namespace: shop}
spec:
  workloads: {serviceAccount: batch}
  require: {node: {references: [prod]}, image: {verifiedBy: [release-key]}, runtime: restricted}
`

// workloads are the pods, and whether each should get an identity.
func (d *demo) workloads() []*pod {
	fra, par, evil := d.machine("fra-1"), d.machine("par-1"), d.machine("evil-1")
	return []*pod{
		{namespace: "payments", name: "api-fra", account: "api", machine: fra, serves: true, identity: true},
		{namespace: "payments", name: "api-par", account: "api", machine: par, serves: true},
		{namespace: "payments", name: "api-evil", account: "api", machine: evil, serves: true},
		{namespace: "shop", name: "frontend-fra", account: "frontend", machine: fra, identity: true},
		{namespace: "shop", name: "frontend-par", account: "frontend", machine: par, identity: true},
		{namespace: "shop", name: "frontend-evil", account: "frontend", machine: evil},
		{namespace: "shop", name: "unsigned-fra", account: "frontend", machine: fra, unsigned: true},
		{namespace: "shop", name: "crossed-evil", account: "frontend", machine: evil, asks: par},
		{namespace: "shop", name: "batch-fra", account: "batch", machine: fra, identity: true},
	}
}

func (d *demo) pod(name string) *pod {
	return d.pods[slices.IndexFunc(d.pods, func(p *pod) bool { return p.name == name })]
}

func (d *demo) showTraffic(ctx context.Context, s *Step) error {
	s.show(trustPolicies)
	if err := d.cluster.Apply(ctx, []byte(trustPolicies)); err != nil {
		return err
	}
	if err := os.MkdirAll(d.path("allow"), 0o755); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	for _, p := range d.workloads() {
		if err := d.startPod(ctx, p); err != nil {
			return err
		}
		d.pods = append(d.pods, p)
	}
	say(s.out, "  %d pods run under %s", len(d.pods), d.report.Containers)
	if err := d.showIdentities(ctx, s); err != nil {
		return err
	}
	if err := d.allowAsPolicySays(ctx, s); err != nil {
		return err
	}
	return d.showMatrix(ctx, s)
}

// answer is what the workload's programs print; see test/demo/workload.
type answer struct {
	OK       bool      `json:"ok"`
	SPIFFEID string    `json:"spiffe_id"`
	NotAfter time.Time `json:"not_after"`
	Kind     string    `json:"kind"`
	Error    string    `json:"error"`
	Peer     string    `json:"peer"`
	Answer   struct {
		Node string `json:"node"`
	} `json:"answer"`
}

// in runs the workload's program in a pod's container.
func (d *demo) in(ctx context.Context, p *pod, command string, args ...string) (answer, error) {
	all := append([]string{"/workload", command, "-socket", socket, "-timeout", "4s"}, args...)
	result, err := p.machine.runtime.Exec(ctx, p.running.ContainerID, all...)
	if err != nil {
		return answer{}, err
	}
	var a answer
	if err := json.Unmarshal([]byte(result.Stdout), &a); err != nil {
		return answer{}, fmt.Errorf("demo: in %s: exit %d: %s%s", p, result.ExitCode, result.Stdout, result.Stderr)
	}
	return a, nil
}

// showIdentities waits until those who should have an identity do, and then asks everybody.
func (d *demo) showIdentities(ctx context.Context, s *Step) error {
	took, waitErr := until(ctx, 60*time.Second, "identities of the attested workloads", func(ctx context.Context) error {
		if err := d.alive(); err != nil {
			return err
		}
		for _, p := range d.pods {
			if !p.identity {
				continue
			}
			if a, err := d.in(ctx, p, "svid"); err != nil || !a.OK {
				return errors.Join(err, fmt.Errorf("%s: %s", p, a.Error))
			}
		}
		return nil
	})
	if waitErr == nil {
		say(s.out, "  after %.1f s:", took.Seconds())
	} else if ctx.Err() != nil {
		return waitErr
	}
	answers := make([]answer, len(d.pods))
	if err := d.each(ctx, func(ctx context.Context, i int, p *pod) (err error) {
		answers[i], err = d.in(ctx, p, "svid")
		return err
	}); err != nil {
		return err
	}
	for i, p := range d.pods {
		a := answers[i]
		d.report.Identities = append(d.report.Identities, Identity{
			Pod: p.String(), Node: p.machine.name, Expected: p.identity, SPIFFEID: a.SPIFFEID, Error: a.Error,
		})
		if p.identity {
			s.expect(a.OK && a.SPIFFEID == p.id(), fmt.Sprintf("%s has an identity", p.where()), "%s%s", a.SPIFFEID, short(a.Error))
		} else {
			s.expect(!a.OK, fmt.Sprintf("%s has none", p.where()), "%s%s", a.SPIFFEID, short(a.Error))
		}
	}
	return nil
}

// where says which machine the pod is on, and what is odd about it.
func (p *pod) where() string {
	where := fmt.Sprintf("%s on %s", p, p.machine.name)
	if p.unsigned {
		where += " (image not signed)"
	}
	if p.asks != nil {
		where += " (asks " + p.asks.name + "'s agent)"
	}
	return where
}

// each calls f for every pod at once.
func (d *demo) each(ctx context.Context, f func(context.Context, int, *pod) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for i, p := range d.pods {
		g.Go(func() error { return f(ctx, i, p) })
	}
	return g.Wait()
}

// allowAsPolicySays gives the servers the callers that policy-sync wrote into Istio's AuthorizationPolicy. No sidecar runs here;
// in its place the servers themselves, with go-spiffe, hold callers against that list.
func (d *demo) allowAsPolicySays(ctx context.Context, s *Step) error {
	var principals []string
	_, err := until(ctx, 20*time.Second, "an AuthorizationPolicy with callers in payments", func(ctx context.Context) (err error) {
		principals, err = d.principals(ctx)
		return err
	})
	if err != nil {
		return err
	}
	var lines string
	for _, p := range principals {
		lines += "spiffe://" + p + "\n"
	}
	if err := os.WriteFile(d.path("allow", "allow"), []byte(lines), 0o644); err != nil { // read in containers
		return fmt.Errorf("demo: %w", err)
	}
	want := []string{trustDomain + "/ns/shop/sa/frontend"}
	s.expect(slices.Equal(principals, want), "callers that Istio's AuthorizationPolicy in payments lets in", "%s", strings.Join(principals, " "))
	return nil
}

// principals collects those of the ALLOW policies in payments.
func (d *demo) principals(ctx context.Context) ([]string, error) {
	list := &unstructured.UnstructuredList{}
	list.SetAPIVersion("security.istio.io/v1")
	list.SetKind("AuthorizationPolicyList")
	if err := d.kube.List(ctx, list, client.InNamespace("payments")); err != nil {
		return nil, fmt.Errorf("demo: AuthorizationPolicies: %w", err)
	}
	var all []string
	for _, o := range list.Items {
		if action, _, _ := unstructured.NestedString(o.Object, "spec", "action"); action != "" && action != "ALLOW" {
			continue
		}
		all = append(all, principalsOf(o.Object)...)
	}
	if len(all) == 0 {
		return nil, errors.New("no principal is named")
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

func principalsOf(policy map[string]any) []string {
	var spec struct {
		Spec struct {
			Rules []struct {
				From []struct {
					Source struct {
						Principals []string `json:"principals"`
					} `json:"source"`
				} `json:"from"`
			} `json:"rules"`
		} `json:"spec"`
	}
	content, err := json.Marshal(policy)
	if err != nil || json.Unmarshal(content, &spec) != nil {
		return nil // an object that has no such field names nobody
	}
	var all []string
	for _, rule := range spec.Spec.Rules {
		for _, from := range rule.From {
			all = append(all, from.Source.Principals...)
		}
	}
	return all
}

// showMatrix has everybody call every server of payments.
func (d *demo) showMatrix(ctx context.Context, s *Step) error {
	if err := d.serversListen(ctx); err != nil {
		return err
	}
	cells, err := d.callAll(ctx)
	if err != nil {
		return err
	}
	d.report.Matrix = cells
	printMatrix(s, cells)
	reached := 0
	for _, c := range cells {
		if c.Reached != c.Expected {
			s.expect(false, c.From+" -> "+c.To, "reached is %t, want %t: %s", c.Reached, c.Expected, short(c.Error))
		}
		if c.Reached {
			reached++
		}
	}
	wanted := 0
	for _, c := range cells {
		if c.Expected {
			wanted++
		}
	}
	s.expect(reached == wanted, "mutual TLS succeeds exactly where the policy says", "%d of %d calls got through, want %d", reached, len(cells), wanted)
	return nil
}

// serversListen waits until the servers that have an identity have noticed: they ask for it once a second.
func (d *demo) serversListen(ctx context.Context) error {
	for _, to := range d.pods {
		if !to.serves || !to.identity {
			continue
		}
		_, err := until(ctx, 20*time.Second, to.String()+" listens", func(ctx context.Context) error {
			a, err := d.in(ctx, d.pod("batch-fra"), "call", "-expect-id", to.id(), to.url())
			if err == nil && a.Kind == "unreachable" {
				err = errors.New(a.Error)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *pod) url() string { return "https://" + p.running.IP + ":8443/charge" }

func (d *demo) callAll(ctx context.Context) ([]Cell, error) {
	var servers []*pod
	for _, p := range d.pods {
		if p.serves {
			servers = append(servers, p)
		}
	}
	rows := make([][]Cell, len(d.pods))
	err := d.each(ctx, func(ctx context.Context, i int, from *pod) error {
		for _, to := range servers {
			if from == to {
				continue
			}
			a, err := d.in(ctx, from, "call", "-expect-id", to.id(), to.url())
			if err != nil {
				return err
			}
			rows[i] = append(rows[i], Cell{
				From: from.String(), To: to.String(), Expected: from.identity && from.account == "frontend" && to.identity,
				Reached: a.OK && a.Peer == to.id() && a.Answer.Node == to.machine.name, Kind: a.Kind, Error: a.Error,
			})
		}
		return nil
	})
	return slices.Concat(rows...), err
}

// printMatrix prints callers down, servers across.
func printMatrix(s *Step, cells []Cell) {
	var froms, tos []string
	at := map[string]string{}
	for _, c := range cells {
		if !slices.Contains(froms, c.From) {
			froms = append(froms, c.From)
		}
		if !slices.Contains(tos, c.To) {
			tos = append(tos, c.To)
		}
		at[c.From+" "+c.To] = c.Kind
		if c.Reached {
			at[c.From+" "+c.To] = "REACHED"
		}
	}
	line := fmt.Sprintf("    %-24s", "from \\ to")
	for _, to := range tos {
		line += fmt.Sprintf(" %-20s", to)
	}
	say(s.out, "%s", line)
	for _, from := range froms {
		line := fmt.Sprintf("    %-24s", from)
		for _, to := range tos {
			line += fmt.Sprintf(" %-20s", at[from+" "+to])
		}
		say(s.out, "%s", line)
	}
}
