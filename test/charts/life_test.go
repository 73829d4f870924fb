package charts

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/test/charts/helm"
)

// TestInstallUpgradeUninstall takes the chart through its life. The steps build on each other.
func TestInstallUpgradeUninstall(t *testing.T) {
	w := newWorld(t)
	w.namespaces()
	before := w.inventory()
	for _, step := range []struct {
		name string
		run  func(*testing.T, *world)
	}{
		{"it installs", stepInstall},
		{"PodSecurity admits what it should", stepPodSecurity},
		{"the API refuses what the guards forbid", stepGuards},
		{"policy-sync works with the rights and the configuration of the chart", stepWorks},
		{"it upgrades", stepUpgrade},
		{"an upgrade with bad values changes nothing", stepBadUpgrade},
		{"when the cleanup fails, nothing of the release goes", stepUninstallFails},
		{"it uninstalls", stepUninstall},
		{"nothing is left but the definitions and what people wrote", func(t *testing.T, w *world) { stepNothingLeft(t, w, before) }},
		{"with the objects to stay, the doors and the guards stay", stepStay},
	} {
		if !t.Run(step.name, func(t *testing.T) {
			w.t = t
			step.run(t, w)
		}) {
			t.Fatalf("the following steps build on %q", step.name)
		}
	}
}

func stepInstall(_ *testing.T, w *world) {
	w.must(helm.Install(w.t.Context(), w.cluster.AdminKubeconfig(), chart, release, namespace, w.installed()))
	for _, o := range objects(w.t, render(w.t, w.installed()).Manifest) {
		w.must(w.get(o.GetNamespace(), o.GetName(), o))
	}
}

// pods are the pods that the release's controllers would make, by the controller's name.
func (w *world) pods(manifests ...string) map[string]*corev1.Pod {
	out := map[string]*corev1.Pod{}
	for _, o := range objects(w.t, manifests...) {
		template, ok, err := unstructured.NestedMap(o.Object, "spec", "template")
		w.must(err)
		if !ok {
			continue
		}
		p := &corev1.Pod{}
		w.must(runtime.DefaultUnstructuredConverter.FromUnstructured(template, p))
		p.Namespace, p.Name = o.GetNamespace(), o.GetName()+"-0"
		out[o.GetName()] = p
	}
	return out
}

func stepPodSecurity(t *testing.T, w *world) {
	r := render(t, w.installed())
	pods := w.pods(append(r.Hooks, r.Manifest)...)
	for _, name := range []string{"keelson-policy-sync", "keelson-cleanup", "keelson-node"} {
		if err := w.api.Create(t.Context(), pods[name], client.DryRunAll); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	elsewhere := w.pods(r.Manifest)["keelson-node"]
	elsewhere.Namespace, elsewhere.Spec.ServiceAccountName = namespace, "keelson-policy-sync"
	if err := w.api.Create(t.Context(), elsewhere, client.DryRunAll); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "host namespaces (hostNetwork=true)") {
		t.Errorf("keelson-node under restricted: %v", err)
	}
	for _, access := range []string{"hostPath", "serverSocket"} {
		values := w.installed("policySync: {spire: {access: " + access + "}}")
		if access == "serverSocket" {
			values = w.installed("policySync: {spire: {access: serverSocket}, config: {spire: {address: ''}}}")
		}
		p := w.pods(render(t, values).Manifest)["keelson-policy-sync"]
		if err := w.api.Create(t.Context(), p, client.DryRunAll); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), `restricted volume types (volume "spire" uses restricted volume type "hostPath")`) {
			t.Errorf("access %s under restricted: %v", access, err)
		}
	}
}

func stepGuards(t *testing.T, w *world) {
	w.eventually("a forged label is refused", func() error {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "spire-server", Name: "forged", Labels: map[string]string{v1alpha1.PodAttestedLabel: "true"}},
			Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
		if err := w.api.Create(t.Context(), pod, client.DryRunAll); !strings.Contains(fmt.Sprint(err), "written by policy-sync alone") {
			return errors.Join(errors.New("it is not"), err)
		}
		return nil
	})
}

