package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Limits on a TrustPolicy. The schema and trustgraph, which checks a policy again because a schema can be switched off, both
// keep them.
const (
	// ReservedPolicy is a name that no TrustPolicy may have: Keelson's own default deny of a namespace is named by it.
	ReservedPolicy = "default-deny"
	// MaxPolicyName is the most characters of a policy's name: it begins the prefix of a label key, which has at most 253.
	MaxPolicyName = 200
	// MaxAlternatives is the most combinations of references and tag values, and of verifiers and digests.
	MaxAlternatives = 256
	MaxRules        = 64
	MaxPeers        = 64
	MaxPorts        = 32
	MaxHTTP         = 32
	MaxMethods      = 16
	MaxPaths        = 64
	MaxReferences   = 16
	MaxVerifiers    = 16
	// MaxChosenVerifiers bounds verifiedBy beside verifiedByAtLeast, because each choice is a SPIRE entry.
	MaxChosenVerifiers = 10
	MaxDigests         = 64
	MaxTags            = 8
	MaxTagValues       = 64
	// MaxMatchLabels, MaxMatchExpressions and MaxMatchValues bound a label selector.
	MaxMatchLabels      = 32
	MaxMatchExpressions = 16
	MaxMatchValues      = 64
	// MaxServiceAccount is the most characters of a service account's name: Calico labels a pod with its service account only
	// when the name is shorter than 63 characters.
	MaxServiceAccount = 62
	MaxMethod         = 32
	MaxPath           = 512
	MaxName           = 253
)

// TrustPolicySpec says which pods a policy is for, what must be proved before they
// get an identity and a trust label, and who may then talk with them.
type TrustPolicySpec struct {
	// Workloads names the pods, all in the policy's own namespace.
	Workloads Workloads `json:"workloads"`
	// Require is what must be proved. Without it a trusted node is still required and, for the trust label, that the digest of every container's image is known.
	// +optional
	Require Requirements `json:"require,omitempty"`
	// Ingress lists who may call these pods; empty means nobody.
	// +optional
	// +kubebuilder:validation:MaxItems=64
	Ingress []IngressRule `json:"ingress,omitempty"`
	// Egress lists whom these pods may call beyond the pods whose own Ingress names them.
	// Empty adds nothing and takes nothing away: other tiers decide on traffic that leaves for unenrolled destinations.
	// +optional
	// +kubebuilder:validation:MaxItems=64
	Egress []EgressRule `json:"egress,omitempty"`

	// Unknown are the fields of the object that this version does not know, by their path, the first few of them. The schema keeps
	// them, so that a policy never becomes a weaker one by losing what its author asked; a policy with any is not accepted.
	Unknown []string `json:"-"`
}

// Workloads selects pods by service account, by labels, or by both.
// +kubebuilder:validation:XValidation:rule="(has(self.serviceAccount) && size(self.serviceAccount) > 0) || has(self.selector)",message="name a serviceAccount or a selector"
type Workloads struct {
	// ServiceAccount is the name of the pods' service account.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="self == '' || self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')",message="a service account's name has lower-case letters, digits, '-' and '.', and begins and ends with a letter or digit; it has no namespace before it"
	// +kubebuilder:validation:XValidation:rule="size(self) <= 62",message="Calico can select service accounts by names of at most 62 characters"
	ServiceAccount string `json:"serviceAccount,omitempty"`
	// Selector matches labels of the pods. It narrows network policy only: an SVID cannot tell pods of one service account apart by labels.
	// +optional
	Selector *metav1.LabelSelector `json:"selector,omitempty"`
}

// Requirements is what must be proved of a pod's node, image and runtime.
// +kubebuilder:validation:XValidation:rule="!has(self.drift)",message="require.drift is not supported yet: remove it; this version would not check it"
type Requirements struct {
	// Node is what must be proved of the node; empty still asks for a trusted one.
	// +optional
	Node NodeRequirement `json:"node,omitempty"`
	// Image is what must be proved of the image of every container.
	// +optional
	Image ImageRequirement `json:"image,omitempty"`
	// Runtime is a level of the Kubernetes Pod Security Standards that all of a pod's containers must meet, init and
	// ephemeral ones among them: "baseline" or "restricted". "any" (the default) asks nothing. At both levels a
	// PersistentVolumeClaim that is a folder or disk of the node counts as a hostPath volume, and the paths that the
	// administrator allows may be mounted read-only. "restricted" also refuses containers that share their processes.
	// +optional
	// +kubebuilder:validation:Enum=baseline;restricted;any;""
	Runtime RuntimeRequirement `json:"runtime,omitempty"`
	// Drift is reserved for a later version. This one refuses it.
	// +optional
	// +kubebuilder:pruning:PreserveUnknownFields
	Drift *runtime.RawExtension `json:"drift,omitempty"`
}

