package charts

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// TestTheSPIREExampleIsLetWrite: with the values of examples/spire/README.md the chart's guard and roles are for the accounts of
// the manifests there, and policy-sync looks for their server. That README's own test holds the values to the manifests.
func TestTheSPIREExampleIsLetWrite(t *testing.T) {
	readme, err := os.ReadFile("../../examples/spire/README.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)   ```yaml\n(.*?)   ```\n").FindSubmatch(readme)
	if block == nil {
		t.Fatal("the README has no values")
	}
	r := render(t, parse(t, string(block[1])))
	const server = "system:serviceaccount:spire:spire-server"
	found := map[string]bool{}
	for _, o := range objects(t, r.Manifest) {
		switch o.GetKind() + " " + o.GetName() {
		case "ValidatingAdmissionPolicy keelson-nodetrust-writes":
			conditions, _, err := unstructured.NestedSlice(o.Object, "spec", "matchConditions")
			if err != nil || len(conditions) != 1 || !strings.Contains(conditions[0].(map[string]any)["expression"].(string), `"`+server+`"`) {
				t.Errorf("the guard lets somebody else write verdicts: %v %v", conditions, err)
			}
		case "ClusterRoleBinding keelson-spire-server", "ClusterRoleBinding keelson-spire-agent":
			subjects, _, err := unstructured.NestedSlice(o.Object, "subjects")
			name := strings.TrimPrefix(o.GetName(), "keelson-")
			if s := subjects[0].(map[string]any); err != nil || len(subjects) != 1 || s["namespace"] != "spire" || s["name"] != name {
				t.Errorf("%s: %v", o.GetName(), subjects)
			}
		default:
			continue
		}
		found[o.GetName()] = true
	}
	if len(found) != 3 {
		t.Errorf("found %v only", found)
	}
	var c struct {
		SPIRE struct{ Address, WorkloadAPI string } `json:"spire"`
	}
	if err := yaml.Unmarshal([]byte(configuration(t, r.Manifest)), &c); err != nil {
		t.Fatal(err)
	}
	if c.SPIRE.Address != "spire-server.spire:443" || !strings.HasSuffix(c.SPIRE.WorkloadAPI, "/api.sock") {
		t.Errorf("policy-sync looks for SPIRE at %+v", c.SPIRE)
	}
}

// TestWithoutAReleaseNothingIsCleanedUp: the README's way without a release applies what is no hook; a hook among it, applied, would
// take away what policy-sync wrote.
func TestWithoutAReleaseNothingIsCleanedUp(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^helm template .*$`).FindAllString(string(readme), -1)
	if len(found) != 1 || !strings.Contains(found[0], " --no-hooks ") || !strings.Contains(found[0], " --include-crds ") || !strings.Contains(found[0], " --namespace "+namespace+" ") {
		t.Errorf("the README says %q", found)
	}
	kinds := map[string]bool{}
	for _, o := range objects(t, render(t, parse(t, minimal)).Manifest) {
		kinds[o.GetKind()+" "+o.GetName()] = true
		if o.GetKind() == "Job" || strings.Contains(o.GetName(), "cleanup") {
			t.Errorf("%s %s is no hook", o.GetKind(), o.GetName())
		}
	}
	for _, want := range []string{"Deployment keelson-policy-sync", "ServiceAccount keelson-policy-sync", "DaemonSet keelson-node", "ServiceAccount keelson-node",
		"ClusterRole keelson-policy-sync", "ClusterRole keelson-node", "ClusterRole keelson-spire-server", "ClusterRole keelson-spire-agent", "ValidatingAdmissionPolicy keelson-pod-trust-labels"} {
		if !kinds[want] {
			t.Errorf("there is no %s", want)
		}
	}
}
