package plan_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// This is Calico's decision for one connection, written from its documentation and from
// libcalico-go and Felix 3.30 (updateprocessors/rules.go, labelindex), independent of the
// renderer under test.

// endpoint is what Calico's selectors match: a pod's endpoint or a network set.
type endpoint struct {
	nets    []netip.Prefix
	labels  map[string]string // its own
	parents map[string]string // of its namespace and service account, asked second
	pod     string            // namespace/name, empty for a set
	ns      string
}

func (e *endpoint) get(key string) (string, bool) {
	if v, ok := e.labels[key]; ok {
		return v, true
	}
	v, ok := e.parents[key]
	return v, ok
}

type rule struct {
	action   v3.Action
	protocol string
	ports    []uint16
	src, dst string // selector, empty: anything
	dstNets  []netip.Prefix
}

type netpol struct {
	order           float64
	name            string
	selector        string
	ingress, egress []rule
	types           []v3.PolicyType
}

// dataplane is everything that Felix would hold.
type dataplane struct {
	endpoints []*endpoint
	policies  []netpol // of the one tier, in order
	tiered    bool     // the tier exists with default action Pass
}

func newDataplane(s snapshot.Snapshot) *dataplane {
	d := &dataplane{}
	nsLabels := map[string]map[string]string{}
	for _, ns := range s.Namespaces {
		m := map[string]string{"pcns.projectcalico.org/name": ns.Name}
		for k, v := range ns.Labels {
			m["pcns."+k] = v
		}
		nsLabels[ns.Name] = m
	}
	for i := range s.Pods {
		p := s.Pods[i]
		if p.Spec.HostNetwork || snapshot.Ended(p) {
			continue
		}
		e := &endpoint{pod: snapshot.Key(p), ns: p.Namespace, labels: map[string]string{}, parents: nsLabels[p.Namespace]}
		for k, v := range p.Labels {
			e.labels[k] = v
		}
		e.labels["projectcalico.org/namespace"] = p.Namespace
		e.labels["projectcalico.org/orchestrator"] = "k8s"
		if len(p.Spec.ServiceAccountName) < 63 {
			e.labels["projectcalico.org/serviceaccount"] = p.Spec.ServiceAccountName
		}
		for _, ip := range p.Status.PodIPs {
			a := netip.MustParseAddr(ip.IP)
			e.nets = append(e.nets, netip.PrefixFrom(a, a.BitLen()))
		}
		d.endpoints = append(d.endpoints, e)
	}
	for _, o := range s.Objects {
		d.object(o)
	}
	slices.SortFunc(d.policies, func(a, b netpol) int { return cmp.Or(cmp.Compare(a.order, b.order), cmp.Compare(a.name, b.name)) })
	return d
}

func (d *dataplane) object(o *unstructured.Unstructured) {
	switch o.GetKind() {
	case "Tier":
		t := decode[v3.Tier](o)
		d.tiered = o.GetName() == "keelson" && t.Spec.DefaultAction != nil && *t.Spec.DefaultAction == v3.Pass
	case "GlobalNetworkSet":
		set := decode[v3.GlobalNetworkSet](o)
		e := &endpoint{labels: set.Labels}
		for _, n := range set.Spec.Nets {
			e.nets = append(e.nets, netip.MustParsePrefix(n))
		}
		d.endpoints = append(d.endpoints, e)
	case "NetworkPolicy":
		p := decode[v3.NetworkPolicy](o)
		sel := fmt.Sprintf("(%s) && projectcalico.org/namespace == '%s'", p.Spec.Selector, p.Namespace)
		d.policies = append(d.policies, netpol{order: orderOf(p.Spec.Order), name: p.Namespace + "/" + p.Name, selector: sel, types: p.Spec.Types,
			ingress: rules(p.Spec.Ingress, p.Namespace), egress: rules(p.Spec.Egress, p.Namespace)})
	case "GlobalNetworkPolicy":
		p := decode[v3.GlobalNetworkPolicy](o)
		sel := "(" + p.Spec.Selector + ")"
		if p.Spec.NamespaceSelector != "" {
			sel += " && (" + prefixed(p.Spec.NamespaceSelector) + ")"
		}
		d.policies = append(d.policies, netpol{order: orderOf(p.Spec.Order), name: p.Name, selector: sel, types: p.Spec.Types,
			ingress: rules(p.Spec.Ingress, ""), egress: rules(p.Spec.Egress, "")})
	}
}

func decode[T any](o *unstructured.Unstructured) T {
	var out T
	data, err := o.MarshalJSON()
	if err != nil {
		panic(err)
	}
	if err := json.Unmarshal(data, &out); err != nil {
		panic(err)
	}
	return out
}

func orderOf(o *float64) float64 {
	if o == nil {
		return math.Inf(1)
	}
	return *o
}

func rules(in []v3.Rule, ns string) []rule {
	var out []rule
	for _, r := range in {
		x := rule{action: r.Action, src: entity(r.Source, ns), dst: entity(withoutNets(r.Destination), ns)}
		if r.Protocol != nil {
			x.protocol = r.Protocol.String()
		}
		for _, p := range r.Destination.Ports {
			x.ports = append(x.ports, p.MinPort)
		}
		for _, n := range r.Destination.Nets {
			x.dstNets = append(x.dstNets, netip.MustParsePrefix(n))
		}
		out = append(out, x)
	}
	return out
}

// withoutNets is a destination as far as selectors go; rule.dstNets holds the rest.
func withoutNets(e v3.EntityRule) v3.EntityRule {
	e.Nets = nil
	return e
}