// RuntimeRequirement is what is asked of a container's privileges.
type RuntimeRequirement string

// The runtime requirements. What meets RuntimeRestricted meets RuntimeBaseline.
const (
	RuntimeBaseline   RuntimeRequirement = "baseline"
	RuntimeRestricted RuntimeRequirement = "restricted"
	RuntimeAny        RuntimeRequirement = "any"
)

// NodeRequirement is what must be proved of the node.
// +kubebuilder:validation:XValidation:rule="[has(self.tags) ? self.tags.map(k, size(self.tags[k]) > 0 ? size(self.tags[k]) : 1) : []].all(n, (has(self.references) && size(self.references) > 0 ? size(self.references) : 1) * (size(n) > 0 ? n[0] : 1) * (size(n) > 1 ? n[1] : 1) * (size(n) > 2 ? n[2] : 1) * (size(n) > 3 ? n[3] : 1) * (size(n) > 4 ? n[4] : 1) * (size(n) > 5 ? n[5] : 1) * (size(n) > 6 ? n[6] : 1) * (size(n) > 7 ? n[7] : 1) <= 256)",message="more than 256 combinations of references and tag values: name fewer"
type NodeRequirement struct {
	// References names reference sets of which the node must match one; empty accepts any set.
	// +optional
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=253
	// +kubebuilder:validation:items:XValidation:rule="size(self) > 0",message="name a reference set: this name is empty"
	References []string `json:"references,omitempty"`
	// Tags lists, for each asset-tag key, the accepted values: {country: [DE, FR]}. The node must have every key with one of its values.
	// +optional
	// +kubebuilder:validation:MaxProperties=8
	Tags map[string][]string `json:"tags,omitempty"`
}

// ImageRequirement is what must be proved of every container's image.
// +kubebuilder:validation:XValidation:rule="!has(self.scan)",message="require.image.scan is not supported yet: remove it; this version would not check it"
// +kubebuilder:validation:XValidation:rule="!has(self.sbom)",message="require.image.sbom is not supported yet: remove it; this version would not check it"
// +kubebuilder:validation:XValidation:rule="!has(self.provenance)",message="require.image.provenance is not supported yet: remove it; this version would not check it"
// +kubebuilder:validation:XValidation:rule="!has(self.drift)",message="require.image.drift is not supported yet: remove it; this version would not check it"
// +kubebuilder:validation:XValidation:rule="!has(self.verifiedByAtLeast) || (has(self.verifiedBy) && size(self.verifiedBy) >= self.verifiedByAtLeast)",message="verifiedByAtLeast asks for more verifiers than verifiedBy names"
// +kubebuilder:validation:XValidation:rule="!has(self.verifiedByAtLeast) || !has(self.verifiedBy) || (size(self.verifiedBy) <= 10 && self.verifiedBy.all(v, self.verifiedBy.exists_one(w, w == v)))",message="with verifiedByAtLeast, verifiedBy names at most 10 verifiers, each once; where all have to accept, use verifiedByAll"
// +kubebuilder:validation:XValidation:rule="(has(self.verifiedBy) && size(self.verifiedBy) > 0 ? (has(self.verifiedByAtLeast) && size(self.verifiedBy) <= 10 && self.verifiedByAtLeast <= size(self.verifiedBy) ? [[1],[1,1],[1,2,1],[1,3,3,1],[1,4,6,4,1],[1,5,10,10,5,1],[1,6,15,20,15,6,1],[1,7,21,35,35,21,7,1],[1,8,28,56,70,56,28,8,1],[1,9,36,84,126,126,84,36,9,1],[1,10,45,120,210,252,210,120,45,10,1]][size(self.verifiedBy)][self.verifiedByAtLeast] : size(self.verifiedBy)) : 1) * (has(self.digests) && size(self.digests) > 0 ? size(self.digests) : 1) <= 256",message="more than 256 combinations of verifiers and digests: name fewer"
type ImageRequirement struct {
	// VerifiedBy names verifiers in the operator's configuration; one of them must accept the image, or as many as VerifiedByAtLeast says.
	// +optional
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=253
	// +kubebuilder:validation:items:XValidation:rule="size(self) <= 63 && self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",message="a verifier's name has at most 63 lower-case letters, digits and '-', and begins and ends with a letter or digit"
	VerifiedBy []string `json:"verifiedBy,omitempty"`
	// VerifiedByAtLeast is how many of VerifiedBy must accept the image; 1 where it is absent.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=10
	VerifiedByAtLeast *int32 `json:"verifiedByAtLeast,omitempty"`
	// VerifiedByAll names verifiers that must all accept the image, beside what VerifiedBy asks.
	// +optional
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=253
	// +kubebuilder:validation:items:XValidation:rule="size(self) <= 63 && self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",message="a verifier's name has at most 63 lower-case letters, digits and '-', and begins and ends with a letter or digit"
	VerifiedByAll []string `json:"verifiedByAll,omitempty"`
	// Digests lists accepted manifest digests ("sha256:<hex>"); the image must be one of them.
	// +optional
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=71
	// +kubebuilder:validation:items:XValidation:rule="self.matches('^sha256:[0-9a-f]{64}$')",message="a digest is sha256: and 64 hexadecimal digits in lower case"
	Digests []string `json:"digests,omitempty"`
	// Scan is reserved for a later version. This one refuses it.
	// +optional
	// +kubebuilder:pruning:PreserveUnknownFields
	Scan *runtime.RawExtension `json:"scan,omitempty"`
	// SBOM is reserved for a later version. This one refuses it.
	// +optional
	// +kubebuilder:pruning:PreserveUnknownFields
	SBOM *runtime.RawExtension `json:"sbom,omitempty"`
	// Provenance is reserved for a later version. This one refuses it.
	// +optional
	// +kubebuilder:pruning:PreserveUnknownFields
	Provenance *runtime.RawExtension `json:"provenance,omitempty"`
	// Drift is reserved for a later version. This one refuses it.
	// +optional
	// +kubebuilder:pruning:PreserveUnknownFields
	Drift *runtime.RawExtension `json:"drift,omitempty"`
}

