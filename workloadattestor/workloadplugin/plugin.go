// Package workloadplugin is the SPIRE agent's door to workload attestation: plugin type WorkloadAttestor, name
// "keelson". It reads the configuration, turns a process ID into selectors and errors into gRPC codes, and logs one
// line per decision.
package workloadplugin

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spiffe/spire-plugin-sdk/pluginsdk"
	workloadattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/workloadattestor/v1"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keelson-project/keelson/workloadattestor/pod"
	"github.com/keelson-project/keelson/workloadattestor/runtime"
)

var _ pluginsdk.NeedsLogger = (*Plugin)(nil)

// Plugin serves SPIRE's WorkloadAttestor and Config services.
type Plugin struct {
	workloadattestorv1.UnimplementedWorkloadAttestorServer
	configv1.UnimplementedConfigServer

	now     func() time.Time
	log     hclog.Logger
	metrics *metrics
	told    once // what the log says only once

	configuring sync.Mutex // one configuration at a time
	mu          sync.Mutex
	attestor    *shared
}

// shared counts the calls that use an attestor, so that one that was replaced is closed when the last call ends.
type shared struct {
	*attestor
	uses int // calls under way, and one for being the current one
}

// New makes a plugin that has no configuration yet. now is the clock.
func New(now func() time.Time) *Plugin {
	p := &Plugin{now: now, log: hclog.NewNullLogger()}
	p.metrics = newMetrics(p)
	return p
}

// SetLogger is called by SPIRE's SDK.
func (p *Plugin) SetLogger(log hclog.Logger) { p.log = log }

// Configure replaces the configuration; a configuration with any problem changes nothing.
func (p *Plugin) Configure(_ context.Context, req *configv1.ConfigureRequest) (*configv1.ConfigureResponse, error) {
	a, notes, err := parse(req.GetHclConfiguration(), p.now)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "workload attestor configuration:\n%v", err)
	}
	p.configuring.Lock()
	defer p.configuring.Unlock()
	door, err := p.metrics.Listen(a.listen)
	if err != nil {
		return nil, status.Errorf(codes.Internal, "workload attestor: %v", errors.Join(err, a.close()))
	}
	if a.credentials != nil {
		a.credentials.Report = p.logCredentials
	}
	for _, note := range notes {
		p.log.Warn("workload attestor configuration", "note", note)
	}
	p.mu.Lock()
	old := p.attestor
	p.attestor = &shared{attestor: a, uses: 1}
	p.mu.Unlock()
	if err := door.Use(); err != nil {
		p.log.Warn("metrics", "error", err)
	}
	if old != nil {
		p.release(old)
	}
	return &configv1.ConfigureResponse{}, nil
}

// Validate reports every problem that Configure would refuse.
func (p *Plugin) Validate(_ context.Context, req *configv1.ValidateRequest) (*configv1.ValidateResponse, error) {
	a, notes, err := parse(req.GetHclConfiguration(), p.now)
	if err != nil {
		return &configv1.ValidateResponse{Notes: append(notes, strings.Split(err.Error(), "\n")...)}, nil
	}
	if err := a.close(); err != nil {
		return nil, status.Errorf(codes.Internal, "workload attestor: %v", err)
	}
	return &configv1.ValidateResponse{Valid: true, Notes: notes}, nil
}

// Close releases the configuration's connections, and ends what the plugin counts.
func (p *Plugin) Close() error {
	p.mu.Lock()
	old := p.attestor
	p.attestor = nil
	p.mu.Unlock()
	if old != nil {
		p.release(old)
	}
	return p.metrics.Close()
}

// Attest returns the selectors of a process. A process that is in no container of this node's runtime has none, without
// an error, as SPIRE asks of an attestor that is not in a position to attest.
func (p *Plugin) Attest(ctx context.Context, req *workloadattestorv1.AttestRequest) (*workloadattestorv1.AttestResponse, error) {
	selectors, err := p.attest(ctx, req.GetPid())
	if err != nil {
		return nil, err
	}
	return &workloadattestorv1.AttestResponse{SelectorValues: selectors}, nil
}

