package calico

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v3 "github.com/projectcalico/api/pkg/apis/projectcalico/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/desired"
)

func plainRule(t testing.TB, r v3.Rule) map[string]any {
	t.Helper()
	var out map[string]any
	if err := json.Unmarshal([]byte(ruleText(r)), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestARuleIsTheUnionOfItsMembers: every flow is in one rule, apart and together again it is the same rule.
func TestARuleIsTheUnionOfItsMembers(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var flows []desired.Flow
		want := map[string]bool{}
		for range rapid.IntRange(1, 60).Draw(rt, "flows") {
			f := desired.Flow{Namespace: rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "namespace"), Ports: rapid.SampledFrom([][]int32{nil, {80}}).Draw(rt, "ports")}
			name := rapid.StringMatching(`[a-z]{1,50}`).Draw(rt, "name")
			if rapid.Bool().Draw(rt, "policy") {
				f.PolicyLabel = v1alpha1.PolicyLabel(name)
			} else {
				f.ServiceAccount = name
			}
			flows = append(flows, f)
			want[fmt.Sprint(f.Namespace, f.Ports, member(f))] = true
		}
		got := map[string]bool{}
		for _, r := range passes(flows, true) {
			if len(r.Source.Selector) > maxSelector {
				rt.Fatalf("a selector of %d characters", len(r.Source.Selector))
			}
			var element map[string]any
			if err := json.Unmarshal([]byte(ruleText(r)), &element); err != nil {
				rt.Fatal(err)
			}
			_, members, join, ok := Split(element)
			if !ok || !cmp.Equal(join(members), any(element)) {
				rt.Fatalf("%s comes apart as %q", r.Source.Selector, members)
			}
			namespace := strings.Split(r.Source.Selector, "'")[3]
			ports := []int32(nil)
			for _, p := range r.Destination.Ports {
				ports = append(ports, int32(p.MinPort))
			}
			for _, m := range members {
				got[fmt.Sprint(namespace, ports, m)] = true
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			rt.Fatal(diff)
		}
	})
}

// TestOnlyWhatKeelsonWritesComesApart: a selector that somebody changed may mean more than its members.
func TestOnlyWhatKeelsonWritesComesApart(t *testing.T) {
	a, b := v1alpha1.PolicyLabel("a"), v1alpha1.PolicyLabel("b")
	good := plainRule(t, passes([]desired.Flow{{Namespace: "shop", PolicyLabel: a}, {Namespace: "shop", PolicyLabel: b}}, false)[0])
	if _, members, _, ok := Split(good); !ok || !slices.Equal(members, []string{a, b}) {
		t.Fatalf("members %q", members)
	}
	selector := good["destination"].(map[string]any)["selector"].(string)
	for _, changed := range []string{
		strings.NewReplacer("(", "", ")", "").Replace(selector), strings.Replace(selector, ")", " || all())", 1),
		strings.Replace(selector, " || ", " || all() || ", 1), selector + " || all()",
	} {
		rule := clone(good)
		rule["destination"] = map[string]any{"namespaceSelector": "all()", "selector": changed}
		rest, members, _, ok := Split(rule)
		wantRest, _, _, _ := Split(good)
		if ok && rest == wantRest {
			t.Errorf("%s passes for a rule of members %q", changed, members)
		}
	}
}

func TestALongListOfAlternativesIsDealtOut(t *testing.T) {
	var values []string
	for i := range 120 {
		values = append(values, fmt.Sprintf("frontend-variant-%03d", i))
	}
	f := desired.Flow{Namespace: "shop", ServiceAccount: "frontend", Selector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
		{Key: "app.kubernetes.io/instance", Operator: metav1.LabelSelectorOpIn, Values: values}, {Key: "canary", Operator: metav1.LabelSelectorOpDoesNotExist}}}}
	var all []string
	for _, r := range passes([]desired.Flow{f}, true) {
		s := r.Source.Selector
		if len(s) > maxSelector || !strings.Contains(s, "!has(canary)") {
			t.Errorf("%d characters: %s", len(s), s)
		}
		for _, v := range values {
			if strings.Contains(s, "'"+v+"'") {
				all = append(all, v)
			}
		}
	}
	if !slices.Equal(slices.Sorted(slices.Values(all)), values) {
		t.Errorf("%d of %d values: %q", len(all), len(values), all)
	}
}

// TestAnotherPolicysNameIsPassedOver: the second object of api is not the one of policy api.2.
func TestAnotherPolicysNameIsPassedOver(t *testing.T) {
	taken := func(name string) bool { return name == "api.2" || name == "api" }
	for i, want := range []string{"keelson.api", "keelson.api.3", "keelson.api.4"} {
		if got := shardName("api", i, taken); got != want {
			t.Errorf("object %d is %s, want %s", i, got, want)
		}
	}
}

func FuzzSplit(f *testing.F) {
	f.Add("trust.keelson.io/attested == 'true' && projectcalico.org/namespace == 'shop' && projectcalico.org/serviceaccount in { 'a', 'b' } && projectcalico.org/orchestrator == 'k8s'")
	f.Add("trust.keelson.io/attested == 'true' && x && (a.policy.trust.keelson.io/attested == 'true' || b) && y")
	f.Fuzz(func(t *testing.T, selector string) {
		element := map[string]any{"action": "Pass", "source": map[string]any{"selector": selector}}
		_, members, join, ok := Split(element)
		if !ok {
			return
		}
		if again := join(members).(map[string]any)["source"].(map[string]any)["selector"]; again != selector {
			t.Errorf("%q comes together as %q", selector, again)
		}
	})
}
