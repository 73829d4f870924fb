// Package serverplugin is the SPIRE server plugin: it carries messages between the
// stream and package verify, and results to package verdict. It decides nothing; what
// it adds is configuration, deadlines, gRPC codes and the audit line.
//
// Three outcomes leave it. Trusted: agent attributes. Refused: PermissionDenied with
// the names of the checks that failed, not with the reference values; when the
// evidence was proved to be the node's own, the verdict is lowered too. Inconclusive:
// another code; no verdict changes and the one that stands is left to expire.
package serverplugin

import (
	"context"
	"crypto/rand"
	"errors"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spiffe/spire-plugin-sdk/pluginsdk"
	nodeattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/nodeattestor/v1"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keelson-project/keelson/nodeattestor/admission"
	"github.com/keelson-project/keelson/nodeattestor/assettag"
	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/nodeattestor/machinestate"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/serverconfig"
	"github.com/keelson-project/keelson/nodeattestor/trustclock"
	"github.com/keelson-project/keelson/nodeattestor/verdict"
	"github.com/keelson-project/keelson/spireplugin/watchfile"
)

// Plugin serves SPIRE's server-side NodeAttestor and Config services.
type Plugin struct {
	nodeattestorv1.UnimplementedNodeAttestorServer
	configv1.UnimplementedConfigServer

	log      hclog.Logger
	clock    *trustclock.Clock
	metrics  *metrics
	ekLock   admission.EKLock
	unproved admission.Allowance
	pace     admission.Pace

	configuring sync.Mutex // one configuration at a time
	mu          sync.RWMutex
	run         *running
}

var _ pluginsdk.NeedsLogger = (*Plugin)(nil)

// running is a configuration in force with what it opened.
type running struct {
	*serverconfig.Config
	audit *audit.File
	store *verdict.Store // nil without kubernetes
	queue *verdict.Queue // nil without kubernetes
	// serials are kept here where no Kubernetes keeps them; nil with it, and without tags.
	serials *machinestate.Serials
	gate    *admission.Gate
	watch   *watchfile.Watcher // of the files that the configuration names
	// states are of this configuration's reference sets; a new configuration begins with the counters alone.
	states *machinestate.States
}

// New makes a plugin that still has to be configured. wall is the machine's clock, which may be set while the plugin runs.
func New(wall func() time.Time) *Plugin {
	p := &Plugin{log: hclog.NewNullLogger(), clock: trustclock.New(wall)}
	p.metrics = newMetrics(p)
	return p
}

// SetLogger is called by SPIRE's framework when the plugin is loaded.
func (p *Plugin) SetLogger(log hclog.Logger) { p.log = log }

// Validate reports every problem of a configuration, and opens nothing.
func (p *Plugin) Validate(_ context.Context, req *configv1.ValidateRequest) (*configv1.ValidateResponse, error) {
	_, _, problems := serverconfig.Read(req.HclConfiguration, req.CoreConfiguration.GetTrustDomain(), p.clock.Now().Valid)
	return &configv1.ValidateResponse{Valid: problems.Err() == nil, Notes: problems.List()}, nil
}

// Configure puts a configuration in force, whole or not at all: after an error the one before it, if there
// was one, works on.
func (p *Plugin) Configure(_ context.Context, req *configv1.ConfigureRequest) (*configv1.ConfigureResponse, error) {
	c, seen, problems := serverconfig.Read(req.HclConfiguration, req.CoreConfiguration.GetTrustDomain(), p.clock.Now().Valid)
	if err := problems.Err(); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "keelson_tpm: %v", err)
	}
	p.warn(c)
	p.configuring.Lock()
	defer p.configuring.Unlock()
	door, err := p.metrics.Listen(c.Listen)
	if err != nil {
		return nil, status.Errorf(codes.Internal, "keelson_tpm: %v", err)
	}
	before, err := p.replace(c)
	if err != nil {
		return nil, status.Errorf(codes.Internal, "keelson_tpm: %v", errors.Join(err, door.Discard()))
	}
	if err := door.Use(); err != nil {
		p.log.Warn("metrics", "error", err)
	}
	p.unwatch(before) // not under the lock that replace holds: a reload under way needs it
	w, err := watchfile.Watch(seen, p.reload, func(err error) { p.log.Warn("watching files", "error", err) })
	if err != nil {
		p.log.Warn("changed files are read only when the server starts again", "error", err)
	}
	p.swapWatcher(w)
	return &configv1.ConfigureResponse{}, nil
}

