package snapshot

import (
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// API versions that policy-sync reads and writes.
var (
	calicoV3      = schema.GroupVersion{Group: "projectcalico.org", Version: "v3"}
	istioSecurity = schema.GroupVersion{Group: "security.istio.io", Version: "v1"}
	istioNetwork  = schema.GroupVersion{Group: "networking.istio.io", Version: "v1alpha3"}
	istioPlugins  = schema.GroupVersion{Group: "extensions.istio.io", Version: "v1alpha1"}
)

// MeshConfig is the name of the ConfigMap of Istio's mesh configuration, in its root namespace and for its default revision.
const MeshConfig = "istio"

// Kind is one kind of object whose live state belongs into Snapshot.Objects.
type Kind struct {
	schema.GroupVersionKind
	// Resource is the plural name in the API.
	Resource   string
	Namespaced bool
	// Written is true for kinds that policy-sync writes; the others are only looked at.
	Written bool
	// Optional is true for kinds that a data plane works without: one that the API server does not serve is not read, and is
	// named in Config.Absent.
	Optional bool
}

// definition is "<plural>.<group>", as the API server names a definition.
func (k Kind) definition() string { return k.Resource + "." + k.Group }

// Kinds lists every kind that has to be read into Snapshot.Objects.
func Kinds(c Config) []Kind {
	var out []Kind
	if c.Calico {
		out = append(out,
			Kind{GroupVersionKind: calicoV3.WithKind("Tier"), Resource: "tiers", Written: true},
			Kind{GroupVersionKind: calicoV3.WithKind("GlobalNetworkPolicy"), Resource: "globalnetworkpolicies", Written: true},
			Kind{GroupVersionKind: calicoV3.WithKind("StagedGlobalNetworkPolicy"), Resource: "stagedglobalnetworkpolicies", Written: true},
			Kind{GroupVersionKind: calicoV3.WithKind("NetworkPolicy"), Resource: "networkpolicies", Namespaced: true, Written: true},
			Kind{GroupVersionKind: calicoV3.WithKind("StagedNetworkPolicy"), Resource: "stagednetworkpolicies", Namespaced: true, Written: true},
			Kind{GroupVersionKind: calicoV3.WithKind("GlobalNetworkSet"), Resource: "globalnetworksets", Written: true},
			Kind{GroupVersionKind: calicoV3.WithKind("NetworkSet"), Resource: "networksets", Namespaced: true},
			Kind{GroupVersionKind: calicoV3.WithKind("HostEndpoint"), Resource: "hostendpoints"})
	}
	if c.Istio {
		out = append(out,
			Kind{GroupVersionKind: istioSecurity.WithKind("AuthorizationPolicy"), Resource: "authorizationpolicies", Namespaced: true, Written: true},
			Kind{GroupVersionKind: istioSecurity.WithKind("PeerAuthentication"), Resource: "peerauthentications", Namespaced: true, Written: true},
			Kind{GroupVersionKind: istioNetwork.WithKind("EnvoyFilter"), Resource: "envoyfilters", Namespaced: true},
			Kind{GroupVersionKind: istioNetwork.WithKind("Sidecar"), Resource: "sidecars", Namespaced: true, Optional: true},
			Kind{GroupVersionKind: istioSecurity.WithKind("RequestAuthentication"), Resource: "requestauthentications", Namespaced: true, Optional: true},
			Kind{GroupVersionKind: istioPlugins.WithKind("WasmPlugin"), Resource: "wasmplugins", Namespaced: true, Optional: true})
	}
	return slices.DeleteFunc(out, func(k Kind) bool { return k.Optional && slices.Contains(c.Absent, k.definition()) })
}

// Owned reports whether policy-sync made the object.
func Owned(o metav1.Object) bool { return o.GetLabels()[v1alpha1.OwnerLabel] == v1alpha1.OwnerValue }
