package policyapi_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
)

// unknown are fields that no version has, or that stand at the wrong place, by the path that refuses them.
var unknown = map[string]string{
	"require.image.scann":                    fmt.Sprintf(require, "{image: {verifiedBy: [release-key], scann: {maxSeverity: high}}}"),
	"require.node.class":                     fmt.Sprintf(require, "{node: {class: gpu}}"),
	"require.scan":                           fmt.Sprintf(require, "{scan: {maxSeverity: high}}"),
	"requires":                               "workloads: {serviceAccount: api}\nrequires: {node: {references: [prod]}}",
	"workloads.serviceAcount":                "workloads: {serviceAcount: api, selector: {}}",
	"workloads.selector.matchLabel":          "workloads: {selector: {matchLabel: {app: api}}}",
	"workloads.selector.matchExpressions.op": "workloads: {selector: {matchExpressions: [{key: app, operator: Exists, op: In}]}}",
	"ingress.port":                           "workloads: {serviceAccount: api}\ningress: [{from: [{serviceAccount: front}], port: [80]}]",
	"ingress.from.podSelecter":               fmt.Sprintf(peer, "{serviceAccount: front, podSelecter: {matchLabels: {app: front}}}"),
	"ingress.from.podSelector.matchlabels":   fmt.Sprintf(peer, "{serviceAccount: front, podSelector: {matchlabels: {app: front}}}"),
	"ingress.http.path":                      fmt.Sprintf(request, "{methods: [GET], path: /orders}"),
	"egress.to.tag":                          "workloads: {serviceAccount: api}\negress: [{to: [{serviceAccount: db, tag: {country: [DE]}}]}]",
	"egress.http":                            "workloads: {serviceAccount: api}\negress: [{to: [{serviceAccount: db}], http: [{methods: [GET]}]}]",
}

// TestAFieldThatNobodyKnowsIsNeverLost: without the guards the API keeps it and policy-sync refuses the policy; with them the API
// refuses it by name. The client asks for no strict validation here, as Argo CD, controllers and `kubectl --validate=false` do.
func TestAFieldThatNobodyKnowsIsNeverLost(t *testing.T) {
	for path, spec := range unknown {
		o, err := policies(t).Create(t.Context(), policy(t, "unknown", spec), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}, FieldValidation: metav1.FieldValidationIgnore})
		if err != nil {
			t.Errorf("without the guards, %s: %v", path, err)
			continue
		}
		if err := policySync(t, o); err == nil || !strings.Contains(err.Error(), "unknown field") {
			t.Errorf("%s: policy-sync takes the policy for one without it: %v", path, err)
		}
	}
	old := stored(t, "has-one-from-before", "workloads: {serviceAccount: api}\nrequire: {future: {x: 1}}")
	guards(t)
	for path, spec := range unknown {
		if err := refusal(try(t, policy(t, "unknown", spec)), "unknown field spec."+path); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	for _, spec := range right {
		if err := try(t, policy(t, "right", spec)); err != nil {
			t.Errorf("%v\n%s", err, spec)
		}
	}
	largest := policy(t, "largest", largestPolicy())
	if err := try(t, largest); err != nil {
		t.Errorf("the largest policy: %.300v", err)
	}
	change := func(body, subresource string) error {
		sub := []string{}
		if subresource != "" {
			sub = append(sub, subresource)
		}
		_, err := policies(t).Patch(t.Context(), old.GetName(), types.MergePatchType, []byte(body), metav1.PatchOptions{FieldValidation: metav1.FieldValidationIgnore}, sub...)
		return err
	}
	if err := change(`{"metadata":{"labels":{"team":"a"}}}`, ""); err != nil {
		t.Errorf("an object that has an unknown field from before cannot be labelled: %v", err)
	}
	if err := change(`{"status":{"observedGeneration":1}}`, "status"); err != nil {
		t.Errorf("nor get a status: %v", err)
	}
	if err := refusal(change(`{"spec":{"require":{"other":{}}}}`, ""), "spec.require.other"); err != nil {
		t.Errorf("another unknown field beside it: %v", err)
	}
	if err := change(`{"spec":{"require":{"future":null}}}`, ""); err != nil {
		t.Errorf("it cannot be taken away: %v", err)
	}
}

