package trustgraph

import (
	"fmt"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// Names that Istio's injection gives (istio, manifests/charts/istio-control/istio-discovery/files/injection-template.yaml), and
// labels by which Istio sends a pod's traffic through a waypoint or leaves the pod alone.
const (
	proxyContainer = "istio-proxy"
	spiffeSockets  = "/run/secrets/workload-spiffe-uds"
	waypointLabel  = "istio.io/use-waypoint"
	injectKey      = "sidecar.istio.io/inject"
)

// buildEnforcement looks, for each policy, whether the part is there that enforces what the policy says.
func (b *builder) buildEnforcement() {
	if !b.s.Config.Istio {
		return
	}
	for i := range b.policies {
		if p := &b.policies[i]; p.Mode != "" && p.Accepted {
			b.enforcedBy(p, b.namespaces[p.Namespace])
		}
	}
}

// enforcedBy withholds "programmed" where a selected pod has nothing that enforces the policy. A pod without a proxy has nothing that
// reads HTTP, whether a mesh is seen in the cluster or not.
func (b *builder) enforcedBy(p *Policy, ns *corev1.Namespace) {
	var bare, istiods, waypoints []string
	if ns != nil && sendsThrough(ns.Labels) != "" {
		waypoints = append(waypoints, "namespace "+ns.Name)
	}
	for _, key := range p.Selected {
		pod := b.live[key]
		if pod == nil || pod.Spec.HostNetwork {
			continue
		}
		if sendsThrough(pod.Labels) != "" {
			waypoints = append(waypoints, "pod "+pod.Name)
		}
		proxy := proxyOf(pod)
		switch {
		case proxy == nil && inAmbient(pod, ns): // ztunnel denies what it cannot read; the notes on ambient mode say so
		case proxy == nil:
			bare = append(bare, pod.Name)
		case servedByIstiod(pod, proxy):
			istiods = append(istiods, pod.Name)
		}
	}
	switch {
	case len(bare) > 0 && !b.s.Config.Calico:
		withhold(p, fmt.Sprintf("%s no Istio proxy and Calico is not used, so nothing enforces the policy there: enable injection for the namespace and restart the pods", have(bare)))
	case len(bare) > 0 && hasHTTP(p):
		withhold(p, fmt.Sprintf("ingress.http: %s no Istio proxy (container %s), so nothing reads HTTP there and every request of the peers on these ports is let in: "+
			"enable injection (label namespace %s with istio-injection=enabled or istio.io/rev) and restart the pods", have(bare), proxyContainer, p.Namespace))
	}
	if len(istiods) > 0 {
		withhold(p, fmt.Sprintf("the Istio proxies of pods %s take their certificates from istiod's own CA, which asks for no proof: give them SPIRE's socket at %s", few(istiods), spiffeSockets))
	}
	if len(waypoints) > 0 {
		p.Notes = append(p.Notes, fmt.Sprintf("%s: traffic goes through a waypoint (label %s), whose identity is then the caller's: no TrustPolicy names it, so what comes through it is denied", few(waypoints), waypointLabel))
	}
}

// withhold keeps an enforcing policy from being called programmed; one in audit mode promises nothing, and is told.
func withhold(p *Policy, text string) {
	if p.Mode == v1alpha1.ModeEnforce {
		p.Blockers = append(p.Blockers, text)
	} else {
		p.Notes = append(p.Notes, text)
	}
}

func hasHTTP(p *Policy) bool {
	return slices.ContainsFunc(p.Spec.Ingress, func(r v1alpha1.IngressRule) bool { return len(r.HTTP) > 0 })
}

// maxNamed is how many pods one sentence names.
const maxNamed = 5

// few names a few of many, in an order that does not depend on the snapshot's.
func few(names []string) string {
	names = sorted(slices.Clone(names))
	if len(names) <= maxNamed {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:maxNamed], ", "), len(names)-maxNamed)
}

func have(pods []string) string {
	if len(pods) == 1 {
		return "pod " + pods[0] + " has"
	}
	return "pods " + few(pods) + " have"
}

