package trustgraph

import (
	"cmp"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// whole is what concerns several namespaces: who lets whom in, how SPIRE's room is shared, what others
// made. It reads parts and changes none.
type whole struct {
	*common
	parts map[string]*part
	// order are the namespaces of parts, in the order of the keys of what they hold.
	order []string
	// spire is what was worked out of the SPIRE server's entries; it is kept for the next graph.
	spire *spireFacts

	// answers are, by policy, other policies that let its pods in; crowded says of a policy that its
	// callers find no room.
	answers map[string][]Answer
	crowded map[string][]string
	// full are identities (by key) for whose entries there is no room; entries is how many all need.
	full    map[string]string
	entries int
	// covered are the service accounts ("namespace/name") that a policy is for.
	covered map[string]bool
	// broken says of policies (by key) that what they let in could not be worked out.
	broken map[string]string
	// defeats withhold "programmed" from policies, and hazards from those with HTTP rules.
	defeats []defeat
	hazards []hazard
	evict   []Eviction
	own     []string
	reports []string
}

// defeat is why no policy of a namespace that enforces may be called programmed; of all namespaces, when
// it is empty.
type defeat struct{ namespace, text string }

// newWhole looks at all parts.
func newWhole(c *common, parts map[string]*part, spire *spireFacts) *whole {
	w := &whole{common: c, parts: parts, order: inOrder(parts), spire: spire, covered: map[string]bool{}, broken: map[string]string{}}
	for _, name := range w.order {
		for i := range parts[name].policies {
			for _, account := range parts[name].policies[i].ServiceAccounts {
				w.covered[name+"/"+account] = true
			}
		}
	}
	w.reportDisbelieved()
	w.buildAnswers()
	w.boundEntries()
	w.ownEntries()
	w.evictions()
	w.reportBlocks()
	w.buildForeign()
	w.reportLimits()
	return w
}

// each calls f with every policy of the parts, in order.
func (w *whole) each(f func(p *Policy)) {
	for _, name := range w.order {
		for i := range w.parts[name].policies {
			f(&w.parts[name].policies[i])
		}
	}
}

// wide is a namespace's policies and identities, with what others have to do with them.
type wide struct {
	from       *part
	policies   []Policy
	identities []Identity
}

// widen makes the wide form of one namespace. It changes copies.
func (w *whole) widen(namespace string) *wide {
	out := &wide{from: w.parts[namespace]}
	if out.identities = out.from.identities; len(w.full) > 0 {
		out.identities = slices.Clone(out.identities)
		for i := range out.identities {
			if problem, ok := w.full[out.identities[i].Key()]; ok {
				out.identities[i].Nodes, out.identities[i].Problem = nil, problem
			}
		}
	}
	for i := range out.from.policies {
		p := out.from.policies[i].apart()
		w.confine("TrustPolicy "+p.Key(), func() { w.widenPolicy(&p) }, func(cause any) {
			p = out.from.policies[i].apart()
			p.Blockers = append(p.Blockers, fmt.Sprintf("what others have to do with the policy could not be judged, %s: %v", ownFault, cause))
		})
		p.Notes, p.Blockers = sorted(p.Notes), sorted(p.Blockers)
		out.policies = append(out.policies, p)
	}
	return out
}

func (w *whole) widenPolicy(p *Policy) {
	p.Answers = w.answers[p.Key()]
	p.Blockers = append(p.Blockers, w.crowded[p.Key()]...)
	if text, ok := w.broken[p.Key()]; ok {
		p.Blockers = append(p.Blockers, text)
	}
	for i := range w.parts[p.Namespace].identities {
		id := &w.parts[p.Namespace].identities[i]
		if problem, ok := w.full[id.Key()]; ok && slices.Contains(id.Policies, p.Name) {
			p.Blockers = append(p.Blockers, fmt.Sprintf("no SVID for service account %s: %s", id.ServiceAccount, problem))
		}
	}
	w.noteAbsent(p)
	w.foreignEntries(p)
	for _, d := range w.defeats {
		if p.Mode == v1alpha1.ModeEnforce && (d.namespace == "" || d.namespace == p.Namespace) {
			p.Blockers = append(p.Blockers, d.text)
		}
	}
	w.endanger(p)
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

// reportDisbelieved reports which addresses of lost nodes are not believed, of all namespaces together.
func (w *whole) reportDisbelieved() {
	refused := map[string][]string{}
	for _, name := range w.order {
		for node, texts := range w.parts[name].disbelieved {
			refused[node] = append(refused[node], texts...)
		}
	}
	w.reportRefused(refused)
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
	w.reports = append(w.reports, fmt.Sprintf(format, args...))
}

// pod finds a pod that has not ended, of an enrolled namespace.
func (w *whole) pod(namespace, key string) *corev1.Pod {
	if p := w.parts[namespace]; p != nil {
		return p.live[key]
	}
	return nil
}

// noteAbsent notes which of a policy's accounts no pod has, or no TrustPolicy is for: such a peer is never let in. A name that is
// misspelt looks the same as a workload that does not run now, so that it is a note.
func (w *whole) noteAbsent(p *Policy) {
	if p.Mode == "" || !p.Accepted {
		return
	}
	if len(p.Selected) == 0 {
		p.Notes = append(p.Notes, selectsNone(p))
	}
	for j, r := range p.Spec.Ingress {
		w.noteAbsentPeers(p, fmt.Sprintf("ingress[%d].from", j), r.From)
	}
	for j, r := range p.Spec.Egress {
		w.noteAbsentPeers(p, fmt.Sprintf("egress[%d].to", j), r.To)
	}
}

func (w *whole) noteAbsentPeers(p *Policy, where string, peers []v1alpha1.Peer) {
	for j, peer := range peers {
		ns := PeerNamespace(p.Namespace, peer)
		if w.modes[ns] == "" {
			continue // notePeers says so
		}
		of := w.parts[ns]
		switch runs := of != nil && of.runs[peer.ServiceAccount]; {
		case !runs:
			p.Notes = append(p.Notes, fmt.Sprintf("%s[%d]: no pod runs as service account %s of %s now", where, j, peer.ServiceAccount, ns))
		case !w.covered[ns+"/"+peer.ServiceAccount]:
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

// reportLimits reports what is more than the data planes take.
func (w *whole) reportLimits() {
	if w.s.Config.Calico && w.s.Config.CalicoDefinitions {
		w.report("Calico's API (projectcalico.org/v3) is served from its definitions alone, without Calico's API server: nothing of Calico's asks who may write in tier %s, "+
			"and objects that exceed a limit of the definitions (selectors of %d characters, 1,024 rules) are refused; Keelson's guards have to be installed",
			v1alpha1.CalicoTier, MaxCalicoSelector)
	}
}
