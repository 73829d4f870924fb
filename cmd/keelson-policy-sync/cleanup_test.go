package main

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/kube"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// TestCleanup lets the real program write everything that it writes, and takes it away again. The steps build on each other.
func TestCleanup(t *testing.T) {
	w := newWorld(t)
	w.create(w.namespace("payments", v1alpha1.ModeEnforce), w.namespace("shop", v1alpha1.ModeEnforce), w.namespace("lab", v1alpha1.ModeAudit),
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "payments", Name: "api"}},
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "frontend"}},
		node("fra-1", "10.1.0.0/24"), node("par-1", "10.2.0.0/24"), node("ber-1", "10.3.0.0/24"),
		w.pod("payments", "api-fra", "api", "fra-1", "10.1.0.5"), w.pod("payments", "api-par", "api", "par-1", "10.2.0.5"),
		w.pod("shop", "frontend-fra", "frontend", "fra-1", "10.1.0.6"))
	w.create(trusted("fra-1", time.Hour, map[string]string{"country": "DE"}), trusted("par-1", time.Hour, map[string]string{"country": "DE"}))
	w.create(policies()...)
	w.foreign()
	w.start()
	w.eventually("payments/api is programmed", w.programmed("payments", "api", metav1.ConditionTrue, 2))
	w.eventually("shop/frontend is programmed", w.programmed("shop", "frontend", metav1.ConditionTrue, 1))
	w.verdict("par-1", bad)
	w.eventually("par-1 is closed", w.bears("par-1", false))
	w.eventually("its pod's address is cut off", func() error { return w.revoked("10.2.0.5/32") })
	w.eventually("fra-1 is trusted", w.bears("fra-1", true))
	w.settled()

	for _, step := range []struct {
		name string
		run  func(*testing.T, *world)
	}{
		{"a dry run says what would go, and takes nothing", stepDryRun},
		{"while policy-sync leads, nothing is taken", stepLeads},
		{"while a pod of policy-sync is there, nothing is taken", stepPodStays},
		{"without the SPIRE server, nothing is taken", stepNoSPIRE},
		{"when policy-sync has ended, all that it wrote goes, and nothing else", stepTaken},
		{"what is clean stays clean", stepTakenAgain},
	} {
		if !t.Run(step.name, func(t *testing.T) {
			w.t = t
			step.run(t, w)
		}) {
			t.Fatalf("the following steps build on %q", step.name)
		}
	}
}

// foreign makes what is not policy-sync's: an entry, a policy, a label and a taint.
func (w *world) foreign() {
	w.t.Helper()
	w.must(w.api.Create(w.t.Context(), &unstructured.Unstructured{Object: map[string]any{"apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy",
		"metadata": map[string]any{"namespace": "payments", "name": "default.team"},
		"spec":     map[string]any{"tier": "default", "selector": "all()", "types": []any{"Ingress"}}}}))
	w.must(w.api.Create(w.t.Context(), &unstructured.Unstructured{Object: map[string]any{"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
		"metadata": map[string]any{"namespace": "payments", "name": "team"}, "spec": map[string]any{"action": "DENY"}}}))
	n := &corev1.Node{}
	w.must(w.api.Get(w.t.Context(), client.ObjectKey{Name: "ber-1"}, n))
	n.Labels = map[string]string{"team": "storage"}
	n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: "team", Effect: corev1.TaintEffectNoSchedule})
	w.must(w.api.Update(w.t.Context(), n))
	out, err := exec.CommandContext(w.t.Context(), w.spireBinary(), "entry", "create", "-socketPath", w.spire.Socket, "-entryID", "team.1",
		"-parentID", "spiffe://"+trustDomain+"/spire/agent/x", "-spiffeID", "spiffe://"+trustDomain+"/team", "-selector", "unix:uid:1").CombinedOutput()
	if err != nil {
		w.t.Fatalf("%v: %s", err, out)
	}
}

