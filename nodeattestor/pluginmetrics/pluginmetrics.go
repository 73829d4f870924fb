// Package pluginmetrics counts what a SPIRE plugin does. Each number has two readers: SPIRE's own telemetry, which
// gets it through the host service that SPIRE offers its plugins (spire.hostservice.common.metrics.v1), and an HTTP
// listener of the plugin's own, which is off unless configured and also tells whether the plugin is ready.
//
// Counting never waits: what SPIRE does not take in time is lost to SPIRE, and counted as lost.
package pluginmetrics

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spiffe/spire-plugin-sdk/pluginsdk"
	metricsv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/hostservice/common/metrics/v1"
	"google.golang.org/protobuf/types/known/emptypb"
)

// Set is the numbers of one plugin. Its methods, and those of what it makes, may be called at once.
type Set struct {
	plugin   string
	ready    func() []string
	registry *prometheus.Registry
	lost     prometheus.Counter
	host     atomic.Pointer[host]
	done     chan struct{}
	workers  sync.WaitGroup

	mu     sync.Mutex
	gauges []gauge
	door   *Door // the listener in force; nil when there is none
	closed bool
}

type gauge struct {
	name string
	read func() float64
}

const (
	// maxSeries bounds the label values of one metric. They come from the program's own vocabulary; the bound holds
	// should that ever not be so.
	maxSeries = 256
	backlog   = 4096             // numbers that wait for SPIRE
	hostTime  = 2 * time.Second  // for SPIRE to take one
	gaugePace = 10 * time.Second // between two looks at the gauges
)

