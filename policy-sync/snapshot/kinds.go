package snapshot

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// API versions that policy-sync reads and writes.
var (
	calicoV3      = schema.GroupVersion{Group: "projectcalico.org", Version: "v3"}
	istioSecurity = schema.GroupVersion{Group: "security.istio.io", Version: "v1"}
	istioNetwork  = schema.GroupVersion{Group: "networking.istio.io", Version: "v1alpha3"}
)

// Kind is one kind of object whose live state belongs into Snapshot.Objects.
type Kind struct {
	schema.GroupVersionKind
	// Resource is the plural name in the API.
	Resource   string
	Namespaced bool
	// Written is true for kinds that policy-sync writes; the others are only looked at.
	Written bool
}

// Kinds lists every kind that has to be read into Snapshot.Objects.
func Kinds(c Config) []Kind {
	var out []Kind
	if c.Calico {
		out = append(out,
			Kind{calicoV3.WithKind("Tier"), "tiers", false, true},
			Kind{calicoV3.WithKind("GlobalNetworkPolicy"), "globalnetworkpolicies", false, true},
			Kind{calicoV3.WithKind("StagedGlobalNetworkPolicy"), "stagedglobalnetworkpolicies", false, true},
			Kind{calicoV3.WithKind("NetworkPolicy"), "networkpolicies", true, true},
			Kind{calicoV3.WithKind("StagedNetworkPolicy"), "stagednetworkpolicies", true, true},
			Kind{calicoV3.WithKind("GlobalNetworkSet"), "globalnetworksets", false, true},
			Kind{calicoV3.WithKind("NetworkSet"), "networksets", true, false},
			Kind{calicoV3.WithKind("HostEndpoint"), "hostendpoints", false, false})
	}
	if c.Istio {
		out = append(out,
			Kind{istioSecurity.WithKind("AuthorizationPolicy"), "authorizationpolicies", true, true},
			Kind{istioSecurity.WithKind("PeerAuthentication"), "peerauthentications", true, true},
			Kind{istioNetwork.WithKind("EnvoyFilter"), "envoyfilters", true, false})
	}
	return out
}

// Owned reports whether policy-sync made the object.
func Owned(o metav1.Object) bool { return o.GetLabels()[v1alpha1.OwnerLabel] == v1alpha1.OwnerValue }
