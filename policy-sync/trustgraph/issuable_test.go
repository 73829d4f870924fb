package trustgraph_test

import (
	"strings"
	"testing"
	"time"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
)

const (
	ownID  = "spiffe://demo.example/ns/keelson-system/sa/keelson-policy-sync"
	server = "spiffe://demo.example/spire/server"
	class  = "spiffe://demo.example/keelson/control-plane"
)

func of(selectors ...string) []snapshot.Selector {
	var out []snapshot.Selector
	for _, s := range selectors {
		kind, value, _ := strings.Cut(s, " ")
		out = append(out, snapshot.Selector{Type: kind, Value: value})
	}
	return out
}

// TestWhoCouldBeIssuedOurOwnIdentity: by SPIRE's rule, whose server looks at the agent alone.
func TestWhoCouldBeIssuedOurOwnIdentity(t *testing.T) {
	own := func(parent string) snapshot.Entry {
		return snapshot.Entry{ID: "own", SPIFFEID: ownID, ParentID: parent, Selectors: of("keelson ns:keelson-system")}
	}
	alias := func(id, spiffeID string, selectors ...string) snapshot.Entry {
		return snapshot.Entry{ID: id, SPIFFEID: spiffeID, ParentID: server, Selectors: of(selectors...)}
	}
	const fra, prod = "keelson_tpm node:fra-1", "keelson_tpm ref:prod"
	for name, c := range map[string]struct {
		entries []snapshot.Entry
		want    string // part of what is reported, or nothing
	}{
		"an alias of the named machine alone": {[]snapshot.Entry{alias("cp", class, fra, prod), own(class)}, ""},
		"the agent of the named machine":      {[]snapshot.Entry{own(snapshottest.AgentID("fra-1"))}, ""},
		"nobody":                              {nil, ""},
		"an ID that ends like the server's is no alias": {[]snapshot.Entry{
			own("spiffe://demo.example/x/spire/server"),
			{ID: "x", SPIFFEID: "spiffe://demo.example/x/spire/server", ParentID: snapshottest.AgentID("par-1")}}, "the agent of node par-1 (by entry x)"},
		"an ID that ends like an agent's is no agent": {[]snapshot.Entry{own("spiffe://demo.example/x/spire/agent/y")}, ""},
		"every machine of a reference set":            {[]snapshot.Entry{alias("cp", class, prod), own(class)}, "the agent of node par-1 (by entry cp)"},
		"two aliases of one ID": {[]snapshot.Entry{alias("cp", class, fra, prod), alias("wide", class, prod), own(class)},
			"the agent of node par-1 (by entry wide)"},
		"a second entry of the ID":         {[]snapshot.Entry{alias("cp", class, fra), own(class), {ID: "two", SPIFFEID: ownID, ParentID: snapshottest.AgentID("par-1")}}, "the agent of node par-1 (by entry two)"},
		"a machine that has not attested":  {[]snapshot.Entry{own(snapshottest.AgentID("elsewhere"))}, "agent " + snapshottest.AgentID("elsewhere")},
		"another attestor's agent":         {[]snapshot.Entry{own("spiffe://demo.example/spire/agent/join_token/x")}, "agent spiffe://demo.example/spire/agent/join_token/x"},
		"a forged selector":                {[]snapshot.Entry{alias("cp", class, "join_token node:fra-1"), own(class)}, "agent spiffe://demo.example/spire/agent/join_token/y (by entry cp)"},
		"through another workload's entry": {[]snapshot.Entry{alias("cp", class, prod), {ID: "mid", SPIFFEID: "spiffe://demo.example/mid", ParentID: class}, own("spiffe://demo.example/mid")}, "the agent of node par-1 (by entry cp)"},
		"a circle of entries": {[]snapshot.Entry{own("spiffe://demo.example/a"), {ID: "a", SPIFFEID: "spiffe://demo.example/a", ParentID: "spiffe://demo.example/b"},
			{ID: "b", SPIFFEID: "spiffe://demo.example/b", ParentID: "spiffe://demo.example/a"}}, ""},
		"an alias without selectors fits nobody": {[]snapshot.Entry{alias("cp", class), own(class)}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := snapshottest.Demo()
			snapshottest.WithoutHTTP(&s)
			s.Config.AdminNodes, s.SPIRE.OwnID, s.SPIRE.Entries = []string{"fra-1"}, ownID, c.entries
			for i, node := range []string{"fra-1", "par-1", "evil-1"} {
				s.SPIRE.Agents[i].Selectors = of("keelson_tpm node:"+node, "keelson_tpm ref:prod")
			}
			s.SPIRE.Agents[2].Selectors = nil // it is about to be evicted
			s.SPIRE.Agents = append(s.SPIRE.Agents, snapshot.Agent{ID: "spiffe://demo.example/spire/agent/join_token/y", Selectors: of("join_token node:fra-1")})
			g := build(t, s)
			for _, p := range g.Policies {
				text := strings.Join(p.Blockers, "\n")
				if got := strings.Contains(text, "could be issued "+ownID); got != (c.want != "") || !strings.Contains(text, c.want) {
					t.Errorf("%s: blockers %q, want one with %q", p.Key(), p.Blockers, c.want)
				}
				st := g.Status(p, nil)
				if programmed := st.Conditions[1].Status == "True"; programmed != (c.want == "") {
					t.Errorf("%s: programmed %s", p.Key(), st.Conditions[1].Status)
				}
			}
		})
	}
}