// IngressRule lets peers call these pods.
type IngressRule struct {
	// From lists the peers; each must itself be attested. At least one.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	From []Peer `json:"from"`
	// Ports lists TCP ports; empty means every port.
	// +optional
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:Minimum=1
	// +kubebuilder:validation:items:Maximum=65535
	Ports []int32 `json:"ports,omitempty"`
	// HTTP narrows the rule to requests that match one of its entries. It needs a mesh whose proxy runs in every selected pod: nothing else reads HTTP.
	// +optional
	// +kubebuilder:validation:MaxItems=32
	HTTP []HTTPRule `json:"http,omitempty"`
}

// EgressRule lets these pods call peers.
type EgressRule struct {
	// To lists the peers; each must itself be attested. At least one.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	To []Peer `json:"to"`
	// Ports lists TCP ports; empty means every port.
	// +optional
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:Minimum=1
	// +kubebuilder:validation:items:Maximum=65535
	Ports []int32 `json:"ports,omitempty"`
}

// Peer names attested pods.
type Peer struct {
	// Namespace of the peer; empty means the policy's own. One namespace by its name: there is no wildcard.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self.matches('^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$')",message="a namespace's name has lower-case letters, digits and '-', and begins and ends with a letter or digit; there is no wildcard"
	Namespace string `json:"namespace,omitempty"`
	// ServiceAccount of the peer, by its name alone ("frontend").
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')",message="a service account's name has lower-case letters, digits, '-' and '.', and begins and ends with a letter or digit; it has no namespace before it"
	// +kubebuilder:validation:XValidation:rule="size(self) <= 62",message="Calico can select service accounts by names of at most 62 characters"
	ServiceAccount string `json:"serviceAccount"`
	// PodSelector narrows the peer by labels. It binds in Calico only: an X.509 identity has no labels.
	// +optional
	PodSelector *metav1.LabelSelector `json:"podSelector,omitempty"`
	// Tags narrows the peer by its node's asset tags: for each key, the accepted values. It binds in Calico only.
	// +optional
	// +kubebuilder:validation:MaxProperties=8
	Tags map[string][]string `json:"tags,omitempty"`
}