// verifier is the SPIRE server's account with the rights that the chart gives it.
func (w *world) verifier() client.Client {
	cfg, err := w.cluster.RESTConfigFor(spireUser, "system:serviceaccounts", "system:authenticated")
	w.must(err)
	c, err := client.New(cfg, client.Options{Scheme: w.api.Scheme()})
	w.must(err)
	return c
}

const workload = `
apiVersion: v1
kind: Namespace
metadata: {name: payments, labels: {trust.keelson.io/mode: enforce}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: api, namespace: payments}
---
apiVersion: trust.keelson.io/v1alpha1
kind: TrustPolicy
metadata: {name: api, namespace: payments}
spec:
  workloads: {serviceAccount: api}
  require: {node: {references: [prod]}, image: {}, runtime: restricted}
  ingress: [{from: [{namespace: shop, serviceAccount: frontend}], ports: [8443]}]
`

func stepWorks(t *testing.T, w *world) {
	w.start()
	w.eventually("a node", func() error { // its guards take effect one by one
		return client.IgnoreAlreadyExists(w.api.Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "fra-1"}, Spec: corev1.NodeSpec{PodCIDR: "10.1.0.0/24", PodCIDRs: []string{"10.1.0.0/24"}}}))
	})
	node := &corev1.Node{}
	w.must(w.get("", "fra-1", node))
	w.must(w.cluster.Apply(t.Context(), []byte(workload)))
	verifier, hash := w.verifier(), strings.Repeat("ab", 32)
	now := time.Now()
	trust := &v1alpha1.NodeTrust{ObjectMeta: metav1.ObjectMeta{Name: "fra-1"}, Spec: v1alpha1.NodeTrustSpec{
		Verdict: v1alpha1.VerdictTrusted, Reference: "prod", EKHash: hash, NodeUID: string(node.UID), AgentID: "spiffe://" + trustDomain + "/spire/agent/keelson_tpm/" + hash,
		AttestedAt: metav1.NewMicroTime(now), ValidUntil: metav1.NewMicroTime(now.Add(time.Hour))}}
	if !tainted(node) {
		t.Errorf("a new node has taints %v", node.Spec.Taints)
	}
	w.must(verifier.Create(t.Context(), trust.DeepCopy()))
	w.eventually("the node is trusted", func() error {
		w.must(w.get("", "fra-1", node))
		if node.Labels[v1alpha1.NodeVerdictLabel] != "trusted" {
			return fmt.Errorf("labels %v; policy-sync: %s", node.Labels, w.sync.Tail(3))
		}
		return nil
	})
	w.olderNode(verifier, trust)
	w.eventually("the policy is programmed", func() error {
		p := &v1alpha1.TrustPolicy{}
		w.must(w.get("payments", "api", p))
		for _, c := range p.Status.Conditions {
			if c.Type == v1alpha1.ConditionProgrammed && c.Status == metav1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("%+v; policy-sync: %s", p.Status, w.sync.Tail(3))
	})
	w.eventually("Calico's tier is there", func() error {
		o := &unstructured.Unstructured{}
		o.SetAPIVersion("projectcalico.org/v3")
		o.SetKind("Tier")
		return w.get("", "keelson", o)
	})
}