// replace opens what a configuration names and puts it in place of the one in force, whose watcher it
// returns. An error changes nothing.
func (p *Plugin) replace(c *serverconfig.Config) (*watchfile.Watcher, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.run
	next, err := open(c, old, p.log)
	if err != nil {
		return nil, err
	}
	p.run = next
	if next.queue == nil {
		p.clock.Follow(nil, time.Time{})
	} else {
		p.clock.Follow(next.store.Now, next.queue.Newest())
	}
	if old == nil {
		return nil, nil
	}
	if old.queue != nil {
		old.queue.Close()
	}
	if next.audit != old.audit {
		if err := old.audit.Close(); err != nil {
			p.log.Warn("audit log not closed", "error", err)
		}
	}
	return old.watch, nil
}

// warn tells what is doubtful about a configuration that works.
func (p *Plugin) warn(c *serverconfig.Config) {
	for _, w := range c.Warnings() {
		p.log.Warn(w.Message, w.Details...)
	}
}

// open opens what a configuration names, beside the old one, which an error leaves at work. What both
// use goes on: an audit log has one writer, and attestations under way still need it; a queue's file is the
// next one's.
func open(c *serverconfig.Config, old *running, log hclog.Logger) (*running, error) {
	r := &running{Config: c, gate: admission.NewGate(c.MaxParallel), states: machinestate.NewStates(machinestate.MaxBytes)}
	if old != nil {
		r.states = machinestate.NextStates(old.states)
	}
	var err error
	if old != nil && old.AuditLog == c.AuditLog {
		r.audit = old.audit
	} else if r.audit, err = audit.Open(c.AuditLog, c.AuditMaxSize, time.Now()); err != nil {
		return nil, err
	}
	if err = r.openSerials(old); err == nil {
		err = r.openQueue(old, log) // last: it takes the old one's place
	}
	if err != nil {
		if old == nil || r.audit != old.audit {
			err = errors.Join(err, r.audit.Close())
		}
		return nil, err
	}
	r.audit.Limit(c.AuditMaxSize, c.AuditMaxFiles)
	return r, nil
}

// openSerials opens the highest tag serials, where nobody else keeps them.
func (r *running) openSerials(old *running) (err error) {
	if r.Kube != nil || len(r.Policy.Tag.Signers) == 0 {
		return nil
	}
	path, earlier := "", (*machinestate.Serials)(nil)
	if r.StateDir != "" {
		path = filepath.Join(r.StateDir, "tag-serials.json")
	}
	if old != nil {
		earlier = old.serials
	}
	r.serials, err = machinestate.OpenSerials(path, earlier)
	return err
}

func (r *running) openQueue(old *running, log hclog.Logger) (err error) {
	if r.Kube == nil {
		return nil
	}
	if r.store, err = verdict.NewStore(r.Kube); err != nil {
		return err
	}
	file := filepath.Join(r.StateDir, "pending-verdicts.json")
	if old != nil && old.queue != nil {
		r.queue, err = old.queue.Succeed(r.store, file)
		return err
	}
	r.queue, err = verdict.StartQueue(r.store, file, log, time.Now)
	return err
}

// swapWatcher puts a watcher in place of the one in force, which it returns.
func (p *Plugin) swapWatcher(w *watchfile.Watcher) *watchfile.Watcher {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.run == nil {
		return nil
	}
	old := p.run.watch
	p.run.watch = w
	return old
}

// unwatch ends a watcher; not under the lock, for its callback takes it.
func (p *Plugin) unwatch(w *watchfile.Watcher) {
	if w == nil {
		return
	}
	if err := w.Close(); err != nil {
		p.log.Warn("watching files", "error", err)
	}
}

