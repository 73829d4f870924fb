// Package calico writes intents as Calico objects (projectcalico.org/v3) in one tier,
// keelson, that comes before the teams' tiers.
//
// # How the tier decides
//
// Policies of a tier are asked in their order; the first matching rule wins. Pass leaves
// the tier and asks the next one, so what Keelson lets through is still subject to the
// teams' own policies; Deny is final. In order:
//
//	1    keelson.revoked (global)          deny from and to revoked addresses
//	100  keelson.<TrustPolicy> (namespaced) pass what the policy allows, for attested pods;
//	     further rules of a large policy in keelson.<TrustPolicy>.2, .3 …
//	900  keelson.attested-egress (global)  attested pods: deny to enrolled namespaces, pass elsewhere
//	1000 keelson.default-deny (namespaced) every pod of the namespace: pass DNS and istiod, deny the rest
//	1001 keelson.default-deny (global)     the same by the namespace's label
//
// # Why there are two default denies
//
// The global one binds a namespace in the instant it is enrolled, before policy-sync has
// seen it. But a namespaceSelector matches labels that Felix finds on the pod first (key
// prefix pcns.) and on the namespace second, so a pod could take itself out of it. The
// namespaced one binds by projectcalico.org/namespace, which Calico always sets itself.
// For the same reason peers are named by that label, not by a namespaceSelector.
//
// # What selectors match
//
// A selector of a rule matches every workload endpoint, host endpoint and network set with
// fitting labels, and a namespaceSelector matches a NetworkSet of the namespace. Rules that
// are meant for pods ask for projectcalico.org/orchestrator == 'k8s' besides, which Calico
// sets on endpoints of pods.
//
// # What keeps working
//
// Felix does not police traffic from a node to its own pods, so kubelet probes pass.
package calico

import (
	"fmt"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"github.com/projectcalico/api/pkg/lib/numorstring"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/desired"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

// Orders of the policies within the tier.
const (
	orderRevoked        = 1
	orderPolicy         = 100
	orderAttestedEgress = 900
	orderDefaultDeny    = 1000
	orderGlobalDeny     = 1001
)

// HBONEPort is where Istio's ambient mode delivers every flow, whatever its own port.
const HBONEPort = 15008

// IstiodPort is istiod's, for the proxies' configuration (xDS) over TLS.
const IstiodPort = 15012

// Name is the name of a Calico policy of the tier: Calico asks for the tier's name first.
func Name(name string) string { return v1alpha1.CalicoTier + "." + name }

// Render makes every Calico object that should exist, sorted by the caller's plan.
func Render(in desired.Intents) ([]desired.Object, error) {
	r := renderer{in: in, names: map[string]bool{}}
	r.tier()
	r.revoked()
	r.attestedEgress()
	r.globalDeny()
	for _, ns := range in.Namespaces {
		r.namespaceDeny(ns)
	}
	for _, w := range in.Workloads {
		r.names[w.Namespace+"/"+w.Policy] = true
	}
	for _, w := range in.Workloads {
		r.workload(w)
	}
	return r.out, r.err
}

type renderer struct {
	in  desired.Intents
	out []desired.Object
	err error
	// names are those of all TrustPolicies ("namespace/name").
	names map[string]bool
}

func (r *renderer) add(o desired.Object, err error) *desired.Object {
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("calico: %w", err)
	}
	r.out = append(r.out, o)
	return &r.out[len(r.out)-1]
}

// meta names a policy of the tier and labels it with the tier, by which policies are listed.
// Calico's API server sets the label itself. With Calico's kinds as plain definitions (CRDs)
// it is an admission policy that may be missing.
func meta(namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{tierLabel: v1alpha1.CalicoTier}}
}

func order(n float64) *float64 { return &n }

func (r *renderer) tier() {
	t := v3.NewTier()
	t.Name = v1alpha1.CalicoTier
	pass := v3.Pass
	t.Spec = v3.TierSpec{Order: order(r.in.Config.TierOrder), DefaultAction: &pass}
	r.add(desired.Make(t, desired.Barrier, "", "Keelson's tier comes before the teams' tiers"))
}

