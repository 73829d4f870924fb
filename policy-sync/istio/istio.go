// Package istio writes intents as Istio security objects.
//
// Per enrolled namespace: a PeerAuthentication STRICT and an AuthorizationPolicy that
// allows nothing. Per TrustPolicy: a DENY of every principal that the policy does not
// name, and of all that it does not let a named one do (complement.go), and an ALLOW of what it does.
// The DENY is what protects: ALLOWs of
// different authors are a union, so anybody's ALLOW could widen ours, but no ALLOW
// overrides a DENY. A caller without a principal (plain text) is denied by it too.
//
// Policies select pods by the label that policy-sync puts on attested pods. A pod
// without it falls under the namespace's allow-nothing, and has no SVID to begin with.
//
// Principals are "<trust domain>/ns/<namespace>/sa/<service account>" in the configured
// trust domain. They cannot express tags or pod selectors: those bind in Calico only.
package istio

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	securityapi "istio.io/api/security/v1beta1"
	typeapi "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/desired"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

// DryRunAnnotation makes Istio log what an AuthorizationPolicy would do, and do nothing.
const DryRunAnnotation = "istio.io/dry-run"

// prefix starts the name of every Istio object that Keelson makes.
const prefix = "keelson."

// Render makes every Istio object that should exist.
func Render(in desired.Intents) ([]desired.Object, error) {
	r := renderer{in: in}
	for _, ns := range in.Namespaces {
		r.namespace(ns)
	}
	for _, w := range in.Workloads {
		r.deny(w)
		r.allow(w)
	}
	return r.out, r.err
}

type renderer struct {
	in  desired.Intents
	out []desired.Object
	err error
}

func (r *renderer) add(typed runtime.Object, class desired.Class, source, reason string) *desired.Object {
	o, err := desired.Make(typed, class, source, reason)
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("istio: %w", err)
	}
	r.out = append(r.out, o)
	return &r.out[len(r.out)-1]
}

func (r *renderer) namespace(ns trustgraph.Namespace) {
	nothing := policy(ns.Name, "allow-nothing", ns.Mode)
	r.add(nothing, desired.Barrier, "", fmt.Sprintf("namespace %s is enrolled", ns.Name))
	if ns.Mode != v1alpha1.ModeEnforce {
		return
	}
	strict := &securityv1.PeerAuthentication{TypeMeta: typeMeta("PeerAuthentication"), ObjectMeta: metav1.ObjectMeta{Namespace: ns.Name, Name: prefix + "strict"}}
	strict.Spec.Mtls = &securityapi.PeerAuthentication_MutualTLS{Mode: securityapi.PeerAuthentication_MutualTLS_STRICT}
	r.add(strict, desired.Barrier, "", fmt.Sprintf("namespace %s is enrolled", ns.Name))
	if len(r.in.Revoked) > 0 {
		r.revoked(ns)
	}
}

func typeMeta(kind string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: securityv1.SchemeGroupVersion.String(), Kind: kind}
}

func policy(namespace, name, mode string) *securityv1.AuthorizationPolicy {
	p := &securityv1.AuthorizationPolicy{TypeMeta: typeMeta("AuthorizationPolicy"), ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: prefix + name}}
	if mode == v1alpha1.ModeAudit {
		p.Annotations = map[string]string{DryRunAnnotation: "true"}
	}
	return p
}

// revoked denies revoked addresses: a revoked pod has the same principal as its healthy
// replicas. One rule per address, so that the plan can add and take away each.
func (r *renderer) revoked(ns trustgraph.Namespace) {
	p := policy(ns.Name, "revoked", ns.Mode)
	p.Spec.Action = securityapi.AuthorizationPolicy_DENY
	for _, a := range r.in.Revoked {
		block := a.Address
		if addr, err := netip.ParseAddr(block); err == nil {
			block = netip.PrefixFrom(addr, addr.BitLen()).String()
		}
		p.Spec.Rules = append(p.Spec.Rules, &securityapi.Rule{From: []*securityapi.Rule_From{{Source: &securityapi.Source{IpBlocks: []string{block}}}}})
	}
	o := r.add(p, desired.Blacklist, "", r.in.WhyRevoked())
	o.Closes = [][]string{{"spec", "rules"}}
}

func selector(w desired.Workload) *typeapi.WorkloadSelector {
	return &typeapi.WorkloadSelector{MatchLabels: map[string]string{v1alpha1.PolicyLabel(w.Policy): v1alpha1.True}}
}

func (r *renderer) principal(f desired.Flow) string {
	return strings.TrimPrefix(trustgraph.SPIFFEID(r.in.Config.TrustDomain, f.Namespace, f.ServiceAccount), "spiffe://")
}

// deny shuts out every principal that no flow names, and each named one from what no flow
// lets it do.
func (r *renderer) deny(w desired.Workload) {
	p := policy(w.Namespace, w.Policy+".deny", w.Mode)
	p.Spec.Selector, p.Spec.Action = selector(w), securityapi.AuthorizationPolicy_DENY
	flows := map[string][]desired.Flow{}
	for _, f := range w.Ingress {
		flows[r.principal(f)] = append(flows[r.principal(f)], f)
	}
	principals := sortedKeys(flows)
	if len(principals) == 0 {
		p.Spec.Rules = []*securityapi.Rule{{}} // an empty rule matches every request
	} else {
		p.Spec.Rules = append(p.Spec.Rules, &securityapi.Rule{From: []*securityapi.Rule_From{{Source: &securityapi.Source{NotPrincipals: principals}}}})
	}
	for _, principal := range principals {
		rule := &securityapi.Rule{From: []*securityapi.Rule_From{{Source: &securityapi.Source{Principals: []string{principal}}}}}
		for _, o := range forbidden(permitted(flows[principal])) {
			rule.To = append(rule.To, &securityapi.Rule_To{Operation: o})
		}
		if len(rule.To) > 0 {
			p.Spec.Rules = append(p.Spec.Rules, rule)
		}
	}
	o := r.add(p, desired.Barrier, w.Namespace+"/"+w.Policy, w.Reason)
	o.Closes = [][]string{{"spec", "rules"}}
}

func (r *renderer) allow(w desired.Workload) {
	p := policy(w.Namespace, w.Policy+".allow", w.Mode)
	p.Spec.Selector = selector(w)
	seen := map[string]bool{}
	for _, f := range w.Ingress {
		rule := &securityapi.Rule{From: []*securityapi.Rule_From{{Source: &securityapi.Source{Principals: []string{r.principal(f)}}}}, To: operations(f)}
		if key := rule.String(); !seen[key] {
			seen[key] = true
			p.Spec.Rules = append(p.Spec.Rules, rule)
		}
	}
	o := r.add(p, desired.Gate, w.Namespace+"/"+w.Policy, w.Reason)
	o.Opens = [][]string{{"spec", "rules"}}
}

func operations(f desired.Flow) []*securityapi.Rule_To {
	ports := texts(f.Ports)
	if len(f.HTTP) == 0 && len(ports) == 0 {
		return nil
	}
	if len(f.HTTP) == 0 {
		return []*securityapi.Rule_To{{Operation: &securityapi.Operation{Ports: ports}}}
	}
	var out []*securityapi.Rule_To
	for _, h := range f.HTTP {
		out = append(out, &securityapi.Rule_To{Operation: &securityapi.Operation{Ports: ports, Methods: h.Methods, Paths: h.Paths}})
	}
	return out
}

func texts(ports []int32) []string {
	var out []string
	for _, p := range ports {
		out = append(out, strconv.Itoa(int(p)))
	}
	return out
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