// olderNode: the node that was there before the installation is as it was, until it is proved bad.
func (w *world) olderNode(verifier client.Client, trust *v1alpha1.NodeTrust) {
	w.t.Helper()
	node := &corev1.Node{}
	w.must(w.get("", "old-1", node))
	if tainted(node) {
		w.t.Errorf("policy-sync has run, and a node that was there before has taints %v", node.Spec.Taints)
	}
	trust = trust.DeepCopy()
	hash := strings.Repeat("cd", 32)
	trust.Name, trust.Spec.Verdict, trust.Spec.NodeUID, trust.Spec.EKHash = "old-1", v1alpha1.VerdictUntrusted, string(node.UID), hash
	trust.Spec.AgentID = "spiffe://" + trustDomain + "/spire/agent/keelson_tpm/" + hash
	w.must(verifier.Create(w.t.Context(), trust))
	w.eventually("the older node is tainted", func() error {
		w.must(w.get("", "old-1", node))
		if !tainted(node) {
			return fmt.Errorf("taints %v; policy-sync: %s", node.Spec.Taints, w.sync.Tail(3))
		}
		return nil
	})
}

func tainted(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == v1alpha1.UntrustedTaint })
}

func stepUpgrade(t *testing.T, w *world) {
	w.must(w.cluster.Apply(t.Context(), []byte(serviceMonitors)))
	values := w.installed("policySync: {replicas: 3, priorityClassName: ''}\nguards: {adminGroups: [platform, 'system:masters']}\nserviceMonitor: {enabled: true}\nnode: {ports: {metrics: 19465}}")
	w.must(helm.Upgrade(t.Context(), w.cluster.AdminKubeconfig(), chart, release, namespace, values))
	d := &appsv1.Deployment{}
	w.must(w.get(namespace, "keelson-policy-sync", d))
	if *d.Spec.Replicas != 3 || d.Spec.Template.Spec.PriorityClassName != "" {
		t.Errorf("the Deployment is as it was: %d replicas, priority %q", *d.Spec.Replicas, d.Spec.Template.Spec.PriorityClassName)
	}
	o := &unstructured.Unstructured{}
	o.SetAPIVersion("admissionregistration.k8s.io/v1")
	o.SetKind("ValidatingAdmissionPolicy")
	w.must(w.get("", "keelson-namespace-mode", o))
	if text := fmt.Sprint(o.Object["spec"]); !strings.Contains(text, `["platform", "system:masters"]`) {
		t.Errorf("the guard is as it was: %s", text)
	}
	for _, name := range []string{"keelson-policy-sync", "keelson-node"} {
		m := &unstructured.Unstructured{}
		m.SetAPIVersion(monitoringv1.SchemeGroupVersion.String())
		m.SetKind("ServiceMonitor")
		w.must(w.get(map[string]string{"keelson-policy-sync": namespace, "keelson-node": "keelson-node"}[name], name, m))
		content, err := m.MarshalJSON()
		w.must(err)
		typed := &monitoringv1.ServiceMonitor{}
		w.must(yaml.UnmarshalStrict(content, typed)) // every field is one of the operator's
		if len(typed.Spec.Endpoints) != 1 || typed.Spec.Endpoints[0].Port != "metrics" {
			t.Errorf("ServiceMonitor %s: %+v", name, typed.Spec)
		}
	}
}

