package trustgraph_test

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
)

func TestNodesThatWereThereBeforeAreReported(t *testing.T) {
	for name, tc := range map[string]struct{ taint, asked, want bool }{
		"as it is by default":          {true, false, true},
		"when they are tainted anyway": {true, true, false},
		"when nobody wants the taint":  {false, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := snapshottest.Demo()
			s.Config.Taint, s.Config.TaintExisting = tc.taint, tc.asked
			s.Nodes[0].Spec.Taints, s.NodeTrusts = nil, s.NodeTrusts[1:]
			reports := strings.Join(build(t, s).Reports, "; ")
			if got := strings.Contains(reports, "(taintExisting): fra-1"); got != tc.want {
				t.Errorf("reported: %v: %q", got, reports)
			}
		})
	}
}

// TestASetThatCallsItsAddressesRevokedIsReported: what slipped by the guard cuts enrolled namespaces off, and somebody has to know.
func TestASetThatCallsItsAddressesRevokedIsReported(t *testing.T) {
	for _, kind := range []string{"GlobalNetworkSet", "HostEndpoint"} {
		for what, owned := range map[string]bool{"somebody's": false, "Keelson's own": true} {
			t.Run(what+" "+kind, func(t *testing.T) {
				labels := map[string]any{v1alpha1.RevokedLabel: v1alpha1.True}
				if owned {
					labels[v1alpha1.OwnerLabel] = v1alpha1.OwnerValue
				}
				s := snapshottest.Demo()
				s.Objects = append(s.Objects, &unstructured.Unstructured{Object: map[string]any{"apiVersion": "projectcalico.org/v3", "kind": kind,
					"metadata": map[string]any{"name": "everything", "labels": labels}, "spec": map[string]any{"nets": []any{"0.0.0.0/0"}}}})
				reports := strings.Join(build(t, s).Reports, "; ")
				if got := strings.Contains(reports, kind+" everything bears label trust.keelson.io/revoked"); got == owned {
					t.Errorf("reported: %v: %q", got, reports)
				}
			})
		}
	}
}