func sendsThrough(labels map[string]string) string {
	if w := labels[waypointLabel]; w != "none" {
		return w
	}
	return ""
}

func inAmbient(pod *corev1.Pod, ns *corev1.Namespace) bool {
	if mode, own := pod.Labels[dataplaneLabel]; own {
		return mode == "ambient"
	}
	return ns != nil && ns.Labels[dataplaneLabel] == "ambient"
}

// proxyOf is the pod's Istio proxy, as a container or as a native sidecar (an init container that is restarted); nil if none.
func proxyOf(pod *corev1.Pod) *corev1.Container {
	for i := range pod.Spec.Containers {
		if pod.Spec.Containers[i].Name == proxyContainer {
			return &pod.Spec.Containers[i]
		}
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if c.Name == proxyContainer && c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			return c
		}
	}
	return nil
}

// servedByIstiod reports whether the volume in which the proxy looks for a SPIFFE Workload API's socket is the empty one that Istio's
// injection puts there: the proxy then makes a key itself and has istiod sign it. A volume from the node (SPIFFE's CSI driver,
// hostPath) holds SPIRE's socket; a pod without such a mount does not tell.
func servedByIstiod(pod *corev1.Pod, proxy *corev1.Container) bool {
	for _, m := range proxy.VolumeMounts {
		if at := path.Clean(m.MountPath); at != spiffeSockets && at != "/var"+spiffeSockets {
			continue
		}
		for _, v := range pod.Spec.Volumes {
			if v.Name == m.Name {
				return v.EmptyDir != nil
			}
		}
	}
	return false
}

// hazard is an object of the mesh that is for pods with some labels, of one namespace or, where root is
// true, of all.
type hazard struct {
	namespace string
	root      bool
	wanted    map[string]string
	text      string
}

// changesHTTP withholds "programmed" from policies with HTTP rules whose pods an object of the mesh is for: what such an object can
// do to a proxy, it can do before the proxy judges a request. What the policies say of addresses and ports stands all the same.
func (w *whole) changesHTTP(o *unstructured.Unstructured, text string) {
	_, targeted, _ := unstructured.NestedFieldNoCopy(o.Object, "spec", "targetRefs")
	_, target, _ := unstructured.NestedFieldNoCopy(o.Object, "spec", "targetRef")
	if targeted || target {
		return // gateways, waypoints and services: no sidecar
	}
	wanted := map[string]string{}
	for _, at := range [][]string{{"spec", "selector", "matchLabels"}, {"spec", "workloadSelector", "labels"}, {"spec", "workloadSelector", "matchLabels"}} {
		if found, ok, err := unstructured.NestedStringMap(o.Object, at...); ok && err == nil {
			wanted = found
		}
	}
	w.hazards = append(w.hazards, hazard{o.GetNamespace(), w.isRoot(o.GetNamespace()), wanted, "ingress.http: " + text + "; what the policy says of ports stands"})
}

// endanger withholds "programmed" from a policy with HTTP rules whose pods such an object is for.
func (w *whole) endanger(p *Policy) {
	if p.Mode == "" || !hasHTTP(p) {
		return
	}
	for _, h := range w.hazards {
		if !h.root && p.Namespace != h.namespace {
			continue
		}
		if slices.ContainsFunc(p.Selected, func(key string) bool { return bears(w.pod(p.Namespace, key), h.wanted) }) {
			withhold(p, h.text)
		}
	}
}

// isRoot reports whether what stands in a namespace holds for the whole mesh.
func (w *whole) isRoot(namespace string) bool {
	return namespace == w.s.Config.Istiod.Namespace || namespace == w.s.Config.IstioRootNamespace
}

