package syncer

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/kube"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

// mostAtOnce is how many findings one pass tells. The rest is told by later passes, and not at all when it is over by then.
const mostAtOnce = 32

// events remembers which findings were told: one per pod and cause for a pod that a policy selects and that was never attested,
// one per policy and cause for a policy that is refused. What statuses said when this replica began was told by the one before.
type events struct {
	policies map[string]string // UID -> cause
	// told is the list of policies whose findings are all reported.
	told []trustgraph.Policy
	// parts are those of a graph, in its order.
	parts  []*eventsOf
	before *inheritance
}

// eventsOf remembers what was told of one namespace's pods.
type eventsOf struct {
	part     *trustgraph.Part
	told     map[string]string // UID -> cause
	attested map[string]bool   // UID
	// open is true when there was no room to tell all, or something was not known: the part is looked at again.
	open bool
}

// findings are those that are new. Of pods (UID) in unknown nothing is told yet.
func (e *events) findings(g trustgraph.Graph, unknown map[string]bool) []kube.Finding {
	var out []kube.Finding
	if e.policies == nil || !snapshot.Same(e.told, g.Policies) {
		e.ofPolicies(g, &out)
	}
	byName := map[string]*eventsOf{}
	if !slices.EqualFunc(e.parts, g.Parts, func(x *eventsOf, y *trustgraph.Part) bool { return x != nil && x.part.Namespace == y.Namespace }) {
		for _, before := range e.parts {
			if before != nil {
				byName[before.part.Namespace] = before
			}
		}
		e.parts = make([]*eventsOf, len(g.Parts))
	}
	for i, part := range g.Parts {
		before := e.parts[i]
		if before == nil {
			before = byName[part.Namespace]
		}
		if before == nil {
			before = &eventsOf{}
		}
		if before.part != part || before.open || len(unknown) > 0 {
			before = e.ofPods(before, part, unknown, &out)
		}
		e.parts[i] = before
	}
	return out
}

// ofPolicies tells which policies are refused.
func (e *events) ofPolicies(g trustgraph.Graph, out *[]kube.Finding) {
	told, all := map[string]string{}, true
	for i := range g.Policies {
		p := &g.Policies[i]
		if p.Accepted {
			continue
		}
		cause := strings.Join(p.Problems, "; ")
		f := kube.Finding{Reason: "Refused", Note: "the policy is refused: " + cause,
			Regarding: corev1.ObjectReference{APIVersion: v1alpha1.GroupVersion.String(), Kind: "TrustPolicy", Namespace: p.Namespace, Name: p.Name, UID: types.UID(p.UID)}}
		all = tell(e.policies, told, p.UID, cause, e.before.policy(p), f, out) && all
	}
	if e.policies, e.told = told, nil; all {
		e.told = g.Policies
	}
	e.before.forget(told)
}

// ofPods tells what is new of one namespace's pods.
func (e *events) ofPods(before *eventsOf, part *trustgraph.Part, unknown map[string]bool, out *[]kube.Finding) *eventsOf {
	now := &eventsOf{part: part, told: map[string]string{}, attested: map[string]bool{}, open: len(unknown) > 0}
	for _, p := range part.Pods {
		if p.Attested || before.attested[p.UID] {
			now.attested[p.UID] = true // what is taken from it is told as a change
		}
		if cause, ok := before.told[p.UID]; ok && unknown[p.UID] {
			now.told[p.UID] = cause // not known for a moment is no other cause
		}
		if p.Attested || p.Ended || now.attested[p.UID] || len(p.Matches) == 0 || unknown[p.UID] {
			continue
		}
		cause := strings.Join(p.Why, "; ")
		f := kube.Finding{Reason: "NotAttested", Note: cause,
			Regarding: corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: types.UID(p.UID)}}
		if !tell(before.told, now.told, p.UID, cause, e.before.pod(p), f, out) {
			now.open = true
		}
	}
	e.before.forget(now.told)
	return now
}

// tell adds a finding that is new, and notes that it was told. It returns false when there is no room for it.
func tell(before, told map[string]string, uid, cause string, inherited bool, f kube.Finding, out *[]kube.Finding) bool {
	had, known := before[uid]
	switch {
	case known && had == cause || !known && inherited:
	case len(*out) < mostAtOnce:
		*out = append(*out, f)
	default:
		return false
	}
	told[uid] = cause
	return true
}

// unsettled are the pods (UID) and policies (namespace/name) of which something is not known yet.
func unsettled(g trustgraph.Graph) map[string]bool {
	out := map[string]bool{}
	for _, p := range g.Pods() {
		if p.Attested || p.Ended {
			continue
		}
		for _, m := range p.Matches {
			if len(m.Pending) > 0 {
				out[p.UID], out[p.Namespace+"/"+m.Policy] = true, true
			}
		}
	}
	return out
}
