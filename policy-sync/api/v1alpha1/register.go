package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Group is the API group of every Keelson kind.
const Group = "trust.keelson.io"

// GroupVersion is the group and the version of this package.
var GroupVersion = schema.GroupVersion{Group: Group, Version: "v1alpha1"}

// AddToScheme registers the kinds of this package.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &TrustPolicy{}, &TrustPolicyList{}, &NodeTrust{}, &NodeTrustList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