// entity is getEndpointSelector of libcalico-go.
func entity(e v3.EntityRule, ns string) string {
	if len(e.Nets)+len(e.NotNets) > 0 || e.NotSelector != "" || e.ServiceAccounts != nil || e.Services != nil {
		panic("the evaluator does not know this")
	}
	var parts []string
	switch {
	case e.NamespaceSelector == "all()":
		parts = append(parts, "has(projectcalico.org/namespace)")
	case e.NamespaceSelector == "global()":
		parts = append(parts, "!has(projectcalico.org/namespace)")
	case e.NamespaceSelector != "":
		parts = append(parts, "("+prefixed(e.NamespaceSelector)+")")
	case ns != "" && e.Selector != "":
		parts = append(parts, "projectcalico.org/namespace == '"+ns+"'")
	}
	if e.Selector != "" {
		parts = append(parts, "("+e.Selector+")")
	}
	return strings.Join(parts, " && ")
}

// prefixed is parseSelectorAttachPrefix for the selectors of this project: one comparison.
func prefixed(sel string) string { return "pcns." + sel }

// allows decides on one direction of a connection between addresses.
func (d *dataplane) allows(who *endpoint, ingress bool, peer netip.Addr, protocol string, port uint16) bool {
	if !d.tiered {
		return true
	}
	for _, p := range d.policies {
		want, list := v3.PolicyTypeEgress, p.egress
		if ingress {
			want, list = v3.PolicyTypeIngress, p.ingress
		}
		if !slices.Contains(p.types, want) || !selects(p.selector, who) {
			continue
		}
		for _, r := range list {
			if !d.matches(r, who, ingress, peer, protocol, port) {
				continue
			}
			switch r.action {
			case v3.Pass, v3.Allow:
				return true // no tier after ours holds anything in these tests
			case v3.Deny:
				return false
			default:
				panic(r.action)
			}
		}
	}
	return true
}

func (d *dataplane) matches(r rule, who *endpoint, ingress bool, peer netip.Addr, protocol string, port uint16) bool {
	if r.protocol != "" && r.protocol != protocol || len(r.ports) > 0 && !slices.Contains(r.ports, port) {
		return false
	}
	src, dst := who.nets[0].Addr(), peer
	if ingress {
		src, dst = peer, who.nets[0].Addr()
	}
	inNets := len(r.dstNets) == 0 || slices.ContainsFunc(r.dstNets, func(n netip.Prefix) bool { return n.Contains(dst) })
	return inNets && d.inSelector(r.src, src) && d.inSelector(r.dst, dst)
}

// inSelector reports whether any endpoint or set with the address matches: that is how
// Felix makes IP sets.
func (d *dataplane) inSelector(sel string, addr netip.Addr) bool {
	if sel == "" {
		return true
	}
	return slices.ContainsFunc(d.endpoints, func(e *endpoint) bool {
		return slices.ContainsFunc(e.nets, func(n netip.Prefix) bool { return n.Contains(addr) }) && selects(sel, e)
	})
}

func selects(sel string, e *endpoint) bool {
	p := &selParser{rest: sel, e: e}
	v := p.or()
	if strings.TrimSpace(p.rest) != "" {
		panic(fmt.Sprintf("selector %q: rest %q", sel, p.rest))
	}
	return v
}

// selParser evaluates Calico's selector language.
type selParser struct {
	rest string
	e    *endpoint
}

func (p *selParser) take(tok string) bool {
	p.rest = strings.TrimLeft(p.rest, " ")
	if strings.HasPrefix(p.rest, tok) {
		p.rest = p.rest[len(tok):]
		return true
	}
	return false
}

func (p *selParser) or() bool {
	v := p.and()
	for p.take("||") {
		w := p.and()
		v = v || w
	}
	return v
}

func (p *selParser) and() bool {
	v := p.unary()
	for p.take("&&") {
		w := p.unary()
		v = v && w
	}
	return v
}

func (p *selParser) unary() bool {
	switch {
	case p.take("!"):
		return !p.unary()
	case p.take("("):
		v := p.or()
		p.must(")")
		return v
	case p.take("all()"):
		return true
	case p.take("has("):
		i := strings.Index(p.rest, ")")
		_, ok := p.e.get(strings.TrimSpace(p.rest[:i]))
		p.rest = p.rest[i+1:]
		return ok
	}
	i := strings.IndexAny(p.rest, " =!")
	key := p.rest[:i]
	p.rest = p.rest[i:]
	have, ok := p.e.get(key)
	switch {
	case p.take("=="):
		want := p.literal()
		return ok && have == want
	case p.take("!="):
		want := p.literal()
		return !ok || have != want
	case p.take("not in"):
		set := p.set()
		return !ok || !slices.Contains(set, have)
	case p.take("in"):
		set := p.set()
		return ok && slices.Contains(set, have)
	}
	panic(fmt.Sprintf("selector: %q", p.rest))
}

func (p *selParser) must(tok string) {
	if !p.take(tok) {
		panic(fmt.Sprintf("selector: want %q at %q", tok, p.rest))
	}
}

func (p *selParser) literal() string {
	p.must("'")
	i := strings.Index(p.rest, "'")
	v := p.rest[:i]
	p.rest = p.rest[i+1:]
	return v
}

func (p *selParser) set() []string {
	p.must("{")
	var out []string
	for !p.take("}") {
		out = append(out, p.literal())
		p.take(",")
	}
	return out
}

// pod finds a pod's endpoint; nil when it has none of its own.
func (d *dataplane) pod(key string) *endpoint {
	i := slices.IndexFunc(d.endpoints, func(e *endpoint) bool { return e.pod == key })
	if i < 0 {
		return nil
	}
	return d.endpoints[i]
}
