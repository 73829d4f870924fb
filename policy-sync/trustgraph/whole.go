package trustgraph

import (
	"cmp"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// whole joins the parts of all namespaces to one graph, and adds what concerns several of them: who
// lets whom in, how SPIRE's room is shared, what others made. It changes copies of the parts' policies
// and identities, never those of a part.
type whole struct {
	*common
	g        *Graph
	parts    map[string]*part
	policies map[string]*Policy // by namespace/name
	// crowded counts, for each policy, how often it was said that its callers find no room.
	crowded map[*Policy]int
	// spire is what was worked out of the SPIRE server's entries; it is kept for the next graph.
	spire *spireFacts
}

// join makes the graph.
func join(c *common, parts map[string]*part, spire *spireFacts) Graph {
	w := &whole{common: c, parts: parts, spire: spire, crowded: map[*Policy]int{}, g: &Graph{
		At: c.s.At, Config: c.s.Config, SPIRERead: c.s.SPIRE != nil, Namespaces: c.enrolled, Nodes: c.nodeList, NodeTrusts: c.states,
		Attested: snapshot.Memory{}, AmbientAccounts: map[string]bool{}, Reports: slices.Clone(c.reports),
	}}
	w.collect()
	w.buildAnswers()
	w.boundEntries()
	w.ownEntries()
	w.evictions()
	w.reportBlocks()
	w.buildForeign()
	w.finish()
	return *w.g
}

// inOrder lists the namespaces of parts in the order of the keys of what they hold.
func inOrder(parts map[string]*part) []string {
	names := make([]string, 0, len(parts))
	for name := range parts {
		names = append(names, name)
	}
	slices.SortFunc(names, func(x, y string) int { return cmp.Compare(x+"/", y+"/") })
	return names
}

// collect puts the parts one after the other.
func (w *whole) collect() {
	refused := map[string][]string{}
	for _, name := range inOrder(w.parts) {
		p := w.parts[name]
		w.g.Pods = append(w.g.Pods, p.pods...)
		w.g.Parts = append(w.g.Parts, p.public)
		w.g.Identities = append(w.g.Identities, p.identities...)
		w.g.Revoked = append(w.g.Revoked, p.revoked...)
		w.g.Reports = append(w.g.Reports, p.reports...)
		for _, policy := range p.policies {
			w.g.Policies = append(w.g.Policies, policy.apart())
		}
		if len(p.attested) > 0 {
			w.g.Attested[name] = p.attested
		}
		for account := range p.ambientAccounts {
			w.g.AmbientAccounts[name+"/"+account] = true
		}
		for node, texts := range p.disbelieved {
			refused[node] = append(refused[node], texts...)
		}
	}
	w.g.Attested = boundMemory(w.g.Attested)
	w.reportRefused(refused)
	w.policies = make(map[string]*Policy, len(w.g.Policies))
	for i := range w.g.Policies {
		w.policies[w.g.Policies[i].Key()] = &w.g.Policies[i]
	}
}

// apart is a copy of the policy whose lists can grow without changing those of the original.
func (p Policy) apart() Policy {
	p.Notes, p.Blockers, p.Problems = slices.Clip(p.Notes), slices.Clip(p.Blockers), slices.Clip(p.Problems)
	return p
}

// sort puts a policy's lists into an order that does not depend on the snapshot's.
func (p *Policy) sort() {
	p.Notes, p.Problems, p.Blockers = sorted(p.Notes), sorted(p.Problems), sorted(p.Blockers)
	p.Selected, p.Attested, p.ServiceAccounts = sorted(p.Selected), sorted(p.Attested), sorted(p.ServiceAccounts)
}

func (w *whole) report(format string, args ...any) {
	w.g.Reports = append(w.g.Reports, fmt.Sprintf(format, args...))
}

func (w *whole) policy(namespace, name string) *Policy { return w.policies[namespace+"/"+name] }

// pod finds a pod that has not ended, of an enrolled namespace.
func (w *whole) pod(namespace, key string) *corev1.Pod {
	if p := w.parts[namespace]; p != nil {
		return p.live[key]
	}
	return nil
}

// noteAbsent notes which of a policy's accounts no pod has, or no TrustPolicy is for: such a peer is never let in. A name that is
// misspelt looks the same as a workload that does not run now, so that it is a note.
func (w *whole) noteAbsent() {
	covered := map[string]bool{}
	for i := range w.g.Policies {
		for _, account := range w.g.Policies[i].ServiceAccounts {
			covered[w.g.Policies[i].Namespace+"/"+account] = true
		}
	}
	for i := range w.g.Policies {
		p := &w.g.Policies[i]
		if p.Mode == "" || !p.Accepted {
			continue
		}
		if len(p.Selected) == 0 {
			p.Notes = append(p.Notes, selectsNone(p))
		}
		for j, r := range p.Spec.Ingress {
			w.noteAbsentPeers(p, fmt.Sprintf("ingress[%d].from", j), r.From, covered)
		}
		for j, r := range p.Spec.Egress {
			w.noteAbsentPeers(p, fmt.Sprintf("egress[%d].to", j), r.To, covered)
		}
	}
}

func (w *whole) noteAbsentPeers(p *Policy, where string, peers []v1alpha1.Peer, covered map[string]bool) {
	for j, peer := range peers {
		ns := PeerNamespace(p.Namespace, peer)
		if w.modes[ns] == "" {
			continue // notePeers says so
		}
		of := w.parts[ns]
		switch runs := of != nil && of.runs[peer.ServiceAccount]; {
		case !runs:
			p.Notes = append(p.Notes, fmt.Sprintf("%s[%d]: no pod runs as service account %s of %s now", where, j, peer.ServiceAccount, ns))
		case !covered[ns+"/"+peer.ServiceAccount]:
			p.Notes = append(p.Notes, fmt.Sprintf("%s[%d]: no TrustPolicy is for service account %s of %s, so none of its pods is attested and let in", where, j, peer.ServiceAccount, ns))
		}
	}
}

func selectsNone(p *Policy) string {
	if w := p.Spec.Workloads; w.Selector == nil {
		return fmt.Sprintf("the policy selects no pod: none in %s runs as service account %s now", p.Namespace, w.ServiceAccount)
	}
	return "the policy selects no pod: none in " + p.Namespace + " has the labels and the service account of its workloads now"
}

// finish puts everything into an order that does not depend on the snapshot's.
func (w *whole) finish() {
	g := w.g
	slices.SortFunc(g.Revoked, func(x, y Revoked) int {
		return cmp.Or(cmp.Compare(x.Address, y.Address), cmp.Compare(x.Reason, y.Reason), cmp.Compare(x.Node, y.Node))
	})
	g.Revoked = slices.CompactFunc(g.Revoked, func(x, y Revoked) bool { return x.Address == y.Address })
	if len(g.Revoked) > MaxRevoked {
		w.report("more than %d addresses are revoked, the most that %d sets hold: the last set takes the rest, the API may refuse it, and keelson-node ends the connections of %d: "+
			"take the machines that are proved bad out of the cluster", MaxRevoked, v1alpha1.MaxRevokedSets, MaxRevoked)
	}
	if w.s.Config.Calico && w.s.Config.CalicoDefinitions {
		w.report("Calico's API (projectcalico.org/v3) is served from its definitions alone, without Calico's API server: nothing of Calico's asks who may write in tier %s, "+
			"and objects that exceed a limit of the definitions (selectors of %d characters, 1,024 rules) are refused; Keelson's guards have to be installed",
			v1alpha1.CalicoTier, MaxCalicoSelector)
	}
	slices.SortFunc(g.Evict, func(x, y Eviction) int {
		return cmp.Or(cmp.Compare(x.AgentID, y.AgentID), cmp.Compare(x.Reason, y.Reason))
	})
	g.Evict = slices.CompactFunc(g.Evict, func(x, y Eviction) bool { return x.AgentID == y.AgentID })
	slices.SortFunc(g.Identities, func(x, y Identity) int { return cmp.Compare(x.Key(), y.Key()) })
	g.Reports = sorted(g.Reports)
	for i := range g.Policies {
		p := &g.Policies[i]
		p.Notes, p.Blockers = sorted(p.Notes), sorted(p.Blockers)
	}
}