// spireBinary is the program of the server that runs.
func (w *world) spireBinary() string {
	w.t.Helper()
	path, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", w.spire.Process.PID()))
	w.must(err)
	return path
}

// cleanup runs the program as policy-sync's own user.
func (w *world) cleanup(args ...string) (string, error) {
	w.t.Helper()
	out, err := exec.CommandContext(w.t.Context(), w.binary, append([]string{"cleanup", "--config", w.config}, args...)...).CombinedOutput()
	w.t.Logf("cleanup %v: %v\n%s", args, err, out)
	return string(out), err
}

// untouched runs something that must change nothing.
func (w *world) untouched(run func()) {
	w.t.Helper()
	before := w.versions()
	run()
	if diff := cmp.Diff(before, w.versions()); diff != "" {
		w.t.Errorf("something was changed (-before +after):\n%s", diff)
	}
}

// refuses checks that the program ended with an error that says so.
func (w *world) refuses(why string, args ...string) {
	w.t.Helper()
	out, err := w.cleanup(args...)
	if err == nil || !strings.Contains(out, why) {
		w.t.Errorf("got %v, want a refusal that holds %q", err, why)
	}
}

func stepDryRun(t *testing.T, w *world) {
	w.untouched(func() {
		out, err := w.cleanup("--dry-run")
		if err != nil {
			t.Error(err)
		}
		for _, want := range []string{"Node fra-1", "Node par-1", "Pod payments/api-fra", "Pod shop/frontend-fra", "Tier keelson", "GlobalNetworkSet", "AuthorizationPolicy payments/", "PeerAuthentication shop/",
			"delete-entry keelson.", "spiffe://keelson.test/ns/payments/sa/api"} {
			if !strings.Contains(out, want) {
				t.Errorf("no %s in the plan", want)
			}
		}
		for _, never := range []string{"default.team", "payments/team", "team.1", "WARNING"} {
			if strings.Contains(out, never) {
				t.Errorf("%s in the plan", never)
			}
		}
	})
}

func stepLeads(_ *testing.T, w *world) {
	w.untouched(func() { w.refuses("so a policy-sync still runs; nothing was taken away", "--wait", "3s") })
}

// deployed makes what the chart would have made: a Deployment, and a pod of it.
func (w *world) deployed() *corev1.Pod {
	labels := map[string]string{nameLabel: "keelson-policy-sync"}
	template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "policy-sync", Image: "policy-sync"}}}}
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "keelson-system", Name: "keelson-policy-sync-1", Labels: labels}, Spec: template.Spec}
	w.create(&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "keelson-system", Name: "default"}},
		&appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "keelson-system", Name: "keelson-policy-sync"},
			Spec: appsv1.DeploymentSpec{Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: template}})
	w.must(w.api.Create(w.t.Context(), p))
	// What the chart grants while it is uninstalled.
	w.must(w.cluster.Apply(w.t.Context(), []byte(`
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: cleanup, namespace: keelson-system}
rules:
- {apiGroups: [apps], resources: [deployments], resourceNames: [keelson-policy-sync], verbs: [delete]}
- {apiGroups: [coordination.k8s.io], resources: [leases], resourceNames: [keelson-policy-sync], verbs: [delete]}
- {apiGroups: [""], resources: [configmaps], resourceNames: [`+strings.Join(kube.MemoryNames(), ", ")+`], verbs: [delete]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: cleanup, namespace: keelson-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: cleanup}
subjects: [{kind: ServiceAccount, namespace: keelson-system, name: keelson-policy-sync}]
`)))
	return p
}

func stepPodStays(t *testing.T, w *world) {
	w.deployed()
	w.untouched(func() {
		w.refuses("pod keelson-system/keelson-policy-sync-1 of policy-sync is still there", "--delete-deployment", "keelson-policy-sync", "--wait", "1s")
	})
	if err := w.api.Get(t.Context(), client.ObjectKey{Namespace: "keelson-system", Name: "keelson-policy-sync"}, &appsv1.Deployment{}); !apierrors.IsNotFound(err) {
		t.Errorf("the Deployment is there: %v", err)
	}
}

