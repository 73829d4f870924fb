// Package istio writes intents as Istio security objects.
//
// Per enrolled namespace: a PeerAuthentication STRICT and an AuthorizationPolicy that
// allows nothing. Per TrustPolicy: a DENY of every principal that the policy does not
// name, and of all that it does not let a named one do (complement.go), and an ALLOW of what it does.
// The DENY leaves alone what other policies allow that select some of the same pods
// (design/2026-11-29-two-policies-on-one-pod.md). Revoked addresses are denied in the mesh's
// root namespace, for the attested pods of every namespace that enforces.
//
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
	if slices.ContainsFunc(in.Namespaces, func(ns trustgraph.Namespace) bool { return ns.Mode == v1alpha1.ModeEnforce }) {
		r.revoked()
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

// revoked denies revoked addresses: a revoked pod has the same principal as its healthy replicas. The objects stand in the
// mesh's root namespace and select the attested pods of every namespace that enforces, so that a revocation writes one of them
// however many namespaces there are. Pods that are not attested are closed by allow-nothing.
func (r *renderer) revoked() {
	why := r.in.WhyRevoked()
	for i, shard := range r.in.RevokedShards() {
		if len(shard) == 0 {
			continue
		}
		p := policy(r.in.Config.RootNamespace(), strings.TrimPrefix(v1alpha1.RevokedSetName(i), prefix), v1alpha1.ModeEnforce)
		p.Spec.Action = securityapi.AuthorizationPolicy_DENY
		p.Spec.Selector = &typeapi.WorkloadSelector{MatchLabels: map[string]string{v1alpha1.PodEnforcedLabel: v1alpha1.True}}
		blocks := make([]string, 0, len(shard))
		for _, a := range shard {
			block := a.Address
			if addr, err := netip.ParseAddr(block); err == nil {
				block = netip.PrefixFrom(addr, addr.BitLen()).String()
			}
			blocks = append(blocks, block)
		}
		for chunk := range slices.Chunk(blocks, blocksPerRule) {
			p.Spec.Rules = append(p.Spec.Rules, &securityapi.Rule{From: []*securityapi.Rule_From{{Source: &securityapi.Source{IpBlocks: chunk}}}})
		}
		o := r.add(p, desired.Blacklist, "", why)
		o.Closes, o.Split = [][]string{{"spec", "rules"}}, Split
	}
}

// Limits of one object. Istio's definition of AuthorizationPolicy takes 512 rules. While a plan changes an object, it holds what
// it held and what it shall hold, so each takes less than half. etcd takes 1.5 MiB.
const (
	rulesPerObject = 250
	bytesPerObject = 384 << 10
	blocksPerRule  = 1000
)

func selector(w desired.Workload) *typeapi.WorkloadSelector {
	return &typeapi.WorkloadSelector{MatchLabels: map[string]string{v1alpha1.PolicyLabel(w.Policy): v1alpha1.True}}
}

func (r *renderer) principal(f desired.Flow) string {
	return strings.TrimPrefix(trustgraph.SPIFFEID(r.in.Config.TrustDomain, f.Namespace, f.ServiceAccount), "spiffe://")
}

// deny shuts out every principal that no flow names, and each named one from what no flow lets it do. Flows of other policies
// that select some of the same pods count, because a pod is under the DENY of each of its policies. Principals with the same
// flows share a rule. Each rule denies on its own, so they may stand in several objects; only the one that names every
// permitted principal cannot be split, and package trustgraph bounds how many these are.
func (r *renderer) deny(w desired.Workload) {
	flows := map[string][]desired.Flow{}
	for _, f := range slices.Concat(w.Ingress, w.Others) {
		flows[r.principal(f)] = append(flows[r.principal(f)], f)
	}
	principals := sortedKeys(flows)
	var rules []*securityapi.Rule
	if len(principals) == 0 {
		rules = []*securityapi.Rule{{}} // an empty rule matches every request
	} else {
		rules = append(rules, &securityapi.Rule{From: []*securityapi.Rule_From{{Source: &securityapi.Source{NotPrincipals: principals}}}})
	}
	groups, order := map[string][]string{}, []string(nil)
	for _, principal := range principals {
		key := groupKey(flows[principal])
		if groups[key] == nil {
			order = append(order, key)
		}
		groups[key] = append(groups[key], principal)
	}
	exact := newExactness()
	for _, key := range order {
		rule := &securityapi.Rule{From: []*securityapi.Rule_From{{Source: &securityapi.Source{Principals: groups[key]}}}}
		for _, o := range exact.forbidden(permitted(flows[groups[key][0]])) {
			rule.To = append(rule.To, &securityapi.Rule_To{Operation: o})
		}
		if len(rule.To) > 0 {
			rules = append(rules, rule)
		}
	}
	for i, shard := range shards(rules) {
		p := policy(w.Namespace, w.Policy+".deny"+suffix(i), w.Mode)
		p.Spec.Selector, p.Spec.Action, p.Spec.Rules = selector(w), securityapi.AuthorizationPolicy_DENY, shard
		o := r.add(p, desired.Barrier, w.Namespace+"/"+w.Policy, w.Reason)
		o.Closes = [][]string{{"spec", "rules"}}
	}
}

// groupKey is the same for flows that permit the same in the same words.
func groupKey(flows []desired.Flow) string {
	keys := make([]string, 0, len(flows))
	for _, f := range flows {
		keys = append(keys, flowKey(f))
	}
	slices.Sort(keys)
	return strings.Join(slices.Compact(keys), "\n")
}

// allow opens what the policy's own flows permit, one rule for all principals with the same operations.
func (r *renderer) allow(w desired.Workload) {
	principals, order, first := map[string][]string{}, []string(nil), map[string]desired.Flow{}
	for _, f := range w.Ingress {
		key := flowKey(f)
		if principals[key] == nil {
			order, first[key] = append(order, key), f
		}
		principals[key] = append(principals[key], r.principal(f))
	}
	var rules []*securityapi.Rule
	for _, key := range order {
		slices.Sort(principals[key])
		rules = append(rules, &securityapi.Rule{
			From: []*securityapi.Rule_From{{Source: &securityapi.Source{Principals: slices.Compact(principals[key])}}}, To: operations(first[key]),
		})
	}
	for i, shard := range shards(rules) {
		p := policy(w.Namespace, w.Policy+".allow"+suffix(i), w.Mode)
		p.Spec.Selector, p.Spec.Rules = selector(w), shard
		o := r.add(p, desired.Gate, w.Namespace+"/"+w.Policy, w.Reason)
		o.Opens, o.Split = [][]string{{"spec", "rules"}}, Split
	}
}

// suffix ends the name of an object's further shards.
func suffix(shard int) string {
	if shard == 0 {
		return ""
	}
	return "." + strconv.Itoa(shard+1)
}

// shards deals rules out into lists that fit into an object each: at least one, in their order.
func shards(rules []*securityapi.Rule) [][]*securityapi.Rule {
	out, size := [][]*securityapi.Rule{nil}, 0
	for _, rule := range rules {
		n := ruleSize(rule)
		if last := out[len(out)-1]; len(last) > 0 && (len(last) == rulesPerObject || size+n > bytesPerObject) {
			out, size = append(out, nil), 0
		}
		out[len(out)-1], size = append(out[len(out)-1], rule), size+n
	}
	return out
}

// ruleSize is about what a rule takes as JSON, rather more than less.
func ruleSize(r *securityapi.Rule) int {
	size := 64
	count := func(values []string) {
		for _, v := range values {
			size += len(v) + 3
		}
	}
	for _, f := range r.From {
		count(f.Source.Principals)
		count(f.Source.NotPrincipals)
	}
	for _, t := range r.To {
		size += 96
		o := t.Operation
		for _, list := range [][]string{o.Ports, o.NotPorts, o.Methods, o.NotMethods, o.Paths, o.NotPaths} {
			count(list)
		}
	}
	return size
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
