package spireapi_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentapi "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	entryapi "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"

	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/spireapi"
	"github.com/keelson-project/keelson/test/cluster"
)

const (
	domain  = "keelson.test"
	adminID = "spiffe://keelson.test/keelson/policy-sync"
)

var trustDomain = spiffeid.RequireTrustDomainFromString(domain)

type server struct {
	*cluster.SpireServer
	group *cluster.Group
	dir   string
	raw   *grpc.ClientConn
}

func start(t *testing.T) server {
	t.Helper()
	return startWith(t, cluster.SpireServerOptions{AdminIDs: []string{adminID}})
}

func startWith(t *testing.T, o cluster.SpireServerOptions) server {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a real SPIRE server, which -short leaves out")
	}
	dir, err := os.MkdirTemp("", "keelson-sa-") // t.TempDir is too long for a Unix socket
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	group := cluster.NewGroup(dir)
	t.Cleanup(func() { must(t, group.Close()) })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	o.Dir, o.Log, o.TrustDomain, o.Plugins = dir, t.Output(), domain, []cluster.Plugin{{Type: "NodeAttestor", Name: "join_token"}}
	s, err := cluster.StartSpireServer(ctx, group, o)
	must(t, err)
	raw, err := s.Dial()
	must(t, err)
	t.Cleanup(func() { must(t, raw.Close()) })
	return server{SpireServer: s, group: group, dir: dir, raw: raw}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (s server) client(t *testing.T) *spireapi.Client {
	t.Helper()
	c, err := spireapi.Dial(t.Context(), spireapi.Options{TrustDomain: trustDomain, Socket: s.Socket})
	must(t, err)
	t.Cleanup(func() { must(t, c.Close()) })
	return c
}

func entry(n int) snapshot.Entry {
	return snapshot.Entry{ID: fmt.Sprintf("keelson.workload.%04d", n), SPIFFEID: fmt.Sprintf("spiffe://keelson.test/ns/a/sa/s%d", n),
		ParentID: "spiffe://keelson.test/keelson/nodeclass/x", X509SVIDTTL: 20 * time.Second,
		Selectors: []snapshot.Selector{{Type: "keelson", Value: "ns:a"}, {Type: "keelson", Value: fmt.Sprintf("sa:s%d", n)}}}
}

func operation(action plan.Action, e snapshot.Entry) plan.Operation {
	return plan.Operation{Action: action, Entry: &e}
}

func (s server) entries(t *testing.T) []snapshot.Entry {
	t.Helper()
	state, err := s.client(t).Read(t.Context())
	must(t, err)
	slices.SortFunc(state.Entries, func(a, b snapshot.Entry) int { return strings.Compare(a.ID, b.ID) })
	return state.Entries
}

func TestEntriesAreWrittenReadAndDeleted(t *testing.T) {
	s := start(t)
	c := s.client(t)
	const many = 620 // more than a page to read, several batches to write
	var want []snapshot.Entry
	var creates []plan.Operation
	for n := range many {
		want = append(want, entry(n))
		creates = append(creates, operation(plan.CreateEntry, entry(n)))
	}
	class := snapshot.Entry{ID: "keelson.class.x", SPIFFEID: "spiffe://keelson.test/keelson/nodeclass/x", ParentID: "spiffe://keelson.test/spire/server",
		Selectors: []snapshot.Selector{{Type: "keelson_tpm", Value: "ref:prod"}}}
	want = append([]snapshot.Entry{class}, want...)
	creates = append(creates, operation(plan.CreateEntry, class))
	must(t, errors.Join(c.Apply(t.Context(), creates)...))
	if diff := cmp.Diff(want, s.entries(t)); diff != "" {
		t.Fatalf("entries (-want +got):\n%s", diff)
	}
	if errs := c.Apply(t.Context(), creates[:1]); !errors.Is(errs[0], spireapi.ErrStale) {
		t.Errorf("created twice: %v, want ErrStale", errs[0])
	}
	changed := entry(0)
	changed.X509SVIDTTL = 30 * time.Second
	errs := c.Apply(t.Context(), []plan.Operation{operation(plan.UpdateEntry, changed), operation(plan.DeleteEntry, entry(1)), operation(plan.DeleteEntry, entry(1)),
		operation(plan.UpdateEntry, snapshot.Entry{ID: "keelson.gone", SPIFFEID: changed.SPIFFEID, ParentID: changed.ParentID, Selectors: changed.Selectors})})
	if errs[0] != nil || errs[1] != nil || errs[2] != nil || !errors.Is(errs[3], spireapi.ErrStale) {
		t.Errorf("update, delete, delete again, update what is gone: %v", errs)
	}
	got := s.entries(t)
	if len(got) != many || got[1].X509SVIDTTL != 30*time.Second {
		t.Errorf("%d entries, the first %+v", len(got), got[1])
	}
}

