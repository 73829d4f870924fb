package kube_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// attempt is one request and whether the API must take it.
type attempt struct {
	do      func(ctx context.Context) error
	allowed bool
}

// testAttempts makes every request, once the guards are in force.
func testAttempts(t *testing.T, cases map[string]attempt) {
	t.Helper()
	inForce(t)
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			err := tc.do(t.Context())
			switch {
			case tc.allowed && err != nil:
				t.Errorf("refused: %v", err)
			case !tc.allowed && err == nil:
				t.Error("taken")
			case !tc.allowed && !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err):
				t.Errorf("failed for another reason than admission: %v", err)
			}
		})
	}
}

// inForce waits until the API servers evaluate the guards, the last one installed included.
func inForce(t *testing.T) {
	t.Helper()
	c := as(t, alice)
	probes := []client.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "probe", Labels: map[string]string{v1alpha1.ModeLabel: "enforce"}}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "probe", Labels: map[string]string{v1alpha1.ModeLabel: "nonsense"}}},
		pod("probe", map[string]string{v1alpha1.PodAttestedLabel: "true"}),
		set("projectcalico.org/v3", "GlobalNetworkSet", "", "probe", map[string]any{v1alpha1.PodAttestedLabel: "true"}),
		nodeTrust("probe"),
	}
	deadline := time.Now().Add(time.Minute)
	for _, p := range probes {
		for {
			err := c.Create(t.Context(), p.DeepCopyObject().(client.Object), client.DryRunAll)
			if apierrors.IsForbidden(err) || apierrors.IsInvalid(err) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("the guards are not in force: %T: %v", p, err)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
}

func pod(name string, labels map[string]string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "payments", Name: name, Labels: labels},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "registry.test/app:1"}}}}
}

func set(apiVersion, kind, namespace, name string, labels map[string]any) *unstructured.Unstructured {
	metadata := map[string]any{"name": name, "labels": labels}
	if namespace != "" {
		metadata["namespace"] = namespace
	}
	return &unstructured.Unstructured{Object: map[string]any{"apiVersion": apiVersion, "kind": kind, "metadata": metadata,
		"spec": map[string]any{"nets": []any{"192.0.2.0/24"}}}}
}

func patchOf(c client.Client, o client.Object, body string, subresource ...string) func(context.Context) error {
	return func(ctx context.Context) error {
		patch := client.RawPatch(types.MergePatchType, []byte(body))
		target := o.DeepCopyObject().(client.Object)
		if len(subresource) > 0 {
			return c.SubResource(subresource[0]).Patch(ctx, target, patch)
		}
		return c.Patch(ctx, target, patch)
	}
}

func createOf(c client.Client, o client.Object) func(context.Context) error {
	return func(ctx context.Context) error { return c.Create(ctx, o) }
}

const untaint = `{"spec":{"taints":null}}`

func TestThreat16_AKubeletWritesNoTrust(t *testing.T) {
	name := objectName(t)
	kubelet := as(t, "system:node:"+name, "system:nodes")
	own := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	forged := own.DeepCopy()
	forged.Labels = map[string]string{v1alpha1.NodeVerdictLabel: "trusted"}
	inForce(t)
	if err := kubelet.Create(t.Context(), forged); !apierrors.IsForbidden(err) {
		t.Errorf("registering with a trust label: %v", err)
	}
	if err := kubelet.Create(t.Context(), own.DeepCopy()); err != nil {
		t.Fatalf("registering: %v", err)
	}
	mustBeTainted(t, name)
	testAttempts(t, map[string]attempt{
		"if it labels its Node trusted, refuse": {do: patchOf(kubelet, own, `{"metadata":{"labels":{"`+v1alpha1.NodeVerdictLabel+`":"trusted"}}}`)},
		"if it tags its Node, refuse":           {do: patchOf(kubelet, own, `{"metadata":{"labels":{"`+v1alpha1.NodeTagPrefix+`country":"DE"}}}`)},
		"if it labels it through the status, refuse": {do: patchOf(kubelet, own,
			`{"metadata":{"labels":{"`+v1alpha1.NodeVerdictLabel+`":"trusted"}}}`, "status")},
		"if it takes its taint off, refuse":             {do: patchOf(kubelet, own, untaint)},
		"if it deletes its Node, refuse":                {do: func(ctx context.Context) error { return kubelet.Delete(ctx, own.DeepCopy()) }},
		"if it writes a verdict on itself, refuse":      {do: createOf(kubelet, nodeTrust(name))},
		"if it sets a label of another kind, let it be": {do: patchOf(kubelet, own, `{"metadata":{"labels":{"example.org/disk":"ssd"}}}`), allowed: true},
		"if it reports its status, let it be": {do: patchOf(kubelet, own,
			`{"status":{"conditions":[{"type":"Ready","status":"True","reason":"KubeletReady","lastHeartbeatTime":null,"lastTransitionTime":null}]}}`, "status"), allowed: true},
	})
}

