package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Verdict is what is known of a node's trust.
// +kubebuilder:validation:Enum=trusted;untrusted
type Verdict string

// The verdicts of a node. A NodeTrust's spec holds trusted or untrusted. The others follow from time and from what else the
// cluster holds, and stand in its status: stale (validUntil has passed), held (the same, within the grace period) and unknown (no
// NodeTrust, or none that can be believed). Only trusted opens anything.
const (
	VerdictTrusted   Verdict = "trusted"
	VerdictUntrusted Verdict = "untrusted"
	VerdictStale     Verdict = "stale"
	VerdictHeld      Verdict = "held"
	VerdictUnknown   Verdict = "unknown"
)

// NodeTrustEKHash is the field that NodeTrusts can be selected by, so that whoever binds an EK finds its node.
const NodeTrustEKHash = "spec.ekHash"

// NodeTrustSpec is one proved result of node attestation. Only the SPIRE server's
// account writes it. The transition rules make the API server refuse a late write
// that would overwrite a newer verdict, and a different EK under the same name.
// +kubebuilder:validation:XValidation:rule="self.ekHash == oldSelf.ekHash",message="ekHash is immutable: another TPM needs an administrator to delete this NodeTrust first"
// +kubebuilder:validation:XValidation:rule="self.attestedAt >= oldSelf.attestedAt",message="attestedAt may not go back: a newer verdict stands"
// +kubebuilder:validation:XValidation:rule="self.attestedAt > oldSelf.attestedAt || self.verdict == 'untrusted' || oldSelf.verdict == 'trusted'",message="of two verdicts of the same instant, untrusted stands"
// +kubebuilder:validation:XValidation:rule="!has(oldSelf.tagSerial) || (has(self.tagSerial) && self.tagSerial >= oldSelf.tagSerial)",message="tagSerial may not go back: an older asset tag was put in place"
// +kubebuilder:validation:XValidation:rule="self.validUntil > self.attestedAt",message="validUntil must lie after attestedAt"
type NodeTrustSpec struct {
	// Verdict is the outcome of the appraisal.
	Verdict Verdict `json:"verdict"`
	// Reference is the name of the reference set that the node matched; empty when none did.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	Reference string `json:"reference,omitempty"`
	// Tags are the certified asset-tag keys and values (where the machine stands).
	// +optional
	// +kubebuilder:validation:MaxProperties=32
	Tags map[string]string `json:"tags,omitempty"`
	// TagSerial is the highest asset-tag serial seen for this EK.
	// +optional
	TagSerial *int64 `json:"tagSerial,omitempty"`
	// NodeUID is the UID of the Node object that this verdict is about; a Node recreated under the
	// same name inherits nothing. Without it, as long as no such Node exists, a trusted verdict opens nothing.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	NodeUID string `json:"nodeUID,omitempty"`
	// EKHash is SHA-256 of the endorsement key's SubjectPublicKeyInfo, lower-case hex.
	// +kubebuilder:validation:Pattern=`^[0-9a-f]{64}$`
	EKHash string `json:"ekHash"`
	// AgentID is the SPIFFE ID of the node's SPIRE agent.
	// +kubebuilder:validation:MaxLength=2048
	AgentID string `json:"agentID"`
	// AttestedAt is when the verifier received the evidence.
	AttestedAt metav1.MicroTime `json:"attestedAt"`
	// ValidUntil is when the verdict becomes stale.
	ValidUntil metav1.MicroTime `json:"validUntil"`
	// Reasons say why the verdict is untrusted, one per failed check.
	// +optional
	// +kubebuilder:validation:MaxItems=64
	Reasons []Reason `json:"reasons,omitempty"`
	// EvidenceDigest is "sha256:<hex>" over the quote that the verdict rests on, to find it in the audit log.
	// +optional
	// +kubebuilder:validation:MaxLength=80
	EvidenceDigest string `json:"evidenceDigest,omitempty"`
}

// Reason is one failed check of an appraisal.
type Reason struct {
	// Check is the stable id of the check.
	// +kubebuilder:validation:MaxLength=64
	Check string `json:"check"`
	// Reason says in a person's words what was found and what was wanted.
	// +kubebuilder:validation:MaxLength=1024
	Reason string `json:"reason"`
}

// NodeTrustState is what the verdict comes to now.
// +kubebuilder:validation:Enum=trusted;untrusted;stale;held;unknown
type NodeTrustState string

// NodeTrustStatus is what policy-sync makes of the spec. Nothing is decided by it.
type NodeTrustStatus struct {
	// ObservedGeneration is the generation of the spec that the status is about. A proof that is renewed is another generation.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Verdict is trusted, untrusted, stale (the proof has ended), held (it has ended and the grace period runs) or unknown (the
	// NodeTrust cannot be believed about a Node that is there).
	// +optional
	Verdict NodeTrustState `json:"verdict,omitempty"`
	// Why says why the verdict is not trusted.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Why string `json:"why,omitempty"`
	// Since is when policy-sync first saw this verdict.
	// +optional
	Since *metav1.Time `json:"since,omitempty"`
}

// NodeTrust is the verdict on one node; its name is the node's name.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=nt,categories=keelson
// +kubebuilder:selectablefield:JSONPath=`.spec.ekHash`
// +kubebuilder:printcolumn:name="Verdict",type=string,JSONPath=`.status.verdict`
// +kubebuilder:printcolumn:name="Reference",type=string,JSONPath=`.spec.reference`
// +kubebuilder:printcolumn:name="Tags",type=string,JSONPath=`.spec.tags`
// +kubebuilder:printcolumn:name="Attested",type=date,JSONPath=`.spec.attestedAt`
// +kubebuilder:printcolumn:name="Valid-Until",type=string,JSONPath=`.spec.validUntil`
// +kubebuilder:printcolumn:name="Why",type=string,JSONPath=`.status.why`
type NodeTrust struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              NodeTrustSpec `json:"spec"`
	// +optional
	Status NodeTrustStatus `json:"status,omitempty"`
}

// NodeTrustList is a list of NodeTrust.
// +kubebuilder:object:root=true
type NodeTrustList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []NodeTrust `json:"items"`
}
