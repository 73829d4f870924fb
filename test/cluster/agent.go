package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/keelson-project/keelson/test/parts"
)

// SpireAgentOptions says what agent to run.
type SpireAgentOptions struct {
	// Name is the log's name and what people see.
	Name string
	// Dir holds its data and socket; short enough for a Unix socket in it.
	Dir string
	// Log receives progress for people; nil is silence.
	Log    io.Writer
	Server *SpireServer
	// Plugins are the node attestor and the workload attestors. KeyManager is always "memory": an agent that restarts has
	// to attest again, whatever SVID it had.
	Plugins []Plugin
	// JoinToken is for a server with the join_token attestor; it works once.
	JoinToken string
	// Restart starts the agent again when it ends (an evicted or refused agent exits), after this pause; zero does not.
	Restart time.Duration
	// Brokers are the SPIFFE IDs that may use the SPIFFE Broker API, at BrokerSocket; none leaves it out.
	Brokers []string
	// MetricsPort is where SPIRE serves its own metrics to Prometheus, on 127.0.0.1; 0 is nowhere.
	MetricsPort int
}

// SpireAgent is a SPIRE agent under supervision.
type SpireAgent struct {
	// Socket is the path of the Workload API's Unix socket. It is there only while the agent is attested.
	Socket string
	// BrokerSocket is the path of the SPIFFE Broker API's Unix socket, if the agent has brokers.
	BrokerSocket string
	// Log is the path of the log over all starts.
	Log string

	group   *Group
	command Command
	pause   time.Duration
	stop    chan struct{}
	ended   chan struct{}
	once    sync.Once

	mu      sync.Mutex
	current *Process
	starts  int
	err     error
}

// StartSpireAgent starts an agent in group g and returns at once: whether it attests is for the caller to see, in the
// server's list of agents or by the agent's socket.
func StartSpireAgent(ctx context.Context, g *Group, o SpireAgentOptions) (*SpireAgent, error) {
	paths, err := parts.Ensure(ctx, orDiscard(o.Log), "spire-agent")
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(o.Dir, "public"), 0o755); err != nil {
		return nil, fmt.Errorf("cluster: %s: %w", o.Name, err)
	}
	a := &SpireAgent{
		Socket: filepath.Join(o.Dir, "public", "api.sock"), group: g, pause: o.Restart,
		stop: make(chan struct{}), ended: make(chan struct{}),
	}
	if len(o.Brokers) > 0 { // SPIRE wants it in a folder of its own
		a.BrokerSocket = filepath.Join(o.Dir, "broker", "api.sock")
	}
	if err := errors.Join(socketFits(a.Socket), socketFits(a.BrokerSocket)); err != nil {
		return nil, err
	}
	config := filepath.Join(o.Dir, "agent.conf")
	if err := os.WriteFile(config, []byte(o.config(a)), 0o600); err != nil {
		return nil, fmt.Errorf("cluster: %s: %w", o.Name, err)
	}
	a.command = Command{Name: o.Name, Path: paths["spire-agent"], Args: []string{"run", "-config", config}}
	first, err := a.launch()
	if err != nil {
		return nil, err
	}
	a.Log = first.Log
	go a.supervise(first)
	return a, nil
}

func (o SpireAgentOptions) config(a *SpireAgent) string {
	var b strings.Builder
	fmt.Fprintf(&b, "agent {\n  server_address = %q\n  server_port = %d\n", o.Server.Host, o.Server.Port)
	fmt.Fprintf(&b, "  socket_path = %q\n  data_dir = %q\n", a.Socket, filepath.Join(o.Dir, "data"))
	fmt.Fprintf(&b, "  trust_bundle_path = %q\n  trust_domain = %q\n  log_level = \"DEBUG\"\n", o.Server.Bundle, o.Server.trustDomain)
	if o.JoinToken != "" {
		fmt.Fprintf(&b, "  join_token = %q\n", o.JoinToken)
	}
	fmt.Fprintf(&b, "  experimental {\n    sync_interval = \"1s\"\n")
	if len(o.Brokers) > 0 {
		fmt.Fprintf(&b, "    broker {\n      socket_path = %q\n      brokers = [\n", a.BrokerSocket)
		for _, id := range o.Brokers {
			fmt.Fprintf(&b, "        { id = %q, allowed_reference_types = [{ type_url = \"*\" }] },\n", id)
		}
		fmt.Fprintf(&b, "      ]\n    }\n")
	}
	fmt.Fprintf(&b, "  }\n}\n")
	writeTelemetry(&b, o.MetricsPort)
	writePlugins(&b, append([]Plugin{{Type: "KeyManager", Name: "memory"}}, o.Plugins...))
	return b.String()
}

func (a *SpireAgent) launch() (*Process, error) {
	p, err := a.group.Start(a.command)
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		a.err = err
		return nil, err
	}
	a.current = p
	a.starts++
	return p, nil
}

func (a *SpireAgent) supervise(p *Process) {
	defer close(a.ended)
	for {
		select {
		case <-p.Done():
		case <-a.stop:
			p.Stop(3 * time.Second)
			return
		}
		if a.pause == 0 {
			return
		}
		select {
		case <-time.After(a.pause):
		case <-a.stop:
			return
		}
		next, err := a.launch()
		if err != nil { // the group is closing, or the program is gone: Err tells
			return
		}
		p = next
	}
}

// Stop ends the agent and its supervision.
func (a *SpireAgent) Stop() {
	a.once.Do(func() { close(a.stop) })
	<-a.ended
}

// Starts tells how many times the agent was started.
func (a *SpireAgent) Starts() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.starts
}

// Process is the agent's latest process.
func (a *SpireAgent) Process() *Process {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.current
}

// Err tells why the agent could not be started again; nil while it could.
func (a *SpireAgent) Err() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.err
}
