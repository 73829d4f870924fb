package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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
}

// Workloads selects pods by service account, by labels, or by both.
// +kubebuilder:validation:XValidation:rule="(has(self.serviceAccount) && size(self.serviceAccount) > 0) || has(self.selector)",message="name a serviceAccount or a selector"
type Workloads struct {
	// ServiceAccount is the name of the pods' service account.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	ServiceAccount string `json:"serviceAccount,omitempty"`
	// Selector matches labels of the pods.
	// +optional
	Selector *metav1.LabelSelector `json:"selector,omitempty"`
}

// Requirements is what must be proved of a pod's node, image and runtime.
type Requirements struct {
	// +optional
	Node NodeRequirement `json:"node,omitempty"`
	// +optional
	Image ImageRequirement `json:"image,omitempty"`
	// Runtime "restricted" refuses privileged containers, host namespaces, added
	// capabilities, hostPath volumes that the administrator does not allow, and subPaths of
	// claims and block devices, which might be one, in any of a pod's containers; "any" (the default) asks nothing.
	// +optional
	// +kubebuilder:validation:Enum=restricted;any
	Runtime RuntimeRequirement `json:"runtime,omitempty"`
}

// RuntimeRequirement is what is asked of a container's privileges.
type RuntimeRequirement string

// The runtime requirements.
const (
	RuntimeRestricted RuntimeRequirement = "restricted"
	RuntimeAny        RuntimeRequirement = "any"
)

// NodeRequirement is what must be proved of the node.
type NodeRequirement struct {
	// References names reference sets of which the node must match one; empty accepts any set.
	// +optional
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=253
	References []string `json:"references,omitempty"`
	// Tags lists, per asset-tag key, the accepted values.
	// +optional
	// +kubebuilder:validation:MaxProperties=8
	Tags map[string][]string `json:"tags,omitempty"`
}

// ImageRequirement is what must be proved of every container's image.
type ImageRequirement struct {
	// VerifiedBy names verifiers in the operator's configuration; one of them must accept the image.
	// +optional
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=253
	VerifiedBy []string `json:"verifiedBy,omitempty"`
	// Digests lists accepted manifest digests ("sha256:<hex>"); the image must be one of them.
	// +optional
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:Pattern=`^sha256:[0-9a-f]{64}$`
	Digests []string `json:"digests,omitempty"`
}

// IngressRule lets peers call these pods.
type IngressRule struct {
	// From lists the peers; each must itself be attested.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	From []Peer `json:"from"`
	// Ports lists TCP ports; empty means every port.
	// +optional
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:Minimum=1
	// +kubebuilder:validation:items:Maximum=65535
	Ports []int32 `json:"ports,omitempty"`
	// HTTP narrows the rule to requests, one of which must match; it needs a mesh that reads HTTP.
	// +optional
	// +kubebuilder:validation:MaxItems=32
	HTTP []HTTPRule `json:"http,omitempty"`
}

// EgressRule lets these pods call peers.
type EgressRule struct {
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	To []Peer `json:"to"`
	// +optional
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:Minimum=1
	// +kubebuilder:validation:items:Maximum=65535
	Ports []int32 `json:"ports,omitempty"`
}

// Peer names attested pods.
type Peer struct {
	// Namespace of the peer; empty means the policy's own.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace,omitempty"`
	// ServiceAccount of the peer.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	ServiceAccount string `json:"serviceAccount"`
	// PodSelector narrows the peer by labels. It binds in Calico only: an X.509 identity has no labels.
	// +optional
	PodSelector *metav1.LabelSelector `json:"podSelector,omitempty"`
	// Tags narrows the peer by its node's asset tags. It binds in Calico only.
	// +optional
	// +kubebuilder:validation:MaxProperties=8
	Tags map[string][]string `json:"tags,omitempty"`
}

// HTTPRule matches requests by method and path.
type HTTPRule struct {
	// +optional
	// +kubebuilder:validation:MaxItems=16
	Methods []string `json:"methods,omitempty"`
	// +optional
	// +kubebuilder:validation:MaxItems=64
	Paths []string `json:"paths,omitempty"`
}

// Conditions of a TrustPolicy.
const (
	// ConditionAccepted is true when the policy could be read and turned into objects.
	ConditionAccepted = "Accepted"
	// ConditionProgrammed is true when every object of the policy is in place.
	ConditionProgrammed = "Programmed"
)

// TrustPolicyStatus is what policy-sync made of the policy.
type TrustPolicyStatus struct {
	// ObservedGeneration is the generation that the status is about.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Selected counts the pods that the policy selects.
	// +optional
	Selected int32 `json:"selected,omitempty"`
	// Attested counts the selected pods that meet the requirements.
	// +optional
	Attested int32 `json:"attested,omitempty"`
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

// RefusedPod is a selected pod that does not meet the requirements.
type RefusedPod struct {
	Pod    string `json:"pod"`
	Reason string `json:"reason"`
}

// TrustPolicy ties the right to talk to proof of machine and image.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Namespaced,shortName=tp,categories=keelson
// +kubebuilder:printcolumn:name="Selected",type=integer,JSONPath=`.status.selected`
// +kubebuilder:printcolumn:name="Attested",type=integer,JSONPath=`.status.attested`
// +kubebuilder:printcolumn:name="Programmed",type=string,JSONPath=`.status.conditions[?(@.type=="Programmed")].status`
// +kubebuilder:printcolumn:name="Why",type=string,JSONPath=`.status.refused[0].reason`
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
