package trustgraph

import (
	"fmt"
	"slices"
	"strings"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// Identity is what must be proved before SPIRE issues the SPIFFE ID of one service
// account: the conjunction of every policy that is for pods of that account. An SVID
// cannot tell such pods apart, so what any of them needs, all of them need.
type Identity struct {
	Namespace, ServiceAccount string
	Mode                      string
	Policies                  []string
	// References are the accepted reference sets; a node must match one.
	References []string
	// Tags lists the accepted values per key; a node must have one for each key.
	Tags map[string][]string
	// Verifiers lists alternatives, each a set of verifiers that must all accept the
	// image; one empty alternative when no policy names any.
	Verifiers [][]string
	// Digests are the accepted image manifests; nil when no policy names any.
	Digests    []string
	Restricted bool
	// Problem says why the ID may not be issued at all.
	Problem string
}

// Key is namespace/serviceaccount.
func (i Identity) Key() string { return i.Namespace + "/" + i.ServiceAccount }

// SPIFFEID is the ID that Istio expects of a service account.
func SPIFFEID(trustDomain, namespace, serviceAccount string) string {
	return "spiffe://" + trustDomain + "/ns/" + namespace + "/sa/" + serviceAccount
}

func (b *builder) buildIdentities() {
	for key, policies := range b.byServiceAccount() {
		id := Identity{Namespace: key.namespace, ServiceAccount: key.account, Mode: b.modes[key.namespace]}
		b.merge(&id, policies)
		for _, p := range policies {
			if id.Problem != "" {
				p.Blockers = append(p.Blockers, fmt.Sprintf("no SVID for service account %s: %s", id.ServiceAccount, id.Problem))
			}
			if len(policies) > 1 {
				p.Notes = append(p.Notes, fmt.Sprintf("service account %s is under several policies (%s): its SVID needs what each of them asks", id.ServiceAccount, strings.Join(id.Policies, ", ")))
			}
		}
		b.g.Identities = append(b.g.Identities, id)
	}
}

type accountKey struct{ namespace, account string }

// byServiceAccount collects the policies that are for pods of each service account.
// A policy that cannot be read and names no account is for every account it could mean.
func (b *builder) byServiceAccount() map[accountKey][]*Policy {
	out := map[accountKey][]*Policy{}
	for i := range b.g.Policies {
		p := &b.g.Policies[i]
		if p.Mode == "" {
			continue
		}
		for _, sa := range sorted(slices.Clone(p.ServiceAccounts)) {
			out[accountKey{p.Namespace, sa}] = append(out[accountKey{p.Namespace, sa}], p)
		}
	}
	for key, policies := range out {
		for i := range b.g.Policies {
			p := &b.g.Policies[i]
			if !p.Accepted && p.Namespace == key.namespace && p.Spec.Workloads.ServiceAccount == "" {
				policies = append(policies, p)
			}
		}
		slices.SortFunc(policies, func(x, y *Policy) int { return strings.Compare(x.Name, y.Name) })
		out[key] = policies
	}
	return out
}

// merge intersects what the policies ask.
func (b *builder) merge(id *Identity, policies []*Policy) {
	id.Verifiers = [][]string{nil}
	for _, p := range policies {
		id.Policies = append(id.Policies, p.Name)
		if !p.Accepted {
			id.Problem = fmt.Sprintf("policy %s is not accepted", p.Name)
			continue
		}
		r := p.Spec.Require
		id.References = intersect(id.References, r.Node.References)
		for key, values := range r.Node.Tags {
			if id.Tags == nil {
				id.Tags = map[string][]string{}
			}
			id.Tags[key] = intersect(id.Tags[key], values)
		}
		id.Digests = intersect(id.Digests, r.Image.Digests)
		id.Verifiers = alternatives(id.Verifiers, r.Image.VerifiedBy)
		id.Restricted = id.Restricted || r.Runtime == v1alpha1.RuntimeRestricted
	}
	if id.Problem == "" {
		id.Problem = b.unsatisfiable(id)
	}
	if text, shared := b.shared[id.Key()]; shared && b.s.Config.RefuseSharedServiceAccounts {
		id.Problem = text
	}
}

// unsatisfiable fills in the known reference sets where no policy names any, and says
// why no workload could ever meet the requirement, or nothing.
func (b *builder) unsatisfiable(id *Identity) string {
	if id.References == nil {
		id.References = b.knownReferences()
		if len(id.References) == 0 {
			return "no node has proved itself against any reference set yet"
		}
	}
	if len(id.References) == 0 {
		return "its policies accept no reference set in common"
	}
	n := len(id.References)
	for _, key := range sortedKeys(id.Tags) {
		if len(id.Tags[key]) == 0 {
			return fmt.Sprintf("its policies accept no value of tag %s in common", key)
		}
		n = min(n*len(id.Tags[key]), maxAlternatives+1)
	}
	if id.Digests != nil && len(id.Digests) == 0 {
		return "its policies accept no image digest in common"
	}
	if n > maxAlternatives || len(id.Verifiers)*max(1, len(id.Digests)) > maxAlternatives {
		return fmt.Sprintf("its policies together have more than %d alternatives", maxAlternatives)
	}
	return b.foldedTwin(id)
}

// foldedTwin says which node SPIRE would take for one that meets the requirement though it does not, or nothing. SPIRE's
// selectors are lower case (nodeclaim), so DE and de are one to it.
func (b *builder) foldedTwin(id *Identity) string {
	folded := func(accepted []string, have string) bool {
		return slices.ContainsFunc(accepted, func(v string) bool { return strings.EqualFold(v, have) })
	}
	for _, name := range sortedKeys(b.nodes) {
		n := b.nodes[name]
		exact, twin := slices.Contains(id.References, n.Reference), folded(id.References, n.Reference)
		for key, values := range id.Tags {
			exact = exact && slices.Contains(values, n.Tags[key])
			found := false
			for k, v := range n.Tags {
				found = found || strings.EqualFold(k, key) && folded(values, v)
			}
			twin = twin && found
		}
		if twin && !exact {
			return fmt.Sprintf("node %s differs from what is asked by upper and lower case alone, which SPIRE's selectors cannot tell apart: rename its reference set or tags", name)
		}
	}
	return ""
}

// knownReferences are the reference sets that nodes have matched. SPIRE selectors know
// no "any", so "any set" becomes "one of those that some node is known to match".
func (b *builder) knownReferences() []string {
	var out []string
	for _, n := range b.nodes {
		if n.Reference != "" && (n.Verdict == v1alpha1.VerdictTrusted || n.Verdict == v1alpha1.VerdictStale) {
			out = append(out, n.Reference)
		}
	}
	return sorted(out)
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

// alternatives multiplies out "one of these and one of those", bounded.
func alternatives(have [][]string, want []string) [][]string {
	if len(want) == 0 {
		return have
	}
	var out [][]string
	for _, h := range have {
		for _, w := range want {
			if len(out) > maxAlternatives {
				return out
			}
			out = append(out, sorted(append(slices.Clone(h), w)))
		}
	}
	slices.SortFunc(out, slices.Compare)
	return slices.CompactFunc(out, slices.Equal)
}
