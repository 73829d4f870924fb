package plan_test

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	securityapi "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
)

// This is SPIRE's issuance and Istio's decision for one request, written from their
// documentation.

// request is one HTTP request as the far end's proxy sees it.
type request struct {
	principal    string // empty without mutual TLS
	address      netip.Addr
	port         int
	method, path string
}

// proxyAllows is the decision of the proxy of a pod. Policies in the mesh's root namespace are for every namespace.
func proxyAllows(s snapshot.Snapshot, pod *corev1.Pod, r request) bool {
	strict := false
	var deny, allow []*securityv1.AuthorizationPolicy
	for _, o := range s.Objects {
		if o.GetNamespace() != pod.Namespace && o.GetNamespace() != s.Config.RootNamespace() {
			continue
		}
		switch o.GetKind() {
		case "PeerAuthentication":
			mode, _, _ := unstructured.NestedString(o.Object, "spec", "mtls", "mode")
			strict = strict || mode == "STRICT"
		case "AuthorizationPolicy":
			p := decode[securityv1.AuthorizationPolicy](o)
			if o.GetAnnotations()["istio.io/dry-run"] == "true" || !selected(&p, pod) {
				continue
			}
			if p.Spec.Action == securityapi.AuthorizationPolicy_DENY {
				deny = append(deny, &p)
			} else {
				allow = append(allow, &p)
			}
		}
	}
	if strict && r.principal == "" {
		return false
	}
	for _, p := range deny {
		if matchesAny(p, r) {
			return false
		}
	}
	return len(allow) == 0 || slices.ContainsFunc(allow, func(p *securityv1.AuthorizationPolicy) bool { return matchesAny(p, r) })
}

