package main

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// teamRole lets alice do in payments what a team may: she runs pods there and writes mesh policies.
const teamRole = `
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: team, namespace: payments}
rules:
- {apiGroups: [""], resources: [pods], verbs: [get, list, create, update, patch]}
- {apiGroups: [security.istio.io], resources: [authorizationpolicies], verbs: [get, list, create, update, patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: team, namespace: payments}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: team}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: alice}]
`

// showForgeries has a team member and a kubelet write trust by hand.
func (d *demo) showForgeries(ctx context.Context, s *Step) error {
	if err := d.cluster.Apply(ctx, []byte(teamRole)); err != nil {
		return err
	}
	alice, err := d.as("alice", "developers")
	if err != nil {
		return err
	}
	kubelet, err := d.as("system:node:evil-1", "system:nodes")
	if err != nil {
		return err
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "payments", Name: "api-par"}}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "evil-1"}}
	for _, try := range []struct {
		what string
		err  error
	}{
		{"alice labels a pod of hers as attested", label(ctx, alice, pod, v1alpha1.PodAttestedLabel, v1alpha1.True)},
		{"alice takes the rules out of policy-sync's DENY", alice.Patch(ctx, denyPolicy(), client.RawPatch(types.MergePatchType, []byte(`{"spec":{"rules":null}}`)))},
		{"evil-1's kubelet labels its node as trusted", label(ctx, kubelet, node, v1alpha1.NodeVerdictLabel, string(v1alpha1.VerdictTrusted))},
		{"evil-1's kubelet takes its node's taint away", kubelet.Patch(ctx, node, client.RawPatch(types.MergePatchType, []byte(`{"spec":{"taints":null}}`)))},
	} {
		s.expect(apierrors.IsForbidden(try.err) || apierrors.IsInvalid(try.err), try.what+": refused", "%s", errorText(try.err))
	}
	return nil
}

func (d *demo) as(user string, groups ...string) (client.Client, error) {
	config, err := d.cluster.RESTConfigFor(user, groups...)
	if err != nil {
		return nil, err
	}
	c, err := client.New(config, client.Options{Scheme: d.kube.Scheme(), Mapper: d.kube.RESTMapper()})
	if err != nil {
		return nil, fmt.Errorf("demo: %w", err)
	}
	return c, nil
}

func label(ctx context.Context, c client.Client, o client.Object, key, value string) error {
	patch := fmt.Sprintf(`{"metadata":{"labels":{%q:%q}}}`, key, value)
	return c.Patch(ctx, o, client.RawPatch(types.MergePatchType, []byte(patch)))
}

// denyPolicy names the AuthorizationPolicy that refuses every caller whom the TrustPolicy does not name.
func denyPolicy() *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
		"metadata": map[string]any{"name": "keelson.api.deny", "namespace": "payments"},
	}}
}
