package trustgraph

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// MaxCalicoSelector is how many characters Calico's definitions of projectcalico.org/v3 take as a selector.
const MaxCalicoSelector = 1024

// MaxRevoked is how many revoked addresses the sets hold.
const MaxRevoked = v1alpha1.MaxRevokedSets * v1alpha1.MaxRevokedPerSet

// Limits on what one TrustPolicy comes to. They hold what policy-sync writes for it below the limits of the APIs: 512 rules in
// Istio's AuthorizationPolicy, 1,024 rules and selectors of 1,024 characters in Calico's NetworkPolicy, 1.5 MiB in etcd. What
// can be dealt out to several objects is; what is left is bounded here, so that time and output follow the input.
const (
	maxFlows      = 2048      // peers of all rules of one direction
	maxCallers    = 1024      // distinct callers: one DENY rule names them all
	maxHTTPBytes  = 256 << 10 // methods and paths of all rules
	maxDenyBytes  = 512 << 10 // values of all DENY rules, one for each set of callers with the same rules
	maxPorts      = 256       // distinct ports of ingress: each caller's egress names them
	maxSelectors  = 128 << 10 // characters of all podSelectors and tags of one direction
	maxPeerText   = 4096      // characters of podSelector and tags of one peer
	maxPeerFixed  = 700       // the same without alternatives, which can be dealt out to several rules
	maxAnswers    = 4096      // other policies that let in pods of one policy
	maxAnswersOf  = 512       // the same, of one namespace
	maxShared     = 32        // other policies that a policy shares pods with
	maxBoundNotes = 8         // blockers of one kind on one policy
)

// checkBounds lists which limits a policy exceeds, with the limit's name and numbers.
func checkBounds(add adder, tp *v1alpha1.TrustPolicy) {
	var in, out []v1alpha1.Peer
	ports, http := map[int32]bool{}, 0
	for _, r := range tp.Spec.Ingress {
		in = append(in, r.From...)
		for _, p := range r.Ports {
			ports[p] = true
		}
		http += httpBytes(r.HTTP)
	}
	for _, r := range tp.Spec.Egress {
		out = append(out, r.To...)
	}
	checkPeerBounds(add, "ingress", in)
	checkPeerBounds(add, "egress", out)
	if len(ports) > maxPorts {
		add("ingress: %d distinct ports; at most %d, because the egress of every caller names them; leave ports out to mean all", len(ports), maxPorts)
	}
	if http > maxHTTPBytes {
		add("ingress: methods and paths of %d characters; at most %d fit into Istio's AuthorizationPolicy; use path prefixes", http, maxHTTPBytes)
		return
	}
	c := costOf([]ingress{{tp.Namespace, tp.Spec.Ingress}})
	if c.callers > maxCallers {
		add("ingress: %d distinct callers; at most %d fit into the rule of Istio's AuthorizationPolicy that denies all others", c.callers, maxCallers)
	}
	if c.bytes > maxDenyBytes {
		add("ingress: DENY rules of %d characters, one for each set of callers with the same rules; at most %d fit into Istio's AuthorizationPolicies; let more callers share the same rules",
			c.bytes, maxDenyBytes)
	}
}

func checkPeerBounds(add adder, where string, peers []v1alpha1.Peer) {
	if len(peers) > maxFlows {
		add("%s: %d peers in all its rules; at most %d fit into Calico's NetworkPolicies; let rules share ports", where, len(peers), maxFlows)
	}
	all := 0
	for _, p := range peers {
		text, fixed := selectorText(p)
		if text > maxPeerText || fixed > maxPeerFixed {
			add("%s: podSelector and tags of peer %.80q take %d characters in Calico's selector language, %d of them in what cannot be split; at most %d and %d fit its limit of %d",
				where, p.ServiceAccount, text, fixed, maxPeerText, maxPeerFixed, MaxCalicoSelector)
			return
		}
		all += text
	}
	if all > maxSelectors {
		add("%s: podSelectors and tags of all peers take %d characters in Calico's selector language; at most %d", where, all, maxSelectors)
	}
}

