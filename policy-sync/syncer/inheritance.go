package syncer

import (
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

// inheritance is what statuses said when this replica began. Whoever wrote them told the same in events: a replica that takes over
// tells only what differs. A nil one knows nothing.
type inheritance struct {
	pods     map[string]map[string]string // UID -> name of a policy that refuses the pod -> reason
	policies map[string]string            // UID of a policy that is not accepted -> why
	// full are policies (namespace/name) that refuse more pods than their status names: of a pod that was there (UID) it
	// cannot be known whether it was told, and a cluster full of refused pods must not be told anew by each replica.
	full, there map[string]bool
}

// begin takes up what the statuses of the first snapshot say.
func (e *events) begin(s snapshot.Snapshot) {
	if e.before != nil {
		return
	}
	b := &inheritance{pods: map[string]map[string]string{}, policies: map[string]string{}, full: map[string]bool{}, there: map[string]bool{}}
	e.before = b
	named, crowded := map[string]map[string]string{}, map[string]bool{}
	for i := range s.Policies {
		p := &s.Policies[i]
		if c := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionAccepted); c != nil && c.Status != "True" {
			b.policies[string(p.UID)] = c.Message
		}
		for _, r := range p.Status.Refused {
			key := p.Namespace + "/" + r.Pod
			if named[key] == nil {
				named[key] = map[string]string{}
			}
			named[key][p.Name] = r.Reason
		}
		if len(p.Status.Refused) >= trustgraph.MaxRefused && p.Status.ObservedGeneration == p.Generation {
			b.full[p.Namespace+"/"+p.Name], crowded[p.Namespace] = true, true
		}
	}
	for _, p := range s.AllPods() {
		if by := named[p.Namespace+"/"+p.Name]; by != nil {
			b.pods[string(p.UID)] = by
		}
		if crowded[p.Namespace] {
			b.there[string(p.UID)] = true
		}
	}
}

// pod tells whether every policy that the pod does not meet said so before, for the same reason.
func (b *inheritance) pod(p *trustgraph.Pod) bool {
	if b == nil {
		return false
	}
	for _, m := range p.Matches {
		if m.Met {
			continue
		}
		reason, named := b.pods[p.UID][m.Policy]
		crowd := !named && b.there[p.UID] && b.full[p.Namespace+"/"+m.Policy]
		if !crowd && reason != m.Refusal() {
			return false
		}
	}
	return true
}

// policy tells whether the policy was refused before, for the same reason.
func (b *inheritance) policy(p *trustgraph.Policy) bool {
	if b == nil {
		return false
	}
	why, refused := b.policies[p.UID]
	return refused && why == p.AcceptedCondition().Message
}

// forget drops those of whom this replica has told, or knows, by itself.
func (b *inheritance) forget(told map[string]string) {
	if b == nil {
		return
	}
	for uid := range told {
		delete(b.pods, uid)
		delete(b.policies, uid)
		delete(b.there, uid)
	}
}
