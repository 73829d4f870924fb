package calico

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/desired"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

func TestPeersAreNamedByLabelsThatCalicoSetsItself(t *testing.T) {
	cases := map[string]struct {
		flow desired.Flow
		want string
	}{
		"a service account": {desired.Flow{Namespace: "shop", ServiceAccount: "frontend"}, "projectcalico.org/serviceaccount == 'frontend'"},
		"tags":              {desired.Flow{Namespace: "shop", Tags: map[string][]string{"country": {"FR", "DE", "FR"}}}, "trust.keelson.io/tag.country in { 'DE', 'FR' }"},
		"labels":            {desired.Flow{Namespace: "shop", Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"b": "2", "a": ""}}}, "a == '' && b == '2'"},
		"every operator": {desired.Flow{Namespace: "shop", Selector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
			{Key: "a", Operator: metav1.LabelSelectorOpIn, Values: []string{"2", "1"}}, {Key: "b", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"3"}},
			{Key: "c", Operator: metav1.LabelSelectorOpExists}, {Key: "d", Operator: metav1.LabelSelectorOpDoesNotExist},
		}}}, "!has(d) && a in { '1', '2' } && b not in { '3' } && has(c)"},
		"an operator that nobody knows": {desired.Flow{Namespace: "shop", Selector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Like"}}}}, "!all()"},
		"a policy's label":              {desired.Flow{Namespace: "shop", PolicyLabel: v1alpha1.PolicyLabel("api")}, "api.policy.trust.keelson.io/attested == 'true'"},
		"a value that would break out":  {desired.Flow{Namespace: "shop", ServiceAccount: "x' || all() || a == '"}, "projectcalico.org/serviceaccount == 'refused by keelson'"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			want := "trust.keelson.io/attested == 'true' && projectcalico.org/namespace == 'shop' && " + c.want
			if diff := cmp.Diff(want, peer(c.flow)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestCalicoAcceptsTheNames: libcalico-go asks that a policy's name begins with its
// tier's (lib/names, ValidateTieredPolicyName).
func TestCalicoAcceptsTheNames(t *testing.T) {
	objects := renderAll(t)
	for _, o := range objects {
		tier, found, _ := unstructured.NestedString(o.Object, "spec", "tier")
		if found && (tier != v1alpha1.CalicoTier || !strings.HasPrefix(o.GetName(), tier+".")) {
			t.Errorf("%s %s is in tier %q", o.GetKind(), o.GetName(), tier)
		}
		if strings.Contains(o.GetKind(), "Policy") && !found {
			t.Errorf("%s %s is in no tier", o.GetKind(), o.GetName())
		}
		if !snapshot.Owned(o) {
			t.Errorf("%s %s does not say who made it", o.GetKind(), o.GetName())
		}
	}
}

func renderAll(t *testing.T) []desired.Object {
	t.Helper()
	objects, err := Render(desired.Intents{
		Config:     snapshot.Config{TrustDomain: "demo.example"}.WithDefaults(),
		Namespaces: []trustgraph.Namespace{{Name: "payments", Mode: v1alpha1.ModeEnforce}, {Name: "b", Mode: v1alpha1.ModeAudit}},
		Workloads: []desired.Workload{
			{Namespace: "payments", Policy: "api", Mode: v1alpha1.ModeEnforce, Ingress: []desired.Flow{{Namespace: "shop", ServiceAccount: "f", Ports: []int32{8443}, Ambient: true}}},
			{Namespace: "b", Policy: "api", Mode: v1alpha1.ModeAudit},
		},
		Revoked: []trustgraph.Revoked{{Address: "10.0.0.1", Reason: "r"}, {Address: "2001:db8::1", Reason: "r"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

func TestRevokedAddressesAreWholePrefixes(t *testing.T) {
	for _, o := range renderAll(t) {
		if o.GetKind() != "GlobalNetworkSet" {
			continue
		}
		nets, _, err := unstructured.NestedStringSlice(o.Object, "spec", "nets")
		if err != nil || !cmp.Equal(nets, []string{"10.0.0.1/32", "2001:db8::1/128"}) {
			t.Errorf("nets %v, %v", nets, err)
		}
		if o.Class != desired.Blacklist || o.GetLabels()[v1alpha1.RevokedLabel] != v1alpha1.True {
			t.Errorf("class %v, labels %v", o.Class, o.GetLabels())
		}
		return
	}
	t.Error("no set of revoked addresses")
}

func TestAmbientPeersArriveOnTheHBONEPort(t *testing.T) {
	for _, o := range renderAll(t) {
		if o.GetKind() == "NetworkPolicy" && o.GetName() == Name("api") {
			rules, _, _ := unstructured.NestedSlice(o.Object, "spec", "ingress")
			ports, _, _ := unstructured.NestedSlice(rules[0].(map[string]any), "destination", "ports")
			if !cmp.Equal(ports, []any{int64(8443), int64(HBONEPort)}) {
				t.Errorf("ports %v", ports)
			}
			return
		}
	}
	t.Error("no policy")
}

func TestOnlyGatesPass(t *testing.T) {
	for _, o := range renderAll(t) {
		for _, dir := range []string{"ingress", "egress"} {
			rules, _, _ := unstructured.NestedSlice(o.Object, "spec", dir)
			for _, r := range rules {
				m := r.(map[string]any)
				if m["action"] == "Allow" {
					t.Errorf("%s %s allows, which overrides the teams' own denies", o.GetKind(), o.GetName())
				}
				if dir == "ingress" && m["action"] == "Pass" && (o.Class != desired.Gate || m["source"] == nil) {
					t.Errorf("%s %s lets in without naming a peer", o.GetKind(), o.GetName())
				}
			}
		}
	}
}