func TestThreat16_NobodyButPolicySyncLiftsANodesTaint(t *testing.T) {
	name := objectName(t)
	someone, ours := as(t, alice), as(t, policySync)
	own := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	inForce(t)
	if err := someone.Create(t.Context(), own.DeepCopy()); err != nil {
		t.Fatal(err)
	}
	mustBeTainted(t, name)
	label := `{"metadata":{"labels":{"` + v1alpha1.NodeVerdictLabel + `":"trusted"}}}`
	testAttempts(t, map[string]attempt{
		"if somebody with all rights labels a Node, refuse":                  {do: patchOf(someone, own, label)},
		"if somebody with all rights lifts a taint, refuse":                  {do: patchOf(someone, own, untaint)},
		"if somebody with all rights takes off what is not there, let it be": {do: patchOf(someone, own, `{"metadata":{"labels":{"`+v1alpha1.NodeVerdictLabel+`":null}}}`), allowed: true},
		"if somebody cordons the Node, let it be":                            {do: patchOf(someone, own, `{"spec":{"unschedulable":true}}`), allowed: true},
		"if somebody with all rights writes a verdict, refuse":               {do: createOf(someone, nodeTrust(name))},
	})
	// Deleted and made again, as the one with the rights to do that may: the taint is back.
	if err := ours.Patch(t.Context(), own.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(untaint))); err != nil {
		t.Fatalf("policy-sync may not lift the taint: %v", err)
	}
	if err := ours.Patch(t.Context(), own.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(label))); err != nil {
		t.Fatalf("policy-sync may not label: %v", err)
	}
	if err := someone.Delete(t.Context(), own.DeepCopy()); err != nil {
		t.Fatal(err)
	}
	if err := someone.Create(t.Context(), own.DeepCopy()); err != nil {
		t.Fatal(err)
	}
	mustBeTainted(t, name)
}

// TestAdministratorsMayLetPolicySyncBackOnANode: by taking "untrusted" off, and nothing else.
func TestAdministratorsMayLetPolicySyncBackOnANode(t *testing.T) {
	name := objectName(t)
	someone, ours, root := as(t, alice), as(t, policySync), admin(t)
	own := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	inForce(t)
	if err := someone.Create(t.Context(), own.DeepCopy()); err != nil {
		t.Fatal(err)
	}
	verdict := func(value string) string {
		return `{"metadata":{"labels":{"` + v1alpha1.NodeVerdictLabel + `":` + value + `}}}`
	}
	for _, step := range []struct {
		name    string
		who     client.Client
		body    string
		allowed bool
	}{
		{"policy-sync says untrusted", ours, verdict(`"untrusted"`), true},
		{"somebody with all rights takes it off", someone, verdict("null"), false},
		{"an administrator makes it trusted", root, verdict(`"trusted"`), false},
		{"an administrator adds a tag beside", root, `{"metadata":{"labels":{"` + v1alpha1.NodeVerdictLabel + `":null,"` + v1alpha1.NodeTagPrefix + `country":"DE"}}}`, false},
		{"an administrator takes it off", root, verdict("null"), true},
		{"policy-sync says trusted", ours, verdict(`"trusted"`), true},
		{"an administrator takes that off", root, verdict("null"), false},
	} {
		err := step.who.Patch(t.Context(), own.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(step.body)))
		if (err == nil) != step.allowed || err != nil && !apierrors.IsForbidden(err) {
			t.Errorf("%s: %v, want allowed %t", step.name, err, step.allowed)
		}
	}
}