func bears(pod *corev1.Pod, wanted map[string]string) bool {
	if pod == nil {
		return false
	}
	for k, v := range wanted {
		if have, ok := pod.Labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}

// foreignProxySettings judges what others have the proxies of enrolled pods do.
func (w *whole) foreignProxySettings(o *unstructured.Unstructured) {
	ns := o.GetNamespace()
	if w.modes[ns] == "" && !w.isRoot(ns) {
		return
	}
	name := o.GetKind() + " " + snapshot.Key(o)
	switch o.GetKind() {
	case "EnvoyFilter":
		w.report("%s can change what the proxies of enrolled pods enforce", name)
		w.changesHTTP(o, name+" can change a request before it is judged, or take the judgement away: remove it, or narrow it to other pods")
	case "WasmPlugin":
		phase, _, _ := unstructured.NestedString(o.Object, "spec", "phase")
		w.report("%s runs in the proxies of enrolled pods", name)
		if phase == "AUTHN" {
			w.changesHTTP(o, name+" runs before a request is judged (phase AUTHN) and can change its method and path: remove it, or run it later")
		}
	case "RequestAuthentication":
		w.report("%s can refuse requests that a TrustPolicy lets in", name)
	case "Sidecar":
		if widensInbound(o) {
			w.changesHTTP(o, name+" has inbound listeners that pass the proxy by or end TLS otherwise: remove captureMode NONE and tls from its ingress")
		}
	}
}

// widensInbound reports whether a Sidecar has a listener for inbound traffic that is not captured or has TLS of its own.
func widensInbound(o *unstructured.Unstructured) bool {
	listeners, _, _ := unstructured.NestedSlice(o.Object, "spec", "ingress")
	return slices.ContainsFunc(listeners, func(l any) bool {
		listener, _ := l.(map[string]any)
		_, tls := listener["tls"]
		return tls || listener["captureMode"] == "NONE"
	})
}

// maxMeshConfig bounds the text of a mesh configuration that is read; Istio's own has a few KiB.
const maxMeshConfig = 256 << 10

// meshTrust is the part of Istio's mesh configuration (istio.io/api, mesh/v1alpha1, MeshConfig) that says whose identities count.
type meshTrust struct {
	TrustDomain        string   `json:"trustDomain"`
	TrustDomainAliases []string `json:"trustDomainAliases"`
	CACertificates     []any    `json:"caCertificates"`
}

// foreignMeshConfig: Istio compares the names of peers with its own trust domain and takes those of an alias for the same.
func (w *whole) foreignMeshConfig(o *unstructured.Unstructured) {
	if o.GetName() != snapshot.MeshConfig || o.GetNamespace() != w.s.Config.Istiod.Namespace {
		return
	}
	name := "mesh configuration " + snapshot.Key(o)
	text, _, _ := unstructured.NestedString(o.Object, "data", "mesh")
	mesh := meshTrust{}
	if len(text) > maxMeshConfig {
		w.block("", fmt.Sprintf("%s has more than %d bytes and is not read: nobody knows which trust domains the proxies take for theirs", name, maxMeshConfig))
		return
	}
	if err := yaml.Unmarshal([]byte(text), &mesh); err != nil {
		w.block("", fmt.Sprintf("%s is not readable, so nobody knows which trust domains the proxies take for theirs: %.200v", name, err))
		return
	}
	if mesh.TrustDomain == "" {
		mesh.TrustDomain = "cluster.local" // Istio's default
	}
	if mesh.TrustDomain != w.s.Config.TrustDomain {
		w.block("", fmt.Sprintf("%s has trustDomain %.80q, SPIRE's is %q: set trustDomain to SPIRE's, or no peer is known by its name", name, mesh.TrustDomain, w.s.Config.TrustDomain))
	}
	aliases := slices.DeleteFunc(slices.Clone(mesh.TrustDomainAliases), func(a string) bool { return a == w.s.Config.TrustDomain })
	if len(aliases) > 0 {
		w.block("", fmt.Sprintf("%s has trustDomainAliases %.200s, whose identities Istio takes for those of %s without proof: remove them", name, few(aliases), w.s.Config.TrustDomain))
	}
	if len(mesh.CACertificates) > 0 {
		w.block("", fmt.Sprintf("%s has caCertificates: proxies take certificates of these authorities as well as SPIRE's: remove them", name))
	}
}
