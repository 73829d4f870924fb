package syncer

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/kube"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

// mostAtOnce is how many findings one pass tells. The rest is told by later passes, and not at all when it is over by then.
const mostAtOnce = 32

// events remembers which findings were told: one per pod and cause for a pod that a policy selects and that was never attested,
// one per policy and cause for a policy that is refused. What statuses said when this replica began was told by the one before.
type events struct {
	told     map[string]string // UID -> cause
	attested map[types.UID]bool
	before   *inheritance
}

// findings are those that are new. Of pods (UID) in unknown nothing is told yet.
func (e *events) findings(g trustgraph.Graph, unknown map[string]bool) []kube.Finding {
	var out []kube.Finding
	told, attested := map[string]string{}, map[types.UID]bool{}
	tell := func(uid, cause string, inherited bool, f kube.Finding) {
		if before, ok := e.told[uid]; ok && before == cause || !ok && inherited {
			told[uid] = cause
		} else if len(out) < mostAtOnce {
			told[uid] = cause
			out = append(out, f)
		}
	}
	for i := range g.Policies {
		p := &g.Policies[i]
		if p.Accepted {
			continue
		}
		cause := strings.Join(p.Problems, "; ")
		tell(p.UID, cause, e.before.policy(p), kube.Finding{Reason: "Refused", Note: "the policy is refused: " + cause,
			Regarding: corev1.ObjectReference{APIVersion: v1alpha1.GroupVersion.String(), Kind: "TrustPolicy", Namespace: p.Namespace, Name: p.Name, UID: types.UID(p.UID)}})
	}
	for _, p := range g.Pods {
		uid := types.UID(p.UID)
		if p.Attested || e.attested[uid] {
			attested[uid] = true // what is taken from it is told as a change
		}
		if cause, ok := e.told[p.UID]; ok && unknown[p.UID] {
			told[p.UID] = cause // not known for a moment is no other cause
		}
		if p.Attested || p.Ended || attested[uid] || len(p.Matches) == 0 || unknown[p.UID] {
			continue
		}
		cause := strings.Join(p.Why, "; ")
		tell(p.UID, cause, e.before.pod(p), kube.Finding{Reason: "NotAttested", Note: cause,
			Regarding: corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: uid}})
	}
	e.told, e.attested = told, attested
	e.before.forget(told)
	return out
}

// unsettled are the pods (UID) and policies (namespace/name) of which something is not known yet.
func unsettled(g trustgraph.Graph) map[string]bool {
	out := map[string]bool{}
	for _, p := range g.Pods {
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
