package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	agentapi "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundleapi "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/keelson-project/keelson/test/parts"
)

// Plugin is one plugin of a SPIRE server or agent.
type Plugin struct {
	// Type is "NodeAttestor", "WorkloadAttestor" …; Name is the plugin's name.
	Type, Name string
	// Cmd is the path of an external plugin; empty for one that SPIRE brings.
	Cmd string
	// Data is the text inside plugin_data, in HCL.
	Data string
	// DataFile is a file that holds that text, in place of Data. SPIRE reads it again on SIGUSR1.
	DataFile string
}

// SpireServerOptions says what server to run. TTLs of zero are SPIRE's own defaults.
type SpireServerOptions struct {
	// Dir holds its data, socket and log; the path must be short enough for a Unix socket in it (about 80 bytes).
	Dir string
	// Log receives progress for people; nil is silence.
	Log                    io.Writer
	TrustDomain            string
	AgentTTL, X509SVIDTTL  time.Duration
	AdminIDs               []string
	Plugins                []Plugin
	LimitAttestationByRate bool // SPIRE's default; here off unless asked for
	// Policy is a folder with policy.rego and policy_data.json, which take the place of SPIRE's own; empty is SPIRE's own.
	Policy string
	// KeepKeys keeps the server's keys on disk: it can be killed and started again, and agents still know it.
	KeepKeys bool
	// MetricsPort is where SPIRE serves its own metrics to Prometheus, on 127.0.0.1; 0 is nowhere.
	MetricsPort int
}

// SpireServer is a running SPIRE server.
type SpireServer struct {
	// Socket is the path of its API's Unix socket; whoever may open it is an administrator.
	Socket string
	// Host and Port are where agents reach it.
	Host string
	Port int
	// Bundle is the path of its CA certificates in PEM, as they stood at the start.
	Bundle string
	// Process is the server's process.
	Process     *Process
	trustDomain string
	group       *Group
	command     Command
}

// StartSpireServer starts a server in group g and waits until its API answers. Its plugin configuration is part of that: a
// server with a plugin that refuses its configuration does not start, and the error holds what it said.
func StartSpireServer(ctx context.Context, g *Group, o SpireServerOptions) (*SpireServer, error) {
	paths, err := parts.Ensure(ctx, orDiscard(o.Log), "spire-server")
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(o.Dir, "data"), 0o700); err != nil {
		return nil, fmt.Errorf("cluster: spire-server: %w", err)
	}
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	s := &SpireServer{
		Socket: filepath.Join(o.Dir, "api.sock"), Host: "127.0.0.1", Port: port,
		Bundle: filepath.Join(o.Dir, "bundle.pem"), trustDomain: o.TrustDomain,
	}
	if err := socketFits(s.Socket); err != nil {
		return nil, err
	}
	config := filepath.Join(o.Dir, "server.conf")
	if err := os.WriteFile(config, []byte(o.config(s)), 0o600); err != nil {
		return nil, fmt.Errorf("cluster: spire-server: %w", err)
	}
	begun := time.Now()
	s.group, s.command = g, Command{Name: "spire-server", Path: paths["spire-server"], Args: []string{"run", "-config", config}}
	if err := s.Start(ctx); err != nil {
		return nil, err
	}
	say(orDiscard(o.Log), "SPIRE server serves trust domain %s after %.1f s", o.TrustDomain, time.Since(begun).Seconds())
	return s, nil
}

// Start starts a server again that has ended, and waits until its API answers.
func (s *SpireServer) Start(ctx context.Context) (err error) {
	if s.Process, err = s.group.Start(s.command); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return s.Process.Until(ctx, s.writeBundle)
}

// Kill ends the server as kill -9 does. Its plugins are not told.
func (s *SpireServer) Kill() error {
	if err := syscall.Kill(s.Process.PID(), syscall.SIGKILL); err != nil {
		return fmt.Errorf("cluster: spire-server: %w", err)
	}
	<-s.Process.Done()
	return nil
}

// Validate runs `spire-server validate` on the configuration that the server was started with, and returns what it says.
func (s *SpireServer) Validate(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, s.command.Path, "validate", "-config", s.command.Args[2]).CombinedOutput()
	return string(out), err
}

