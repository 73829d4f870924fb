package kube

import (
	"slices"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// roleName names the roles and bindings of policy-sync.
const roleName = "keelson-policy-sync"

// Lease names the lease by which replicas agree on who writes, the only one that RBAC's roles let policy-sync read and take.
const Lease = v1alpha1.LeaseName

// RBAC makes the roles that policy-sync's service account needs, and their bindings: what Read reads, what a plan can write,
// a lease and a few ConfigMaps in its own namespace, and to delete its own replicas there. It may create no pod, read no secret and change no role.
func RBAC(namespace, serviceAccount string) []runtime.Object {
	subject := rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: namespace, Name: serviceAccount}
	named := metav1.ObjectMeta{Name: roleName}
	local := metav1.ObjectMeta{Namespace: namespace, Name: roleName}
	rules := []rbacv1.PolicyRule{
		rule("", read, "namespaces", "persistentvolumeclaims", "persistentvolumes"),
		rule("", append([]string{"patch"}, read...), "nodes", "pods"),
		rule(v1alpha1.Group, read, "nodetrusts", "trustpolicies"),
		rule(v1alpha1.Group, []string{"get", "update", "patch"}, "trustpolicies/status"),
		rule(v1alpha1.Group, []string{"patch"}, "nodetrusts/status"),
		rule("networking.k8s.io", read, "servicecidrs"),
		rule("events.k8s.io", []string{"create", "patch"}, "events"),
	}
	return []runtime.Object{
		&rbacv1.ClusterRole{TypeMeta: rbacType("ClusterRole"), ObjectMeta: named, Rules: append(rules, dataPlaneRules()...)},
		&rbacv1.ClusterRoleBinding{TypeMeta: rbacType("ClusterRoleBinding"), ObjectMeta: named, Subjects: []rbacv1.Subject{subject},
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: roleName}},
		&rbacv1.Role{TypeMeta: rbacType("Role"), ObjectMeta: local, Rules: []rbacv1.PolicyRule{
			// Who leads. No role can say under which name something may be made.
			rule("coordination.k8s.io", []string{"create"}, "leases"),
			onlyNamed(rule("coordination.k8s.io", []string{"get", "update"}, "leases"), Lease),
			// What a replica that takes over has to know, and when passes last succeeded.
			rule("", []string{"create"}, "configmaps"),
			onlyNamed(rule("", []string{"get", "update"}, "configmaps"), MemoryNames()...),
			// Its own replicas leave machines that are proved bad.
			rule("", []string{"delete"}, "pods"),
			rule("", []string{"create", "patch"}, "events")}},
		&rbacv1.RoleBinding{TypeMeta: rbacType("RoleBinding"), ObjectMeta: local, Subjects: []rbacv1.Subject{subject},
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: roleName}},
	}
}

// PullSecretRBAC makes the rights that policy-sync needs beyond RBAC where pods' pull secrets count (images.pullSecrets): to read
// Secrets and service accounts, in the named namespaces, or everywhere without any. No role can name the type of a Secret.
func PullSecretRBAC(namespace, serviceAccount string, in []string) []runtime.Object {
	const name = roleName + "-pull-secrets"
	subjects := []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: namespace, Name: serviceAccount}}
	role := rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name}
	out := []runtime.Object{&rbacv1.ClusterRole{TypeMeta: rbacType("ClusterRole"), ObjectMeta: metav1.ObjectMeta{Name: name},
		Rules: []rbacv1.PolicyRule{rule("", []string{"get"}, "secrets", "serviceaccounts")}}}
	for _, ns := range in {
		out = append(out, &rbacv1.RoleBinding{TypeMeta: rbacType("RoleBinding"), ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Subjects: subjects, RoleRef: role})
	}
	if len(in) == 0 {
		out = append(out, &rbacv1.ClusterRoleBinding{TypeMeta: rbacType("ClusterRoleBinding"), ObjectMeta: metav1.ObjectMeta{Name: name}, Subjects: subjects, RoleRef: role})
	}
	return out
}

var (
	read  = []string{"get", "list", "watch"}
	write = []string{"get", "list", "watch", "create", "update", "delete"}
)

func rbacType(kind string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: rbacv1.SchemeGroupVersion.String(), Kind: kind}
}

// onlyNamed narrows a rule to objects of some names.
func onlyNamed(r rbacv1.PolicyRule, names ...string) rbacv1.PolicyRule {
	r.ResourceNames = names
	return r
}

func rule(group string, verbs []string, resources ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{APIGroups: []string{group}, Resources: resources, Verbs: verbs}
}

// single are the kinds of which policy-sync writes objects of these names and reads all: a Tier or a GlobalNetworkSet of somebody
// else's is nothing to change or delete.
var single = map[string][]string{"Tier": {v1alpha1.CalicoTier}, "GlobalNetworkSet": v1alpha1.RevokedSetNames()}

// dataPlaneRules are the rights on Calico's and Istio's objects. For policies in tiers Calico's API server asks for the same
// verb on a made-up resource as well, tier.<resource> by the name "<tier>.*": that keeps policy-sync inside its own tier.
func dataPlaneRules() []rbacv1.PolicyRule {
	out := []rbacv1.PolicyRule{onlyNamed(rule("", read, meshConfigKind.Resource), snapshot.MeshConfig),
		rule(blockAffinity.Group, read, blockAffinity.Resource, ipPool.Resource)}
	for _, k := range snapshot.Kinds(snapshot.Config{Calico: true, Istio: true}) {
		verbs := read
		if k.Written {
			verbs = write
		}
		if names, few := single[k.Kind]; few {
			out = append(out, rule(k.Group, append(slices.Clone(read), "create"), k.Resource),
				onlyNamed(rule(k.Group, []string{"update", "delete"}, k.Resource), names...))
			continue
		}
		out = append(out, rule(k.Group, verbs, k.Resource))
		if selector(k) != nil {
			out = append(out, onlyNamed(rule(k.Group, verbs, "tier."+k.Resource), v1alpha1.CalicoTier+".*"))
		}
	}
	return out
}

// TeamRBAC makes the cluster roles by which people use Keelson's kinds, added to the roles that a cluster has already: who may edit
// a namespace writes its TrustPolicies, who may view it reads them. A NodeTrust has no namespace, so a reader of namespaces reads
// none; keelson-nodetrust-view is bound by an administrator to those who may know which machines are trusted and why. Nobody gets
// to write a status, which is policy-sync's, nor a NodeTrust, which is the SPIRE server's.
func TeamRBAC() []runtime.Object {
	aggregated := func(name string, rules []rbacv1.PolicyRule, to ...string) runtime.Object {
		role := &rbacv1.ClusterRole{TypeMeta: rbacType("ClusterRole"), ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}}, Rules: rules}
		for _, t := range to {
			role.Labels["rbac.authorization.k8s.io/aggregate-to-"+t] = "true"
		}
		return role
	}
	edit := []string{"create", "update", "patch", "delete", "deletecollection"}
	return []runtime.Object{
		aggregated("keelson-trustpolicy-edit", []rbacv1.PolicyRule{rule(v1alpha1.Group, edit, "trustpolicies")}, "admin", "edit"),
		aggregated("keelson-trustpolicy-view", []rbacv1.PolicyRule{rule(v1alpha1.Group, read, "trustpolicies")}, "admin", "edit", "view"),
		aggregated("keelson-nodetrust-view", []rbacv1.PolicyRule{rule(v1alpha1.Group, read, "nodetrusts")}),
	}
}