func mustBeTainted(t *testing.T, name string) {
	t.Helper()
	live := &corev1.Node{}
	if err := admin(t).Get(t.Context(), client.ObjectKey{Name: name}, live); err != nil {
		t.Fatal(err)
	}
	tainted := slices.ContainsFunc(live.Spec.Taints, func(taint corev1.Taint) bool { return taint.Key == v1alpha1.UntrustedTaint })
	if !tainted || live.Labels[v1alpha1.NodeVerdictLabel] != "" {
		t.Errorf("node %s: taints %v, labels %v; want the taint and no verdict", name, live.Spec.Taints, live.Labels)
	}
}

func TestThreat17_APodAuthorWritesNoTrustLabel(t *testing.T) {
	someone := as(t, alice)
	plain := pod(objectName(t), map[string]string{"app": "api"})
	if err := someone.Create(t.Context(), plain.DeepCopy()); err != nil {
		t.Fatal(err)
	}
	trust := map[string]string{v1alpha1.PodAttestedLabel: v1alpha1.True}
	template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "x", v1alpha1.PolicyLabel("api"): v1alpha1.True}},
		Spec: plain.Spec}
	meta := func(kind string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: "payments", Name: objectName(t) + kind}
	}
	selector := &metav1.LabelSelector{MatchLabels: map[string]string{"app": "x"}}
	job := template.DeepCopy()
	job.Spec.RestartPolicy = corev1.RestartPolicyNever
	patch := `{"metadata":{"labels":{"` + v1alpha1.PodAttestedLabel + `":"true"}}}`
	cases := map[string]attempt{
		"if a pod is made with the label, refuse":         {do: createOf(someone, pod(objectName(t)+"-1", trust))},
		"if a pod is made with a policy's label, refuse":  {do: createOf(someone, pod(objectName(t)+"-2", map[string]string{v1alpha1.PolicyLabel("api"): "true"}))},
		"if a pod is made with a tag label, refuse":       {do: createOf(someone, pod(objectName(t)+"-3", map[string]string{v1alpha1.PodTagPrefix + "country": "DE"}))},
		"if a pod is labelled later, refuse":              {do: patchOf(someone, plain, patch)},
		"if a pod is labelled through its status, refuse": {do: patchOf(someone, plain, patch, "status")},
		"if a pod is labelled with an ephemeral container, the API itself drops the label (seen below)": {do: patchOf(someone, plain,
			`{"metadata":{"labels":{"`+v1alpha1.PodAttestedLabel+`":"true"}},"spec":{"ephemeralContainers":[{"name":"d","image":"registry.test/d:1"}]}}`, "ephemeralcontainers"), allowed: true},
		"if a pod is labelled with a resize, the API itself drops the label (seen below)": {do: patchOf(someone, plain, patch, "resize"), allowed: true},
		"if a Deployment's template has it, refuse": {do: createOf(someone, &appsv1.Deployment{ObjectMeta: meta("d"),
			Spec: appsv1.DeploymentSpec{Selector: selector, Template: template}})},
		"if a ReplicaSet's template has it, refuse": {do: createOf(someone, &appsv1.ReplicaSet{ObjectMeta: meta("r"),
			Spec: appsv1.ReplicaSetSpec{Selector: selector, Template: template}})},
		"if a StatefulSet's template has it, refuse": {do: createOf(someone, &appsv1.StatefulSet{ObjectMeta: meta("s"),
			Spec: appsv1.StatefulSetSpec{Selector: selector, Template: template}})},
		"if a DaemonSet's template has it, refuse": {do: createOf(someone, &appsv1.DaemonSet{ObjectMeta: meta("ds"),
			Spec: appsv1.DaemonSetSpec{Selector: selector, Template: template}})},
		"if a Job's template has it, refuse": {do: createOf(someone, &batchv1.Job{ObjectMeta: meta("j"), Spec: batchv1.JobSpec{Template: *job}})},
		"if a CronJob's template has it, refuse": {do: createOf(someone, &batchv1.CronJob{ObjectMeta: meta("c"),
			Spec: batchv1.CronJobSpec{Schedule: "@daily", JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: *job}}}})},
		"if a PodTemplate has it, refuse":           {do: createOf(someone, &corev1.PodTemplate{ObjectMeta: meta("t"), Template: template})},
		"if a pod forges Calico's labels, refuse":   {do: createOf(someone, pod(objectName(t)+"-4", map[string]string{"pcsa.name": "frontend"}))},
		"if a pod is labelled otherwise, let it be": {do: patchOf(someone, plain, `{"metadata":{"labels":{"team":"a"}}}`), allowed: true},
	}
	testAttempts(t, cases)
	live := &corev1.Pod{}
	if err := admin(t).Get(t.Context(), client.ObjectKeyFromObject(plain), live); err != nil {
		t.Fatal(err)
	}
	if _, ok := live.Labels[v1alpha1.PodAttestedLabel]; ok {
		t.Errorf("the pod bears the label all the same: %v", live.Labels)
	}
	testAttempts(t, map[string]attempt{"if policy-sync labels a pod, let it be": {do: patchOf(as(t, policySync), plain, patch), allowed: true}})
	testAttempts(t, map[string]attempt{
		"if an attested pod is labelled otherwise, let it be": {do: patchOf(someone, plain, `{"metadata":{"labels":{"team":"b"}}}`), allowed: true},
		"if an attested pod's label is taken away by another, refuse": {do: patchOf(someone, plain,
			`{"metadata":{"labels":{"`+v1alpha1.PodAttestedLabel+`":null}}}`)},
	})
}