func (o SpireServerOptions) config(s *SpireServer) string {
	var b strings.Builder
	fmt.Fprintf(&b, "server {\n  bind_address = %q\n  bind_port = %d\n  socket_path = %q\n", s.Host, s.Port, s.Socket)
	fmt.Fprintf(&b, "  trust_domain = %q\n  data_dir = %q\n  log_level = \"DEBUG\"\n", o.TrustDomain, filepath.Join(o.Dir, "data"))
	if o.AgentTTL > 0 {
		fmt.Fprintf(&b, "  agent_ttl = %q\n", o.AgentTTL)
	}
	if o.X509SVIDTTL > 0 {
		fmt.Fprintf(&b, "  default_x509_svid_ttl = %q\n", o.X509SVIDTTL)
	}
	if len(o.AdminIDs) > 0 {
		fmt.Fprintf(&b, "  admin_ids = [%s]\n", quoted(o.AdminIDs))
	}
	fmt.Fprintf(&b, "  ratelimit { attestation = %t }\n", o.LimitAttestationByRate)
	fmt.Fprintf(&b, "  experimental {\n    cache_reload_interval = \"1s\"\n")
	if o.Policy != "" {
		fmt.Fprintf(&b, "    auth_opa_policy_engine {\n      local { rego_path = %q, policy_data_path = %q }\n    }\n",
			filepath.Join(o.Policy, "policy.rego"), filepath.Join(o.Policy, "policy_data.json"))
	}
	fmt.Fprintf(&b, "  }\n}\n")
	writeTelemetry(&b, o.MetricsPort)
	keys := Plugin{Type: "KeyManager", Name: "memory"}
	if o.KeepKeys {
		keys = Plugin{Type: "KeyManager", Name: "disk", Data: fmt.Sprintf("keys_path = %q", filepath.Join(o.Dir, "data", "keys.json"))}
	}
	plugins := append([]Plugin{
		{Type: "DataStore", Name: "sql", Data: fmt.Sprintf("database_type = \"sqlite3\"\nconnection_string = %q", filepath.Join(o.Dir, "data", "datastore.sqlite3"))},
		keys,
	}, o.Plugins...)
	writePlugins(&b, plugins)
	return b.String()
}

func writeTelemetry(b *strings.Builder, port int) {
	if port != 0 {
		fmt.Fprintf(b, "telemetry {\n  Prometheus {\n    host = \"127.0.0.1\"\n    port = %d\n  }\n}\n", port)
	}
}

func quoted(values []string) string {
	var q []string
	for _, v := range values {
		q = append(q, fmt.Sprintf("%q", v))
	}
	return strings.Join(q, ", ")
}

func writePlugins(b *strings.Builder, plugins []Plugin) {
	b.WriteString("plugins {\n")
	for _, p := range plugins {
		fmt.Fprintf(b, "  %s %q {\n", p.Type, p.Name)
		if p.Cmd != "" {
			fmt.Fprintf(b, "    plugin_cmd = %q\n", p.Cmd)
		}
		if p.DataFile != "" {
			fmt.Fprintf(b, "    plugin_data_file = %q\n  }\n", p.DataFile)
			continue
		}
		fmt.Fprintf(b, "    plugin_data {\n%s\n    }\n  }\n", p.Data)
	}
	b.WriteString("}\n")
}

// Dial connects to the server's API as an administrator. The caller closes the connection.
func (s *SpireServer) Dial() (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("unix://"+s.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("cluster: spire-server: %w", err)
	}
	return conn, nil
}

func (s *SpireServer) writeBundle(ctx context.Context) (err error) {
	conn, err := s.Dial()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	bundle, err := bundleapi.NewBundleClient(conn).GetBundle(ctx, &bundleapi.GetBundleRequest{})
	if err != nil {
		return fmt.Errorf("cluster: spire-server: bundle: %w", err)
	}
	var pems []byte
	for _, c := range bundle.X509Authorities {
		pems = append(pems, certPEM(c.Asn1)...)
	}
	if len(pems) == 0 {
		return errors.New("cluster: spire-server: bundle: no certificate yet")
	}
	return os.WriteFile(s.Bundle, pems, 0o600)
}

// Agent is what the server knows about an attested agent.
type Agent struct {
	ID        string
	Expires   time.Time
	Selectors []string // type:value
}

// Agents lists the attested agents.
func (s *SpireServer) Agents(ctx context.Context) (agents []Agent, err error) {
	conn, err := s.Dial()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	list, err := agentapi.NewAgentClient(conn).ListAgents(ctx, &agentapi.ListAgentsRequest{})
	if err != nil {
		return nil, fmt.Errorf("cluster: spire-server: agents: %w", err)
	}
	for _, a := range list.Agents {
		agent := Agent{ID: "spiffe://" + a.Id.TrustDomain + a.Id.Path, Expires: time.Unix(a.X509SvidExpiresAt, 0)}
		for _, sel := range a.Selectors {
			agent.Selectors = append(agent.Selectors, sel.Type+":"+sel.Value)
		}
		agents = append(agents, agent)
	}
	return agents, nil
}

// socketFits refuses paths that the kernel would cut: sun_path holds 108 bytes with its NUL.
func socketFits(path string) error {
	if len(path) > 107 {
		return fmt.Errorf("cluster: socket path %s is %d bytes long, the kernel takes 107; use a shorter folder (TMPDIR)", path, len(path))
	}
	return nil
}

func orDiscard(log io.Writer) io.Writer {
	if log == nil {
		return io.Discard
	}
	return log
}