func stepNoSPIRE(t *testing.T, w *world) {
	// What the Deployment's controllers and the kubelet do.
	w.must(w.api.Delete(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "keelson-system", Name: "keelson-policy-sync-1"}}, client.GracePeriodSeconds(0)))
	w.sync.Stop(10 * time.Second)
	before := w.spireState().Entries
	w.spire.Process.Stop(5 * time.Second)
	owned := w.owned()
	w.refuses("nothing is taken away, since the SPIRE server could not be read; if it is gone for good, say --without-spire", "--delete-deployment", "keelson-policy-sync")
	if diff := cmp.Diff(owned, w.owned()); diff != "" {
		t.Errorf("objects went (-before +after):\n%s", diff)
	}
	w.startSPIRE()
	if diff := cmp.Diff(before, w.spireState().Entries); diff != "" {
		t.Errorf("entries went (-before +after):\n%s", diff)
	}
}

func stepTaken(t *testing.T, w *world) {
	out, err := w.cleanup("--delete-deployment", "keelson-policy-sync")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(out, "WARNING: this OPENS what Keelson had closed.") || !strings.HasSuffix(out, "nothing that policy-sync wrote is left\n") {
		t.Errorf("what it printed first and last")
	}
	if left := w.owned(); len(left) > 0 {
		// The guards are the installation's, not policy-sync's.
		t.Errorf("objects are left: %v", left)
	}
	for _, name := range []string{"fra-1", "par-1", "ber-1"} {
		n := &corev1.Node{}
		w.must(w.api.Get(t.Context(), client.ObjectKey{Name: name}, n))
		for k := range n.Labels {
			if strings.Contains(k, "keelson") {
				t.Errorf("node %s has label %s", name, k)
			}
		}
		tainted := func(key string) bool {
			return slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return strings.Contains(t.Key, key) })
		}
		if tainted("keelson") || name == "ber-1" && (!tainted("team") || n.Labels["team"] != "storage") {
			t.Errorf("node %s has taints %v and labels %v", name, n.Spec.Taints, n.Labels)
		}
	}
	pods := &corev1.PodList{}
	w.must(w.api.List(t.Context(), pods))
	for _, p := range pods.Items {
		for k := range p.Labels {
			if strings.Contains(k, "trust.keelson.io") {
				t.Errorf("pod %s has label %s", p.Name, k)
			}
		}
	}
	if entries := w.spireState().Entries; len(entries) != 1 || entries[0].ID != "team.1" {
		t.Errorf("entries: %v, want the one that is not ours", entries)
	}
	for kind, name := range map[string]string{"projectcalico.org/v3 NetworkPolicy": "default.team", "security.istio.io/v1 AuthorizationPolicy": "team"} {
		o := &unstructured.Unstructured{}
		version, kind, _ := strings.Cut(kind, " ")
		o.SetAPIVersion(version)
		o.SetKind(kind)
		if err := w.api.Get(t.Context(), client.ObjectKey{Namespace: "payments", Name: name}, o); err != nil {
			t.Errorf("what is not ours went: %v", err)
		}
	}
	lease := client.ObjectKey{Namespace: "keelson-system", Name: "keelson-policy-sync"}
	if err := w.api.Get(t.Context(), lease, &coordinationv1.Lease{}); !apierrors.IsNotFound(err) {
		t.Errorf("the lease is there: %v", err)
	}
	for _, p := range []client.ObjectKey{{Namespace: "payments", Name: "api"}, {Namespace: "shop", Name: "frontend"}} {
		if err := w.programmed(p.Namespace, p.Name, metav1.ConditionFalse, 0)(); err != nil {
			t.Errorf("a policy that nobody acts on: %v", err)
		}
	}
}