// TestThreat17_AnAppTeamReportsNoAddressAndNoImage: Felix and policy-sync take both from the pod's status.
func TestThreat17_AnAppTeamReportsNoAddressAndNoImage(t *testing.T) {
	someone, kubelet := as(t, alice), as(t, "system:node:"+objectName(t), "system:nodes")
	own := pod(objectName(t), nil)
	own.Spec.NodeName = objectName(t)
	if err := someone.Create(t.Context(), own.DeepCopy()); err != nil {
		t.Fatal(err)
	}
	const address = `{"status":{"podIP":"10.9.0.9","podIPs":[{"ip":"10.9.0.9"}]}}`
	const image = `{"status":{"containerStatuses":[{"name":"main","image":"registry.test/app:1","imageID":"registry.test/app@sha256:%s","ready":true,"restartCount":0}]}}`
	condition := `{"status":{"conditions":[{"type":"example.org/Ready","status":"True"}]}}`
	testAttempts(t, map[string]attempt{
		"if an app team writes an address, refuse":        {do: patchOf(someone, own, address, "status")},
		"if an app team writes an image, refuse":          {do: patchOf(someone, own, fmt.Sprintf(image, strings.Repeat("a", 64)), "status")},
		"if a controller writes a condition, let it be":   {do: patchOf(someone, own, condition, "status"), allowed: true},
		"if a controller annotates the pod, let it be":    {do: patchOf(someone, own, `{"metadata":{"annotations":{"cni.projectcalico.org/podIP":"10.9.0.9/32"}}}`, "status"), allowed: true},
		"if the pod's kubelet reports both, let it be":    {do: patchOf(kubelet, own, fmt.Sprintf(image, strings.Repeat("b", 64)), "status"), allowed: true},
		"if another node's kubelet reports it, refuse it": {do: patchOf(as(t, "system:node:other", "system:nodes"), own, address, "status")},
	})
}

func TestThreat27_ABindingCarriesNoTrustLabel(t *testing.T) {
	someone := as(t, alice)
	free := pod(objectName(t), nil)
	if err := someone.Create(t.Context(), free.DeepCopy()); err != nil {
		t.Fatal(err)
	}
	bind := func(labels map[string]string) func(context.Context) error {
		return func(ctx context.Context) error {
			b := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Namespace: "payments", Name: free.Name, Labels: labels},
				Target: corev1.ObjectReference{Kind: "Node", Name: "somewhere"}}
			return someone.SubResource("binding").Create(ctx, free.DeepCopy(), b)
		}
	}
	testAttempts(t, map[string]attempt{
		"if a Binding carries the label, refuse": {do: bind(map[string]string{v1alpha1.PodAttestedLabel: "true"})},
	})
	testAttempts(t, map[string]attempt{"if a Binding carries none, let it be": {do: bind(nil), allowed: true}})
}

