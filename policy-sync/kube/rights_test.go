package kube_test

import (
	"fmt"
	"strings"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/kube"
	"github.com/keelson-project/keelson/policy-sync/syncconfig"
)

// TestPolicySyncMayChangeWhatIsItsOwn asks the API server what the roles let policy-sync's account do.
func TestPolicySyncMayChangeWhatIsItsOwn(t *testing.T) {
	c := admin(t)
	const namespace = "keelson-rights"
	if err := c.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}); err != nil {
		t.Fatal(err)
	}
	for _, o := range kube.RBAC(namespace, "sync") {
		document, err := yaml.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		if err := real.Apply(t.Context(), document); err != nil {
			t.Fatal(err)
		}
	}
	const calico = "projectcalico.org"
	for _, tc := range []struct {
		verb, group, resource, namespace, name string
		allowed                                bool
	}{
		{"list", calico, "tiers", "", "", true},
		{"create", calico, "tiers", "", "", true},
		{"update", calico, "tiers", "", "keelson", true},
		{"delete", calico, "tiers", "", "keelson", true},
		{"update", calico, "tiers", "", "default", false},
		{"delete", calico, "tiers", "", "platform", false},
		{"deletecollection", calico, "tiers", "", "", false},
		{"watch", calico, "globalnetworksets", "", "", true},
		{"create", calico, "globalnetworksets", "", "", true},
		{"update", calico, "globalnetworksets", "", "keelson.revoked", true},
		{"delete", calico, "globalnetworksets", "", "keelson.revoked", true},
		{"update", calico, "globalnetworksets", "", "partners", false},
		{"delete", calico, "globalnetworksets", "", "partners", false},
		{"update", calico, "tier.networkpolicies", "payments", "keelson.*", true},
		{"update", calico, "tier.networkpolicies", "payments", "default.*", false},
		{"create", "coordination.k8s.io", "leases", namespace, "", true},
		{"get", "coordination.k8s.io", "leases", namespace, kube.Lease, true},
		{"update", "coordination.k8s.io", "leases", namespace, kube.Lease, true},
		{"get", "coordination.k8s.io", "leases", namespace, "another", false},
		{"update", "coordination.k8s.io", "leases", namespace, "another", false},
		{"list", "coordination.k8s.io", "leases", namespace, "", false},
		{"update", "coordination.k8s.io", "leases", "kube-system", kube.Lease, false},
		{"create", "", "pods", "payments", "", false},
		{"get", "", "secrets", namespace, "any", false},
		{"list", calico, "ippools", "", "", true},
		{"list", "networking.k8s.io", "servicecidrs", "", "", true},
		{"update", v1alpha1.Group, "nodetrusts", "", "any", false},
		{"patch", v1alpha1.Group, "nodetrusts", "", "any", false},
	} {
		t.Run(fmt.Sprintf("%s %s %s", tc.verb, tc.resource, tc.name), func(t *testing.T) {
			review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
				User:               "system:serviceaccount:" + namespace + ":sync",
				ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: tc.verb, Group: tc.group, Resource: tc.resource, Namespace: tc.namespace, Name: tc.name},
			}}
			if err := c.Create(t.Context(), review); err != nil {
				t.Fatal(err)
			}
			if review.Status.Allowed != tc.allowed {
				t.Errorf("allowed %v, want %v (%s)", review.Status.Allowed, tc.allowed, review.Status.Reason)
			}
		})
	}
}

// TestTheLeaseIsTheConfigurations: the roles name the lease that a configuration means which says nothing of it.
func TestTheLeaseIsTheConfigurations(t *testing.T) {
	c, err := syncconfig.Parse([]byte("trustDomain: example.org\nspire: {socket: /s}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if c.LeaderElection.Name != kube.Lease {
		t.Errorf("the configuration's is %s, the roles' %s", c.LeaderElection.Name, kube.Lease)
	}
}

// TestAppTeamsWritePoliciesWithTheRolesThatTheyHave: who is bound to Kubernetes' own admin, edit or view in a namespace needs
// nothing else. The controller that aggregates roles does not run here, so what it copies is bound itself.
func TestAppTeamsWritePoliciesWithTheRolesThatTheyHave(t *testing.T) {
	c := admin(t)
	const namespace = "keelson-teams"
	if err := c.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}); err != nil {
		t.Fatal(err)
	}
	for _, o := range kube.TeamRBAC() {
		document, err := yaml.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		if err := real.Apply(t.Context(), document); err != nil {
			t.Fatal(err)
		}
		role := o.(*rbacv1.ClusterRole)
		for label := range role.Labels {
			user := strings.TrimPrefix(label, "rbac.authorization.k8s.io/aggregate-to-")
			if err := c.Create(t.Context(), &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: user + "-" + role.Name},
				RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role.Name},
				Subjects: []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: "team-" + user}}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, tc := range []struct {
		user, verb, resource, subresource string
		allowed                           bool
	}{
		{"team-admin", "create", "trustpolicies", "", true},
		{"team-edit", "patch", "trustpolicies", "", true},
		{"team-edit", "delete", "trustpolicies", "", true},
		{"team-edit", "get", "trustpolicies", "", true},
		{"team-edit", "patch", "trustpolicies", "status", false},
		{"team-admin", "update", "trustpolicies", "status", false},
		{"team-view", "list", "trustpolicies", "", true},
		{"team-view", "watch", "trustpolicies", "", true},
		{"team-view", "create", "trustpolicies", "", false},
		{"team-admin", "get", "nodetrusts", "", false},
		{"team-admin", "create", "nodetrusts", "", false},
	} {
		review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{User: tc.user,
			ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: tc.verb, Group: "trust.keelson.io", Resource: tc.resource, Subresource: tc.subresource, Namespace: namespace}}}
		if err := c.Create(t.Context(), review); err != nil {
			t.Fatal(err)
		}
		if review.Status.Allowed != tc.allowed {
			t.Errorf("%s may %s %s/%s: %v, want %v", tc.user, tc.verb, tc.resource, tc.subresource, review.Status.Allowed, tc.allowed)
		}
	}
}