// largestPolicy has the most rules, peers, requests and paths that the schema lets one have within etcd's limit on an object.
func largestPolicy() string {
	list := func(n int, one string) string { return "[" + strings.TrimSuffix(strings.Repeat(one+",", n), ",") + "]" }
	rule := fmt.Sprintf("{from: %s, http: %s}", list(64, "{serviceAccount: f}"), list(32, "{paths: "+list(12, "/a")+"}"))
	return "workloads: {serviceAccount: api}\ningress: " + list(64, rule)
}

// stored creates a policy that stays until the test ends.
func stored(t *testing.T, name, spec string) *unstructured.Unstructured {
	t.Helper()
	o, err := policies(t).Create(t.Context(), policy(t, name, spec), metav1.CreateOptions{FieldValidation: metav1.FieldValidationIgnore})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = policies(t).Delete(t.Context(), name, metav1.DeleteOptions{}) })
	return o
}

// TestAnOldObjectWithASlipStaysChangeable: a definition that refuses more than the one before it must not stand in the way of the
// status, nor of the correction of one of two slips.
func TestAnOldObjectWithASlipStaysChangeable(t *testing.T) {
	const name = "older-than-its-schema"
	long := strings.Repeat("o", 201)
	slips := `workloads: {serviceAccount: Api}
require: {node: {tags: {country: []}}, image: {digests: [latest]}}
ingress: [{from: [{serviceAccount: front}], http: [{methods: [get], paths: ["/orders/{id}"]}]}]`
	withoutChecks(t, func() {
		stored(t, name, slips)
		stored(t, long, "workloads: {serviceAccount: api}")
		stored(t, "default-deny", "workloads: {serviceAccount: api}")
	})
	if err := try(t, policy(t, "another", slips)); err == nil {
		t.Fatal("the checks are not back")
	}
	patch := func(name, body string, subresource ...string) error {
		_, err := policies(t).Patch(t.Context(), name, types.MergePatchType, []byte(body), metav1.PatchOptions{}, subresource...)
		return err
	}
	for _, n := range []string{name, long, "default-deny"} {
		if err := patch(n, `{"status":{"observedGeneration":1,"conditions":[{"type":"Accepted","status":"False","reason":"Invalid","message":"x","lastTransitionTime":"2026-11-29T00:00:00Z"}]}}`, "status"); err != nil {
			t.Errorf("%.30s: the status cannot be written: %v", n, err)
		}
		if err := patch(n, `{"metadata":{"labels":{"team":"a"}}}`); err != nil {
			t.Errorf("%.30s: cannot be labelled: %v", n, err)
		}
	}
	if err := patch(name, `{"spec":{"workloads":{"serviceAccount":"api"}}}`); err != nil {
		t.Errorf("one of several slips cannot be corrected: %v", err)
	}
	if err := patch(name, `{"spec":{"workloads":{"serviceAccount":"aPI"}}}`); err == nil {
		t.Error("a new slip in an old object is taken")
	}
}

// withoutChecks does something while the definition has none of its checks, as one from before would.
func withoutChecks(t *testing.T, do func()) {
	t.Helper()
	definitions := definitionsClient(t)
	whole, err := definitions.Get(t.Context(), "trustpolicies.trust.keelson.io", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	bare := whole.DeepCopy()
	versions, _, _ := unstructured.NestedSlice(bare.Object, "spec", "versions")
	schema := versions[0].(map[string]any)["schema"].(map[string]any)["openAPIV3Schema"].(map[string]any)
	delete(schema, "x-kubernetes-validations")
	properties := schema["properties"].(map[string]any)
	properties["spec"] = map[string]any{"type": "object", "x-kubernetes-preserve-unknown-fields": true}
	if err := unstructured.SetNestedSlice(bare.Object, versions, "spec", "versions"); err != nil {
		t.Fatal(err)
	}
	spec := func(o *unstructured.Unstructured) []byte {
		body, err := json.Marshal(map[string]any{"spec": map[string]any{"versions": o.Object["spec"].(map[string]any)["versions"]}})
		if err != nil {
			t.Fatal(err)
		}
		return body
	}
	install := func(o *unstructured.Unstructured, taken bool) {
		t.Helper()
		if _, err := definitions.Patch(t.Context(), o.GetName(), types.MergePatchType, spec(o), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		waitFor(t, func() bool { return (try(t, policy(t, "probe", "workloads: {}")) == nil) == taken })
	}
	install(bare, true)
	do()
	install(whole, false)
}