func (p *Plugin) attest(ctx context.Context, pid int32) ([]string, error) {
	a := p.acquire()
	if a == nil {
		return nil, errNotConfigured
	}
	defer p.release(a)
	return p.attestPID(ctx, a.attestor, pid, "")
}

var errNotConfigured = status.Error(codes.FailedPrecondition, "workload attestor: not configured")

// attestPID attests a process; broker is who refers to it, "" for the agent itself.
func (p *Plugin) attestPID(ctx context.Context, a *attestor, pid int32, broker string) ([]string, error) {
	return p.decide(fmt.Sprintf("process %d", pid), broker, func() (outcome, error) { return a.attest(ctx, pid, a.mayRefer(broker)) })
}

// decide attests, counts the result and logs it. what is the workload in words.
func (p *Plugin) decide(what, broker string, attest func() (outcome, error)) ([]string, error) {
	started := p.now()
	out, err := attest()
	took := p.now().Sub(started)
	p.metrics.count(out, err, took)
	p.logDecision(what, broker, out, err, took)
	if err != nil {
		return nil, status.Error(codeOf(err), fmt.Sprintf("workload attestor: %s: %v", what, err))
	}
	return out.selectors, nil
}

// codeOf: PermissionDenied is a refusal, NotFound a pod that this node does not have, Unavailable what could not be asked.
func codeOf(err error) codes.Code {
	switch {
	case errors.Is(err, pod.ErrNotFound), errors.Is(err, runtime.ErrNoPod):
		return codes.NotFound
	case errors.Is(err, errRefused):
		return codes.PermissionDenied
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	default:
		return codes.Unavailable
	}
}

// logDecision writes the one line about a decision: for whom, what, and why not more.
func (p *Plugin) logDecision(what, broker string, out outcome, err error, took time.Duration) {
	c := out.claims
	args := []any{"workload", what, "container", out.container, "took", took.Round(time.Millisecond).String()}
	if broker != "" {
		args = append(args, "broker", broker)
	}
	if c.PodName != "" {
		args = append(args, "pod", c.Namespace+"/"+c.PodName, "name", c.Container)
	}
	switch {
	case err != nil:
		p.log.Warn("workload refused", append(args, "reason", err)...)
	case out.notOurs != nil && p.told.first(out.podWithoutClaims()):
		p.log.Info("workload has no claims", append(args, "reason", out.notOurs)...)
	case out.notOurs != nil: // mostly the agent's own health checks
		p.log.Debug("workload has no claims", append(args, "reason", out.notOurs)...)
	default:
		p.log.Info("workload attested", append(args, "selectors", strings.Join(out.selectors, " "), "absent", clipped(out.absent))...)
	}
}

// logCredentials logs that the registry credentials were read again, or why the new ones are not in force.
func (p *Plugin) logCredentials(err error) {
	if err != nil {
		p.log.Warn("registry credentials", "error", err)
		return
	}
	p.log.Info("registry credentials were read again")
}

// clipped joins reasons, each cut to a length that a registry, whose words may be in it, cannot flood the log with.
func clipped(reasons []string) string {
	const limit = 600
	var out []string
	for _, r := range reasons {
		if len(r) > limit {
			r = strings.ToValidUTF8(r[:limit], "") + "…"
		}
		out = append(out, r)
	}
	return strings.Join(out, "; ")
}

func (p *Plugin) acquire() *shared {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.attestor != nil {
		p.attestor.uses++
	}
	return p.attestor
}

func (p *Plugin) release(a *shared) {
	p.mu.Lock()
	a.uses--
	last := a.uses == 0
	p.mu.Unlock()
	if !last {
		return
	}
	if err := a.close(); err != nil {
		p.log.Warn("workload attestor: closing a replaced configuration", "error", err)
	}
}
