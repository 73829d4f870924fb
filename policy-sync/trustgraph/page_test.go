package trustgraph_test

import (
	"os"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

// TestPoliciesThatAreShownAreAccepted reads every TrustPolicy that a page for app teams shows.
func TestPoliciesThatAreShownAreAccepted(t *testing.T) {
	for page, want := range map[string]int{"../../README.md": 1, "../api/README.md": 3} {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		shown := 0
		for _, block := range strings.Split(string(text), "```yaml\n")[1:] {
			block, _, _ = strings.Cut(block, "```")
			if !strings.Contains(block, "kind: TrustPolicy") {
				continue
			}
			shown++
			var policy v1alpha1.TrustPolicy
			if err := yaml.UnmarshalStrict([]byte(block), &policy); err != nil {
				t.Errorf("%s: %v\n%s", page, err, block)
				continue
			}
			policy.UID, policy.Generation = "shown", 1
			s := snapshottest.Demo()
			s.Policies = append(s.Policies[:0:0], policy)
			g, err := trustgraph.Build(s)
			if err != nil {
				t.Fatal(err)
			}
			p, _ := g.Policy(policy.Namespace, policy.Name)
			if !p.Accepted || len(p.Problems) > 0 {
				t.Errorf("%s: TrustPolicy %s/%s is not accepted: %q", page, policy.Namespace, policy.Name, p.Problems)
			}
		}
		if shown != want {
			t.Errorf("%s shows %d TrustPolicies, %d are expected", page, shown, want)
		}
	}
}