// selectorText is about how many characters a peer's podSelector and tags take in Calico's selector language, and how many of
// them remain when each list of alternatives is cut down to its longest value. It rather counts too many.
func selectorText(p v1alpha1.Peer) (text, fixed int) {
	count := func(key string, values []string, split bool) {
		head, longest, sum := len(key)+len(" not in {  } && "), 0, 0
		for _, v := range values {
			longest, sum = max(longest, len(v)+4), sum+len(v)+4
		}
		if !split {
			longest = sum
		}
		text, fixed = text+head+sum, fixed+head+longest
	}
	for key, values := range p.Tags {
		count(v1alpha1.PodTagPrefix+key, values, true)
	}
	if p.PodSelector == nil {
		return text, fixed
	}
	for key, value := range p.PodSelector.MatchLabels {
		count(key, []string{value}, true)
	}
	for _, e := range p.PodSelector.MatchExpressions {
		count(e.Key, e.Values, e.Operator == metav1.LabelSelectorOpIn)
	}
	return text, fixed
}

func httpBytes(rules []v1alpha1.HTTPRule) int {
	n := 0
	for _, h := range rules {
		n += 64
		for _, list := range [][]string{h.Methods, h.Paths} {
			for _, v := range list {
				n += len(v) + 3
			}
		}
	}
	return n
}

// ingress is the rules of one policy in its namespace.
type ingress struct {
	namespace string
	rules     []v1alpha1.IngressRule
}

// cost is what the rules that deny all else come to.
type cost struct{ callers, bytes int }

// costOf counts distinct callers, and the values of the rules of each distinct set of rules that callers have. It takes time in
// proportion to the peers and the rules, not to their product.
func costOf(policies []ingress) cost {
	var sizes []int
	ids, rulesOf := map[string]int{}, map[string][]int{}
	for _, p := range policies {
		for _, r := range p.rules {
			key := fmt.Sprintf("%v %q", r.Ports, r.HTTP)
			id, known := ids[key]
			if !known {
				id = len(sizes)
				ids[key], sizes = id, append(sizes, httpBytes(r.HTTP)+8*len(r.Ports))
			}
			for _, peer := range r.From {
				caller := PeerNamespace(p.namespace, peer) + "/" + peer.ServiceAccount
				if list := rulesOf[caller]; len(list) == 0 || list[len(list)-1] != id {
					rulesOf[caller] = append(list, id)
				}
			}
		}
	}
	out := cost{callers: len(rulesOf)}
	seen := map[string]bool{}
	for _, list := range rulesOf {
		list = sortedInts(list)
		key := fmt.Sprint(list)
		if seen[key] {
			continue
		}
		seen[key] = true
		for _, id := range list {
			out.bytes += sizes[id]
		}
	}
	return out
}

func sortedInts(list []int) []int {
	list = slices.Clone(list)
	slices.Sort(list)
	return slices.Compact(list)
}

// Answer is another policy whose ingress lets pods of a policy in.
type Answer struct {
	Namespace, Policy string
	// Ports are sorted; none means all.
	Ports []int32
}

// buildAnswers finds, for each policy, the policies that let its pods in. How many these may be is bounded: in all, and of each
// namespace, so that one team's policies crowd out none but its own. A policy that finds no room says so itself.
func (w *whole) buildAnswers() {
	byCaller := map[string][]Answer{}
	w.answers, w.crowded = map[string][]Answer{}, map[string][]string{}
	w.each(func(p *Policy) {
		if !p.Accepted || p.Mode == "" {
			return
		}
		w.confine("TrustPolicy "+p.Key(), func() {
			for caller, ports := range portsByCaller(p) {
				byCaller[caller] = append(byCaller[caller], Answer{p.Namespace, p.Name, ports})
			}
		}, func(cause any) {
			w.broken[p.Key()] = fmt.Sprintf("whom the policy lets in could not be worked out, %s, so their egress is not opened: %v", ownFault, cause)
		})
	})
	for _, group := range w.byAccounts() {
		var all []Answer
		for _, account := range sorted(slices.Clone(group[0].ServiceAccounts)) {
			all = append(all, byCaller[group[0].Namespace+"/"+account]...)
		}
		fitting := w.fitting(group, joinAnswers(all))
		for _, p := range group {
			w.answers[p.Key()] = fitting
		}
	}
}

// byAccounts groups the policies of a namespace that are for the same service accounts: the same policies let their pods in, so
// these are looked for once, however many policies share an account.
func (w *whole) byAccounts() [][]*Policy {
	var out [][]*Policy
	at := map[string]int{}
	w.each(func(p *Policy) {
		if !p.Accepted || p.Mode == "" {
			return
		}
		key := p.Namespace + " " + strings.Join(sorted(slices.Clone(p.ServiceAccounts)), " ")
		i, known := at[key]
		if !known {
			i = len(out)
			at[key], out = i, append(out, nil)
		}
		out[i] = append(out[i], p)
	})
	return out
}