// revoked writes sets of addresses and one policy, first of all, that denies them both ways. The policy and the first set always
// exist, the others while they hold an address; a revocation only adds to one set.
func (r *renderer) revoked() {
	why := r.in.WhyRevoked()
	for i, shard := range r.in.RevokedShards() {
		if i > 0 && len(shard) == 0 {
			continue
		}
		set := v3.NewGlobalNetworkSet()
		set.Name, set.Labels = v1alpha1.RevokedSetName(i), map[string]string{v1alpha1.RevokedLabel: v1alpha1.True}
		for _, a := range shard {
			set.Spec.Nets = append(set.Spec.Nets, cidr(a.Address))
		}
		o := r.add(desired.Make(set, desired.Blacklist, "", why))
		o.Closes = [][]string{{"spec", "nets"}}
	}

	p := v3.NewGlobalNetworkPolicy()
	p.ObjectMeta = meta("", Name("revoked"))
	entity := v3.EntityRule{Selector: eq(v1alpha1.RevokedLabel, v1alpha1.True), NamespaceSelector: "global()"}
	p.Spec = v3.GlobalNetworkPolicySpec{
		Tier: v1alpha1.CalicoTier, Order: order(orderRevoked), Selector: "all()", NamespaceSelector: mode(v1alpha1.ModeEnforce), Types: bothWays(),
		Ingress: []v3.Rule{{Action: v3.Deny, Source: entity}},
		Egress:  []v3.Rule{{Action: v3.Deny, Destination: entity}},
	}
	r.add(desired.Make(p, desired.Barrier, "", "nothing talks with a revoked address"))
}

func bothWays() []v3.PolicyType { return []v3.PolicyType{v3.PolicyTypeIngress, v3.PolicyTypeEgress} }

func mode(m string) string { return eq(v1alpha1.ModeLabel, m) }

// infrastructure lets every enrolled pod, attested or not, look up names and (with Istio)
// fetch its proxy's configuration: without them it could not come up to be attested. A DNS
// cache that uses its node's network is no pod to Calico, so it is named by its address.
func (r *renderer) infrastructure() []v3.Rule {
	c := r.in.Config.WithDefaults()
	tcp, udp := numorstring.ProtocolFromString("TCP"), numorstring.ProtocolFromString("UDP")
	ports := make([]numorstring.Port, 0, len(c.DNSPorts))
	for _, p := range c.DNSPorts {
		ports = append(ports, numorstring.SinglePort(uint16(p))) //nolint:gosec // package snapshot refuses ports beyond 65535.
	}
	var rules []v3.Rule
	for _, protocol := range []*numorstring.Protocol{&udp, &tcp} {
		for _, dns := range append([]snapshot.Service{c.DNS}, c.MoreDNS...) {
			rules = append(rules, v3.Rule{Action: v3.Pass, Protocol: protocol, Destination: v3.EntityRule{NamespaceSelector: "all()", Selector: in(dns), Ports: ports}})
		}
		if len(c.DNSNets) > 0 {
			rules = append(rules, v3.Rule{Action: v3.Pass, Protocol: protocol, Destination: v3.EntityRule{Nets: blocks(c.DNSNets), Ports: ports}})
		}
	}
	if r.in.Config.Istio {
		rules = append(rules, v3.Rule{Action: v3.Pass, Protocol: &tcp, Destination: v3.EntityRule{
			NamespaceSelector: "all()", Selector: in(r.in.Config.Istiod), Ports: []numorstring.Port{numorstring.SinglePort(IstiodPort)},
		}})
	}
	return rules
}

func blocks(addresses []string) []string {
	out := make([]string, 0, len(addresses))
	for _, a := range addresses {
		out = append(out, cidr(a))
	}
	return out
}

func in(s snapshot.Service) string {
	return and(namespaceIs(s.Namespace), eq(s.Label, s.Value), pods())
}

// attestedEgress: a trusted pod does not call a pod of an enrolled namespace unless a
// policy names it (the far end may be on a bad node, whose own enforcement counts for
// nothing). Where else it may call is for other tiers to say.
func (r *renderer) attestedEgress() {
	rules := append(r.infrastructure(),
		v3.Rule{Action: v3.Deny, Destination: v3.EntityRule{NamespaceSelector: mode(v1alpha1.ModeEnforce), Selector: pods()}},
		v3.Rule{Action: v3.Pass})
	spec := v3.GlobalNetworkPolicySpec{
		Tier: v1alpha1.CalicoTier, Order: order(orderAttestedEgress), Selector: attested(), NamespaceSelector: mode(v1alpha1.ModeEnforce),
		Types: []v3.PolicyType{v3.PolicyTypeEgress}, Egress: rules,
	}
	p := v3.NewGlobalNetworkPolicy()
	p.ObjectMeta, p.Spec = meta("", Name("attested-egress")), spec
	r.add(desired.Make(p, desired.Barrier, "", "attested pods call enrolled pods only as policies say"))

	s := v3.NewStagedGlobalNetworkPolicy()
	s.ObjectMeta, s.Spec = meta("", Name("audit-attested-egress")), staged(spec)
	s.Spec.NamespaceSelector = mode(v1alpha1.ModeAudit)
	r.add(desired.Make(s, desired.Gate, "", "shows what attested-egress would deny in audit mode"))
}

