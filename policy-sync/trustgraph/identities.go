package trustgraph

import (
	"fmt"
	"slices"
	"strings"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// Identity is what must be proved before SPIRE issues the SPIFFE ID of one service
// account: the conjunction of every policy that is for pods of that account. An SVID
// cannot tell such pods apart, so what any of them needs, all of them need.
type Identity struct {
	Namespace, ServiceAccount string
	Mode                      string
	Policies                  []string
	// References are the accepted reference sets; a node must match one. Nil when no policy names any: then any set will do.
	References []string
	// Tags lists the accepted values per key; a node must have one for each key.
	Tags map[string][]string
	// Verifiers lists alternatives, each a set of verifiers that must all accept the
	// image; one empty alternative when no policy names any.
	Verifiers [][]string
	// Digests are the accepted image manifests; nil when no policy names any.
	Digests []string
	// Restricted and Baseline tell which levels its policies ask of the runtime.
	Restricted, Baseline bool
	// Nodes are those whose agents may issue the ID: a pod of the account is bound to each, and each meets the requirement.
	// Sorted by name.
	Nodes []IdentityNode
	// Problem says why the ID may not be issued at all.
	Problem string
}

// IdentityNode is a node that runs, or is bound to run, a pod of an identity.
type IdentityNode struct {
	Name, AgentID string
	// Held is true while the brake holds the node: what its agent may issue it may go on issuing, and nothing more.
	Held bool
}

// Alternatives is how many SPIRE entries the identity has for each of its nodes.
func (i Identity) Alternatives() int { return len(i.Verifiers) * max(1, len(i.Digests)) }

// meets reports whether a node meets what the identity asks of its node, by what the node has proved, letter by letter.
func (i Identity) meets(n Node) bool {
	if n.Verdict != v1alpha1.VerdictTrusted && !n.Held || n.AgentID == "" || n.Reference == "" {
		return false
	}
	if i.References != nil && !slices.Contains(i.References, n.Reference) {
		return false
	}
	for key, values := range i.Tags {
		if have, ok := n.Tags[key]; !ok || !slices.Contains(values, have) {
			return false
		}
	}
	return true
}

// Key is namespace/serviceaccount.
func (i Identity) Key() string { return i.Namespace + "/" + i.ServiceAccount }

// SPIFFEID is the ID that Istio expects of a service account.
func SPIFFEID(trustDomain, namespace, serviceAccount string) string {
	return "spiffe://" + trustDomain + "/ns/" + namespace + "/sa/" + serviceAccount
}

func (b *builder) buildIdentities() {
	bound := b.boundNodes()
	for account, policies := range b.byServiceAccount() {
		id := Identity{Namespace: b.namespace, ServiceAccount: account, Mode: b.modes[b.namespace]}
		b.merge(&id, policies)
		if id.Problem == "" {
			id.Nodes = b.issuers(id, bound[account])
		}
		for _, p := range policies {
			if id.Problem != "" {
				p.Blockers = append(p.Blockers, fmt.Sprintf("no SVID for service account %s: %s", id.ServiceAccount, id.Problem))
			}
			if len(policies) > 1 {
				p.Notes = append(p.Notes, fmt.Sprintf("service account %s is under several policies (%s): its SVID needs what each of them asks", id.ServiceAccount, strings.Join(id.Policies, ", ")))
			}
		}
		b.identities = append(b.identities, id)
	}
}

// boundNodes are the nodes to which pods of each service account are bound that have not ended. A pod counts from its binding on,
// before its containers are there, because an agent learns of an entry some seconds after it is made. A mirror pod does not
// count: a kubelet makes it by itself, and it has no service account.
func (b *builder) boundNodes() map[string]map[string]bool {
	out := map[string]map[string]bool{}
	for _, pod := range b.live {
		if pod.Spec.NodeName == "" || snapshot.Mirror(pod) {
			continue
		}
		account := snapshot.ServiceAccount(pod)
		if out[account] == nil {
			out[account] = map[string]bool{}
		}
		out[account][pod.Spec.NodeName] = true
	}
	return out
}

// issuers are those of the nodes whose agents may issue the identity.
func (b *builder) issuers(id Identity, nodes map[string]bool) []IdentityNode {
	var out []IdentityNode
	for _, name := range sortedKeys(nodes) {
		if n, ok := b.nodes[name]; ok && id.meets(n) {
			out = append(out, IdentityNode{Name: n.Name, AgentID: n.AgentID, Held: n.Held})
		}
	}
	return out
}

// byServiceAccount collects the policies that are for pods of each service account. A policy without a spec in force is for
// nobody's identity.
func (b *builder) byServiceAccount() map[string][]*Policy {
	out := map[string][]*Policy{}
	for i := range b.policies {
		p := &b.policies[i]
		if p.Mode == "" {
			continue
		}
		for _, sa := range sorted(slices.Clone(p.ServiceAccounts)) {
			out[sa] = append(out[sa], p)
		}
	}
	for _, policies := range out {
		slices.SortFunc(policies, func(x, y *Policy) int { return strings.Compare(x.Name, y.Name) })
	}
	return out
}

// merge intersects what the policies ask.
func (b *builder) merge(id *Identity, policies []*Policy) {
	id.Verifiers = [][]string{nil}
	for _, p := range policies {
		id.Policies = append(id.Policies, p.Name)
		r := p.Spec.Require
		id.References = intersect(id.References, r.Node.References)
		for key, values := range r.Node.Tags {
			if id.Tags == nil {
				id.Tags = map[string][]string{}
			}
			id.Tags[key] = intersect(id.Tags[key], values)
		}
		id.Digests = intersect(id.Digests, r.Image.Digests)
		id.Verifiers = alternatives(id.Verifiers, verifierSets(r.Image))
		id.Restricted = id.Restricted || r.Runtime == v1alpha1.RuntimeRestricted
		id.Baseline = id.Baseline || r.Runtime == v1alpha1.RuntimeBaseline
	}
	if id.Problem == "" {
		id.Problem = unsatisfiable(id)
	}
	if text, shared := b.shared[id.ServiceAccount]; shared && b.s.Config.RefuseSharedServiceAccounts {
		id.Problem = text
	}
}

// unsatisfiable says why no workload could ever meet the requirement, or nothing.
func unsatisfiable(id *Identity) string {
	if id.References != nil && len(id.References) == 0 {
		return "its policies accept no reference set in common"
	}
	for _, key := range sortedKeys(id.Tags) {
		if len(id.Tags[key]) == 0 {
			return fmt.Sprintf("its policies accept no value of tag %s in common", key)
		}
	}
	if id.Digests != nil && len(id.Digests) == 0 {
		return "its policies accept no image digest in common"
	}
	if id.Alternatives() > maxAlternatives {
		return fmt.Sprintf("its policies together have more than %d alternatives", maxAlternatives)
	}
	return ""
}

// intersect keeps what both lists accept; an empty want accepts anything, a nil have
// nothing said so far. The result is nil only when nothing was ever said.
func intersect(have, want []string) []string {
	if len(want) == 0 {
		return have
	}
	if have == nil {
		return sorted(slices.Clone(want))
	}
	out := []string{}
	for _, v := range have {
		if slices.Contains(want, v) {
			out = append(out, v)
		}
	}
	return out
}

// alternatives multiplies out "one of these sets and one of those", bounded.
func alternatives(have, want [][]string) [][]string {
	var out [][]string
	for _, h := range have {
		for _, w := range want {
			if len(out) > maxAlternatives {
				return out
			}
			out = append(out, sorted(slices.Concat(h, w)))
		}
	}
	slices.SortFunc(out, slices.Compare)
	return slices.CompactFunc(out, slices.Equal)
}
