package trustgraph

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// maxNotes is how many notes a policy's status holds.
const maxNotes = 32

// maxAlternatives bounds the SPIRE entries of one kind for one identity.
const maxAlternatives = v1alpha1.MaxAlternatives

// ReservedPolicy is a name that no TrustPolicy may have: Keelson's own default deny
// of a namespace is named by it.
const ReservedPolicy = v1alpha1.ReservedPolicy

func (b *builder) buildPolicies() {
	for _, tp := range b.source.policies {
		p := Policy{Namespace: tp.Namespace, Name: tp.Name, UID: string(tp.UID), Generation: tp.Generation, Spec: *tp.Spec.DeepCopy(), Mode: b.modes[tp.Namespace]}
		inForce(&p, tp)
		if sa := p.Spec.Workloads.ServiceAccount; sa != "" && p.Accepted {
			p.ServiceAccounts = []string{sa}
		}
		if p.Mode == "" {
			p.Notes = append(p.Notes, fmt.Sprintf("namespace %s is not enrolled (label %s), so the policy does nothing", tp.Namespace, v1alpha1.ModeLabel))
		}
		b.notePolicy(&p)
		b.policies = append(b.policies, p)
	}
	for i := range b.policies {
		if p := &b.policies[i]; p.Accepted {
			b.choosers = append(b.choosers, newChooser(p))
		} else {
			b.refused = append(b.refused, newChooser(p))
		}
	}
}

// notePolicy notes what of an accepted policy no data plane can express.
func (b *builder) notePolicy(p *Policy) {
	note := func(format string, args ...any) { p.Notes = append(p.Notes, fmt.Sprintf(format, args...)) }
	b.noteNodes(p)
	if p.Spec.Workloads.Selector != nil {
		note("workloads.selector binds network policy only: an SVID cannot tell pods of one service account apart by labels")
	}
	for i, rule := range p.Spec.Ingress {
		if len(rule.HTTP) > 0 && !b.s.Config.Istio {
			withhold(p, fmt.Sprintf("ingress[%d].http needs Istio, which is not used: nothing reads HTTP, and every request of the peers on these ports is let in", i))
		}
		b.notePeers(p, fmt.Sprintf("ingress[%d].from", i), rule.From)
	}
	for i, rule := range p.Spec.Egress {
		b.notePeers(p, fmt.Sprintf("egress[%d].to", i), rule.To)
	}
	if !b.s.Config.Calico && !b.s.Config.Istio {
		p.Blockers = append(p.Blockers, "neither Calico nor Istio is there to enforce the policy: it only decides on SVIDs and labels")
	}
	if b.ambient(p.Namespace) {
		note("IdentityNotAttested: namespace %s is in Istio's ambient mode, whose ztunnel has no identity from SPIRE yet", p.Namespace)
		if slices.ContainsFunc(p.Spec.Ingress, func(r v1alpha1.IngressRule) bool { return len(r.HTTP) > 0 }) {
			note("ingress.http: ztunnel reads no HTTP, so these rules let nothing in; name ports alone, or use sidecars")
		}
	}
}

func (b *builder) notePeers(p *Policy, where string, peers []v1alpha1.Peer) {
	for j, peer := range peers {
		namespace := PeerNamespace(p.Namespace, peer)
		if b.modes[namespace] == "" {
			p.Notes = append(p.Notes, fmt.Sprintf("%s[%d]: namespace %s is not enrolled, so no pod there can be attested", where, j, namespace))
		}
		if b.s.Config.Istio && (peer.PodSelector != nil || len(peer.Tags) > 0) {
			p.Notes = append(p.Notes, fmt.Sprintf("%s[%d]: podSelector and tags bind in Calico only: an X.509 identity has neither", where, j))
		}
	}
}

// PeerNamespace is the namespace of a peer of a policy in namespace own.
func PeerNamespace(own string, p v1alpha1.Peer) string {
	if p.Namespace == "" {
		return own
	}
	return p.Namespace
}

// chooser finds the pods of a policy.
type chooser struct {
	policy   *Policy
	account  string
	selector labels.Selector
	// nobody is true when it cannot be told who is meant.
	nobody bool
}

// newChooser parses a policy's selector. One that cannot be read chooses nobody, and neither does a policy that names
// no pods: such a policy is refused, so it opens nothing, and it takes nothing from pods that nobody meant.
func newChooser(p *Policy) chooser {
	w := p.Spec.Workloads
	c := chooser{policy: p, account: w.ServiceAccount, selector: labels.Everything()}
	if w.Selector == nil {
		if w.ServiceAccount == "" {
			c.selector, c.nobody = labels.Nothing(), true
		}
		return c
	}
	var err error
	if c.selector, err = metav1.LabelSelectorAsSelector(w.Selector); err != nil {
		c.selector, c.nobody = labels.Nothing(), true
	}
	return c
}

func (c chooser) selects(pod *corev1.Pod) bool {
	return (c.account == "" || c.account == snapshot.ServiceAccount(pod)) && c.selector.Matches(labels.Set(pod.Labels))
}
