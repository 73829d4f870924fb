package plan_test

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// FuzzPolicyText: an app team controls every text of a TrustPolicy. Whatever it writes,
// either the policy is not accepted, or what is rendered of it is a selector that Calico
// can read and that lets in nobody who is not attested.
func FuzzPolicyText(f *testing.F) {
	f.Add("shop", "frontend", "country", "DE", "app", "frontend", "POST", "/charge")
	f.Add("shop", "x' || all() || a == '", "a' || 'b", "'", "app", "' || has(app) || '", "*", "/")
	f.Add("", "frontend\"", "a.b/c", "DE'}", "projectcalico.org/namespace", "other", "GET", "/*")
	f.Add("other", "default", "rack", "7", "pcns.trust.keelson.io/mode", "", "get", "x")
	f.Fuzz(func(t *testing.T, namespace, account, tagKey, tagValue, labelKey, labelValue, method, path string) {
		w := demo()
		w.Config.Istio = false // it takes no selectors
		w.Policies[0].Spec.Workloads.Selector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: labelKey, Operator: metav1.LabelSelectorOpNotIn, Values: []string{labelValue}}}}
		w.Policies[0].Spec.Ingress = []v1alpha1.IngressRule{{
			From: []v1alpha1.Peer{{
				Namespace: namespace, ServiceAccount: account, Tags: map[string][]string{tagKey: {tagValue}},
				PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{labelKey: labelValue}},
			}},
			HTTP: []v1alpha1.HTTPRule{{Methods: []string{method}, Paths: []string{path}}},
		}}
		w.settle(t, nil)
		d := newDataplane(w.Snapshot)
		for _, src := range []string{"other/stranger-fra-1", "shop/frontend-evil-1", "payments/api-par-1", "payments/api-evil-1"} {
			if connects(w.Snapshot, d, w.podNamed(src), w.podNamed("payments/api-fra-1"), 8443) {
				t.Errorf("%s gets in", src)
			}
		}
	})
}
