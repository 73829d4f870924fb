// Package issuable compares which agents policy-sync takes for able to issue an identity with which ones SPIRE's server lets, by the
// server's own code (github.com/spiffe/spire, pkg/server/authorizedentries).
package issuable

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/andres-erbsen/clock"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"github.com/spiffe/spire/pkg/server/authorizedentries"

	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

const domain = "example.org"

// Paths of the identities that take part. Some look like an agent's or the server's and are not.
var (
	agents    = []string{"/spire/agent/keelson_tpm/a", "/spire/agent/keelson_tpm/b", "/spire/agent/join_token/c", "/spire/agent/keelson_tpm/d"}
	unknown   = "/spire/agent/keelson_tpm/unknown" // has not attested
	others    = []string{"/class/1", "/class/2", "/class/3", "/ns/n/sa/1", "/ns/n/sa/2", "/ns/n/sa/3", "/ns/n/spire/server", "/ns/n/spire/agent/x", "/spire/servers"}
	selectors = []snapshot.Selector{{Type: "keelson_tpm", Value: "node:a"}, {Type: "keelson_tpm", Value: "node:A"}, {Type: "keelson_tpm", Value: "ref:prod"}, {Type: "join_token", Value: "ref:prod"}}
)

func id(path string) string { return "spiffe://" + domain + path }

// world is a random SPIRE server.
func world(r *rand.Rand) snapshot.SPIRE {
	some := func() (out []snapshot.Selector) {
		for _, s := range selectors {
			if r.IntN(2) == 0 {
				out = append(out, s)
			}
		}
		return out
	}
	var out snapshot.SPIRE
	for _, path := range agents {
		out.Agents = append(out.Agents, snapshot.Agent{ID: id(path), Selectors: some()})
	}
	parents := slices.Concat(agents, []string{unknown, "/spire/server", "/spire/server", "/spire/server"}, others)
	ids := slices.Concat(others, others, agents, []string{unknown})
	for i := range 1 + r.IntN(14) {
		out.Entries = append(out.Entries, snapshot.Entry{ID: fmt.Sprint("entry-", i), ParentID: id(parents[r.IntN(len(parents))]),
			SPIFFEID: id(ids[r.IntN(len(ids))]), Selectors: some()})
	}
	return out
}

func spiffeID(t *testing.T, text string) *types.SPIFFEID {
	t.Helper()
	parsed, err := spiffeid.FromString(text)
	if err != nil {
		t.Fatal(err)
	}
	return &types.SPIFFEID{TrustDomain: parsed.TrustDomain().Name(), Path: parsed.Path()}
}

func proto(list []snapshot.Selector) (out []*types.Selector) {
	for _, s := range list {
		out = append(out, &types.Selector{Type: s.Type, Value: s.Value})
	}
	return out
}

// asServer says, for each identity, which agents SPIRE's server lets have it. An agent that has not attested gets, once it does, what
// is parented to it.
func asServer(t *testing.T, s snapshot.SPIRE) map[string][]string {
	cache := authorizedentries.NewCache(clock.NewMock(), domain)
	for _, a := range s.Agents {
		cache.UpdateAgent(a.ID, time.Now().Add(time.Hour), proto(a.Selectors))
	}
	for _, e := range s.Entries {
		cache.UpdateEntry(&types.Entry{Id: e.ID, SpiffeId: spiffeID(t, e.SPIFFEID), ParentId: spiffeID(t, e.ParentID), Selectors: proto(e.Selectors)})
	}
	out := map[string][]string{}
	for _, path := range append(slices.Clone(agents), unknown) {
		agent := spiffeid.RequireFromString(id(path))
		for _, e := range cache.GetAuthorizedEntries(agent) {
			identity := id(e.GetSpiffeId().GetPath())
			if !slices.Contains(out[identity], agent.String()) {
				out[identity] = append(out[identity], agent.String())
			}
		}
	}
	for _, list := range out {
		slices.Sort(list)
	}
	return out
}

// TestIssuersAreThoseOfTheServer: on random servers both give the same agents for every identity.
func TestIssuersAreThoseOfTheServer(t *testing.T) {
	worlds, issued := 20000, 0
	for seed := range uint64(worlds) { // #nosec G115 -- a constant
		s := world(rand.New(rand.NewPCG(seed, 1))) // #nosec G404 -- a test's
		want := asServer(t, s)
		for _, path := range slices.Concat(others, agents, []string{unknown}) {
			got := trustgraph.Issuers(&s, id(path))
			if !slices.Equal(got, want[id(path)]) {
				t.Fatalf("seed %d: %s may be issued to %v by the server, to %v by policy-sync\nagents %+v\nentries %+v", seed, path, want[id(path)], got, s.Agents, s.Entries)
			}
			issued += len(got)
		}
	}
	if issued < worlds {
		t.Errorf("%d identities were issued in %d worlds: the worlds are too poor", issued, worlds)
	}
	t.Logf("%d worlds, %d identities issued", worlds, issued)
}