// globalDeny closes every enrolled namespace by its label.
func (r *renderer) globalDeny() {
	spec := v3.GlobalNetworkPolicySpec{
		Tier: v1alpha1.CalicoTier, Order: order(orderGlobalDeny), Selector: "all()", NamespaceSelector: mode(v1alpha1.ModeEnforce), Types: bothWays(),
		Ingress: []v3.Rule{{Action: v3.Deny}},
		Egress:  append(r.infrastructure(), v3.Rule{Action: v3.Deny}),
	}
	p := v3.NewGlobalNetworkPolicy()
	p.ObjectMeta, p.Spec = meta("", Name(trustgraph.ReservedPolicy)), spec
	r.add(desired.Make(p, desired.Barrier, "", "enrolled namespaces are closed unless a policy opens them"))

	s := v3.NewStagedGlobalNetworkPolicy()
	s.ObjectMeta, s.Spec = meta("", Name("audit-"+trustgraph.ReservedPolicy)), staged(spec)
	s.Spec.NamespaceSelector = mode(v1alpha1.ModeAudit)
	r.add(desired.Make(s, desired.Gate, "", "shows what default-deny would deny in audit mode"))
}

func staged(spec v3.GlobalNetworkPolicySpec) v3.StagedGlobalNetworkPolicySpec {
	return v3.StagedGlobalNetworkPolicySpec{
		StagedAction: v3.StagedActionSet, Tier: spec.Tier, Order: spec.Order, Selector: spec.Selector, NamespaceSelector: spec.NamespaceSelector,
		Types: spec.Types, Ingress: spec.Ingress, Egress: spec.Egress,
	}
}

// namespaceDeny closes one enrolled namespace by its name.
func (r *renderer) namespaceDeny(ns trustgraph.Namespace) {
	if ns.Mode != v1alpha1.ModeEnforce {
		return
	}
	p := v3.NewNetworkPolicy()
	p.ObjectMeta = meta(ns.Name, Name(trustgraph.ReservedPolicy))
	p.Spec = v3.NetworkPolicySpec{
		Tier: v1alpha1.CalicoTier, Order: order(orderDefaultDeny), Selector: "all()", Types: bothWays(),
		Ingress: []v3.Rule{{Action: v3.Deny}},
		Egress:  append(r.infrastructure(), v3.Rule{Action: v3.Deny}),
	}
	r.add(desired.Make(p, desired.Barrier, "", fmt.Sprintf("namespace %s is enrolled", ns.Name)))
}

// workload passes on what a TrustPolicy allows. Its selector names both labels: a pod
// under two policies of which it meets one is not attested, and nothing opens.
func (r *renderer) workload(w desired.Workload) {
	shards := deal(passes(w.Ingress, true), passes(w.Egress, false))
	for i, s := range shards {
		if i > 0 && len(s.ingress)+len(s.egress) == 0 {
			continue
		}
		name := shardName(w.Policy, i, func(name string) bool { return r.names[w.Namespace+"/"+name] })
		r.shard(w, name, v3.NetworkPolicySpec{
			Tier: v1alpha1.CalicoTier, Order: order(orderPolicy), Types: bothWays(), Ingress: s.ingress, Egress: s.egress,
			Selector: and(attested(), eq(v1alpha1.PolicyLabel(w.Policy), v1alpha1.True)),
		})
	}
}

func (r *renderer) shard(w desired.Workload, name string, spec v3.NetworkPolicySpec) {
	source := w.Namespace + "/" + w.Policy
	var o *desired.Object
	if w.Mode == v1alpha1.ModeEnforce {
		p := v3.NewNetworkPolicy()
		p.ObjectMeta, p.Spec = meta(w.Namespace, name), spec
		o = r.add(desired.Make(p, desired.Gate, source, w.Reason))
	} else {
		p := v3.NewStagedNetworkPolicy()
		p.ObjectMeta = meta(w.Namespace, name)
		p.Spec = v3.StagedNetworkPolicySpec{
			StagedAction: v3.StagedActionSet, Tier: spec.Tier, Order: spec.Order, Selector: spec.Selector, Types: spec.Types, Ingress: spec.Ingress, Egress: spec.Egress,
		}
		o = r.add(desired.Make(p, desired.Gate, source, w.Reason+" (audit)"))
	}
	o.Opens, o.Split = [][]string{{"spec", "ingress"}, {"spec", "egress"}}, Split
}