func TestThreat26_ACalicoSetCarriesNoTrustLabel(t *testing.T) {
	someone := as(t, alice)
	trust := map[string]any{v1alpha1.PodAttestedLabel: "true"}
	policy := map[string]any{v1alpha1.PolicyLabel("api"): "true"}
	name := objectName(t)
	endpoint := func(apiVersion string) *unstructured.Unstructured {
		o := set(apiVersion, "HostEndpoint", "", name, trust)
		o.Object["spec"] = map[string]any{"node": "n", "interfaceName": "eth0", "expectedIPs": []any{"192.0.2.1"}}
		return o
	}
	cases := map[string]attempt{}
	for _, apiVersion := range []string{"projectcalico.org/v3", "crd.projectcalico.org/v1"} {
		cases[fmt.Sprintf("if a GlobalNetworkSet of %s has a trust label, refuse", apiVersion)] = attempt{do: createOf(someone, set(apiVersion, "GlobalNetworkSet", "", name, trust))}
		cases[fmt.Sprintf("if a GlobalNetworkSet of %s has a policy's label, refuse", apiVersion)] = attempt{do: createOf(someone, set(apiVersion, "GlobalNetworkSet", "", name, policy))}
		cases[fmt.Sprintf("if a NetworkSet of %s has a trust label, refuse", apiVersion)] = attempt{do: createOf(someone, set(apiVersion, "NetworkSet", "payments", name, trust))}
		cases[fmt.Sprintf("if a HostEndpoint of %s has a trust label, refuse", apiVersion)] = attempt{do: createOf(someone, endpoint(apiVersion))}
	}
	// Keelson's own set of revoked addresses, and what would pass for another one.
	revoked := map[string]any{v1alpha1.RevokedLabel: v1alpha1.True}
	everything := func(apiVersion, name string, labels map[string]any) *unstructured.Unstructured {
		o := set(apiVersion, "GlobalNetworkSet", "", name, labels)
		o.Object["spec"] = map[string]any{"nets": []any{"0.0.0.0/0", "::/0"}}
		return o
	}
	for i, apiVersion := range []string{"projectcalico.org/v3", "crd.projectcalico.org/v1"} {
		plain := everything(apiVersion, fmt.Sprintf("%s-plain-%d", name, i), map[string]any{"team": "a"})
		if err := someone.Create(t.Context(), plain.DeepCopy()); err != nil {
			t.Fatal(err)
		}
		cases[fmt.Sprintf("if a GlobalNetworkSet of %s calls every address revoked, refuse", apiVersion)] = attempt{do: createOf(someone, everything(apiVersion, name, revoked))}
		cases[fmt.Sprintf("if a GlobalNetworkSet of %s does so later, refuse", apiVersion)] = attempt{do: patchOf(someone, plain, `{"metadata":{"labels":{"`+v1alpha1.RevokedLabel+`":"true"}}}`)}
	}
	ours := everything("projectcalico.org/v3", v1alpha1.RevokedSet, map[string]any{v1alpha1.RevokedLabel: v1alpha1.True, v1alpha1.OwnerLabel: v1alpha1.OwnerValue})
	if err := client.IgnoreNotFound(as(t, policySync).Delete(t.Context(), ours.DeepCopy())); err != nil {
		t.Fatal(err)
	}
	cases["if policy-sync makes its set, let it be"] = attempt{do: createOf(as(t, policySync), ours), allowed: true}
	cases["if a NetworkSet has other labels, let it be"] = attempt{do: createOf(someone, set("projectcalico.org/v3", "NetworkSet", "payments", name+"-ok", map[string]any{"team": "a"})), allowed: true}
	testAttempts(t, cases)
}

func TestThreat32_NothingForeignWidensAnEnforcedNamespace(t *testing.T) {
	someone := as(t, alice)
	peer := func(mode string) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
			"metadata": map[string]any{"namespace": "payments", "name": objectName(t) + strings.ToLower(mode)},
			"spec":     map[string]any{"mtls": map[string]any{"mode": mode}}}}
	}
	testAttempts(t, map[string]attempt{
		"if a PeerAuthentication is permissive, refuse": {do: createOf(someone, peer("PERMISSIVE"))},
		"if a PeerAuthentication disables mTLS, refuse": {do: createOf(someone, peer("DISABLE"))},
		"if a PeerAuthentication is strict, let it be":  {do: createOf(someone, peer("STRICT")), allowed: true},
		"if a policy is put into our Calico tier, refuse": {do: createOf(someone, &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy", "metadata": map[string]any{"namespace": "payments", "name": v1alpha1.CalicoTier + ".mine"},
			"spec": map[string]any{"tier": v1alpha1.CalicoTier, "selector": "all()"}}})},
	})
}

