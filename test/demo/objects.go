package main

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/kube"
	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/test/cluster/node"
)

// The accounts of our own parts, as their charts would make them.
const (
	spireServerUser = "system:serviceaccount:spire:spire-server"
	policySyncUser  = "system:serviceaccount:keelson-system:keelson-policy-sync"
)

func serviceAccountGroups(namespace string) []string {
	return []string{"system:serviceaccounts", "system:serviceaccounts:" + namespace, "system:authenticated"}
}

// createObjects makes what an administrator and the kubelets would have made.
func (d *demo) createObjects(ctx context.Context) error {
	scheme, err := kube.Scheme()
	if err != nil {
		return err
	}
	if d.kube, err = client.New(d.cluster.RESTConfig(), client.Options{Scheme: scheme}); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	manifests, err := d.program(ctx, d.programs["cmd/keelson-policy-sync"], "manifests",
		"--calico-apiserver", cluster.CalicoAPIServerUser, "--spire-server", spireServerUser)
	if err != nil {
		return err
	}
	if err := d.cluster.Apply(ctx, []byte(accounts), []byte(manifests)); err != nil {
		return err
	}
	for _, m := range machines() {
		if err := d.createNode(ctx, m); err != nil {
			return err
		}
	}
	return nil
}

// createNode registers a node as its kubelet does. Nodes come first: a verdict is about a node's UID.
func (d *demo) createNode(ctx context.Context, m *machine) error {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: m.name, Labels: map[string]string{corev1.LabelHostname: m.name}}}
	n.Spec.PodCIDR = d.network.PodCIDR(m.number).String()
	if d.standin {
		n.Spec.PodCIDR = node.StandinCIDR(m.number).String()
	}
	n.Spec.PodCIDRs = []string{n.Spec.PodCIDR}
	// Admission policies take a moment until they are in force, the one that adds the taint as well as the one that asks
	// for it; a kubelet tries again too.
	if _, err := until(ctx, 20*time.Second, "register node "+m.name, func(ctx context.Context) error {
		return d.kube.Create(ctx, n)
	}); err != nil {
		return err
	}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: m.name}}
	n.Status.Conditions = []corev1.NodeCondition{{
		Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady",
		LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now(),
	}}
	if err := d.kube.Status().Update(ctx, n); err != nil {
		return fmt.Errorf("demo: node %s: %w", m.name, err)
	}
	return nil
}

// pod is one workload of the demo.
type pod struct {
	namespace, name, account string
	machine                  *machine
	unsigned, serves         bool
	// asks is another machine whose agent's socket the pod got hold of.
	asks *machine
	// identity says whether it should get one.
	identity bool
	running  *node.Pod
}

func (p *pod) String() string { return p.namespace + "/" + p.name }

func (p *pod) id() string {
	return fmt.Sprintf("spiffe://%s/ns/%s/sa/%s", trustDomain, p.namespace, p.account)
}

// startPod does what scheduler and kubelet do: bind the pod to its node, start its container over CRI, report its status.
func (d *demo) startPod(ctx context.Context, p *pod) error {
	image := d.images.signed
	if p.unsigned {
		image = d.images.unsigned
	}
	object := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.namespace, Name: p.name, Labels: map[string]string{"app": p.account}},
		Spec: corev1.PodSpec{
			NodeName: p.machine.name, ServiceAccountName: p.account,
			Containers: []corev1.Container{{Name: "main", Image: image.Reference(), Args: []string{"pause"}, SecurityContext: hardened()}},
		},
	}
	args := []string{"pause"}
	if p.serves {
		args = []string{"serve", "-listen", ":8443", "-name", p.String(), "-node", p.machine.name, "-socket", socket, "-allow", "/etc/keelson/allow"}
		object.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 8443}}
	}
	object.Spec.Containers[0].Args = args
	if err := d.kube.Create(ctx, object); err != nil {
		return fmt.Errorf("demo: pod %s: %w", p, err)
	}
	agent := p.machine
	if p.asks != nil {
		agent = p.asks
	}
	var err error
	p.running, err = p.machine.runtime.Run(ctx, node.PodSpec{
		Namespace: p.namespace, Name: p.name, UID: string(object.UID), Container: "main", Labels: object.Labels,
		Image: image.Reference(), Args: args,
		Mounts: []node.Mount{{From: agent.path("agent", "public"), To: "/spire"}, {From: d.path("allow"), To: "/etc/keelson"}},
	})
	if err != nil {
		return err
	}
	return d.reportStatus(ctx, p, object)
}

// socket is the Workload API's address inside the containers.
const socket = "unix:///spire/api.sock"

// reportStatus writes the status that a kubelet would.
func (d *demo) reportStatus(ctx context.Context, p *pod, object *corev1.Pod) error {
	before := object.DeepCopy()
	started, now := true, metav1.Now()
	object.Status.Phase, object.Status.StartTime = corev1.PodRunning, &now
	object.Status.PodIP, object.Status.PodIPs = p.running.IP, []corev1.PodIP{{IP: p.running.IP}}
	object.Status.ContainerStatuses = []corev1.ContainerStatus{{
		Name: "main", Ready: true, Started: &started, Image: object.Spec.Containers[0].Image, ImageID: p.running.ImageID,
		ContainerID: d.report.Containers + "://" + p.running.ContainerID,
		State:       corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(p.running.StartedAt)}},
	}}
	object.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: now}}
	if err := d.kube.Status().Patch(ctx, object, client.MergeFrom(before)); err != nil {
		return fmt.Errorf("demo: pod %s: status: %w", p, err)
	}
	return nil
}

// nodeTrust reads the verdict on a node.
func (d *demo) nodeTrust(ctx context.Context, name string) (*v1alpha1.NodeTrust, error) {
	var nt v1alpha1.NodeTrust
	if err := d.kube.Get(ctx, client.ObjectKey{Name: name}, &nt); err != nil {
		return nil, fmt.Errorf("demo: NodeTrust %s: %w", name, err)
	}
	return &nt, nil
}

func since(t time.Time) float64 { return seconds(time.Since(t)) }

const accounts = `
apiVersion: v1
kind: Namespace
metadata: {name: spire}
---
apiVersion: v1
kind: Namespace
metadata: {name: keelson-system}
---
apiVersion: v1
kind: Namespace
metadata: {name: istio-system}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: spire-server, namespace: spire}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: keelson-policy-sync, namespace: keelson-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: keelson-nodeattestor}
rules:
- {apiGroups: [""], resources: [nodes], verbs: [get]}
- {apiGroups: [trust.keelson.io], resources: [nodetrusts], verbs: [get, list, watch, create, update, patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: keelson-nodeattestor}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: keelson-nodeattestor}
subjects: [{kind: ServiceAccount, name: spire-server, namespace: spire}]
---
apiVersion: v1
kind: Namespace
metadata: {name: payments, labels: {trust.keelson.io/mode: enforce}}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {trust.keelson.io/mode: enforce}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: api, namespace: payments}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: frontend, namespace: shop}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: batch, namespace: shop}
`

// hardened is what Pod Security level "restricted" asks of a container (node.Confine).
func hardened() *corev1.SecurityContext {
	no, yes := false, true
	return &corev1.SecurityContext{
		AllowPrivilegeEscalation: &no, RunAsNonRoot: &yes, ReadOnlyRootFilesystem: &yes,
		Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
}
