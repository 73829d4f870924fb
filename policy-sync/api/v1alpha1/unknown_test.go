package v1alpha1_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

func TestAPolicyKeepsTheNamesOfFieldsThatItDoesNotKnow(t *testing.T) {
	const document = `{"metadata":{"name":"api"},"spec":{"workloads":{"serviceAccount":"api"},"requires":{},
"require":{"image":{"scann":{"maxSeverity":"high"},"verifiedBy":["a"]},"node":{"class":"x"}},
"ingress":[{"from":[{"serviceAccount":"front","podSelecter":{}}],"port":[80]}]}}`
	want := []string{"requires", "require.image.scann", "require.node.class", "ingress[0].from[0].podSelecter", "ingress[0].port"}
	sorted := cmp.Transformer("set", func(in []string) map[string]bool {
		out := map[string]bool{}
		for _, s := range in {
			out[s] = true
		}
		return out
	})
	var p v1alpha1.TrustPolicy
	if err := json.Unmarshal([]byte(document), &p); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, p.Spec.Unknown, sorted); diff != "" {
		t.Errorf("decoded as JSON (-want +got):\n%s", diff)
	}
	if p.Spec.Workloads.ServiceAccount != "api" || p.Spec.Require.Image.VerifiedBy[0] != "a" {
		t.Errorf("the known fields are %+v", p.Spec)
	}
	var object map[string]any
	if err := json.Unmarshal([]byte(document), &object); err != nil {
		t.Fatal(err)
	}
	var converted v1alpha1.TrustPolicy
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object, &converted); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, converted.Spec.Unknown, sorted); diff != "" {
		t.Errorf("converted from unstructured (-want +got):\n%s", diff)
	}
}

func TestUnknownFieldsAreBounded(t *testing.T) {
	var fields []string
	for i := range 5000 {
		fields = append(fields, fmt.Sprintf("%q:1", fmt.Sprint("x", i)))
	}
	var s v1alpha1.TrustPolicySpec
	if err := json.Unmarshal([]byte("{"+strings.Join(fields, ",")+"}"), &s); err != nil {
		t.Fatal(err)
	}
	if len(s.Unknown) == 0 || len(s.Unknown) > 16 {
		t.Errorf("%d unknown fields are kept", len(s.Unknown))
	}
	if err := json.Unmarshal([]byte(`{}`), &s); err != nil || s.Unknown != nil {
		t.Errorf("read again: %v, %q", err, s.Unknown)
	}
}
