package trustgraph_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
)

// TestPoliciesForTheSameAccountsAreAnsweredOnce: who lets their pods in is found once for all of them, so that many policies for an
// account that many others name cost no more than their number; who finds no room is told of some of them.
func TestPoliciesForTheSameAccountsAreAnsweredOnce(t *testing.T) {
	s := snapshottest.Demo()
	const callers, called = 20, 600
	for i := range callers {
		p := snapshottest.Frontend()
		p.Name, p.UID = fmt.Sprintf("caller-%03d", i), snapshottest.UID("TrustPolicy", fmt.Sprint("caller", i))
		s.Policies = append(s.Policies, p)
	}
	for i := range called {
		p := snapshottest.API()
		p.Name, p.UID = fmt.Sprintf("called-%03d", i), snapshottest.UID("TrustPolicy", fmt.Sprint("called", i))
		p.Spec.Ingress = []v1alpha1.IngressRule{{From: []v1alpha1.Peer{{Namespace: "shop", ServiceAccount: "frontend"}}, Ports: []int32{int32(1000 + i)}}}
		s.Policies = append(s.Policies, p)
	}
	g := build(t, s)
	first, _ := g.Policy("shop", "caller-000")
	if len(first.Answers) == 0 || len(first.Answers) >= called {
		t.Fatalf("%d answers", len(first.Answers))
	}
	for i := range callers {
		if p, _ := g.Policy("shop", fmt.Sprintf("caller-%03d", i)); len(p.Answers) != len(first.Answers) || &p.Answers[0] != &first.Answers[0] {
			t.Errorf("%s has a list of its own", p.Key())
		}
	}
	for i := range called {
		p, _ := g.Policy("payments", fmt.Sprintf("called-%03d", i))
		var told []string
		for _, b := range p.Blockers {
			if strings.Contains(b, "are not let out to these pods") {
				told = append(told, b)
			}
		}
		if without := i >= len(first.Answers)-1; (len(told) > 0) != without || len(told) > 8 { // policy api is one of them
			t.Errorf("%s is told %q", p.Key(), told)
		}
	}
}
