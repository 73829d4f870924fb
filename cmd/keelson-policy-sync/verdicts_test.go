package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

func stepBad(t *testing.T, w *world) {
	w.verdict("fra-1", bad)
	took := w.eventually("fra-1 is closed", w.bears("fra-1", false))
	took += w.eventually("its payments pod is unlabelled", w.attested("payments", "api-fra", false))
	took += w.eventually("its shop pod is unlabelled", w.attested("shop", "frontend-fra", false))
	if took > time.Second {
		t.Errorf("it took %s, want less than a second", took)
	}
	w.eventually("its pods' addresses are cut off", func() error {
		return w.revoked("10.1.0.5/32", "10.1.0.6/32")
	})
	w.verdict("fra-1", good)
	w.eventually("fra-1 is trusted again", w.bears("fra-1", true))
	w.eventually("its pod is attested again", w.attested("payments", "api-fra", true))
	w.eventually("no address is cut off any more", func() error { return w.revoked() })
}

// stepMoved: no kubelet runs here, as none answers on a machine that is proved bad, so nobody confirms that the replica has ended.
func stepMoved(t *testing.T, w *world) {
	grace := int64(1)
	replica := func(name, node string) *corev1.Pod {
		p := w.pod("keelson-system", name, "keelson-policy-sync", node, "10.9.0.9")
		p.Spec.TerminationGracePeriodSeconds = &grace
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		return p
	}
	bystander := w.pod("keelson-system", "bystander", "default", "fra-1", "10.1.0.77")
	w.create(&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "keelson-system", Name: "default"}},
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "keelson-system", Name: "keelson-policy-sync"}},
		replica("replica-fra", "fra-1"), replica("replica-par", "par-1"), bystander)
	w.verdict("fra-1", bad)
	var asked time.Time
	w.eventually("the replica on fra-1 is gone", func() error {
		p := &corev1.Pod{}
		err := w.api.Get(t.Context(), client.ObjectKey{Namespace: "keelson-system", Name: "replica-fra"}, p)
		if err == nil {
			if p.DeletionTimestamp != nil {
				asked = p.DeletionTimestamp.Time
			}
			return fmt.Errorf("it is there, deleted %v", p.DeletionTimestamp)
		}
		return client.IgnoreNotFound(err)
	})
	if asked.IsZero() {
		t.Error("it had no time to hand its lease over")
	}
	for _, name := range []string{"replica-par", "bystander"} {
		p := &corev1.Pod{}
		if err := w.api.Get(t.Context(), client.ObjectKey{Namespace: "keelson-system", Name: name}, p); err != nil || p.DeletionTimestamp != nil {
			t.Errorf("%s: %v, deleted %v", name, err, p.DeletionTimestamp)
		}
		w.must(w.api.Delete(t.Context(), p, client.GracePeriodSeconds(0)))
	}
	w.verdict("fra-1", good)
	w.eventually("fra-1 is trusted again", w.bears("fra-1", true))
	w.eventually("its pod is attested again", w.attested("payments", "api-fra", true))
}

// revoked checks the addresses of the set of revoked ones.
func (w *world) revoked(want ...string) error {
	list := &unstructured.UnstructuredList{}
	list.SetAPIVersion("projectcalico.org/v3")
	list.SetKind("GlobalNetworkSetList")
	if err := w.api.List(w.t.Context(), list, client.MatchingLabels{v1alpha1.OwnerLabel: v1alpha1.OwnerValue}); err != nil {
		return err
	}
	var got []string
	for _, o := range list.Items {
		nets, _, _ := unstructured.NestedStringSlice(o.Object, "spec", "nets")
		got = append(got, nets...)
	}
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		return fmt.Errorf("revoked addresses (-want +got):\n%s", diff)
	}
	return nil
}

func stepSilence(t *testing.T, w *world) {
	w.settled()
	w.spire.Process.Stop(0)
	w.verdict("fra-1", bad)
	took := w.eventually("fra-1 is closed", w.bears("fra-1", false))
	took += w.eventually("its pod is unlabelled", w.attested("payments", "api-fra", false))
	if took > time.Second {
		t.Errorf("it took %s, want less than a second", took)
	}
	w.eventually("the policy says so", w.programmed("payments", "api", metav1.ConditionFalse, 0))
	w.verdict("fra-1", good)
	time.Sleep(2 * time.Second)
	if err := w.bears("fra-1", false)(); err != nil {
		t.Errorf("something was opened while SPIRE was away: %v", err)
	}
	w.startSPIRE()
	w.eventually("with SPIRE back, fra-1 is trusted again", w.bears("fra-1", true))
	w.eventually("its pod is attested again", w.attested("payments", "api-fra", true))
	w.eventually("the policy is programmed again", w.programmed("payments", "api", metav1.ConditionTrue, 1))
}

