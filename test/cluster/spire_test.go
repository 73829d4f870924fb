package cluster_test

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentapi "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/keelson-project/keelson/test/cluster"
)

func TestASpireAgentAttestsToARealServerAndIsStartedAgain(t *testing.T) {
	if testing.Short() {
		t.Skip("needs a real SPIRE, which -short leaves out")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "keelson-spire-") // t.TempDir is too long for a Unix socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	g := cluster.NewGroup(dir)
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	server, err := cluster.StartSpireServer(ctx, g, cluster.SpireServerOptions{
		Dir: dir, Log: t.Output(), TrustDomain: "keelson.test", AgentTTL: 30 * time.Second, X509SVIDTTL: 20 * time.Second,
		Plugins: []cluster.Plugin{{Type: "NodeAttestor", Name: "join_token"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := server.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }() // the server ends with the test
	api := agentapi.NewAgentClient(conn)
	token, err := api.CreateJoinToken(ctx, &agentapi.CreateJoinTokenRequest{Ttl: 60})
	if err != nil {
		t.Fatalf("the socket's user is not an administrator: %v", err)
	}
	agent, err := cluster.StartSpireAgent(ctx, g, cluster.SpireAgentOptions{
		Name: "agent", Dir: dir, Log: t.Output(), Server: server, Restart: 100 * time.Millisecond, JoinToken: token.Value,
		Plugins: []cluster.Plugin{
			{Type: "NodeAttestor", Name: "join_token"},
			{Type: "WorkloadAttestor", Name: "unix"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Stop()
	var id string
	wait(ctx, t, "the agent attests", func() error {
		agents, err := server.Agents(ctx)
		if err == nil && len(agents) != 1 {
			err = fmt.Errorf("agents: %v", agents)
		}
		if err == nil {
			id = agents[0].ID
		}
		return err
	})
	wait(ctx, t, "the agent serves", func() error {
		_, err := os.Stat(agent.Socket)
		return err
	})
	parsed := spiffeid.RequireFromString(id)
	request := &agentapi.DeleteAgentRequest{Id: &types.SPIFFEID{TrustDomain: parsed.TrustDomain().Name(), Path: parsed.Path()}}
	if _, err := api.DeleteAgent(ctx, request); err != nil {
		t.Fatal(err)
	}
	wait(ctx, t, "the evicted agent ends and is started again", func() error {
		if agent.Starts() < 2 {
			return fmt.Errorf("started %d times", agent.Starts())
		}
		return agent.Err()
	})
}

func wait(ctx context.Context, t *testing.T, what string, check func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
