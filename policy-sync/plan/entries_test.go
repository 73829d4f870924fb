package plan_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
)

// TestEntries: what happens to one live entry of ours.
func TestEntries(t *testing.T) {
	cases := map[string]struct {
		change func(w *world, e *snapshot.Entry)
		phase  plan.Phase
		action plan.Action
	}{
		"its selectors are in another order": {func(_ *world, e *snapshot.Entry) { e.Selectors[0], e.Selectors[1] = e.Selectors[1], e.Selectors[0] }, 0, ""},
		"a selector is taken away":           {func(_ *world, e *snapshot.Entry) { e.Selectors = e.Selectors[1:] }, plan.Tighten, plan.UpdateEntry},
		"it has another parent":              {func(_ *world, e *snapshot.Entry) { e.ParentID += "x" }, plan.Tighten, plan.UpdateEntry},
		"it yields another ID":               {func(_ *world, e *snapshot.Entry) { e.SPIFFEID += "x" }, plan.Tighten, plan.UpdateEntry},
		"it was made an admin":               {func(_ *world, e *snapshot.Entry) { e.Extra = true }, plan.Tighten, plan.UpdateEntry},
		"its lifetime is another":            {func(_ *world, e *snapshot.Entry) { e.X509SVIDTTL = time.Hour }, plan.Program, plan.UpdateEntry},
		"nobody asks for it":                 {func(_ *world, e *snapshot.Entry) { e.ID += "x" }, plan.Tighten, plan.DeleteEntry},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := settled(t)
			i := len(w.SPIRE.Entries) - 1 // a workload's
			e := w.SPIRE.Entries[i]
			e.Selectors = append([]snapshot.Selector(nil), e.Selectors...)
			c.change(w, &e)
			w.SPIRE.Entries[i] = e
			p := mustMake(t, w.Snapshot).Plan
			if c.action == "" {
				if !p.Empty() {
					t.Errorf("something to do:\n%s", p)
				}
				return
			}
			found := false
			for _, o := range p.Operations {
				found = found || o.Phase == c.phase && o.Action == c.action
			}
			if !found {
				t.Errorf("no %s in phase %s:\n%s", c.action, c.phase, p)
			}
			w.settle(t, nil)
		})
	}
}

func TestAStrangersEqualEntryIsReportedAndLeftAlone(t *testing.T) {
	w := settled(t)
	i := len(w.SPIRE.Entries) - 1
	w.SPIRE.Entries[i].ID = "stranger"
	p := mustMake(t, w.Snapshot).Plan
	if !p.Empty() || !strings.Contains(strings.Join(p.Withheld, "; "), "entry stranger, which is not ours, grants the same") {
		t.Errorf("plan:\n%s", p)
	}
}

// TestABannedOrForeignAgentIsLeftAlone: only agents that our attestor admitted go, and
// nobody is ever banned.
func TestABannedOrForeignAgentIsLeftAlone(t *testing.T) {
	s := snapshottest.Demo()
	for i := range s.SPIRE.Agents {
		s.SPIRE.Agents[i].Banned = true
	}
	s.SPIRE.Agents = append(s.SPIRE.Agents, snapshot.Agent{ID: "spiffe://demo.example/spire/agent/join_token/x"})
	for _, o := range mustMake(t, s).Plan.Operations {
		if o.Action == plan.DeleteAgent {
			t.Errorf("%s", o)
		}
	}
}

// TestTheAgentOfABadMachineGoesWithItsNodeObjectOrWithout: deleting or re-creating the
// Node does not save the agent.
func TestTheAgentOfABadMachineGoesWithItsNodeObjectOrWithout(t *testing.T) {
	for name, change := range map[string]func(s *snapshot.Snapshot){
		"the Node is there":   func(*snapshot.Snapshot) {},
		"the Node is gone":    func(s *snapshot.Snapshot) { s.Nodes = s.Nodes[:2] },
		"the Node is another": func(s *snapshot.Snapshot) { s.Nodes[2].UID = "another" },
	} {
		t.Run(name, func(t *testing.T) {
			s := snapshottest.Demo()
			change(&s)
			p := mustMake(t, s).Plan
			if !strings.Contains(p.String(), "delete-agent "+snapshottest.AgentID("evil-1")) {
				t.Errorf("the agent stays:\n%s", p)
			}
		})
	}
}

func TestAPlanForPeople(t *testing.T) {
	if got := (plan.Plan{}).String(); got != "nothing to do\n" {
		t.Errorf("an empty plan says %q", got)
	}
	o := plan.Operation{Phase: plan.Revoke, Action: plan.DeleteAgent, AgentID: "spiffe://a/b", Reason: "it is bad"}
	if got := o.String(); got != "revoke       delete-agent spiffe://a/b  # it is bad" {
		t.Errorf("an operation says %q", got)
	}
	if plan.Phase(99).String() != "phase(99)" {
		t.Error("an unknown phase has a name")
	}
}

// TestNothingIsIssuedThatRestsOnUpperAndLowerCase: SPIRE's selectors are lower case, so "de" is "DE" to it. What a node has proved is
// compared before there is an entry, letter by letter, and a node that differs by case alone takes nothing from the others.
func TestNothingIsIssuedThatRestsOnUpperAndLowerCase(t *testing.T) {
	for name, change := range map[string]func(t *v1alpha1.NodeTrustSpec){
		"a node's tag value differs by case":     func(t *v1alpha1.NodeTrustSpec) { t.Tags["country"] = "de" },
		"a node's tag key differs by case":       func(t *v1alpha1.NodeTrustSpec) { t.Tags = map[string]string{"Country": "DE"} },
		"a node's reference set differs by case": func(t *v1alpha1.NodeTrustSpec) { t.Tags["country"], t.Reference = "DE", "Prod" },
	} {
		t.Run(name, func(t *testing.T) {
			s := snapshottest.Demo()
			change(&s.NodeTrusts[1].Spec)
			var parents []string
			for _, e := range mustMake(t, s).Entries() {
				if strings.HasSuffix(e.SPIFFEID, "/ns/payments/sa/api") {
					parents = append(parents, e.ParentID)
				}
			}
			if !slices.Equal(parents, []string{snapshottest.AgentID("fra-1")}) {
				t.Errorf("payments/api is issued by %v, want the agent of fra-1 alone", parents)
			}
		})
	}
}
