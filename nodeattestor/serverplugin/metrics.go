package serverplugin

import (
	"fmt"
	"strings"
	"time"

	"github.com/spiffe/spire-plugin-sdk/pluginsdk"

	"github.com/keelson-project/keelson/nodeattestor/evidence"
	"github.com/keelson-project/keelson/nodeattestor/pluginmetrics"
	"github.com/keelson-project/keelson/nodeattestor/verdict"
)

// metrics is what the plugin counts. Label values are this program's own words: outcomes, phases and the
// identifiers of checks, never what an agent sent.
type metrics struct {
	*pluginmetrics.Set
	attestations  *pluginmetrics.Counter
	refusals      *pluginmetrics.Counter
	reloads       *pluginmetrics.Counter
	auditFailures *pluginmetrics.Counter
	total         *pluginmetrics.Distribution
	phases        *pluginmetrics.Distribution
	logs          *pluginmetrics.Distribution
}

var _ pluginsdk.NeedsHostServices = (*Plugin)(nil)

// BrokerHostServices is called by SPIRE's framework when the plugin is loaded.
func (p *Plugin) BrokerHostServices(broker pluginsdk.ServiceBroker) error {
	p.metrics.Host(broker)
	return nil
}

func newMetrics(p *Plugin) *metrics {
	s := pluginmetrics.New("keelson_tpm", p.unready)
	m := &metrics{
		Set:           s,
		attestations:  s.Counter("attestations", "Attestations by result: trusted, untrusted, unproved, inconclusive, or busy (no place in time).", "result"),
		refusals:      s.Counter("refusals", "Refusals by the check that refused; one attestation may have several.", "check"),
		reloads:       s.Counter("reloads", "Reads of changed files by result: ok or refused.", "result"),
		auditFailures: s.Counter("audit_failures", "Audit lines that could not be written."),
		total:         s.Seconds("attestation_seconds", "How long attestations took, by result.", "result"),
		phases:        s.Seconds("phase_seconds", "How long the phases of attestations took that came to their end: payload, proof, store, logs, appraisal, record.", "phase"),
		logs:          s.Bytes("log_bytes", "Logs as agents sent them, compressed, by log: event or ima.", "log"),
	}
	s.Gauge("pending_verdicts", "Verdicts that wait to be written to the Kubernetes API.", func() float64 { return float64(p.pending().Pending) })
	s.Gauge("pending_oldest_seconds", "How long the oldest of them has waited.", func() float64 {
		if oldest := p.pending().Oldest; !oldest.IsZero() {
			return max(0, p.clock.Now().Wall.Sub(oldest).Seconds())
		}
		return 0
	})
	s.Gauge("audit_log_bytes", "Size of the audit log's current file.", func() float64 { return float64(p.auditSize()) })
	s.Gauge("reference_sets", "Reference sets that are valid now.", func() float64 { return float64(p.validSets()) })
	s.Gauge("clock_offset_seconds", "How far the machine's clock is ahead of the Kubernetes API's, as of its last answer; 0 while that is not known.", func() float64 { return p.clock.Now().Offset.Seconds() })
	s.Gauge("clock_step_seconds", "How far the machine's clock was set since the plugin began; positive is forwards.", func() float64 { return p.clock.Now().Step.Seconds() })
	return m
}

// stopwatch times the phases of one attestation, one after the other.
type stopwatch struct {
	metrics     *metrics
	begun, last time.Time
}

func (m *metrics) stopwatch() *stopwatch {
	now := time.Now()
	return &stopwatch{metrics: m, begun: now, last: now}
}

// lap ends a phase.
func (w *stopwatch) lap(phase string) {
	now := time.Now()
	w.metrics.phases.Observe(now.Sub(w.last).Seconds(), phase)
	w.last = now
}

func (w *stopwatch) end(result string) {
	w.metrics.attestations.Inc(result)
	w.metrics.total.Observe(time.Since(w.begun).Seconds(), result)
}

// logSizes adds up what an agent sent of each log, in bytes.
type logSizes map[evidence.LogKind]int

func (s logSizes) add(c *evidence.Chunk) { s[c.Log] += len(c.Data) }

func (s logSizes) tell(m *metrics) {
	for kind, name := range map[evidence.LogKind]string{evidence.EventLog: "event", evidence.IMALog: "ima"} {
		if n, sent := s[kind]; sent {
			m.logs.Observe(float64(n), name)
		}
	}
}

// maxWaiting is how many verdicts may wait while the API is away before the plugin is not ready.
const maxWaiting = 1000

// unready tells in words why the plugin is not ready: nothing when it is.
func (p *Plugin) unready() []string {
	p.mu.RLock()
	run := p.run
	p.mu.RUnlock()
	if run == nil {
		return []string{"no configuration is in force"}
	}
	var reasons []string
	if p.validSets() == 0 {
		reasons = append(reasons, "no reference set is valid: "+run.whyNoSet(p.clock.Now().Valid))
	}
	if err := run.audit.Writable(); err != nil {
		reasons = append(reasons, oneLine("the audit log cannot be written, so that nobody is let in: ", err))
	}
	if run.queue == nil {
		return reasons
	}
	s := run.queue.Status()
	if s.Unsaved != nil {
		reasons = append(reasons, oneLine("pending verdicts cannot be saved, so that nobody is let in: ", s.Unsaved))
	}
	waited := p.clock.Now().Wall.Sub(s.Oldest)
	if s.Failed != nil && (s.Pending > maxWaiting || waited > run.ValidFor/2) {
		reasons = append(reasons, oneLine(fmt.Sprintf("%d verdicts wait to be written, the oldest for %s: ", s.Pending, waited.Round(time.Second)), s.Failed))
	}
	return reasons
}

func oneLine(what string, err error) string {
	return what + strings.ReplaceAll(err.Error(), "\n", "; ")
}

func (r *running) whyNoSet(now time.Time) string {
	var why []string
	for _, set := range r.Policy.References {
		for _, refusal := range set.Valid(now) {
			why = append(why, refusal.Reason)
		}
	}
	return strings.Join(why, "; ")
}

func (p *Plugin) validSets() int {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.run == nil {
		return 0
	}
	n := 0
	for _, set := range p.run.Policy.References {
		if len(set.Valid(p.clock.Now().Valid)) == 0 {
			n++
		}
	}
	return n
}

// pending is how the queue of verdicts stands; empty without Kubernetes.
func (p *Plugin) pending() verdict.Status {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.run == nil || p.run.queue == nil {
		return verdict.Status{}
	}
	return p.run.queue.Status()
}

func (p *Plugin) auditSize() int64 {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.run == nil {
		return 0
	}
	return p.run.audit.Size()
}
