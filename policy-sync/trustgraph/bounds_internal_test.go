package trustgraph

import (
	"fmt"
	"strings"
	"testing"

	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// TestMoreRevokedAddressesThanTheSetsHoldAreReported: one more than they hold is a finding; as many as they hold are none.
func TestMoreRevokedAddressesThanTheSetsHoldAreReported(t *testing.T) {
	for n, want := range map[int]int{MaxRevoked: 0, MaxRevoked + 1: 1} {
		p := &part{public: &Part{}}
		for i := range n {
			p.revoked = append(p.revoked, Revoked{Address: fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255)})
		}
		j := gathered{}
		j.join(&whole{common: &common{}, parts: map[string]*part{"a": p}, order: []string{"a"}})
		if reports := j.graph.Reports; len(reports) != want || want > 0 && !strings.Contains(reports[0], "more than 160000 addresses are revoked") {
			t.Errorf("%d addresses: %q", n, reports)
		}
	}
}

// TestCalicosDefinitionsAloneAreNamed: a cluster without Calico's API server says so.
func TestCalicosDefinitionsAloneAreNamed(t *testing.T) {
	for alone, want := range map[bool]int{false: 0, true: 1} {
		w := &whole{common: &common{s: snapshot.Snapshot{Config: snapshot.Config{Calico: true, CalicoDefinitions: alone}}}}
		w.reportLimits()
		if len(w.reports) != want || want > 0 && !strings.Contains(w.reports[0], "without Calico's API server") {
			t.Errorf("alone %t: %q", alone, w.reports)
		}
	}
}
