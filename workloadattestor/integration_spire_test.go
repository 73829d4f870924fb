package workloadattestor_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"

	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/test/cluster/node"
)

// TestRealSPIREGivesIdentitiesToSignedImagesAlone loads the built plugin into an unmodified SPIRE agent: of two containers
// that differ in nothing but their image's signature, one gets an identity.
func TestRealSPIREGivesIdentitiesToSignedImagesAlone(t *testing.T) {
	if testing.Short() {
		t.Skip("needs a real containerd and a real SPIRE, which -short leaves out")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: containerd cannot run real containers without")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	m := startMachine(ctx, t)
	m.startAPI()
	metrics, err := cluster.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	agent := m.startSPIRE(ctx, metrics)
	container := func(pod, uid, folder string, image node.Pushed) string {
		return m.run(ctx, 0, node.PodSpec{
			Namespace: "payments", Name: pod, UID: uid, Container: "main", Image: image.Reference(),
			Mounts: []node.Mount{{From: folder, To: "/spire"}},
		}).ContainerID
	}
	folder := filepath.Dir(agent.Socket)
	signed, unsigned := container("api", uidOne, folder, m.signed), container("other", uidTwo, folder, m.unsigned)
	// More of the node than it may mount; the pod's user, who is not root, may go through it.
	if err := os.Chmod(filepath.Dir(folder), 0o755); err != nil {
		t.Fatal(err)
	}
	greedy := container("greedy", uidThree, filepath.Dir(folder), m.signed)
	socket := "unix:///spire/" + filepath.Base(agent.Socket)

	var got answer
	for end := time.Now().Add(30 * time.Second); !got.OK && time.Now().Before(end); {
		got = m.svid(ctx, signed, socket)
	}
	if !got.OK || got.SPIFFEID != "spiffe://keelson.test/ns/payments/sa/api-account" {
		t.Errorf("signed image: got %+v\n%s", got, tail(t, agent.Log))
	}
	if got := m.svid(ctx, unsigned, socket); got.OK || got.SPIFFEID != "" {
		t.Errorf("unsigned image: got %+v", got)
	}
	if got := m.svid(ctx, greedy, "unix:///spire/"+filepath.Base(folder)+"/"+filepath.Base(agent.Socket)); got.OK || !strings.Contains(got.Error, "no identity issued") {
		t.Errorf("signed image with a folder of the node: got %+v", got)
	}
	m.numbersArrive(ctx, metrics)
	m.refer(ctx, agent, signed)
}

// numbersArrive waits for the plugin's numbers among SPIRE's own: they reach it a little later than what they count.
func (m *machine) numbersArrive(ctx context.Context, port int) {
	m.t.Helper()
	wanted := []string{"spire_agent_keelson_attestations{", `result="attested"`, "spire_agent_keelson_attestation_seconds", `proof="signed_by_release_key"`}
	var missing []string
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		page := m.page(ctx, fmt.Sprintf("http://127.0.0.1:%d/metrics", port))
		missing = slices.DeleteFunc(slices.Clone(wanted), func(want string) bool { return strings.Contains(page, want) })
		if len(missing) == 0 {
			return
		}
	}
	m.t.Errorf("SPIRE's metrics have no %s", strings.Join(missing, ", "))
}

func (m *machine) page(ctx context.Context, url string) string {
	m.t.Helper()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		m.t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		m.t.Fatal(err)
	}
	page, err := io.ReadAll(answer.Body)
	if err := errors.Join(err, answer.Body.Close()); err != nil {
		m.t.Fatal(err)
	}
	return string(page)
}

