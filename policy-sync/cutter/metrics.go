package cutter

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keelson-project/keelson/policy-sync/flows"
)

// Metrics are keelson-node's own metrics. A nil *Metrics counts nothing.
type Metrics struct {
	cut        *prometheus.CounterVec
	sweeps     *prometheus.CounterVec
	duration   prometheus.Histogram
	entries    prometheus.Gauge
	addresses  prometheus.Gauge
	refusals   *prometheus.GaugeVec
	standing   prometheus.Gauge
	conditions *prometheus.GaugeVec
}

// NewMetrics makes the metrics and registers them.
func NewMetrics(r prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{
		cut: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "keelson_node_flows_cut_total",
			Help: "Conntrack entries deleted, by direction: from (a revoked address opened the flow) or to. A flow that is opened again counts again."}, []string{"direction"}),
		sweeps: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "keelson_node_sweeps_total",
			Help: "Sweeps of the conntrack table, by result: ok or error."}, []string{"result"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "keelson_node_sweep_duration_seconds",
			Help: "How long a sweep took.", Buckets: prometheus.ExponentialBuckets(0.0005, 2, 15)}),
		entries: prometheus.NewGauge(prometheus.GaugeOpts{Name: "keelson_node_conntrack_entries",
			Help: "Entries of the conntrack table at the last sweep."}),
		addresses: prometheus.NewGauge(prometheus.GaugeOpts{Name: "keelson_node_revoked_addresses",
			Help: "Revoked addresses whose flows are cut."}),
		refusals: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "keelson_node_refused_addresses",
			Help: "Entries of the set of revoked addresses that are not acted on, by reason."}, []string{"reason"}),
		standing: prometheus.NewGauge(prometheus.GaugeOpts{Name: "keelson_node_flows_still_there",
			Help: "Answered flows of revoked addresses that the last sweep found long after the change: Felix has not programmed the drop, or their other end is in a namespace that is not enrolled."}),
		conditions: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "keelson_node_condition",
			Help: "1 while something is wrong: api, kernel, namespace, dataplane or drop. The log and /readyz say what."}, []string{"condition"}),
	}
	for _, c := range []prometheus.Collector{m.cut, m.sweeps, m.duration, m.entries, m.addresses, m.refusals, m.standing, m.conditions} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	// What has not happened yet is 0, not absent.
	for _, direction := range []string{"from", "to"} {
		m.cut.WithLabelValues(direction)
	}
	for _, result := range []string{"ok", "error"} {
		m.sweeps.WithLabelValues(result)
	}
	for _, name := range conditions() {
		m.conditions.WithLabelValues(name)
	}
	m.refused(nil)
	return m, nil
}

func (m *Metrics) sweep(s flows.Swept, opened int, took time.Duration, err error) {
	if m == nil {
		return
	}
	// Entries that were gone before they were deleted are in opened and not in s.Cut.
	m.cut.WithLabelValues("from").Add(float64(min(opened, s.Cut)))
	m.cut.WithLabelValues("to").Add(float64(max(s.Cut-opened, 0)))
	m.duration.Observe(took.Seconds())
	m.entries.Set(float64(s.Entries))
	result := "ok"
	if err != nil {
		result = "error"
	}
	m.sweeps.WithLabelValues(result).Inc()
}

func (m *Metrics) revoked(n int) {
	if m != nil {
		m.addresses.Set(float64(n))
	}
}

func (m *Metrics) refused(refused []flows.Refusal) {
	if m == nil {
		return
	}
	count := map[string]int{}
	for _, r := range refused {
		count[r.Reason]++
	}
	for _, reason := range flows.Reasons() {
		m.refusals.WithLabelValues(reason).Set(float64(count[reason]))
	}
}

func (m *Metrics) stand(n int) {
	if m != nil {
		m.standing.Set(float64(n))
	}
}

func (m *Metrics) condition(name string, on bool) {
	if m == nil {
		return
	}
	value := 0.0
	if on {
		value = 1
	}
	m.conditions.WithLabelValues(name).Set(value)
}
