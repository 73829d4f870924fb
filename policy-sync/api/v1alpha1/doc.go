// Package v1alpha1 holds the Kubernetes API of Keelson, group trust.keelson.io: the
// types that people write (TrustPolicy) and that the verifier writes (NodeTrust),
// and every label, annotation, taint and tier name that Keelson puts on objects.
//
// It is data: no client, no logic beyond names. It imports apimachinery alone, so
// that the node attestor can write a NodeTrust without linking a controller.
//
// +kubebuilder:object:generate=true
// +groupName=trust.keelson.io
package v1alpha1
