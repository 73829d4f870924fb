package charts

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// machines are the names that a pod template's required terms allow, each with the keys of its expressions.
func machines(t *testing.T, o *unstructured.Unstructured) []string {
	t.Helper()
	terms, _, err := unstructured.NestedSlice(o.Object, "spec", "template", "spec", "affinity", "nodeAffinity",
		"requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, term := range terms {
		m, _ := term.(map[string]any)
		fields, _, _ := unstructured.NestedSlice(m, "matchFields")
		for _, f := range fields {
			field, _ := f.(map[string]any)
			out = append(out, fmt.Sprint(field["key"], field["values"]))
		}
	}
	slices.Sort(out)
	return out
}

// TestWhoNeedsPolicySyncsIdentityRunsWhereItIsIssued: the cleanup deletes entries with it, on the same machines.
func TestWhoNeedsPolicySyncsIdentityRunsWhereItIsIssued(t *testing.T) {
	named := []string{"metadata.name[cp-1]", "metadata.name[cp-2]"}
	const admins = "policySync: {config: {spire: {adminNodes: [cp-1, cp-2]}}}"
	for name, tc := range map[string]struct {
		values   []string
		sync     []string
		clearing []string
	}{
		"no machine is named":               {[]string{minimal}, nil, nil},
		"two are named":                     {[]string{minimal, admins}, named, named},
		"entries are left alone":            {[]string{minimal, admins, "uninstall: {spireEntries: false}"}, named, nil},
		"the operator's own terms are kept": {[]string{minimal, admins, operatorsTerm}, named, named},
	} {
		t.Run(name, func(t *testing.T) {
			r := render(t, parse(t, tc.values...))
			got := map[string][]string{}
			for _, o := range objects(t, append(r.Hooks, r.Manifest)...) {
				if kind := o.GetKind(); kind == "Job" || kind == "Deployment" {
					got[kind] = machines(t, o)
				}
			}
			if diff := cmp.Diff(map[string][]string{"Deployment": tc.sync, "Job": tc.clearing}, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

const operatorsTerm = `
policySync:
  affinity:
    nodeAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
        nodeSelectorTerms: [{matchExpressions: [{key: pool, operator: In, values: [system]}]}]
`