// startSPIRE starts a server with one entry and an agent with the plugin.
func (m *machine) startSPIRE(ctx context.Context, metricsPort int) *cluster.SpireAgent {
	m.t.Helper()
	plugin := m.build(ctx, "cmd/keelson-workloadattestor")
	server, err := cluster.StartSpireServer(ctx, m.group, cluster.SpireServerOptions{
		Dir: m.dir, Log: m.t.Output(), TrustDomain: "keelson.test", AgentTTL: 5 * time.Minute, X509SVIDTTL: time.Minute,
		Plugins: []cluster.Plugin{{Type: "NodeAttestor", Name: "join_token"}},
	})
	if err != nil {
		m.t.Fatal(err)
	}
	conn, err := server.Dial()
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { _ = conn.Close() }) // the server ends with the test
	m.spire = conn
	token, err := agentv1.NewAgentClient(conn).CreateJoinToken(ctx, &agentv1.CreateJoinTokenRequest{Ttl: 600})
	if err != nil {
		m.t.Fatal(err)
	}
	parent := spiffeid.RequireFromString("spiffe://keelson.test/spire/agent/join_token/" + token.GetValue())
	entry := &types.Entry{
		SpiffeId: &types.SPIFFEID{TrustDomain: "keelson.test", Path: "/ns/payments/sa/api-account"},
		ParentId: &types.SPIFFEID{TrustDomain: "keelson.test", Path: parent.Path()},
	}
	for _, value := range []string{"ns:payments", "sa:api-account", "runtime:restricted", "signed-by:release-key", "image-manifest:" + m.signed.Manifest.String(), "node:fra-1"} {
		entry.Selectors = append(entry.Selectors, &types.Selector{Type: "keelson", Value: value})
	}
	// The same identity for whatever runs in the namespace, if only it were signed.
	loose := &types.Entry{SpiffeId: &types.SPIFFEID{TrustDomain: "keelson.test", Path: "/loose"}, ParentId: entry.ParentId, Selectors: []*types.Selector{
		{Type: "keelson", Value: "pod-uid:" + uidTwo}, {Type: "keelson", Value: "signed-by:release-key"},
	}}
	confined := &types.Entry{SpiffeId: &types.SPIFFEID{TrustDomain: "keelson.test", Path: "/confined"}, ParentId: entry.ParentId, Selectors: []*types.Selector{
		{Type: "keelson", Value: "pod-uid:" + uidThree}, {Type: "keelson", Value: "runtime:restricted"},
	}}
	created, err := entryv1.NewEntryClient(conn).BatchCreateEntry(ctx, &entryv1.BatchCreateEntryRequest{Entries: append(m.pairEntries(entry.ParentId), entry, loose, confined)})
	if err != nil {
		m.t.Fatal(err)
	}
	for _, r := range created.GetResults() {
		if r.GetStatus().GetCode() != int32(codes.OK) {
			m.t.Fatal(r.GetStatus().GetMessage())
		}
	}
	agent, err := cluster.StartSpireAgent(ctx, m.group, cluster.SpireAgentOptions{
		Name: "agent", Dir: m.dir, Log: m.t.Output(), Server: server, JoinToken: token.GetValue(), MetricsPort: metricsPort,
		Brokers: []string{ztunnel, unlisted},
		Plugins: []cluster.Plugin{
			{Type: "NodeAttestor", Name: "join_token"},
			{Type: "WorkloadAttestor", Name: "keelson", Cmd: plugin, Data: m.config(0, "fra-1") +
				fmt.Sprintf("allowed_host_paths = [%q]\nallowed_brokers = [%q]\n", filepath.Join(m.dir, "public"), ztunnel)},
		},
	})
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(agent.Stop)
	m.waitFor(ctx, agent)
	return agent
}

func (m *machine) waitFor(ctx context.Context, agent *cluster.SpireAgent) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		_, err := os.Stat(agent.Socket)
		if err == nil {
			return
		}
		if problem := agent.Err(); problem != nil {
			m.t.Fatal(problem)
		}
		select {
		case <-ctx.Done():
			m.t.Fatalf("the agent does not serve: %v\n%s", errors.Join(ctx.Err(), err), tail(m.t, agent.Log))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// answer is what the program in the container prints about its identity.
type answer struct {
	OK       bool   `json:"ok"`
	SPIFFEID string `json:"spiffe_id"`
	Error    string `json:"error"`
}

func (m *machine) svid(ctx context.Context, container, socket string) answer {
	m.t.Helper()
	result, err := m.nodes[0].Exec(ctx, container, "/workload", "svid", "-socket", socket, "-timeout", "5s")
	if err != nil {
		m.t.Fatal(err)
	}
	var a answer
	if err := json.Unmarshal([]byte(result.Stdout), &a); err != nil {
		m.t.Fatal(fmt.Errorf("%w: %+v", err, result))
	}
	return a
}

func tail(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(content[max(0, len(content)-3000):])
}
