package cutter_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keelson-project/keelson/policy-sync/cutter"
	"github.com/keelson-project/keelson/policy-sync/flows"
)

// table is a kernel's: flows that were cut come back as long as there is no drop.
type table struct {
	mu     sync.Mutex
	flows  []flows.Entry
	drop   bool
	err    error
	sweeps []time.Duration // since the beginning
	cut    []time.Duration
	begun  time.Time
}

func (k *table) Sweep(cut func(*flows.Entry) bool) (flows.Swept, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sweeps = append(k.sweeps, time.Since(k.begun))
	if k.err != nil {
		return flows.Swept{}, k.err
	}
	out := flows.Swept{Entries: len(k.flows)}
	var left []flows.Entry
	for _, e := range k.flows {
		hit := cut(&e)
		if hit {
			out.Cut++
		}
		if !hit || !k.drop {
			left = append(left, e)
		}
	}
	k.flows = left
	if out.Cut > 0 {
		k.cut = append(k.cut, time.Since(k.begun))
	}
	return out, nil
}

func (k *table) set(f func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f()
}

// swept, cuts and left are copies of what the table holds.
func (k *table) swept() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.sweeps)
}

func (k *table) cuts() []time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.cut)
}

func (k *table) left() []flows.Entry {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.flows)
}

// output is a log that is read while it is written.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// bench is a cutter on a table, within a synctest bubble.
type bench struct {
	*testing.T
	*table
	cutter   *cutter.Cutter
	log      output
	registry *prometheus.Registry
	local    []netip.Addr
}

func run(t *testing.T, f func(b *bench)) {
	synctest.Test(t, func(t *testing.T) {
		b := &bench{T: t, table: &table{begun: time.Now()}, registry: prometheus.NewRegistry(), local: []netip.Addr{ip("127.0.0.1"), ip("192.0.2.1")}}
		metrics, err := cutter.NewMetrics(b.registry)
		if err != nil {
			t.Fatal(err)
		}
		b.cutter = cutter.New(cutter.Options{Node: "fra-1", Table: b.table, Local: func() ([]netip.Addr, error) {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.local, nil
		},
			Log: slog.New(slog.NewJSONHandler(&b.log, nil)), Metrics: metrics, Now: time.Now})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- b.cutter.Run(ctx) }()
		defer func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}()
		synctest.Wait()
		f(b)
	})
}

func (b *bench) after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (b *bench) update(w flows.World) {
	b.cutter.Update(w)
	synctest.Wait()
}

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

func world(nets ...string) flows.World {
	return flows.World{Known: true, Nets: nets, Hosts: map[netip.Addr]string{ip("10.96.0.1"): "the API server"}, Self: []netip.Addr{ip("192.0.2.1")}}
}

func flow(from, to string) flows.Entry {
	return flows.Entry{Protocol: 6, Answered: true, Original: flows.Tuple{Source: ip(from), Destination: ip(to), SourcePort: 40000, DestinationPort: 8080},
		Reply: flows.Tuple{Source: ip(to), Destination: ip(from), SourcePort: 8080, DestinationPort: 40000}}
}

func (b *bench) ask(path string) (int, string) {
	r := httptest.NewRecorder()
	b.cutter.Handler().ServeHTTP(r, httptest.NewRequest(http.MethodGet, path, nil))
	return r.Code, r.Body.String()
}

func (b *bench) wantReady(code int, words ...string) {
	b.Helper()
	got, body := b.ask("/readyz")
	if got != code {
		b.Errorf("/readyz answers %d, want %d: %s", got, code, body)
	}
	for _, w := range words {
		if !strings.Contains(body, w) {
			b.Errorf("/readyz answers %q, without %q", body, w)
		}
	}
}

// lines counts the lines of the log with this message and condition.
func (b *bench) lines(message, condition string) int {
	n := 0
	for line := range strings.Lines(b.log.String()) {
		var l struct{ Msg, Condition string }
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			b.Fatalf("%v: %q", err, line)
		}
		if l.Msg == message && l.Condition == condition {
			n++
		}
	}
	return n
}

// metric is the value of a gauge or counter with this label value ("" for one without).
func (b *bench) metric(name, label string) float64 {
	b.Helper()
	families, err := b.registry.Gather()
	if err != nil {
		b.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && (len(m.GetLabel()) == 0 && label == "" || len(m.GetLabel()) == 1 && m.GetLabel()[0].GetValue() == label) {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	b.Fatalf("no metric %s %s", name, label)
	return 0
}

func (b *bench) wantMetric(want float64, name, label string) {
	b.Helper()
	if got := b.metric(name, label); got != want {
		b.Errorf("%s{%s} is %v, want %v", name, label, got, want)
	}
}