func TestForeignEntriesAreLeftAlone(t *testing.T) {
	s := start(t)
	c := s.client(t)
	api := entryapi.NewEntryClient(s.raw)
	foreign := entry(1)
	resp, err := api.BatchCreateEntry(t.Context(), &entryapi.BatchCreateEntryRequest{Entries: []*types.Entry{{Id: "team.1",
		SpiffeId: &types.SPIFFEID{TrustDomain: domain, Path: "/ns/a/sa/s1"}, ParentId: &types.SPIFFEID{TrustDomain: domain, Path: "/keelson/nodeclass/x"},
		Selectors: []*types.Selector{{Type: "keelson", Value: "ns:a"}, {Type: "keelson", Value: "sa:s1"}}, Admin: true}}})
	must(t, err)
	if code := resp.Results[0].Status.Code; code != 0 {
		t.Fatalf("code %d: %s", code, resp.Results[0].Status.Message)
	}
	before := s.entries(t)
	if !before[0].Extra {
		t.Error("an admin entry is not marked as more than ours")
	}
	wrongDomain := entry(2)
	wrongDomain.SPIFFEID = "spiffe://other.test/ns/a/sa/s2"
	wrongTTL := entry(3)
	wrongTTL.X509SVIDTTL = 1500 * time.Millisecond
	notOurs := foreign
	notOurs.ID = "team.1"
	for name, o := range map[string]plan.Operation{
		"if an entry is not ours, it is not deleted":        operation(plan.DeleteEntry, notOurs),
		"if an entry is not ours, it is not updated":        operation(plan.UpdateEntry, notOurs),
		"if an ID is not ours, it is not created":           operation(plan.CreateEntry, notOurs),
		"if a stranger's entry grants the same, it is said": operation(plan.CreateEntry, foreign),
		"if an ID is of another trust domain, refuse":       operation(plan.CreateEntry, wrongDomain),
		"if a lifetime is not whole seconds, refuse":        operation(plan.CreateEntry, wrongTTL),
		"if there is no entry, refuse":                      {Action: plan.DeleteEntry},
		"if an action is not SPIRE's, refuse":               {Action: plan.Patch},
		"if an agent is of another trust domain, refuse":    {Action: plan.DeleteAgent, AgentID: "spiffe://other.test/spire/agent/x"},
		"if an agent's ID is none, refuse":                  {Action: plan.DeleteAgent, AgentID: "evil"},
	} {
		t.Run(name, func(t *testing.T) {
			errs := c.Apply(t.Context(), []plan.Operation{o})
			if errs[0] == nil || errors.Is(errs[0], spireapi.ErrStale) {
				t.Errorf("got %v, want a refusal for good", errs[0])
			}
		})
	}
	if diff := cmp.Diff(before, s.entries(t)); diff != "" {
		t.Errorf("entries changed (-before +after):\n%s", diff)
	}
	errs := c.Apply(t.Context(), []plan.Operation{operation(plan.CreateEntry, entry(4)), operation(plan.CreateEntry, wrongDomain), operation(plan.CreateEntry, entry(5))})
	if errs[0] != nil || errs[1] == nil || errs[2] != nil {
		t.Errorf("one bad entry of three: %v", errs)
	}
}