func TestThreat34_AnAppTeamDoesNotEnrol(t *testing.T) {
	someone := as(t, alice)
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "payments"}}
	mode := func(value string) string {
		return `{"metadata":{"labels":{"` + v1alpha1.ModeLabel + `":` + value + `}}}`
	}
	enrolled := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: objectName(t), Labels: map[string]string{v1alpha1.ModeLabel: v1alpha1.ModeEnforce}}}
	other := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: objectName(t) + "-b"}}
	testAttempts(t, map[string]attempt{
		"if an app team takes its namespace out, refuse":           {do: patchOf(someone, ns, mode(`null`))},
		"if an app team turns it to audit, refuse":                 {do: patchOf(someone, ns, mode(`"audit"`))},
		"if an app team enrols a new namespace, refuse":            {do: createOf(someone, enrolled)},
		"if an app team labels its namespace otherwise, let it be": {do: patchOf(someone, ns, `{"metadata":{"labels":{"team":"a"}}}`), allowed: true},
		"if an app team makes a plain namespace, let it be":        {do: createOf(someone, other), allowed: true},
		"if an admin sets a mode that nobody knows, refuse":        {do: patchOf(admin(t), ns, mode(`"enforced"`))},
		"if an admin sets audit and back, let it be": {do: func(ctx context.Context) error {
			if err := patchOf(admin(t), ns, mode(`"audit"`))(ctx); err != nil {
				return err
			}
			return patchOf(admin(t), ns, mode(`"enforce"`))(ctx)
		}, allowed: true},
	})
}