func stepStale(t *testing.T, w *world) {
	const valid = 2 * time.Second
	w.verdict("fra-1", func(s *v1alpha1.NodeTrustSpec) { good(s); s.ValidUntil = metav1.NewMicroTime(s.AttestedAt.Add(valid)) })
	if err := w.bears("fra-1", true)(); err != nil {
		t.Errorf("closed before its time: %v", err)
	}
	took := w.eventually("its verdict has ended", w.bears("fra-1", false))
	if took > valid+time.Second || took < valid-time.Second {
		t.Errorf("closed after %s, want after %s", took, valid)
	}
	w.eventually("its pod is unlabelled", w.attested("payments", "api-fra", false))
	w.verdict("fra-1", good)
	w.eventually("it is trusted again", w.bears("fra-1", true))
}

func stepRecreated(t *testing.T, w *world) {
	old := &corev1.Node{}
	w.must(w.api.Get(t.Context(), client.ObjectKey{Name: "par-1"}, old))
	w.must(w.api.Delete(t.Context(), old))
	time.Sleep(1100 * time.Millisecond) // creationTimestamp has whole seconds
	w.create(node("par-1", "10.2.0.0/24"))
	w.eventually("the new Node is tainted", w.bears("par-1", false))
	time.Sleep(time.Second)
	if err := w.bears("par-1", false)(); err != nil {
		t.Error(err)
	}
	fresh := &corev1.Node{}
	w.must(w.api.Get(t.Context(), client.ObjectKey{Name: "par-1"}, fresh))
	w.verdict("par-1", func(s *v1alpha1.NodeTrustSpec) { good(s); s.NodeUID = string(old.UID) })
	time.Sleep(time.Second)
	if err := w.bears("par-1", false)(); err != nil {
		t.Errorf("a verdict about the old Node was taken for the new one: %v", err)
	}
	w.verdict("par-1", func(s *v1alpha1.NodeTrustSpec) { good(s); s.NodeUID = string(fresh.UID) })
	w.eventually("a verdict about the new Node counts", w.bears("par-1", true))
}

func stepDeleted(t *testing.T, w *world) {
	foreign := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy",
		"metadata": map[string]any{"namespace": "payments", "name": "default.team"},
		"spec":     map[string]any{"tier": "default", "selector": "all()", "types": []any{"Ingress"}}}}
	w.must(w.api.Create(t.Context(), foreign))
	for _, p := range policies() {
		w.must(w.api.Delete(t.Context(), p))
	}
	w.eventually("labels are gone", w.attested("payments", "api-fra", false))
	for _, name := range []string{"payments", "shop"} {
		ns := &corev1.Namespace{}
		w.must(w.api.Get(t.Context(), client.ObjectKey{Name: name}, ns))
		w.must(w.api.Patch(t.Context(), ns, client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"labels":{"`+v1alpha1.ModeLabel+`":null}}}`))))
	}
	w.eventually("objects are gone", func() error {
		for _, o := range w.owned() {
			if strings.Contains(o, "payments/") || strings.Contains(o, "shop/") {
				return fmt.Errorf("left: %s", o)
			}
		}
		return nil
	})
	w.eventually("entries are gone", func() error {
		if entries := w.spireState().Entries; len(entries) > 0 {
			return fmt.Errorf("left: %v", entries)
		}
		return nil
	})
	w.must(w.api.Get(t.Context(), client.ObjectKeyFromObject(foreign), foreign))
	t.Logf("what stays: %v", w.owned())
}

func (w *world) fetch(url string) (int, string) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, url, nil)
	w.must(err)
	resp, err := http.DefaultClient.Do(req)
	w.must(err)
	body, err := io.ReadAll(resp.Body)
	w.must(errors.Join(err, resp.Body.Close()))
	return resp.StatusCode, string(body)
}

func stepMetrics(t *testing.T, w *world) {
	if code, body := w.fetch(w.health); code != http.StatusOK {
		t.Errorf("readiness: %d %s", code, body)
	}
	_, body := w.fetch(w.metrics)
	for _, want := range []string{`keelson_policy_sync_nodes{verdict="trusted"} 2`, `keelson_policy_sync_passes_total{result="ok"}`,
		"keelson_policy_sync_last_success_timestamp_seconds", "keelson_policy_sync_verdict_to_applied_seconds_count",
		`keelson_policy_sync_operations_total{action="patch",phase="tighten",result="ok"}`} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s among the metrics", want)
		}
	}
}
