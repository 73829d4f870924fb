package trustgraph

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// buildForeign looks for what others made that widens or forges what Keelson grants.
// Nothing of it is touched; it is reported, and where it defeats a policy, the policy
// is not called programmed.
func (w *whole) buildForeign() {
	w.guardOwnID()
	for _, o := range w.s.Objects {
		w.confine(o.GetKind()+" "+snapshot.Key(o), func() { w.foreign(o) }, func(cause any) {
			w.block(o.GetNamespace(), fmt.Sprintf("%s %s could not be looked at, %s, so it is not known what it changes: %v",
				o.GetKind(), strings.TrimPrefix(snapshot.Key(o), "/"), ownFault, cause))
		})
	}
}

// foreign looks at one object.
func (w *whole) foreign(o *unstructured.Unstructured) {
	switch o.GetKind() {
	case "NetworkSet", "GlobalNetworkSet", "HostEndpoint":
		w.foreignSet(o)
	case "Tier":
		w.foreignTier(o)
	case "NetworkPolicy", "GlobalNetworkPolicy":
		w.foreignNetworkPolicy(o)
	case "AuthorizationPolicy", "PeerAuthentication":
		w.foreignIstio(o)
	case "EnvoyFilter", "WasmPlugin", "Sidecar", "RequestAuthentication":
		w.foreignProxySettings(o)
	case "ConfigMap":
		w.foreignMeshConfig(o)
	}
}

// block withholds "programmed" from the policies of one namespace (of all, when it is empty) that
// enforce.
func (w *whole) block(namespace, text string) {
	w.defeats = append(w.defeats, defeat{namespace, text})
	w.report("%s", text)
}

// foreignEntries: an SVID proves a policy's requirement only if nobody else issues its
// ID. That concerns the policy's own IDs and those of the peers that it lets in. Another cluster's policy-sync is somebody else
// too: it asks for what that cluster's policies ask.
func (w *whole) foreignEntries(p *Policy) {
	if w.s.SPIRE == nil {
		p.Blockers = append(p.Blockers, "the SPIRE server could not be read")
		return
	}
	if len(w.spire.foreign) == 0 {
		return
	}
	for _, id := range w.reliesOn(p) {
		entries := sorted(slices.Clone(w.spire.foreign[id]))
		if len(entries) == 0 {
			continue
		}
		withhold(p, fmt.Sprintf("SPIRE entry %s, which Keelson did not make, issues %s without proof", list(entries), id))
	}
}

// reliesOn lists the SPIFFE IDs whose issuance the policy rests on.
func (w *whole) reliesOn(p *Policy) []string {
	var out []string
	for _, sa := range p.ServiceAccounts {
		out = append(out, SPIFFEID(w.s.Config.TrustDomain, p.Namespace, sa))
	}
	for _, r := range p.Spec.Ingress {
		for _, peer := range r.From {
			out = append(out, SPIFFEID(w.s.Config.TrustDomain, PeerNamespace(p.Namespace, peer), peer.ServiceAccount))
		}
	}
	return sorted(out)
}

// foreignSet: Calico's selectors match the labels of network sets and host endpoints as
// they match those of pods (felix/labelindex), so a trust label there is a forgery, and the
// label of Keelson's own set of revoked addresses cuts off whatever else bears it.
func (w *whole) foreignSet(o *unstructured.Unstructured) {
	if _, revoked := o.GetLabels()[v1alpha1.RevokedLabel]; revoked && !snapshot.Owned(o) {
		w.report("%s %s bears label %s and was not made by Keelson: its addresses are denied in every enrolled namespace, so take the label away",
			o.GetKind(), strings.TrimPrefix(snapshot.Key(o), "/"), v1alpha1.RevokedLabel)
	}
	if BearsTrust(o.GetLabels()) {
		w.block("", fmt.Sprintf("%s %s bears a trust label, so Calico takes its addresses for attested pods: take the label away", o.GetKind(), strings.TrimPrefix(snapshot.Key(o), "/")))
	}
}