// TestNoMachineIsNamedForOurOwnIdentity: then nobody's agent should be issued it, and the sentence says what to set.
func TestNoMachineIsNamedForOurOwnIdentity(t *testing.T) {
	s := snapshottest.Demo()
	s.Config.OwnID = ownID // over the server's socket no SVID says it
	s.SPIRE.Entries = []snapshot.Entry{{ID: "own", SPIFFEID: ownID, ParentID: snapshottest.AgentID("fra-1")}}
	if g := build(t, s); !strings.Contains(strings.Join(g.Reports, "\n"), "name the machines that may hold it (spire.adminNodes)") {
		t.Errorf("reports %q", g.Reports)
	}
}

// TestAnAdminEntryOfAnotherMachineIsReported: rights over the server by an entry's own flag.
func TestAnAdminEntryOfAnotherMachineIsReported(t *testing.T) {
	s := snapshottest.Demo()
	s.Config.AdminNodes = []string{"fra-1"}
	s.SPIRE.Entries = []snapshot.Entry{{ID: "boss", SPIFFEID: "spiffe://demo.example/boss", ParentID: snapshottest.AgentID("par-1"), Admin: true, Extra: true}}
	if g := build(t, s); !strings.Contains(strings.Join(g.Reports, "\n"), "spiffe://demo.example/boss, to which an entry gives rights over the SPIRE server") {
		t.Errorf("reports %q", g.Reports)
	}
}

// TestEveryAgentOfABadMachineIsEvicted: also one that the machine's other EK let in, and none of another attestor's.
func TestEveryAgentOfABadMachineIsEvicted(t *testing.T) {
	s := snapshottest.Demo()
	agent := func(id string, selectors ...string) {
		s.SPIRE.Agents = append(s.SPIRE.Agents, snapshot.Agent{ID: id, ExpiresAt: s.At.Add(time.Minute), Selectors: of(selectors...)})
	}
	other := "spiffe://demo.example/spire/agent/keelson_tpm/" + snapshottest.EK("other EK of evil-1")
	agent(other, "keelson_tpm node:evil-1")
	agent("spiffe://demo.example/spire/agent/keelson_tpm/"+snapshottest.EK("a machine of a like name"), "keelson_tpm node:evil-10")
	agent("spiffe://demo.example/spire/agent/join_token/x", "keelson_tpm node:evil-1")
	agent("spiffe://demo.example/spire/agent/keelson_tpm/"+snapshottest.EK("z"), "other node:evil-1")
	got := map[string]bool{}
	for _, e := range build(t, s).Evict {
		got[e.AgentID] = true
	}
	if !got[other] || !got[snapshottest.AgentID("evil-1")] || len(got) != 2 {
		t.Errorf("evicted: %v", got)
	}
	s.NodeTrusts[2].Spec.Verdict = v1alpha1.VerdictTrusted
	if left := build(t, s).Evict; len(left) != 0 {
		t.Errorf("evicted without proof: %v", left)
	}
}