// portsByCaller is the ports on which a policy lets in each caller ("namespace/account"); none means all.
func portsByCaller(p *Policy) map[string][]int32 {
	ports, all := map[string][]int32{}, map[string]bool{}
	for _, rule := range p.Spec.Ingress {
		for _, peer := range rule.From {
			caller := PeerNamespace(p.Namespace, peer) + "/" + peer.ServiceAccount
			all[caller] = all[caller] || len(rule.Ports) == 0
			ports[caller] = append(ports[caller], rule.Ports...)
		}
	}
	for caller, list := range ports {
		slices.Sort(list)
		if ports[caller] = slices.Compact(list); all[caller] {
			ports[caller] = nil
		}
	}
	return ports
}

// joinAnswers sorts answers and joins those of one policy.
func joinAnswers(all []Answer) []Answer {
	slices.SortFunc(all, func(x, y Answer) int {
		return cmp.Or(cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Policy, y.Policy), slices.Compare(x.Ports, y.Ports))
	})
	var out []Answer
	for _, a := range all {
		if last := len(out) - 1; last >= 0 && out[last].Namespace == a.Namespace && out[last].Policy == a.Policy {
			if len(out[last].Ports) == 0 || len(a.Ports) == 0 {
				out[last].Ports = nil
				continue
			}
			ports := slices.Concat(out[last].Ports, a.Ports)
			slices.Sort(ports)
			out[last].Ports = slices.Compact(ports)
			continue
		}
		out = append(out, a)
	}
	return out
}

// fitting returns the answers that there is room for in each policy of a group, and blocks the policies that there is none for.
func (w *whole) fitting(group []*Policy, answers []Answer) []Answer {
	var out []Answer
	of := map[string]int{}
	for _, a := range answers {
		if of[a.Namespace]++; of[a.Namespace] <= maxAnswersOf && len(out) < maxAnswers {
			out = append(out, a)
			continue
		}
		other := a.Namespace + "/" + a.Policy
		for _, p := range group[:min(len(group), max(0, maxBoundNotes-len(w.crowded[other])))] {
			w.crowded[other] = append(w.crowded[other], fmt.Sprintf(
				"callers under TrustPolicy %s are not let out to these pods: at most %d policies of a namespace, and %d in all, can name the same callers; name them in fewer policies",
				p.Key(), maxAnswersOf, maxAnswers))
		}
	}
	return out
}

// buildShared finds which policies select pods together. A pod is under Istio's DENY of each policy that selects it, so each
// of these permits what any of the others allows; else two policies would shut each other's callers out.
func (b *builder) buildShared() {
	with := map[*Policy]map[string]bool{}
	seen := map[string]bool{}
	for _, pod := range b.pods {
		if len(pod.Matches) < 2 {
			continue
		}
		var names []string
		for _, m := range pod.Matches {
			if p := b.policy(m.Policy); p.Accepted {
				names = append(names, m.Policy)
			}
		}
		if key := pod.Namespace + " " + strings.Join(names, " "); seen[key] {
			continue
		} else {
			seen[key] = true
		}
		for _, name := range names {
			p := b.policy(name)
			if with[p] == nil {
				with[p] = map[string]bool{}
			}
			for _, other := range names {
				if len(with[p]) > maxShared {
					break
				}
				if other != name {
					with[p][other] = true
				}
			}
		}
	}
	for p, others := range with {
		b.share(p, sortedKeys(others))
	}
}

// share enters the policies that share pods with p, unless their callers together are too many for one DENY rule.
func (b *builder) share(p *Policy, others []string) {
	if len(others) > maxShared {
		p.Blockers = append(p.Blockers, fmt.Sprintf("it shares pods with more than %d other policies: what these allow is denied at L7", maxShared))
		return
	}
	all := []ingress{{p.Namespace, p.Spec.Ingress}}
	for _, name := range others {
		all = append(all, ingress{p.Namespace, b.policy(name).Spec.Ingress})
	}
	if c := costOf(all); c.callers > maxCallers || c.bytes > maxDenyBytes {
		p.Blockers = append(p.Blockers, fmt.Sprintf(
			"it shares pods with %d other policies, whose callers and its own come to %d, with DENY rules of %d characters; at most %d and %d fit into Istio's AuthorizationPolicies: what the others allow is denied at L7",
			len(others), c.callers, c.bytes, maxCallers, maxDenyBytes))
		return
	}
	p.SharesPodsWith = others
}
