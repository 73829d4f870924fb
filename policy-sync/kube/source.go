package kube

import (
	"strings"

	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/plan"
)

// Source names the one TrustPolicy that an operation is for; false when it is for several or for none.
func Source(o plan.Operation) (types.NamespacedName, bool) {
	if o.Object == nil {
		return types.NamespacedName{}, false
	}
	namespace, name, ok := strings.Cut(o.Object.GetAnnotations()[v1alpha1.SourceAnnotation], "/")
	return types.NamespacedName{Namespace: namespace, Name: name}, ok && name != ""
}
