package trustgraph

import (
	"fmt"
	"slices"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// dataplaneLabel on a namespace or a pod puts it into Istio's ambient mode ("ambient") or takes it out ("none"); the pod's own
// goes first (Istio, "Add workloads to the mesh").
const dataplaneLabel = "istio.io/dataplane-mode"

// buildAmbient finds policies and service accounts whose pods ambient mode may serve: traffic to these pods arrives on HBONE's
// port, whatever its own.
func (b *builder) buildAmbient() {
	names := map[*Policy]string{}
	for _, pod := range b.pods {
		if live := b.live[pod.Key()]; live == nil || live.Labels[dataplaneLabel] != "ambient" {
			continue
		}
		b.ambientAccounts[pod.ServiceAccount] = true
		for _, m := range pod.Matches {
			p := b.policy(m.Policy)
			p.Ambient = true
			if names[p] == "" || pod.Name < names[p] {
				names[p] = pod.Name
			}
		}
	}
	for p, pod := range names {
		p.Notes = append(p.Notes, fmt.Sprintf("IdentityNotAttested: pod %s is in Istio's ambient mode by its own label, whose ztunnel has no identity from SPIRE yet; its traffic is let in on port 15008", pod))
		if slices.ContainsFunc(p.Spec.Ingress, func(r v1alpha1.IngressRule) bool { return len(r.HTTP) > 0 }) {
			p.Notes = append(p.Notes, fmt.Sprintf("ingress.http: ztunnel reads no HTTP, so these rules let nothing into pod %s; name ports alone, or use sidecars", pod))
		}
	}
	for i := range b.policies {
		b.policies[i].Ambient = b.policies[i].Ambient || b.ambient(b.namespace)
	}
}