func (w *whole) foreignTier(o *unstructured.Unstructured) {
	if o.GetName() == v1alpha1.CalicoTier {
		return
	}
	order, found := number(o, "spec", "order")
	if found && (order < w.s.Config.TierOrder || order == w.s.Config.TierOrder && o.GetName() < v1alpha1.CalicoTier) {
		w.report("Calico tier %s (order %v) comes before tier %s (order %v): what it allows, Keelson never sees", o.GetName(), order, v1alpha1.CalicoTier, w.s.Config.TierOrder)
	}
}

func number(o *unstructured.Unstructured, path ...string) (float64, bool) {
	v, found, err := unstructured.NestedFieldNoCopy(o.Object, path...)
	if !found || err != nil {
		return 0, false
	}
	switch n := v.(type) {
	case float64:
		return n, true
	case int64:
		return float64(n), true
	}
	return 0, false
}

func (w *whole) foreignNetworkPolicy(o *unstructured.Unstructured) {
	tier, _, _ := unstructured.NestedString(o.Object, "spec", "tier")
	if tier != v1alpha1.CalicoTier || snapshot.Owned(o) {
		return
	}
	w.block(o.GetNamespace(), fmt.Sprintf("%s %s stands in tier %s and was not made by Keelson: it may open what Keelson closes", o.GetKind(), strings.TrimPrefix(snapshot.Key(o), "/"), v1alpha1.CalicoTier))
}

// foreignIstio: ALLOWs of different authors are a union, and the oldest PeerAuthentication
// of a namespace wins.
func (w *whole) foreignIstio(o *unstructured.Unstructured) {
	ns := o.GetNamespace()
	root := ns == w.s.Config.Istiod.Namespace
	if snapshot.Owned(o) || w.modes[ns] == "" && !root {
		return
	}
	action, _, _ := unstructured.NestedString(o.Object, "spec", "action")
	mode, _, _ := unstructured.NestedString(o.Object, "spec", "mtls", "mode")
	ports, hasPorts, _ := unstructured.NestedMap(o.Object, "spec", "portLevelMtls")
	name := o.GetKind() + " " + snapshot.Key(o)
	switch {
	case o.GetKind() == "AuthorizationPolicy" && action != "DENY" && action != "AUDIT":
		w.report("%s is not Keelson's; what no TrustPolicy lets in stays denied all the same", name)
	case o.GetKind() == "PeerAuthentication" && !root && (mode != "STRICT" || hasPorts && len(ports) > 0):
		w.block(ns, fmt.Sprintf("%s allows other than strict mutual TLS: remove it", name))
	}
}

// pastTheProxy are annotations, by their start, with which the author of a pod leads traffic past its proxy, or has the proxy take
// its orders elsewhere (Istio's resource annotations).
var pastTheProxy = []string{
	"traffic.sidecar.istio.io/exclude", "traffic.sidecar.istio.io/include", "traffic.sidecar.istio.io/kubevirtInterfaces",
	"sidecar.istio.io/interceptionMode", "sidecar.istio.io/discoveryAddress", "sidecar.istio.io/bootstrapOverride",
	"proxy.istio.io/config", "proxy.istio.io/overrides", "status.sidecar.istio.io/port",
}

// exclusions reports pods with such annotations, and pods that opt out of the proxy by the label of the same meaning.
func (b *builder) exclusions() {
	if b.modes[b.namespace] == "" || !b.s.Config.Istio {
		return
	}
	for _, pod := range b.source.pods {
		if pod.Labels[injectKey] == "false" {
			b.report("pod %s has label %s=false: it gets no proxy, so only network policy guards it", snapshot.Key(pod), injectKey)
		}
		for _, key := range sortedKeys(pod.Annotations) {
			starts := func(prefix string) bool { return strings.HasPrefix(key, prefix) }
			if slices.ContainsFunc(pastTheProxy, starts) || key == injectKey && pod.Annotations[key] == "false" {
				b.report("pod %s has annotation %s: traffic can pass its proxy by, so only network policy guards it there", snapshot.Key(pod), key)
			}
		}
	}
}
