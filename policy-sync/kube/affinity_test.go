package kube_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// placingPolicies select by account, by labels, by expressions, and ask for what no label can say.
const placingPolicies = `
- {name: plain, spec: {workloads: {serviceAccount: plain}}}
- {name: geo, spec: {workloads: {serviceAccount: geo}, require: {node: {references: [prod, prod-next], tags: {country: [DE, FR]}}}}}
- {name: labelled, spec: {workloads: {selector: {matchLabels: {app: a}, matchExpressions: [{key: tier, operator: In, values: [gold]}, {key: debug, operator: DoesNotExist}]}}, require: {node: {tags: {rack: [r1]}}}}}
- {name: others, spec: {workloads: {selector: {matchExpressions: [{key: tier, operator: NotIn, values: [gold]}, {key: both, operator: Exists}]}}, require: {node: {tags: {rack: [r2]}}}}}
- {name: unspeakable, spec: {workloads: {serviceAccount: unspeakable}, require: {node: {references: ["no label: a set with spaces"]}}}}
`

// placed are pods and the terms of the node affinity that they must have afterwards.
const placed = `
- why: no policy selects it
  pod: {serviceAccountName: stranger}
- why: a policy that asks for nothing still needs a trusted node
  pod: {serviceAccountName: plain}
  terms: ["verdict=trusted"]
- why: references and tags
  pod: {serviceAccountName: geo}
  terms: ["reference=prod,prod-next tag.country=DE,FR verdict=trusted"]
- why: labels
  labels: {app: a, tier: gold}
  pod: {}
  terms: ["tag.rack=r1 verdict=trusted"]
- why: an expression that does not hold
  labels: {app: a, tier: gold, debug: "1"}
  pod: {}
- why: a label that is missing
  labels: {tier: gold}
  pod: {}
- why: other operators, and two policies at once
  labels: {both: "", tier: silver}
  pod: {serviceAccountName: plain}
  terms: ["tag.rack=r2 verdict=trusted verdict=trusted"]
- why: what no label can say is left out
  pod: {serviceAccountName: unspeakable}
  terms: ["verdict=trusted"]
- why: added to each alternative; the one that matches nothing stays so
  pod: {serviceAccountName: plain, affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [
    {matchExpressions: [{key: disk, operator: In, values: [ssd]}]}, {matchFields: [{key: metadata.name, operator: In, values: [n1]}]}, {}]}}}}
  terms: ["disk=ssd verdict=trusted", "verdict=trusted", ""]
- why: other affinities stay
  pod: {serviceAccountName: plain, affinity: {nodeAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 1, preference: {matchExpressions: [{key: disk, operator: Exists}]}}]}}}
  terms: ["verdict=trusted"]
- why: affinity to pods alone
  pod: {serviceAccountName: plain, affinity: {podAntiAffinity: {}}}
  terms: ["verdict=trusted"]
- why: a namespace in audit mode
  namespace: watching
  pod: {serviceAccountName: plain}
`

func TestPodsArePlacedWhereTheyCanBeTrusted(t *testing.T) {
	inForce(t)
	c := as(t, alice)
	var policies []struct {
		Name string
		Spec v1alpha1.TrustPolicySpec
	}
	decode(t, placingPolicies, &policies)
	for _, namespace := range []string{"placing", "watching"} {
		for _, p := range policies {
			if err := c.Create(t.Context(), &v1alpha1.TrustPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: p.Name}, Spec: p.Spec}); err != nil {
				t.Fatal(err)
			}
		}
		for _, account := range []string{"default", "plain", "geo", "unspeakable", "stranger"} {
			if err := c.Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: account}}); client.IgnoreAlreadyExists(err) != nil {
				t.Fatal(err)
			}
		}
	}
	var cases []struct {
		Why, Namespace string
		Labels         map[string]string
		Pod            corev1.PodSpec
		Terms          []string
	}
	decode(t, placed, &cases)
	untilPlaced(t, c)
	for i, tc := range cases {
		t.Run(tc.Why, func(t *testing.T) {
			if tc.Namespace == "" {
				tc.Namespace = "placing"
			}
			p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: tc.Namespace, Name: fmt.Sprintf("placed-%d", i), Labels: tc.Labels}, Spec: tc.Pod}
			p.Spec.Containers = []corev1.Container{{Name: "main", Image: "registry.test/app:1"}}
			before := p.DeepCopy()
			if err := c.Create(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.Terms, terms(p)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if a := before.Spec.Affinity; a != nil && (a.PodAntiAffinity == nil) != (p.Spec.Affinity.PodAntiAffinity == nil) {
				t.Error("another affinity is gone")
			}
			if a := before.Spec.Affinity; a != nil && a.NodeAffinity != nil && len(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution) !=
				len(p.Spec.Affinity.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution) {
				t.Error("a preference is gone")
			}
		})
	}
}

// untilPlaced waits until the API server has seen every policy: it reads them as parameters, a little later than they are made.
func untilPlaced(t *testing.T, c client.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	want := map[string]string{"plain": "trusted", "geo": "country", "unspeakable": "trusted"}
	for account, text := range want {
		for {
			p := pod("probe", map[string]string{"app": "a", "tier": "gold", "both": ""})
			p.Namespace, p.Spec.ServiceAccountName = "placing", account
			if err := c.Create(ctx, p, client.DryRunAll); err != nil {
				t.Fatal(err)
			}
			if all := strings.Join(terms(p), " "); strings.Contains(all, text) && strings.Contains(all, "r1") {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	for {
		p := pod("probe", map[string]string{"both": ""})
		p.Namespace = "placing"
		if err := c.Create(ctx, p, client.DryRunAll); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(strings.Join(terms(p), " "), "r2") {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func decode(t *testing.T, text string, into any) {
	t.Helper()
	if err := yaml.UnmarshalStrict([]byte(text), into); err != nil {
		t.Fatal(err)
	}
}

// terms are what a pod requires of its node, one text per alternative.
func terms(p *corev1.Pod) []string {
	if p.Spec.Affinity == nil || p.Spec.Affinity.NodeAffinity == nil || p.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return nil
	}
	var out []string
	for _, term := range p.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		var parts []string
		for _, e := range term.MatchExpressions {
			parts = append(parts, strings.TrimPrefix(e.Key, v1alpha1.NodeLabelPrefix)+"="+strings.Join(e.Values, ","))
		}
		slices.Sort(parts) // policies are evaluated in no order
		out = append(out, strings.Join(parts, " "))
	}
	return out
}