// TestAStolenTokenOfPolicySyncChangesLabelsAlone: RBAC lets policy-sync patch every pod and node, and knows no fields.
func TestAStolenTokenOfPolicySyncChangesLabelsAlone(t *testing.T) {
	ours, root := as(t, policySync), admin(t)
	victim := pod(objectName(t), map[string]string{"app": "api"})
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: objectName(t), Labels: map[string]string{"zone": "a"}}}
	for _, o := range []client.Object{victim.DeepCopy(), node.DeepCopy()} {
		if err := root.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	label := func(key, value string) string { return `{"metadata":{"labels":{"` + key + `":` + value + `}}}` }
	testAttempts(t, map[string]attempt{
		"if it labels a pod attested, let it be":         {do: patchOf(ours, victim, label(v1alpha1.PodAttestedLabel, `"true"`)), allowed: true},
		"if it writes a policy's label, let it be":       {do: patchOf(ours, victim, label(v1alpha1.PolicyLabel("api"), `"true"`)), allowed: true},
		"if it writes a tag, let it be":                  {do: patchOf(ours, victim, label(v1alpha1.PodTagPrefix+"country", `"DE"`)), allowed: true},
		"if it changes a pod's image, refuse":            {do: patchOf(ours, victim, `{"spec":{"containers":[{"name":"main","image":"registry.test/evil:1"}]}}`)},
		"if it adds a toleration, refuse":                {do: patchOf(ours, victim, `{"spec":{"tolerations":[{"key":"x","operator":"Exists"}]}}`)},
		"if it ends a pod by a deadline, refuse":         {do: patchOf(ours, victim, `{"spec":{"activeDeadlineSeconds":1}}`)},
		"if it writes a pod's other label, refuse":       {do: patchOf(ours, victim, label("app", `"other"`))},
		"if it takes a pod's other label, refuse":        {do: patchOf(ours, victim, label("app", "null"))},
		"if it annotates a pod, refuse":                  {do: patchOf(ours, victim, `{"metadata":{"annotations":{"a":"b"}}}`)},
		"if it gives a pod an owner, refuse":             {do: patchOf(ours, victim, `{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"Node","name":"n","uid":"u"}]}}`)},
		"if it gives a pod a finalizer, refuse":          {do: patchOf(ours, victim, `{"metadata":{"finalizers":["example.org/x"]}}`)},
		"if it adds a label beside trust labels, refuse": {do: patchOf(ours, victim, `{"metadata":{"labels":{"`+v1alpha1.PodAttestedLabel+`":"true","x":"y"}}}`)},
		"if it writes a pod's status, refuse":            {do: patchOf(ours, victim, `{"status":{"podIP":"10.9.0.9"}}`, "status")},
		"if it adds an ephemeral container, refuse":      {do: patchOf(ours, victim, `{"spec":{"ephemeralContainers":[{"name":"d","image":"registry.test/d:1"}]}}`, "ephemeralcontainers")},
		"if it takes its labels away, let it be":         {do: patchOf(ours, victim, label(v1alpha1.PodAttestedLabel, "null")), allowed: true},

		"if it says a node's verdict and lifts its taint, let it be": {do: patchOf(ours, node, `{"metadata":{"labels":{"`+v1alpha1.NodeVerdictLabel+`":"trusted","`+v1alpha1.NodeReferenceLabel+`":"prod","`+v1alpha1.NodeTagPrefix+`country":"DE"}},"spec":{"taints":null}}`), allowed: true},
		"if it writes a node's other label, refuse":                  {do: patchOf(ours, node, label("zone", `"b"`))},
		"if it makes a node a control plane's, refuse":               {do: patchOf(ours, node, label("node-role.kubernetes.io/control-plane", `""`))},
		"if it annotates a node, refuse":                             {do: patchOf(ours, node, `{"metadata":{"annotations":{"a":"b"}}}`)},
		"if it adds another taint, refuse":                           {do: patchOf(ours, node, `{"spec":{"taints":[{"key":"x","effect":"NoExecute"}]}}`)},
		"if it has its own taint evict, refuse":                      {do: patchOf(ours, node, `{"spec":{"taints":[{"key":"`+v1alpha1.UntrustedTaint+`","effect":"NoExecute"}]}}`)},
		"if it cordons a node, refuse":                               {do: patchOf(ours, node, `{"spec":{"unschedulable":true}}`)},
		"if it writes a node's address blocks, refuse":               {do: patchOf(ours, node, `{"spec":{"podCIDR":"10.0.0.0/24","podCIDRs":["10.0.0.0/24"]}}`)},
		"if it writes a node's status, refuse":                       {do: patchOf(ours, node, `{"status":{"addresses":[{"type":"InternalIP","address":"10.0.0.1"}]}}`, "status")},
		"if it deletes a pod, the guards let it (roles narrow that to its own namespace)": {do: func(ctx context.Context) error {
			return ours.Delete(ctx, victim.DeepCopy(), client.DryRunAll)
		}, allowed: true},
	})
}

// TestASetIsNoPod: rules that are meant for pods tell them by Calico's own labels.
func TestASetIsNoPod(t *testing.T) {
	someone := as(t, alice)
	cases := map[string]attempt{}
	for i, apiVersion := range []string{"projectcalico.org/v3", "crd.projectcalico.org/v1"} {
		for j, key := range []string{"projectcalico.org/orchestrator", "projectcalico.org/namespace", "projectcalico.org/serviceaccount", "pcns.projectcalico.org/name", "pcsa.projectcalico.org/name"} {
			for kind, namespace := range map[string]string{"NetworkSet": "payments", "GlobalNetworkSet": "", "HostEndpoint": ""} {
				o := set(apiVersion, kind, namespace, fmt.Sprintf("%s-%d-%d", objectName(t), i, j), map[string]any{key: "k8s"})
				if kind == "HostEndpoint" {
					o.Object["spec"] = map[string]any{"node": "n", "interfaceName": "*"}
				}
				cases[fmt.Sprintf("if a %s of %s bears %s, refuse", kind, apiVersion, key)] = attempt{do: createOf(someone, o)}
			}
		}
	}
	auto := set("projectcalico.org/v3", "HostEndpoint", "", objectName(t)+"-auto", map[string]any{"projectcalico.org/created-by": "calico-kube-controllers", "kubernetes.io/os": "linux"})
	auto.Object["spec"] = map[string]any{"node": "n", "interfaceName": "*"}
	cases["if Calico makes a host endpoint itself, let it be"] = attempt{do: createOf(someone, auto), allowed: true}
	testAttempts(t, cases)
}