func selected(p *securityv1.AuthorizationPolicy, pod *corev1.Pod) bool {
	for k, v := range p.Spec.GetSelector().GetMatchLabels() {
		if have, ok := pod.Labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}

func matchesAny(p *securityv1.AuthorizationPolicy, r request) bool {
	return slices.ContainsFunc(p.Spec.Rules, func(rule *securityapi.Rule) bool {
		from := len(rule.From) == 0 || slices.ContainsFunc(rule.From, func(f *securityapi.Rule_From) bool { return sourceMatches(f.Source, r) })
		to := len(rule.To) == 0 || slices.ContainsFunc(rule.To, func(t *securityapi.Rule_To) bool { return operationMatches(t.Operation, r) })
		return from && to
	})
}

func sourceMatches(s *securityapi.Source, r request) bool {
	in := func(block string) bool { return netip.MustParsePrefix(block).Contains(r.address) }
	return (len(s.Principals) == 0 || slices.Contains(s.Principals, r.principal)) &&
		(len(s.NotPrincipals) == 0 || !slices.Contains(s.NotPrincipals, r.principal)) &&
		(len(s.IpBlocks) == 0 || slices.ContainsFunc(s.IpBlocks, in))
}

func operationMatches(o *securityapi.Operation, r request) bool {
	port := strconv.Itoa(r.port)
	return (len(o.Ports) == 0 || slices.Contains(o.Ports, port)) && (len(o.NotPorts) == 0 || !slices.Contains(o.NotPorts, port)) &&
		(len(o.Methods) == 0 || slices.Contains(o.Methods, r.method)) && (len(o.Paths) == 0 || slices.Contains(o.Paths, r.path)) &&
		(len(o.NotMethods) == 0 || !slices.Contains(o.NotMethods, r.method)) && (len(o.NotPaths) == 0 || !slices.Contains(o.NotPaths, r.path))
}

// svids are the SPIFFE IDs that a pod's workload can fetch from the agent of its node: what SPIRE's server lets the agent issue,
// where all selectors fit the workload.
func svids(s snapshot.Snapshot, pod *corev1.Pod) []string {
	have := workloadSelectors(s, pod)
	var out []string
	for _, e := range issuedBy(s, pod.Spec.NodeName) {
		if subset(e.Selectors, have) {
			out = append(out, e.SPIFFEID)
		}
	}
	return out
}

// issuedBy are the entries that SPIRE's server lets the agent of a node issue (pkg/server/authorizedentries): those parented to the
// agent or to a node alias whose selectors it has. A node whose last attestation was not accepted has no agent.
func issuedBy(s snapshot.Snapshot, node string) []snapshot.Entry {
	selectors := nodeSelectors(s, node)
	if selectors == nil {
		return nil
	}
	parents := map[string]bool{snapshottest.AgentID(node): true}
	for _, e := range s.SPIRE.Entries {
		if strings.HasSuffix(e.ParentID, "/spire/server") && subset(e.Selectors, selectors) {
			parents[e.SPIFFEID] = true
		}
	}
	var out []snapshot.Entry
	for _, e := range s.SPIRE.Entries {
		if parents[e.ParentID] {
			out = append(out, e)
		}
	}
	return out
}

func subset(want []snapshot.Selector, have []string) bool {
	return len(want) > 0 && !slices.ContainsFunc(want, func(s snapshot.Selector) bool { return !slices.Contains(have, s.String()) })
}

// nodeSelectors are what the node attestor gives the agent of a node: none unless its
// last attestation was accepted.
func nodeSelectors(s snapshot.Snapshot, node string) []string {
	for _, t := range s.NodeTrusts {
		if t.Name == node && t.Spec.Verdict == "trusted" {
			ek, err := nodeclaim.ParseEKHash(t.Spec.EKHash)
			if err != nil {
				return nil
			}
			values, err := nodeclaim.Claims{EK: ek, Reference: t.Spec.Reference, Tags: t.Spec.Tags}.Selectors(nil)
			if err != nil {
				return nil
			}
			var out []string
			for _, v := range values {
				out = append(out, nodeclaim.PluginName+":"+v)
			}
			return out
		}
	}
	return nil
}

// workloadSelectors are what the workload attestor finds for the pod's main container.
func workloadSelectors(s snapshot.Snapshot, pod *corev1.Pod) []string {
	out := []string{"keelson:ns:" + pod.Namespace, "keelson:sa:" + snapshot.ServiceAccount(pod)}
	if !pod.Spec.HostNetwork && !pod.Spec.HostPID {
		out = append(out, "keelson:runtime:restricted")
	}
	for _, c := range pod.Status.ContainerStatuses {
		image := s.Images[snapshot.ImageKey{Image: c.Image, ImageID: c.ImageID}]
		for _, m := range image.Manifests {
			out = append(out, "keelson:image-manifest:"+m)
		}
		for name, v := range image.Verifiers {
			if v.Accepted {
				out = append(out, "keelson:signed-by:"+name)
			}
		}
	}
	return out
}

// connects reports whether a pod can open a connection to a port of another one, with
// the enforcement of nodes that are proved bad counting for nothing.
func connects(s snapshot.Snapshot, d *dataplane, src, dst *corev1.Pod, port uint16) bool {
	from, to := d.pod(snapshot.Key(src)), d.pod(snapshot.Key(dst))
	if from == nil || to == nil {
		return false
	}
	out := badNode(s, src.Spec.NodeName) || d.allows(from, false, to.nets[0].Addr(), "TCP", port)
	return out && (badNode(s, dst.Spec.NodeName) || d.allows(to, true, from.nets[0].Addr(), "TCP", port))
}

func badNode(s snapshot.Snapshot, node string) bool {
	for _, t := range s.NodeTrusts {
		if t.Name == node {
			return t.Spec.Verdict == "untrusted"
		}
	}
	return false
}

// calls reports whether a request of src is answered by dst: with any SVID that src can
// have, or without one.
func calls(s snapshot.Snapshot, d *dataplane, src, dst *corev1.Pod, port int, method, path string) bool {
	if !connects(s, d, src, dst, uint16(port)) {
		return false
	}
	r := request{address: netip.MustParseAddr(src.Status.PodIP), port: port, method: method, path: path}
	for _, id := range append(svids(s, src), "") {
		r.principal = strings.TrimPrefix(id, "spiffe://")
		if proxyAllows(s, dst, r) {
			return true
		}
	}
	return false
}