func stepTakenAgain(t *testing.T, w *world) {
	w.untouched(func() {
		out, err := w.cleanup()
		if err != nil || !strings.Contains(out, "nothing that policy-sync wrote is left") {
			t.Error(err)
		}
	})
	// With the server gone for good.
	w.spire.Process.Stop(5 * time.Second)
	if out, err := w.cleanup("--without-spire"); err != nil || !strings.Contains(out, "nothing that policy-sync wrote is left") {
		t.Error(err)
	}
}

// TestWhatLetsInGoesFirst: a cleanup that ends halfway has opened nothing before everything that lets in was gone.
func TestWhatLetsInGoesFirst(t *testing.T) {
	s := snapshot.Snapshot{At: time.Unix(1, 0), Config: snapshot.Config{TrustDomain: trustDomain, Calico: true, Istio: true, Taint: true}, SPIRE: &snapshot.SPIRE{
		Entries: []snapshot.Entry{{ID: v1alpha1.EntryIDPrefix + "1", SPIFFEID: "spiffe://" + trustDomain + "/a"}, {ID: "other.1", SPIFFEID: "spiffe://" + trustDomain + "/b"}}}}
	s.Nodes = []corev1.Node{{ObjectMeta: metav1.ObjectMeta{Name: "good", UID: "1", Labels: map[string]string{v1alpha1.NodeVerdictLabel: "trusted"}}},
		{ObjectMeta: metav1.ObjectMeta{Name: "bad", UID: "2"}, Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: v1alpha1.UntrustedTaint, Effect: corev1.TaintEffectNoSchedule}}}},
		{ObjectMeta: metav1.ObjectMeta{Name: "proved-bad", UID: "4", Labels: map[string]string{v1alpha1.NodeVerdictLabel: "untrusted"}}}}
	s.Pods = []*corev1.Pod{{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "p", UID: "3", Labels: map[string]string{v1alpha1.PodAttestedLabel: v1alpha1.True, "app": "x"}}}}
	object := func(version, kind, namespace, name string, spec map[string]any) {
		o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": version, "kind": kind, "spec": spec}}
		o.SetNamespace(namespace)
		o.SetName(name)
		o.SetUID("u")
		o.SetLabels(map[string]string{v1alpha1.OwnerLabel: v1alpha1.OwnerValue})
		s.Objects = append(s.Objects, o)
	}
	object("projectcalico.org/v3", "Tier", "", "keelson", map[string]any{})
	object("projectcalico.org/v3", "GlobalNetworkPolicy", "", "keelson.deny", map[string]any{"ingress": []any{map[string]any{"action": "Deny"}}})
	object("projectcalico.org/v3", "NetworkPolicy", "a", "keelson.pass", map[string]any{"ingress": []any{map[string]any{"action": "Pass"}}})
	object("projectcalico.org/v3", "GlobalNetworkSet", "", "keelson.revoked", map[string]any{})
	object("security.istio.io/v1", "AuthorizationPolicy", "a", "allow", map[string]any{"action": "ALLOW", "rules": []any{map[string]any{}}})
	object("security.istio.io/v1", "AuthorizationPolicy", "a", "deny", map[string]any{"action": "DENY", "rules": []any{map[string]any{}}})
	object("security.istio.io/v1", "PeerAuthentication", "a", "strict", map[string]any{})
	p, err := plan.Diff(s, nothing(s), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, o := range p.Operations {
		subject := o.Target.String()
		if o.Entry != nil {
			subject = "entry " + o.Entry.ID
		}
		got = append(got, fmt.Sprintf("%s %s", o.Phase, subject))
	}
	want := []string{
		"tighten Node good", "tighten Node proved-bad", "tighten Pod a/p", "tighten entry keelson.1", "tighten NetworkPolicy a/keelson.pass", "tighten AuthorizationPolicy a/allow",
		"trust Node bad",
		"retire GlobalNetworkPolicy keelson.deny", "retire AuthorizationPolicy a/deny", "retire PeerAuthentication a/strict", "retire GlobalNetworkSet keelson.revoked", "retire Tier keelson",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