// attest makes an agent known as the join_token attestor does, without running one.
func (s server) attest(t *testing.T) (string, error) {
	t.Helper()
	api := agentapi.NewAgentClient(s.raw)
	token, err := api.CreateJoinToken(t.Context(), &agentapi.CreateJoinTokenRequest{Ttl: 60})
	must(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	must(t, err)
	stream, err := api.AttestAgent(t.Context())
	must(t, err)
	must(t, stream.Send(&agentapi.AttestAgentRequest{Step: &agentapi.AttestAgentRequest_Params_{Params: &agentapi.AttestAgentRequest_Params{
		Data: &types.AttestationData{Type: "join_token", Payload: []byte(token.Value)}, Params: &agentapi.AgentX509SVIDParams{Csr: csr}}}}))
	resp, err := stream.Recv()
	if err != nil {
		return "", err
	}
	id := resp.GetResult().GetSvid().GetId()
	return "spiffe://" + id.GetTrustDomain() + id.GetPath(), nil
}

func TestAgentsAreEvictedAndNeverBanned(t *testing.T) {
	s := start(t)
	c := s.client(t)
	agent, err := s.attest(t)
	must(t, err)
	state, err := c.Read(t.Context())
	must(t, err)
	if len(state.Agents) != 1 || state.Agents[0].ID != agent || state.Agents[0].Type != "join_token" || state.Agents[0].Banned {
		t.Fatalf("agents: %+v", state.Agents)
	}
	evict := []plan.Operation{{Action: plan.DeleteAgent, AgentID: agent}}
	must(t, errors.Join(c.Apply(t.Context(), evict)...))
	state, err = c.Read(t.Context())
	must(t, err)
	if len(state.Agents) != 0 {
		t.Errorf("the agent is still known, banned or not: %+v", state.Agents)
	}
	must(t, errors.Join(c.Apply(t.Context(), evict)...)) // gone already: what was wanted
}

func TestOverTCPWithOurOwnSVID(t *testing.T) {
	s := start(t)
	api := agentapi.NewAgentClient(s.raw)
	token, err := api.CreateJoinToken(t.Context(), &agentapi.CreateJoinTokenRequest{Ttl: 60})
	must(t, err)
	dir := filepath.Join(s.dir, "a")
	must(t, os.Mkdir(dir, 0o700))
	agent, err := cluster.StartSpireAgent(t.Context(), s.group, cluster.SpireAgentOptions{Name: "agent", Dir: dir, Log: t.Output(), Server: s.SpireServer,
		JoinToken: token.Value, Plugins: []cluster.Plugin{{Type: "NodeAttestor", Name: "join_token"}, {Type: "WorkloadAttestor", Name: "unix"}}})
	must(t, err)
	defer agent.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := spireapi.Open(spireapi.Options{TrustDomain: trustDomain, Address: fmt.Sprintf("%s:%d", s.Host, s.Port), WorkloadAPI: "unix://" + agent.Socket})
	must(t, err)
	defer func() { must(t, c.Close()) }()
	if until, had := c.OwnSVID(); had {
		t.Errorf("an SVID until %s before anybody gave us one", until)
	}
	// Without an entry for us, the agent's own words are told.
	for err = nil; err == nil || !strings.Contains(err.Error(), "no identity issued"); {
		early, over := context.WithTimeout(ctx, time.Second)
		if _, err = c.Read(early); !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			t.Fatalf("without an entry for us: %v", err)
		}
		over()
	}
	resp, err := entryapi.NewEntryClient(s.raw).BatchCreateEntry(t.Context(), &entryapi.BatchCreateEntryRequest{Entries: []*types.Entry{{
		SpiffeId:  &types.SPIFFEID{TrustDomain: domain, Path: "/keelson/policy-sync"},
		ParentId:  &types.SPIFFEID{TrustDomain: domain, Path: "/spire/agent/join_token/" + token.Value},
		Selectors: []*types.Selector{{Type: "unix", Value: fmt.Sprintf("uid:%d", os.Getuid())}}}}})
	must(t, err)
	if st := resp.Results[0].Status; st.Code != 0 {
		t.Fatalf("own entry: %s", st.Message)
	}
	first, end := context.WithCancel(ctx)
	_, err = c.Read(first)
	must(t, err)
	end() // the connection outlives the call that made it
	if until, had := c.OwnSVID(); !had || !until.After(time.Now()) {
		t.Errorf("our own SVID: %t, until %s", had, until)
	}
	must(t, errors.Join(c.Apply(ctx, []plan.Operation{operation(plan.CreateEntry, entry(1))})...))
	state, err := c.Read(ctx)
	must(t, err)
	if len(state.Entries) != 2 || len(state.Agents) != 1 {
		t.Errorf("read %d entries and %d agents, want 2 and 1", len(state.Entries), len(state.Agents))
	}
}

