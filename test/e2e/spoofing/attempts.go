package spoofing

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/test/e2e/stage"
)

// rights: more than any team should have, so that it is not their absence that refuses.
const rights = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: tinkerer}
rules:
- {apiGroups: ["", apps, batch], resources: ["*"], verbs: ["*"]}
- {apiGroups: [trust.keelson.io, crd.projectcalico.org, security.istio.io, networking.istio.io], resources: ["*"], verbs: ["*"]}
# Calico asks for rights on a tier as well, by a made-up resource: the team has those of the default tier. Whoever has Keelson's
# may delete there, since Calico's API server asks no admission policy about deletions.
- apiGroups: [projectcalico.org]
  resources: [networkpolicies, globalnetworkpolicies, networksets, globalnetworksets, hostendpoints, tiers]
  verbs: ["*"]
- {apiGroups: [projectcalico.org], resources: [tier.networkpolicies, tier.globalnetworkpolicies], resourceNames: ["default.*"], verbs: ["*"]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: tinkerer}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: tinkerer}
subjects: [{kind: Group, name: developers, apiGroup: rbac.authorization.k8s.io}]
`

const trustLabels = `{"metadata":{"labels":{"` + v1alpha1.PodAttestedLabel + `":"true"}}}`

// team is what an app team tries.
func team(victim stage.Pod) []attempt {
	pod := named(&corev1.Pod{}, victim.Namespace, victim.Name)
	node := named(&corev1.Node{}, "", bad)
	bank := named(&corev1.Namespace{}, "", "bank")
	return []attempt{
		create("a pod with a trust label", "trust labels", podWith(v1alpha1.PodAttestedLabel)),
		create("a pod with a policy's own trust label", "trust labels", podWith(v1alpha1.PolicyLabel("teller"))),
		create("a pod that says Calico's own labels", "Calico's own", podWith("pcns.projectcalico.org/name")),
		patch("a trust label on its pod", "trust labels", pod, trustLabels),
		patchStatus("a trust label through the pod's status", "trust labels", pod, trustLabels),
		create("a deployment whose pods would have one", "trust labels", object(deployment)),
		{what: "a binding that brings one", do: bind},
		patch("the trust label off another's pod", "trust labels", named(&corev1.Pod{}, stage.Ledger.Namespace, stage.Ledger.Name),
			`{"metadata":{"labels":{"`+v1alpha1.PodAttestedLabel+`":null}}}`),
		create("a verdict of its own", "NodeTrust", object(nodeTrust)),
		patch("another verdict on a refused machine", "NodeTrust", named(&v1alpha1.NodeTrust{}, "", bad), `{"spec":{"verdict":"trusted"}}`),
		remove("the binding of a machine to its TPM", "NodeTrust", named(&v1alpha1.NodeTrust{}, "", "fra-1")),
		patch("the taint off a node", "taint", node, `{"spec":{"taints":null}}`),
		patch("a verdict label on a node", "policy-sync alone", node, `{"metadata":{"labels":{"`+v1alpha1.NodeVerdictLabel+`":"trusted"}}}`),
		patch("its namespace out of enforcement", "administrators", bank, `{"metadata":{"labels":{"`+v1alpha1.ModeLabel+`":null}}}`),
		patch("its namespace into audit mode", "administrators", bank, `{"metadata":{"labels":{"`+v1alpha1.ModeLabel+`":"audit"}}}`),
		create("a set of addresses with a trust label", "trust label", object(networkSet)),
		create("a set of addresses with a trust label, past Calico's API server", "trust label", past(networkSet)),
		create("a set of addresses of its namespace with a trust label", "trust label", object(namespaceSet)),
		create("a set of addresses of its namespace with a trust label, past Calico's API server", "trust label", past(namespaceSet)),
		create("a host endpoint with a trust label", "trust label", object(hostEndpoint)),
		create("a host endpoint with a trust label, past Calico's API server", "trust label", past(hostEndpoint)),
		// Where Calico keeps its data in Kubernetes, pods are its workload endpoints: there is nothing to write.
		create("a workload endpoint with a trust label", "no matches for kind", object(workloadEndpoint)),
		create("a workload endpoint with a trust label, past Calico's API server", "no matches for kind", past(workloadEndpoint)),
		labelled("a debug container with a trust label", victim, "ephemeralcontainers", func(p *corev1.Pod) {
			p.Spec.EphemeralContainers = append(p.Spec.EphemeralContainers, corev1.EphemeralContainer{
				EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "forged", Image: "registry.invalid/none"},
			})
		}),
		labelled("a resize with a trust label", victim, "resize", func(*corev1.Pod) {}),
		// Nothing here reads them: SPIRE's controller manager does not run. What it would make is an entry, and foreignEntry makes one.
		create("a ClusterSPIFFEID", "no matches for kind", object(clusterSPIFFEID)),
		create("a policy in Keelson's tier", "", object(inTier)),
		create("a policy in Keelson's tier, past Calico's API server", "Keelson's", past(inTier)),
		remove("Keelson's default deny", "", object(defaultDeny)),
		remove("Keelson's default deny, past Calico's API server,", "Keelson's", past(defaultDeny)),
		remove("Keelson's tier", "non-empty tier", object(tier)),
		create("mutual TLS that is not strict", "strict", object(permissive)),
		remove("Keelson's DENY at L7", "Keelson's", object(denyAtL7)),
	}
}

// kubelet is what the kubelet of a refused machine tries.
func kubelet(victim stage.Pod) []attempt {
	own := named(&corev1.Node{}, "", bad)
	return []attempt{
		patch("a verdict label on its own Node", "", own, `{"metadata":{"labels":{"`+v1alpha1.NodeVerdictLabel+`":"trusted"}}}`),
		patch("the taint off its own Node", "", own, `{"spec":{"taints":null}}`),
		patchStatus("the taint off through the status", "", own, `{"spec":{"taints":null},"metadata":{"labels":{"`+v1alpha1.NodeVerdictLabel+`":"trusted"}}}`),
		remove("its own Node, to make it anew", "", own),
		patch("a trust label on a pod of its own", "", named(&corev1.Pod{}, victim.Namespace, victim.Name), trustLabels),
		patchStatus("a trust label through its pod's status", "", named(&corev1.Pod{}, victim.Namespace, victim.Name), trustLabels),
		patchStatus("another node's pod", "", named(&corev1.Pod{}, stage.Ledger.Namespace, stage.Ledger.Name), `{"status":{"podIP":"10.0.0.1"}}`),
		patch("a verdict", "", named(&v1alpha1.NodeTrust{}, "", bad), `{"spec":{"verdict":"trusted"}}`),
		patch("its namespace out of enforcement", "", named(&corev1.Namespace{}, "", "bank"), `{"metadata":{"labels":{"`+v1alpha1.ModeLabel+`":null}}}`),
	}
}

// calicoNode is what somebody tries who has found the credentials of Calico's node agent on a refused machine. They are the same on
// every node.
func calicoNode(victim stage.Pod) []attempt {
	pod := named(&corev1.Pod{}, victim.Namespace, victim.Name)
	return []attempt{
		patchStatus("a trust label through a pod's status", "trust labels", pod, trustLabels),
		patchStatus("the ledger's address on a pod of its own", "kubelet to report", pod, `{"status":{"podIP":"10.0.0.1","podIPs":[{"ip":"10.0.0.1"}]}}`),
		create("Felix told to police other interfaces", "Calico's programs on nodes", object(felixConfig)),
		create("another node's Felix told to let traffic through", "Calico's programs on nodes", object(strings.Replace(felixConfig, "name: default", "name: node.par-1", 1))),
		{what: "Felix told to take no more policies", want: "Calico's programs on nodes", do: closeDatastore},
		create("a policy in Keelson's tier", "", past(inTier)),
		create("a verdict", "", object(nodeTrust)),
	}
}

const felixConfig = `
apiVersion: crd.projectcalico.org/v1
kind: FelixConfiguration
metadata: {name: default}
spec: {interfacePrefix: none}
`

// closeDatastore changes what Calico has made for itself.
func closeDatastore(ctx context.Context, c client.Client) error {
	info := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "crd.projectcalico.org/v1", "kind": "ClusterInformation",
		"metadata": map[string]any{"name": "default"}}}
	err := c.Get(ctx, client.ObjectKeyFromObject(info), info)
	if apierrors.IsNotFound(err) {
		info.Object["spec"] = map[string]any{"datastoreReady": false}
		return c.Create(ctx, info)
	}
	if err != nil {
		return err
	}
	if err := unstructured.SetNestedField(info.Object, false, "spec", "datastoreReady"); err != nil {
		return err
	}
	return c.Update(ctx, info)
}

func named[T client.Object](o T, namespace, name string) T {
	o.SetNamespace(namespace)
	o.SetName(name)
	return o
}

func create(what, want string, o client.Object) attempt {
	return attempt{what: what, want: want, do: func(ctx context.Context, c client.Client) error { return c.Create(ctx, o) }}
}

func remove(what, want string, o client.Object) attempt {
	return attempt{what: what + " taken away", want: want, do: func(ctx context.Context, c client.Client) error { return c.Delete(ctx, o) }}
}

func patch(what, want string, o client.Object, merge string) attempt {
	return attempt{what: what, want: want, do: func(ctx context.Context, c client.Client) error {
		return c.Patch(ctx, o, client.RawPatch(types.MergePatchType, []byte(merge)))
	}}
}

func patchStatus(what, want string, o client.Object, merge string) attempt {
	return attempt{what: what, want: want, do: func(ctx context.Context, c client.Client) error {
		return c.Status().Patch(ctx, o, client.RawPatch(types.MergePatchType, []byte(merge)))
	}}
}

// labelled updates a subresource of a pod with a trust label beside what the subresource is for. The API server may take it and drop the
// label; then the pod must not have it.
func labelled(what string, p stage.Pod, subresource string, change func(*corev1.Pod)) attempt {
	return attempt{
		what: what, want: "trust labels",
		do: func(ctx context.Context, c client.Client) error {
			pod := named(&corev1.Pod{}, p.Namespace, p.Name)
			if err := c.Get(ctx, client.ObjectKeyFromObject(pod), pod); err != nil {
				return fmt.Errorf("prepare: %v", err) //nolint:errorlint // a refusal of this is not the one that is wanted
			}
			if pod.Labels == nil {
				pod.Labels = map[string]string{}
			}
			pod.Labels[v1alpha1.PodAttestedLabel] = v1alpha1.True
			change(pod)
			return c.SubResource(subresource).Update(ctx, pod)
		},
		harmless: func(ctx context.Context, s *stage.Stage) error { return s.Unlabelled(ctx, p) },
	}
}

// bind binds a pod that waits for a node, with a label: since Kubernetes 1.35 a Binding's labels become the pod's.
func bind(ctx context.Context, c client.Client) error {
	waiting := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "bank", Name: "waiting"},
		Spec: corev1.PodSpec{
			SchedulerName: "nobody", ServiceAccountName: "teller", Containers: []corev1.Container{{Name: "main", Image: "registry.invalid/none"}},
		},
	}
	if err := c.Create(ctx, waiting); err != nil {
		return fmt.Errorf("prepare: %v", err) //nolint:errorlint // a refusal of this is not the one that is wanted
	}
	binding := &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Namespace: "bank", Name: "waiting", Labels: map[string]string{v1alpha1.PodAttestedLabel: v1alpha1.True}},
		Target:     corev1.ObjectReference{Kind: "Node", Name: bad},
	}
	err := c.SubResource("binding").Create(ctx, waiting, binding)
	if deleteErr := c.Delete(ctx, waiting); deleteErr != nil {
		return fmt.Errorf("clean up: %v", deleteErr) //nolint:errorlint // as above
	}
	return err
}

// claim says that a pod has an address.
func claim(ctx context.Context, c client.Client, p stage.Pod, address string) error {
	merge := fmt.Sprintf(`{"status":{"podIP":%[1]q,"podIPs":[{"ip":%[1]q}]}}`, address)
	return c.Status().Patch(ctx, named(&corev1.Pod{}, p.Namespace, p.Name), client.RawPatch(types.MergePatchType, []byte(merge)))
}

func contains(err error, want string) bool { return strings.Contains(err.Error(), want) }

func host(address string) string {
	h, _, _ := strings.Cut(address, ":")
	return h
}

func podWith(label string) client.Object {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "bank", Name: "forged", Labels: map[string]string{label: v1alpha1.True}},
		Spec:       corev1.PodSpec{ServiceAccountName: "teller", Containers: []corev1.Container{{Name: "main", Image: "registry.invalid/none"}}},
	}
}

// past is object, as it is written past Calico's API server.
func past(text string) client.Object {
	return object(strings.Replace(text, "projectcalico.org/v3", "crd.projectcalico.org/v1", 1))
}

// object reads a constant of this package.
func object(text string) client.Object {
	o := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(text), &o.Object); err != nil {
		panic(err) // a mistake in this package
	}
	return o
}

const (
	deployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: forged, namespace: bank}
spec:
  selector: {matchLabels: {app: forged}}
  template:
    metadata: {labels: {app: forged, trust.keelson.io/attested: "true"}}
    spec: {containers: [{name: main, image: registry.invalid/none}]}
`
	nodeTrust = `
apiVersion: trust.keelson.io/v1alpha1
kind: NodeTrust
metadata: {name: forged}
spec:
  verdict: trusted
  ekHash: "0000000000000000000000000000000000000000000000000000000000000000"
  agentID: spiffe://example.org/spire/agent/keelson_tpm/0000000000000000000000000000000000000000000000000000000000000000
  attestedAt: "2026-01-01T00:00:00.000000Z"
  validUntil: "2036-01-01T00:00:00.000000Z"
`
	networkSet = `
apiVersion: projectcalico.org/v3
kind: GlobalNetworkSet
metadata: {name: forged, labels: {trust.keelson.io/attested: "true"}}
spec: {nets: [0.0.0.0/0]}
`
	namespaceSet = `
apiVersion: projectcalico.org/v3
kind: NetworkSet
metadata: {name: forged, namespace: bank, labels: {trust.keelson.io/attested: "true"}}
spec: {nets: [0.0.0.0/0]}
`
	workloadEndpoint = `
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: evil--1-k8s-forged-eth0, namespace: bank, labels: {trust.keelson.io/attested: "true"}}
spec: {orchestrator: k8s, node: evil-1, pod: forged, endpoint: eth0, ipNetworks: [10.0.0.1/32]}
`
	clusterSPIFFEID = `
apiVersion: spire.spiffe.io/v1alpha1
kind: ClusterSPIFFEID
metadata: {name: forged}
spec: {spiffeIDTemplate: "spiffe://example.org/ns/payments/sa/api"}
`
	hostEndpoint = `
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: forged, labels: {trust.keelson.io/attested: "true"}}
spec: {node: evil-1, interfaceName: eth0, expectedIPs: [10.0.0.1]}
`
	inTier = `
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: keelson.open}
spec: {tier: keelson, order: 0, selector: all(), types: [Ingress, Egress], ingress: [{action: Allow}], egress: [{action: Allow}]}
`
	defaultDeny = `
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: keelson.default-deny}
`
	tier = `
apiVersion: projectcalico.org/v3
kind: Tier
metadata: {name: keelson}
`
	permissive = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: open, namespace: payments}
spec: {mtls: {mode: PERMISSIVE}}
`
	denyAtL7 = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: keelson.api.deny, namespace: payments}
`
)
