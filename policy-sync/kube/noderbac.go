package kube

import (
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// nodeRoleName names the roles and bindings of keelson-node.
const nodeRoleName = "keelson-node"

// NodeRBAC makes the roles that keelson-node's service account needs, and their bindings. It runs on every node, so a bad node
// has its token: it may read the sets of revoked addresses, what Felix is configured to, the Nodes (whose addresses are never
// cut) and where the API server is. It writes nothing, and reads no pod and no secret.
func NodeRBAC(namespace, serviceAccount string) []runtime.Object {
	subject := rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: namespace, Name: serviceAccount}
	named := metav1.ObjectMeta{Name: nodeRoleName}
	local := metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: nodeRoleName}
	// The authorizer takes the name of a list or watch from its field selector metadata.name.
	set := rule("projectcalico.org", read, "globalnetworksets")
	set.ResourceNames = v1alpha1.RevokedSetNames()
	endpoints := rule("discovery.k8s.io", []string{"get"}, "endpointslices")
	endpoints.ResourceNames = []string{"kubernetes"}
	return []runtime.Object{
		&rbacv1.ClusterRole{TypeMeta: rbacType("ClusterRole"), ObjectMeta: named, Rules: []rbacv1.PolicyRule{
			set,
			// Those named default and node.<name>; a role cannot name the latter.
			rule("projectcalico.org", []string{"get"}, "felixconfigurations"),
			rule(corev1.GroupName, []string{"list", "watch"}, "nodes"),
		}},
		&rbacv1.ClusterRoleBinding{TypeMeta: rbacType("ClusterRoleBinding"), ObjectMeta: named, Subjects: []rbacv1.Subject{subject},
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: nodeRoleName}},
		&rbacv1.Role{TypeMeta: rbacType("Role"), ObjectMeta: local, Rules: []rbacv1.PolicyRule{endpoints}},
		&rbacv1.RoleBinding{TypeMeta: rbacType("RoleBinding"), ObjectMeta: local, Subjects: []rbacv1.Subject{subject},
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: nodeRoleName}},
	}
}