// serviceMonitors stands for the Prometheus operator's definition; its fields are checked against the operator's own types.
const serviceMonitors = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: servicemonitors.monitoring.coreos.com}
spec:
  group: monitoring.coreos.com
  scope: Namespaced
  names: {kind: ServiceMonitor, plural: servicemonitors, singular: servicemonitor, listKind: ServiceMonitorList}
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]
`

func stepBadUpgrade(t *testing.T, w *world) {
	before := &appsv1.Deployment{}
	w.must(w.get(namespace, "keelson-policy-sync", before))
	err := helm.Upgrade(t.Context(), w.cluster.AdminKubeconfig(), chart, release, namespace, w.installed("policySync: {replicas: 0}"))
	if err == nil || !strings.Contains(err.Error(), "/policySync/replicas") {
		t.Errorf("got %v", err)
	}
	after := &appsv1.Deployment{}
	w.must(w.get(namespace, "keelson-policy-sync", after))
	if before.ResourceVersion != after.ResourceVersion {
		t.Error("the Deployment was written")
	}
}

// uninstalling runs helm uninstall and plays the Job's controller: it does what the Job's pod would do, and says how it ended.
func (w *world) uninstalling(more ...string) (string, error) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- helm.Uninstall(ctx, w.cluster.AdminKubeconfig(), release, namespace) }()
	var job *batchv1.Job
	w.eventually("the hook's job", func() error {
		select {
		case err := <-done:
			w.t.Fatalf("uninstall ended without its hook: %v", err)
		default:
		}
		job = &batchv1.Job{}
		if err := w.get(namespace, "keelson-cleanup", job); err != nil || job.UID == w.job {
			return fmt.Errorf("no job, or the last one still: %w", err)
		}
		return nil
	})
	w.job = job.UID
	pod := job.Spec.Template.Spec
	if pod.ServiceAccountName != "keelson-policy-sync" || pod.Containers[0].Args[1] != "--config=/etc/keelson/policy-sync.yaml" {
		w.t.Fatalf("job: %+v", pod)
	}
	w.must(w.get(namespace, "keelson-cleanup", &rbacv1.Role{}))
	args := append(slices.Clone(pod.Containers[0].Args), more...)
	args[1] = "--config=" + w.config()
	out, err := exec.CommandContext(ctx, w.binary, args...).CombinedOutput()
	w.t.Logf("%v: %v\n%s", args, err, out)
	now := metav1.Now()
	job.Status = batchv1.JobStatus{StartTime: &now, CompletionTime: &now, Succeeded: 1, Conditions: []batchv1.JobCondition{
		{Type: batchv1.JobSuccessCriteriaMet, Status: corev1.ConditionTrue, LastTransitionTime: now}, {Type: batchv1.JobComplete, Status: corev1.ConditionTrue, LastTransitionTime: now}}}
	if err != nil {
		job.Status = batchv1.JobStatus{StartTime: &now, Failed: 1, Conditions: []batchv1.JobCondition{
			{Type: batchv1.JobFailureTarget, Status: corev1.ConditionTrue, LastTransitionTime: now}, {Type: batchv1.JobFailed, Status: corev1.ConditionTrue, LastTransitionTime: now, Reason: "BackoffLimitExceeded"}}}
	}
	w.must(w.api.Status().Update(w.t.Context(), job))
	select {
	case err := <-done:
		return string(out), err
	case <-time.After(time.Minute):
		return string(out), errors.New("uninstall does not end")
	}
}

func stepUninstallFails(t *testing.T, w *world) {
	held := w.pods(render(t, w.installed()).Manifest)["keelson-policy-sync"]
	w.must(w.api.Create(t.Context(), held))
	before := w.inventory()
	out, err := w.uninstalling("--wait=1s")
	if err == nil || !strings.Contains(out, "pod keelson-system/keelson-policy-sync-0 of policy-sync is still there") {
		t.Fatalf("uninstall: %v", err)
	}
	after := w.inventory()
	gone := slices.DeleteFunc(slices.Clone(before), func(o string) bool { return slices.Contains(after, o) })
	if diff := cmp.Diff([]string{"apps/v1 Deployment keelson-system/keelson-policy-sync"}, gone); diff != "" {
		t.Errorf("what went (-want +got):\n%s", diff)
	}
	if err := w.get(namespace, "keelson-cleanup", &rbacv1.Role{}); !apierrors.IsNotFound(err) {
		t.Errorf("the right to delete the Deployment outlived its use: %v", err)
	}
	// The operator decides to go on instead, and then to uninstall after all.
	w.must(helm.Rollback(w.cluster.AdminKubeconfig(), release, namespace))
	w.must(w.get(namespace, "keelson-policy-sync", &appsv1.Deployment{}))
	w.must(helm.Upgrade(t.Context(), w.cluster.AdminKubeconfig(), chart, release, namespace, w.installed()))
	w.must(w.api.Delete(t.Context(), held, client.GracePeriodSeconds(0)))
	w.sync.Stop(10 * time.Second)
}

func stepUninstall(t *testing.T, w *world) {
	out, err := w.uninstalling()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out, "WARNING: this OPENS what Keelson had closed.") || !strings.Contains(out, "nothing that policy-sync wrote is left") {
		t.Error("what the job says")
	}
}

func stepNothingLeft(t *testing.T, w *world, before []string) {
	want := []string{
		"apiextensions.k8s.io/v1 CustomResourceDefinition /nodetrusts.trust.keelson.io",
		"apiextensions.k8s.io/v1 CustomResourceDefinition /trustpolicies.trust.keelson.io",
		"trust.keelson.io/v1alpha1 NodeTrust /fra-1", "trust.keelson.io/v1alpha1 NodeTrust /old-1", "trust.keelson.io/v1alpha1 TrustPolicy payments/api",
		// This test's own.
		"apiextensions.k8s.io/v1 CustomResourceDefinition /servicemonitors.monitoring.coreos.com",
		"v1 Namespace /payments", "v1 Node /fra-1", "v1 ServiceAccount payments/api",
	}
	var got []string
	w.eventually("the last ones go", func() error {
		got = nil
		for _, o := range w.inventory() {
			if !slices.Contains(before, o) && !slices.Contains(want, o) && !strings.Contains(o, " ConfigMap payments/kube-root-ca.crt") {
				got = append(got, o)
			}
		}
		if len(got) > 0 {
			return fmt.Errorf("left: %s", strings.Join(got, "\n"))
		}
		return nil
	})
	n := &corev1.Node{}
	w.must(w.get("", "fra-1", n))
	if text := fmt.Sprint(n.Labels, n.Spec.Taints); strings.Contains(text, "keelson") {
		t.Errorf("the node bears %s", text)
	}
}

func stepStay(t *testing.T, w *world) {
	w.must(helm.Install(t.Context(), w.cluster.AdminKubeconfig(), chart, release, namespace, w.installed("uninstall: {removeObjects: false}")))
	w.start()
	w.eventually("the doors are closed", func() error {
		tier, strict := &unstructured.Unstructured{}, &unstructured.Unstructured{}
		tier.SetAPIVersion("projectcalico.org/v3")
		tier.SetKind("Tier")
		strict.SetAPIVersion("security.istio.io/v1")
		strict.SetKind("PeerAuthentication")
		return errors.Join(w.get("", "keelson", tier), w.get("payments", "keelson.strict", strict))
	})
	w.sync.Stop(10 * time.Second)
	w.must(helm.Uninstall(t.Context(), w.cluster.AdminKubeconfig(), release, namespace))
	if err := w.get(namespace, "keelson-policy-sync", &appsv1.Deployment{}); !apierrors.IsNotFound(err) {
		t.Errorf("the Deployment is there: %v", err)
	}
	stepGuards(t, w)
	left := strings.Join(w.inventory(), "\n")
	for _, want := range []string{"Tier /keelson", "NetworkPolicy payments/keelson.default-deny", "PeerAuthentication payments/keelson.strict", "ValidatingAdmissionPolicyBinding /keelson-pod-trust-labels", "MutatingAdmissionPolicy /keelson-node-taint-on-create"} {
		if !strings.Contains(left, want) {
			t.Errorf("%s went", want)
		}
	}
	// Cleaning up later: installed again under the same name, and uninstalled.
	w.must(helm.Install(t.Context(), w.cluster.AdminKubeconfig(), chart, release, namespace, w.installed()))
	if _, err := w.uninstalling(); err != nil {
		t.Fatal(err)
	}
	if left := strings.Join(w.inventory(), "\n"); strings.Contains(left, "Tier /keelson") || strings.Contains(left, "AdmissionPolicy /keelson") {
		t.Errorf("left:\n%s", left)
	}
}
