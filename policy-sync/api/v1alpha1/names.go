package v1alpha1

import "strconv"

// Labels and annotations that people set.
const (
	// ModeLabel on a Namespace enrols it; only admins may set it (a guard policy sees to that).
	ModeLabel = Group + "/mode"
	// ModeEnforce makes Keelson close what is not attested.
	ModeEnforce = "enforce"
	// ModeAudit makes Keelson say what it would close, and close nothing.
	ModeAudit = "audit"
)

// Labels that only policy-sync sets on Pods; guard policies refuse them from anybody else.
const (
	// PodTrustPrefix starts every trust label key of a pod that is not one policy's own.
	PodTrustPrefix = Group + "/"
	// PodAttestedLabel is "true" on a pod that meets every TrustPolicy that selects it (at least one).
	PodAttestedLabel = Group + "/attested"
	// PodEnforcedLabel is "true" on an attested pod of a namespace that enforces, where Istio is there: by it a policy in the
	// mesh's root namespace selects such pods.
	PodEnforcedLabel = Group + "/enforced"
	// PodTagPrefix precedes the asset-tag key of the pod's node: trust.keelson.io/tag.country=DE.
	PodTagPrefix = Group + "/tag."
	// PolicyLabelDomain ends the prefix of the label key that each policy has of its own.
	PolicyLabelDomain = ".policy." + Group
)

// PolicyLabel is the key of the label that says a pod meets the policy of that name
// (in its own namespace): <policy>.policy.trust.keelson.io/attested.
func PolicyLabel(policy string) string { return policy + PolicyLabelDomain + "/attested" }

// True is the value of labels that only assert their key.
const True = "true"

// Labels and taint on Nodes. The prefix node-restriction.kubernetes.io is one that a
// kubelet may not write (Kubernetes NodeRestriction admission).
const (
	NodeLabelPrefix  = "keelson.node-restriction.kubernetes.io/"
	NodeVerdictLabel = NodeLabelPrefix + "verdict"
	NodeTagPrefix    = NodeLabelPrefix + "tag."
	// NodeReferenceLabel names the reference set that the node matches, where that name can be a label's value.
	NodeReferenceLabel = NodeLabelPrefix + "reference"
	// UntrustedTaint (effect NoSchedule) is on every node that is not trusted.
	UntrustedTaint = Group + "/untrusted"
)

// Names on objects that policy-sync makes.
const (
	// OwnerLabel marks an object as made by policy-sync; nothing without it is ever deleted.
	OwnerLabel = "app.kubernetes.io/managed-by"
	OwnerValue = "keelson-policy-sync"
	// LeaseName names the lease by which replicas of policy-sync agree on who writes; its roles let it take no other.
	LeaseName = "keelson-policy-sync"
	// SourceAnnotation names the TrustPolicy (namespace/name) that an object was made for.
	SourceAnnotation = Group + "/source"
	// CalicoTier is the tier of every Calico policy that Keelson writes, before the teams' tiers.
	CalicoTier = "keelson"
	// RevokedSet is the first GlobalNetworkSet of revoked addresses, of which keelson-node cuts the open flows. RevokedSetName
	// names the others.
	RevokedSet = CalicoTier + ".revoked"
	// RevokedLabel marks that set for the policy that denies it. Calico's selectors match the label on any set.
	RevokedLabel = Group + "/revoked"
	// FieldManager is policy-sync's name in server-side apply.
	FieldManager = "keelson-policy-sync"
	// EntryIDPrefix starts the ID of every SPIRE entry that policy-sync owns.
	EntryIDPrefix = "keelson."
)

// MaxRevokedSets is how many sets of revoked addresses there are at most, and MaxRevokedPerSet how many addresses one holds:
// 46 bytes each at most in JSON, so that a set stays below half of the 1.5 MiB that etcd takes.
const (
	MaxRevokedSets   = 16
	MaxRevokedPerSet = 10000
)

// RevokedSetName names the i-th set of revoked addresses, from 0: keelson.revoked, keelson.revoked.2, and so on. Istio's
// objects about them have the same names.
func RevokedSetName(i int) string {
	if i == 0 {
		return RevokedSet
	}
	return RevokedSet + "." + strconv.Itoa(i+1)
}

// RevokedSetNames are the names of all sets of revoked addresses that there may be.
func RevokedSetNames() []string {
	out := make([]string, 0, MaxRevokedSets)
	for i := range MaxRevokedSets {
		out = append(out, RevokedSetName(i))
	}
	return out
}