// Close stops writing verdicts; what is pending stays in the state directory.
func (p *Plugin) Close() error {
	p.unwatch(p.swapWatcher(nil))
	p.mu.Lock()
	run := p.run
	p.run = nil
	p.mu.Unlock()
	err := p.metrics.Close() // which looks at what runs
	if run == nil {
		return err
	}
	if run.queue != nil {
		run.queue.Close()
	}
	now := p.clock.Now()
	rest := p.unproved.Spend(true, now.Elapsed, func(omitted uint64) error {
		if omitted == 0 {
			return nil
		}
		return run.audit.Append(audit.Entry{Time: now.Wall.UTC(), Outcome: audit.Omitted, Omitted: omitted})
	})
	return errors.Join(err, rest, run.audit.Close())
}

// Attest runs one attestation.
func (p *Plugin) Attest(stream nodeattestorv1.NodeAttestor_AttestServer) error {
	p.mu.RLock()
	run := p.run
	p.mu.RUnlock()
	if run == nil {
		return status.Error(codes.FailedPrecondition, "keelson_tpm: not configured")
	}
	ctx, cancel := context.WithTimeout(stream.Context(), run.Timeout)
	defer cancel()
	watch := p.metrics.stopwatch()
	ctx, leave, err := run.gate.Unproved.Enter(ctx, nodeclaim.EKHash{})
	if err != nil {
		watch.end("busy")
		return status.Errorf(codes.Unavailable, "keelson_tpm: %v", err)
	}
	defer leave()
	a := &attempt{running: run, sinks: p, log: p.log, conversation: conversation{stream: stream}, clock: p.clock, watch: watch,
		sizes: logSizes{}, rand: rand.Reader}
	return a.attest(ctx)
}

// errNotRunning means that the plugin was closed, or that a new configuration could not be put in force.
var errNotRunning = errors.New("the plugin has no configuration in force any more")

// record appends to the audit log that is in force now: the configuration may have changed
// since the attestation began, and then its own log is closed. Of attempts that proved nothing, surplus is only counted.
func (p *Plugin) record(e audit.Entry, proved bool) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.run == nil {
		return errNotRunning
	}
	err := p.unproved.Spend(proved, p.clock.Now().Elapsed, func(omitted uint64) error {
		e.Omitted = omitted
		return p.run.audit.Append(e)
	})
	if err != nil {
		p.metrics.auditFailures.Inc()
	}
	if old := p.run.audit.Unpruned(); old != nil {
		p.log.Warn("old audit files stay, so that the disk will fill", "error", old)
	}
	return err
}

// keep keeps a tag's serial where no store does, and hands the verdict on.
func (p *Plugin) keep(r verdict.Result, tag assettag.Tag) error {
	if err := p.keepSerial(tag); err != nil {
		return err
	}
	return p.submit(r)
}

// submit hands a verdict to the queue that is in force now; without Kubernetes there is none.
func (p *Plugin) submit(r verdict.Result) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.run == nil {
		return errNotRunning
	}
	if p.run.queue == nil || r.Node == "" {
		return nil
	}
	return p.run.queue.Submit(r)
}

// keepSerial keeps a tag's serial for all EKs of its machine; the zero tag has none.
func (p *Plugin) keepSerial(tag assettag.Tag) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.run == nil {
		return errNotRunning
	}
	_, err := p.run.serials.Raise(tag.Serial(), tag.EKHashes()...)
	return err
}

// pendingSerial is the highest tag serial in a verdict that the store does not have yet.
func (p *Plugin) pendingSerial(node, ekHash string) uint64 {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.run == nil || p.run.queue == nil {
		return 0
	}
	return p.run.queue.TagSerial(node, ekHash)
}

// pendingNodes are the nodes of an EK in verdicts that the store does not have yet.
func (p *Plugin) pendingNodes(ekHash string) []string {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.run == nil || p.run.queue == nil {
		return nil
	}
	return p.run.queue.Nodes(ekHash)
}