// New makes the numbers of a plugin, whose name (lower case, underscores) begins the name of each. ready tells
// why the plugin is not ready, in words, nothing when it is; it may look at files.
func New(plugin string, ready func() []string) *Set {
	s := &Set{plugin: plugin, ready: ready, registry: prometheus.NewRegistry(), done: make(chan struct{})}
	s.lost = prometheus.NewCounter(prometheus.CounterOpts{Name: s.full("telemetry_lost_total"),
		Help: "Numbers that SPIRE's telemetry did not take in time."})
	s.registry.MustRegister(s.lost, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	s.Gauge("ready", "1 when the plugin is ready, as its listener's /readyz says, else 0.", func() float64 {
		if len(s.ready()) > 0 {
			return 0
		}
		return 1
	})
	return s
}

func (s *Set) full(name string) string { return s.plugin + "_" + name }

// host is SPIRE's telemetry.
type host struct {
	client metricsv1.MetricsServiceClient
	queue  chan call
}

type call func(context.Context, metricsv1.MetricsClient) (*emptypb.Empty, error)

// Host connects to SPIRE's telemetry; to be called when SPIRE offers its host services. A SPIRE that has none is
// fine.
func (s *Set) Host(broker pluginsdk.ServiceBroker) {
	h := &host{queue: make(chan call, backlog)}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || !broker.BrokerClient(&h.client) || !s.host.CompareAndSwap(nil, h) {
		return
	}
	s.workers.Go(func() { s.work(h) })
	s.workers.Go(s.watchGauges)
}

func (s *Set) work(h *host) {
	for {
		select {
		case <-s.done:
			return
		case c := <-h.queue:
			ctx, cancel := context.WithTimeout(context.Background(), hostTime)
			if _, err := c(ctx, h.client.MetricsClient); err != nil {
				s.lost.Inc()
			}
			cancel()
		}
	}
}

func (s *Set) tell(c call) {
	h := s.host.Load()
	if h == nil {
		return
	}
	select {
	case h.queue <- c:
	default:
		s.lost.Inc()
	}
}

func (s *Set) watchGauges() {
	tick := time.NewTicker(gaugePace)
	defer tick.Stop()
	for {
		s.tellGauges()
		select {
		case <-s.done:
			return
		case <-tick.C:
		}
	}
}

func (s *Set) tellGauges() {
	s.mu.Lock()
	gauges := s.gauges
	s.mu.Unlock()
	for _, g := range gauges {
		key, value := s.key(g.name), float32(g.read())
		s.tell(func(ctx context.Context, c metricsv1.MetricsClient) (*emptypb.Empty, error) {
			return c.SetGauge(ctx, &metricsv1.SetGaugeRequest{Key: key, Val: value})
		})
	}
}

// key is a name in SPIRE's form; SPIRE puts its own name before it.
func (s *Set) key(name string) []string { return []string{s.plugin, name} }

// Close ends the listener and what goes to SPIRE.
func (s *Set) Close() error {
	s.mu.Lock()
	door, closed := s.door, s.closed
	s.door, s.closed = nil, true
	s.mu.Unlock()
	if closed {
		return nil
	}
	close(s.done)
	s.workers.Wait()
	return door.end()
}

// series bounds the label values of one metric.
type series struct {
	labels []string
	mu     sync.Mutex
	seen   map[string]bool
}

// within is the values themselves, or "other" for each once there are too many.
func (s *series) within(values []string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := strings.Join(values, "\x00")
	if s.seen[id] || len(s.seen) < maxSeries {
		s.seen[id] = true
		return values
	}
	other := make([]string, len(values))
	for i := range other {
		other[i] = "other"
	}
	return other
}

func (s *series) forSPIRE(values []string) []*metricsv1.Label {
	out := make([]*metricsv1.Label, len(values))
	for i, v := range values {
		out[i] = &metricsv1.Label{Name: s.labels[i], Value: v}
	}
	return out
}

func newSeries(labels []string) *series { return &series{labels: labels, seen: map[string]bool{}} }

// Counter counts events.
type Counter struct {
	set    *Set
	key    []string
	series *series
	own    *prometheus.CounterVec
}

// Counter makes a counter. The listener adds _total to its name, as Prometheus wants it.
func (s *Set) Counter(name, help string, labels ...string) *Counter {
	c := &Counter{set: s, key: s.key(name), series: newSeries(labels),
		own: prometheus.NewCounterVec(prometheus.CounterOpts{Name: s.full(name) + "_total", Help: help}, labels)}
	s.registry.MustRegister(c.own)
	return c
}

// Inc counts one event; there is a value for each label.
func (c *Counter) Inc(values ...string) {
	values = c.series.within(values)
	c.own.WithLabelValues(values...).Inc()
	labels := c.series.forSPIRE(values)
	c.set.tell(func(ctx context.Context, m metricsv1.MetricsClient) (*emptypb.Empty, error) {
		return m.IncrCounter(ctx, &metricsv1.IncrCounterRequest{Key: c.key, Val: 1, Labels: labels})
	})
}

// Distribution is values of which the spread matters.
type Distribution struct {
	set    *Set
	key    []string
	series *series
	own    *prometheus.HistogramVec
}

// Seconds makes a distribution of durations, from a millisecond to two minutes. Its name ends in _seconds.
func (s *Set) Seconds(name, help string, labels ...string) *Distribution {
	return s.distribution(name, help, prometheus.ExponentialBuckets(0.001, 2, 18), labels)
}

// Bytes makes a distribution of sizes, from a KiB to 256 MiB. Its name ends in _bytes.
func (s *Set) Bytes(name, help string, labels ...string) *Distribution {
	return s.distribution(name, help, prometheus.ExponentialBuckets(1<<10, 4, 10), labels)
}

func (s *Set) distribution(name, help string, buckets []float64, labels []string) *Distribution {
	d := &Distribution{set: s, key: s.key(name), series: newSeries(labels),
		own: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: s.full(name), Help: help, Buckets: buckets}, labels)}
	s.registry.MustRegister(d.own)
	return d
}

// Observe adds a value, in seconds or bytes; there is a value for each label.
func (d *Distribution) Observe(value float64, values ...string) {
	values = d.series.within(values)
	d.own.WithLabelValues(values...).Observe(value)
	labels := d.series.forSPIRE(values)
	d.set.tell(func(ctx context.Context, m metricsv1.MetricsClient) (*emptypb.Empty, error) {
		return m.AddSample(ctx, &metricsv1.AddSampleRequest{Key: d.key, Val: float32(value), Labels: labels})
	})
}

// Gauge makes a value that is read when somebody looks, and every 10 s for SPIRE.
func (s *Set) Gauge(name, help string, read func() float64) {
	s.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: s.full(name), Help: help}, read))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gauges = append(s.gauges, gauge{name, read})
}

// Names lists every number as the listener shows it, for those who document them.
func (s *Set) Names() []string {
	descriptions := make(chan *prometheus.Desc)
	go func() { s.registry.Describe(descriptions); close(descriptions) }()
	var names []string
	for d := range descriptions {
		_, rest, _ := strings.Cut(d.String(), `fqName: "`)
		if name, _, ok := strings.Cut(rest, `"`); ok && strings.HasPrefix(name, s.plugin+"_") {
			names = append(names, name)
		}
	}
	return names
}
