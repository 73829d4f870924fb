package trustgraph

import (
	"fmt"
	"slices"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// dataplaneLabel on a namespace or a pod puts it into Istio's ambient mode ("ambient") or takes it out ("none"); the pod's own
// goes first (Istio, "Add workloads to the mesh").
const dataplaneLabel = "istio.io/dataplane-mode"

// buildAmbient finds policies and service accounts whose pods ambient mode may serve: traffic to these pods arrives on HBONE's
// port, whatever its own.
func (b *builder) buildAmbient() {
	byLabel := map[string]string{} // pods with a label of their own
	for i := range b.s.Pods {
		pod := b.s.Pods[i]
		if v, own := pod.Labels[dataplaneLabel]; own && b.modes[pod.Namespace] != "" && !snapshot.Ended(pod) {
			byLabel[snapshot.Key(pod)] = v
		}
	}
	b.g.AmbientAccounts = map[string]bool{}
	names := map[*Policy]string{}
	for i := range b.g.Pods {
		pod := &b.g.Pods[i]
		if byLabel[pod.Key()] != "ambient" {
			continue
		}
		b.g.AmbientAccounts[pod.Namespace+"/"+pod.ServiceAccount] = true
		for _, m := range pod.Matches {
			p := b.policy(pod.Namespace, m.Policy)
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
	for i := range b.g.Policies {
		p := &b.g.Policies[i]
		if _, ns := b.ambient(p.Namespace); ns {
			p.Ambient = true
		}
	}
}