// TestThreat33_AServerThatIsAwayKeepsNobodyFromStarting: over TCP there is no client before there is an SVID of our own.
func TestThreat33_AServerThatIsAwayKeepsNobodyFromStarting(t *testing.T) {
	s, err := spireapi.Open(spireapi.Options{TrustDomain: trustDomain, Address: "127.0.0.1:1",
		WorkloadAPI: "unix://" + filepath.Join(t.TempDir(), "none.sock")})
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if state, err := s.Read(ctx); !errors.Is(err, context.DeadlineExceeded) || state != nil || !strings.Contains(err.Error(), "none.sock: connect: no such file") {
		t.Errorf("got %v, %v; want nothing read within the time", state, err)
	}
	if errs := s.Apply(ctx, []plan.Operation{operation(plan.CreateEntry, entry(1))}); len(errs) != 1 || errs[0] == nil {
		t.Errorf("got %v", errs)
	}
	must(t, s.Close())
	if _, err := s.Read(t.Context()); err == nil {
		t.Error("read after Close")
	}
}

func TestAServerThatIsAwayIsAnError(t *testing.T) {
	c, err := spireapi.Dial(t.Context(), spireapi.Options{TrustDomain: trustDomain, Socket: filepath.Join(t.TempDir(), "none.sock")})
	must(t, err)
	defer func() { must(t, c.Close()) }()
	if state, err := c.Read(t.Context()); err == nil || state != nil {
		t.Errorf("got %v, %v; want an error and nothing read", state, err)
	}
	if errs := c.Apply(t.Context(), []plan.Operation{operation(plan.CreateEntry, entry(1)), operation(plan.DeleteEntry, entry(2)),
		{Action: plan.DeleteAgent, AgentID: "spiffe://keelson.test/spire/agent/x"}}); errs[0] == nil || errs[1] == nil || errs[2] == nil {
		t.Errorf("got %v", errs)
	}
}

func TestDialRefusesWrongOptions(t *testing.T) {
	for name, o := range map[string]spireapi.Options{
		"if there is no trust domain":                {Socket: "/s"},
		"if there is no server":                      {TrustDomain: trustDomain},
		"if there are two servers":                   {TrustDomain: trustDomain, Socket: "/s", Address: "h:1", WorkloadAPI: "unix:///a"},
		"if an address comes without Workload API":   {TrustDomain: trustDomain, Address: "h:1"},
		"if an address has no port":                  {TrustDomain: trustDomain, Address: "h", WorkloadAPI: "unix:///a"},
		"if the Workload API's address is malformed": {TrustDomain: trustDomain, Address: "h:1", WorkloadAPI: "a"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := spireapi.Dial(t.Context(), o); err == nil {
				t.Error("accepted")
			}
			if _, err := spireapi.Open(o); err == nil {
				t.Error("accepted without connecting")
			}
		})
	}
}