// HTTPRule matches requests by method and path: a request has to match both where both are there.
// +kubebuilder:validation:XValidation:rule="(has(self.methods) && size(self.methods) > 0) || (has(self.paths) && size(self.paths) > 0)",message="name methods or paths: an empty rule would match every request"
type HTTPRule struct {
	// Methods lists HTTP methods in upper case (GET, POST); empty means every method.
	// +optional
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=32
	// +kubebuilder:validation:items:XValidation:rule="self.matches('^[A-Z][A-Z0-9_-]*$')",message="an HTTP method is written in upper case, such as GET or POST; leave methods out for every method"
	Methods []string `json:"methods,omitempty"`
	// Paths lists paths of requests, without query; empty means every path. A path is matched whole ("/orders"), or by its
	// beginning where it ends with * ("/orders/*"), or by segments: {*} is one segment, {**} any number of them ("/orders/{*}/items").
	// +optional
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=512
	// +kubebuilder:validation:items:Pattern=`^((?<text_after_a_slash_where_a_star_is_last_and_without_query_fragment_or_space>/[^\x00-\x20\x7f{}*?#]*\*?)|(?<or_segments_of_which_some_are_one_star_or_two_stars_in_braces>(/(\{\*\}|[-\w.~%!$&'()+,;:@=]+))*(/\{\*\*\}(/[-\w.~%!$&'()+,;:@=]+)*)?/?))$`
	// +kubebuilder:validation:items:XValidation:rule="self.startsWith('/')",message="a path begins with /, such as /orders"
	// +kubebuilder:validation:items:XValidation:rule="!self.endsWith('}') || self.endsWith('{*}') || self.endsWith('{**}')",message="braces hold * or ** alone: {*} is one segment, {**} any number; a name such as {id} is not known"
	Paths []string `json:"paths,omitempty"`
}

// Conditions of a TrustPolicy.
const (
	// ConditionAccepted is true when the policy could be read and turned into objects.
	ConditionAccepted = "Accepted"
	// ConditionProgrammed is true when every object of the policy is in place.
	ConditionProgrammed = "Programmed"
	// ConditionAttested is true when the policy selects pods and all of them meet it.
	ConditionAttested = "Attested"
)

// TrustPolicyStatus is what policy-sync made of the policy.
type TrustPolicyStatus struct {
	// ObservedGeneration is the generation that the status is about.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// LastAccepted is the newest spec that had no problem. It stays in force while a newer one is refused.
	// +optional
	LastAccepted *AcceptedSpec `json:"lastAccepted,omitempty"`
	// Why says in one line why something is not as the policy asks: the first refused pod's reason, or else what keeps the policy
	// from being programmed.
	// +optional
	Why string `json:"why,omitempty"`
	// LastSynced is when this status was last written, and so true. It stays true as long as policy-sync's heartbeat is young: the
	// ConfigMap keelson-policy-sync-heartbeat in its namespace.
	// +optional
	LastSynced *metav1.Time `json:"lastSynced,omitempty"`
	// Selected counts the pods that the policy selects.
	// +optional
	Selected int32 `json:"selected"`
	// Attested counts the selected pods that meet the requirements.
	// +optional
	Attested int32 `json:"attested"`
	// Refused lists selected pods that do not, with the reason (the first 32).
	// +optional
	// +kubebuilder:validation:MaxItems=32
	Refused []RefusedPod `json:"refused,omitempty"`
	// Notes say what the policy asks that the data plane cannot express.
	// +optional
	// +kubebuilder:validation:MaxItems=32
	Notes []string `json:"notes,omitempty"`
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// AcceptedSpec is a spec of an earlier or the present generation.
type AcceptedSpec struct {
	// Generation is the policy's when it had this spec.
	Generation int64           `json:"generation"`
	Spec       TrustPolicySpec `json:"spec"`
}

// RefusedPod is a selected pod that does not meet the requirements.
type RefusedPod struct {
	Pod    string `json:"pod"`
	Reason string `json:"reason"`
}

// TrustPolicy ties the right to talk to proof of machine and image.
//
// The two rules on the name look at new objects alone: an object with such a name from before stays changeable.
// +kubebuilder:validation:XValidation:rule="oldSelf.hasValue() || self.metadata.name != 'default-deny'",optionalOldSelf=true,message="metadata.name: default-deny is reserved for Keelson's own default deny"
// +kubebuilder:validation:XValidation:rule="oldSelf.hasValue() || size(self.metadata.name) <= 200",optionalOldSelf=true,message="metadata.name: at most 200 characters fit into the label that the policy puts on pods"
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Namespaced,shortName=tp,categories=keelson
// +kubebuilder:printcolumn:name="Selected",type=integer,JSONPath=`.status.selected`
// +kubebuilder:printcolumn:name="Attested",type=integer,JSONPath=`.status.attested`
// +kubebuilder:printcolumn:name="Programmed",type=string,JSONPath=`.status.conditions[?(@.type=="Programmed")].status`
// +kubebuilder:printcolumn:name="Why",type=string,JSONPath=`.status.why`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type TrustPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              TrustPolicySpec `json:"spec"`
	// +optional
	Status TrustPolicyStatus `json:"status,omitempty"`
}

// TrustPolicyList is a list of TrustPolicy.
// +kubebuilder:object:root=true
type TrustPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []TrustPolicy `json:"items"`
}
