package syncer

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/plan"
)

// Metrics are policy-sync's own metrics. A nil *Metrics counts nothing.
type Metrics struct {
	passes      *prometheus.CounterVec
	duration    prometheus.Histogram
	lastSuccess prometheus.Gauge
	verdicts    *prometheus.GaugeVec
	operations  *prometheus.CounterVec
	applied     prometheus.Histogram
}

// NewMetrics makes the metrics and registers them.
func NewMetrics(r prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{
		passes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "keelson_policy_sync_passes_total",
			Help: "Passes of the loop, by result: ok, stale (planned again at once) or error."}, []string{"result"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "keelson_policy_sync_pass_duration_seconds",
			Help: "How long a pass took.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 15)}),
		lastSuccess: prometheus.NewGauge(prometheus.GaugeOpts{Name: "keelson_policy_sync_last_success_timestamp_seconds",
			Help: "When the last pass succeeded, Unix time."}),
		verdicts: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "keelson_policy_sync_nodes",
			Help: "Nodes by verdict: trusted, untrusted, stale, unknown."}, []string{"verdict"}),
		operations: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "keelson_policy_sync_operations_total",
			Help: "Operations by phase, action and result (ok, error)."}, []string{"phase", "action", "result"}),
		applied: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "keelson_policy_sync_verdict_to_applied_seconds",
			Help: "Time from a verdict's evidence to the change of its node's label and taint.", Buckets: prometheus.ExponentialBuckets(0.005, 2, 16)}),
	}
	for _, c := range []prometheus.Collector{m.passes, m.duration, m.lastSuccess, m.verdicts, m.operations, m.applied} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *Metrics) pass(end time.Time, took time.Duration, err error) {
	if m == nil {
		return
	}
	m.duration.Observe(took.Seconds())
	switch {
	case err == nil:
		m.passes.WithLabelValues("ok").Inc()
		m.lastSuccess.Set(float64(end.UnixMilli()) / 1000)
	case IsStale(err):
		m.passes.WithLabelValues("stale").Inc()
	default:
		m.passes.WithLabelValues("error").Inc()
	}
}

func (m *Metrics) nodes(counts map[v1alpha1.Verdict]int) {
	if m == nil {
		return
	}
	for _, v := range []v1alpha1.Verdict{v1alpha1.VerdictTrusted, v1alpha1.VerdictUntrusted, v1alpha1.VerdictStale, v1alpha1.VerdictUnknown} {
		m.verdicts.WithLabelValues(string(v)).Set(float64(counts[v]))
	}
}

func (m *Metrics) operation(o plan.Operation, err error) {
	if m == nil {
		return
	}
	result := "ok"
	if err != nil {
		result = "error"
	}
	m.operations.WithLabelValues(o.Phase.String(), string(o.Action), result).Inc()
}

func (m *Metrics) verdict(took time.Duration) {
	if m != nil {
		m.applied.Observe(took.Seconds())
	}
}
