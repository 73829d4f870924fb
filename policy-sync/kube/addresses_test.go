package kube

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

func calicoObject(kind, namespace, name string, spec map[string]any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "projectcalico.org/v3", "kind": kind,
		"metadata": map[string]any{"namespace": namespace, "name": name}, "spec": spec}}
}

func affinity(age time.Duration, node, cidr string, change ...string) *unstructured.Unstructured {
	spec := map[string]any{"node": node, "cidr": cidr, "state": "confirmed", "type": "host"}
	for i := 0; i < len(change); i += 2 {
		spec[change[i]] = change[i+1]
	}
	o := calicoObject("BlockAffinity", "", node+cidr, spec)
	o.SetCreationTimestamp(metav1.NewTime(time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC).Add(-age)))
	return o
}

// TestWhichAffinitiesCount: Calico confirms a block for one node; what claims it later, claims another's.
func TestWhichAffinitiesCount(t *testing.T) {
	got := nodeBlocks([]*unstructured.Unstructured{
		affinity(time.Hour, "a", "10.0.0.0/26"),
		affinity(time.Minute, "b", "10.0.0.0/26"),  // a's, claimed later
		affinity(time.Minute, "b", "10.0.0.32/27"), // within a's, claimed later
		affinity(time.Minute, "b", "10.0.1.0/26"),  // b's own
		affinity(2*time.Hour, "b", "10.0.2.0/26"),  // b's own
		affinity(time.Hour, "a", "10.0.2.0/26"),    // b's, claimed later
		affinity(time.Hour, "c", "10.0.3.0/26", "state", "pending"),
		affinity(time.Hour, "c", "10.0.4.0/26", "type", "virtual"),
		affinity(time.Hour, "c", "nonsense"),
		affinity(time.Hour, "", "10.0.5.0/26"),
		calicoObject("BlockAffinity", "", "empty", nil),
	})
	want := map[string][]netip.Prefix{"a": {netip.MustParsePrefix("10.0.0.0/26")},
		"b": {netip.MustParsePrefix("10.0.2.0/26"), netip.MustParsePrefix("10.0.1.0/26")}}
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Error(d)
	}
}

// TestWhichPoolsCount: those that pods may have addresses of.
func TestWhichPoolsCount(t *testing.T) {
	got := workloadPools([]*unstructured.Unstructured{
		calicoObject("IPPool", "", "default", map[string]any{"cidr": "10.0.0.0/16"}),
		calicoObject("IPPool", "", "disabled", map[string]any{"cidr": "10.1.0.0/16", "disabled": true, "allowedUses": []any{"Tunnel", "Workload"}}),
		calicoObject("IPPool", "", "balancers", map[string]any{"cidr": "10.2.0.0/16", "allowedUses": []any{"LoadBalancer"}}),
		calicoObject("IPPool", "", "unreadable", map[string]any{"cidr": "10.3.0.0"}),
		calicoObject("IPPool", "", "strange", map[string]any{"cidr": "10.4.0.0/16", "allowedUses": "Workload"}),
	})
	if want := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16"), netip.MustParsePrefix("10.1.0.0/16")}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := workloadPools(nil); got == nil {
		t.Error("no pool is not the same as pools that were not read")
	}
}

// plainResources is an API that serves Calico's v3 kinds as plain custom resources: it sets no label of the tier.
func plainResources(t *testing.T, objects ...client.Object) (*Store, client.Client) {
	t.Helper()
	scheme, err := Scheme()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range append(snapshot.Kinds(snapshot.Config{Calico: true}), blockAffinity, ipPool) {
		scheme.AddKnownTypeWithName(k.GroupVersionKind, &unstructured.Unstructured{})
		scheme.AddKnownTypeWithName(listKind(k.GroupVersionKind), &unstructured.UnstructuredList{})
	}
	c := fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).Build()
	return New(c, c, nil, snapshot.Config{Calico: true}), c
}

func ourPolicy(name string, labels map[string]string) *unstructured.Unstructured {
	o := calicoObject("NetworkPolicy", "shop", name, map[string]any{"tier": v1alpha1.CalicoTier})
	o.SetLabels(labels)
	return o
}

var (
	owner    = map[string]string{v1alpha1.OwnerLabel: v1alpha1.OwnerValue}
	labelled = map[string]string{v1alpha1.OwnerLabel: v1alpha1.OwnerValue, "projectcalico.org/tier": v1alpha1.CalicoTier}
)

// TestOurPoliciesAreFoundWithoutTheTiersLabel: an earlier version made them, or the label was taken away.
func TestOurPoliciesAreFoundWithoutTheTiersLabel(t *testing.T) {
	elsewhere := calicoObject("NetworkPolicy", "shop", "default.theirs", map[string]any{"tier": "default"})
	elsewhere.SetLabels(owner)
	s, c := plainResources(t, ourPolicy("keelson.old", owner), ourPolicy("keelson.new", labelled), ourPolicy("keelson.not-ours", nil), elsewhere)
	names := func() []string {
		read, err := s.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, o := range read.Objects {
			out = append(out, o.GetName())
		}
		slices.Sort(out)
		return out
	}
	if got, want := names(), []string{"keelson.new", "keelson.old"}; !slices.Equal(got, want) {
		t.Fatalf("read %v, want %v", got, want)
	}
	live := ourPolicy("keelson.old", nil)
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(live), live); err != nil {
		t.Fatal(err)
	}
	live.SetUID("u")
	if err := c.Update(t.Context(), live); err != nil {
		t.Fatal(err)
	}
	target := plan.Target{GroupVersionKind: live.GroupVersionKind(), Namespace: "shop", Name: "keelson.old", UID: "u"}
	if err := s.Apply(t.Context(), plan.Operation{Action: plan.Delete, Target: target}); err != nil {
		t.Fatal(err)
	}
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(live), live); !apierrors.IsNotFound(err) {
		t.Errorf("it opens what it opened: %v", err)
	}
}

// TestAPolicyThatNoReadingFindsIsTakenOver: otherwise each plan would create it again, and nothing would ever open.
func TestAPolicyThatNoReadingFindsIsTakenOver(t *testing.T) {
	for name, there := range map[string]map[string]string{"ours": owner, "no one's": nil} {
		t.Run(name, func(t *testing.T) {
			s, c := plainResources(t, ourPolicy("keelson.api", there))
			want := ourPolicy("keelson.api", labelled)
			_ = unstructured.SetNestedField(want.Object, "all()", "spec", "selector")
			op := plan.Operation{Action: plan.Create, Object: want, Target: plan.Target{GroupVersionKind: want.GroupVersionKind(), Namespace: "shop", Name: "keelson.api"}}
			if err := s.Apply(t.Context(), op); err != nil {
				t.Fatal(err)
			}
			live := ourPolicy("keelson.api", nil)
			if err := c.Get(t.Context(), client.ObjectKeyFromObject(live), live); err != nil {
				t.Fatal(err)
			}
			if fmt.Sprint(live.GetLabels()) != fmt.Sprint(labelled) || live.Object["spec"].(map[string]any)["selector"] != "all()" {
				t.Errorf("it is %v", live.Object)
			}
			if err := s.Apply(t.Context(), op); !errors.Is(err, ErrStale) {
				t.Errorf("one that a reading finds: %v, want it to be planned again", err)
			}
		})
	}
}
