package cutter_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
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

// TestARevokedAddressIsCutAgainAndAgain: the first sweep is at once, later ones follow until the drop is in place and a quarter
// of its time later at most the flow is cut for good; then the table is swept slowly.
func TestARevokedAddressIsCutAgainAndAgain(t *testing.T) {
	for _, felix := range []time.Duration{10 * time.Millisecond, 60 * time.Millisecond, 500 * time.Millisecond, 3 * time.Second} {
		t.Run(felix.String(), func(t *testing.T) {
			run(t, func(b *bench) {
				b.update(world())
				b.after(time.Minute)
				if b.swept() > 0 {
					t.Fatalf("nothing is revoked, but the table was swept %d times", b.swept())
				}
				b.set(func() {
					b.flows = []flows.Entry{flow("10.1.0.2", "10.2.0.2"), flow("10.1.0.3", "10.2.0.2")}
					b.begun = time.Now()
				})
				b.update(world("10.1.0.2/32"))
				if cuts := b.cuts(); len(cuts) != 1 || cuts[0] != 0 {
					t.Fatalf("cut at %v, want at once", cuts)
				}
				b.after(felix)
				b.set(func() { b.drop = true })
				b.after(time.Minute)
				if last := b.cuts()[len(b.cuts())-1]; last < felix || last > felix+max(felix/4, 20*time.Millisecond) {
					t.Errorf("cut for good at %s, with the drop in place at %s", last, felix)
				}
				if left := b.left(); len(left) != 1 || left[0] != flow("10.1.0.3", "10.2.0.2") {
					t.Errorf("left are %v, want the flow of others", left)
				}
				if n := b.swept(); n < 25 || n > 50 {
					t.Errorf("%d sweeps in a minute", n)
				}
				b.wantReady(200, "ok")
				if b.lines("cutting open flows, but", "drop") > 0 {
					t.Errorf("the drop was in place in time, but the log says otherwise: %s", b.log.String())
				}
			})
		})
	}
}

// TestADropThatNeverComesIsSaidOnce: and taken back when it came.
func TestADropThatNeverComesIsSaidOnce(t *testing.T) {
	run(t, func(b *bench) {
		b.set(func() { b.flows = []flows.Entry{flow("10.1.0.2", "10.2.0.2")} })
		b.update(world("10.1.0.2/32"))
		b.after(flows.FastPhase - time.Second)
		if n := b.lines("cutting open flows, but", "drop"); n != 0 {
			t.Errorf("Felix was given %s, but was blamed before", flows.FastPhase)
		}
		b.after(time.Minute)
		if n := b.lines("cutting open flows, but", "drop"); n != 1 {
			t.Errorf("said %d times, want once: %s", n, b.log.String())
		}
		b.wantReady(200, "ok", "warning: drop: ", "10.1.0.2:40000 to 10.2.0.2:8080", "not enrolled")
		b.wantMetric(1, "keelson_node_flows_still_there", "")
		b.wantMetric(1, "keelson_node_condition", "drop")
		sweeps := len(b.cuts())
		b.after(time.Minute)
		if len(b.cuts()) < sweeps+10 {
			t.Errorf("sweeping did not go on: %d and %d", sweeps, len(b.cuts()))
		}
		b.set(func() { b.drop = true })
		b.after(time.Minute)
		b.wantReady(200, "ok\n")
		if n := b.lines("condition is over", "drop"); n != 1 {
			t.Errorf("taken back %d times, want once: %s", n, b.log.String())
		}
	})
}

// TestProbesAreNoReasonToBlameFelix: flows that come back and are to be expected are cut, and not reported.
func TestProbesAreNoReasonToBlameFelix(t *testing.T) {
	run(t, func(b *bench) {
		b.set(func() { b.flows = []flows.Entry{flow("192.0.2.1", "10.1.0.2")} })
		b.update(world("10.1.0.2/32"))
		b.after(time.Minute)
		if len(b.cuts()) == 0 || b.lines("cutting open flows, but", "drop") > 0 {
			t.Errorf("cut %d times; log: %s", len(b.cuts()), b.log.String())
		}
	})
}

func TestHostsAreRefused(t *testing.T) {
	run(t, func(b *bench) {
		b.set(func() {
			b.drop = true
			b.flows = []flows.Entry{flow("192.0.2.1", "10.96.0.1"), flow("10.1.0.2", "10.96.0.1")}
		})
		b.update(world("192.0.2.1/32", "10.96.0.1/32", "0.0.0.0/0", "127.0.0.1/32", "10.1.0.2/32"))
		b.after(time.Minute)
		if left := b.left(); len(left) != 1 || left[0] != flow("192.0.2.1", "10.96.0.1") {
			t.Errorf("left are %v, want the node's own flow with the API server", left)
		}
		const refused = "an entry of the set of revoked addresses is refused: flows of it are not cut"
		if n := b.lines(refused, ""); n != 4 {
			t.Errorf("%d lines about refusals, want 4: %s", n, b.log.String())
		}
		for reason, want := range map[string]float64{flows.Host: 2, flows.Limit: 0, flows.Range: 1, flows.Reserved: 1, flows.Unreadable: 0} {
			b.wantMetric(want, "keelson_node_refused_addresses", reason)
		}
		b.wantMetric(1, "keelson_node_revoked_addresses", "")
		b.wantMetric(1, "keelson_node_flows_cut_total", "from")
		b.wantMetric(0, "keelson_node_flows_cut_total", "to")
		b.wantMetric(0, "keelson_node_sweeps_total", "error")
		// A node takes the pod's address for its own: from now on it is a host's. What was said is not said again.
		w := world("192.0.2.1/32", "10.96.0.1/32", "0.0.0.0/0", "127.0.0.1/32", "10.1.0.2/32")
		w.Hosts[ip("10.1.0.2")] = "node fra-2"
		b.update(w)
		sweeps := b.swept()
		b.after(time.Minute)
		if b.swept() != sweeps {
			t.Error("nothing is left to cut, but the table is swept")
		}
		if n := b.lines(refused, ""); n != 5 {
			t.Errorf("%d lines about refusals, want 5: %s", n, b.log.String())
		}
	})
}

// TestThreatTheAPIDies is row 25 of the threats: what was known is acted on; without it the node says that it knows nothing.
func TestThreatTheAPIDies(t *testing.T) {
	run(t, func(b *bench) {
		b.wantReady(503, "not ready", "api: the Kubernetes API has not answered yet")
		b.update(flows.World{Problem: "connection refused"})
		b.after(time.Minute)
		b.wantReady(503, "api: connection refused")
		b.update(world("10.1.0.2/32"))
		b.wantReady(200)
		away := world("10.1.0.2/32")
		away.Problem = "connection refused"
		b.set(func() { b.flows = []flows.Entry{flow("10.1.0.2", "10.2.0.2")} })
		b.update(away)
		b.after(time.Hour)
		b.wantReady(200, "warning: api: connection refused")
		if last := b.cuts()[len(b.cuts())-1]; last < time.Hour {
			t.Errorf("cut for the last time after %s", last)
		}
		b.update(flows.World{Problem: "even that"})
		b.after(time.Minute)
		if last := b.cuts()[len(b.cuts())-1]; last < time.Hour+50*time.Second {
			t.Errorf("a world that knows nothing ended the cutting after %s", last)
		}
	})
}

func TestANodeThatCannotCutSaysSo(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*bench, *flows.World)
		want   string
	}{
		"the eBPF data plane": {func(_ *bench, w *flows.World) { w.EBPF = true }, "dataplane: Felix runs its eBPF data plane, which keeps its own table of connections: unsupported, open flows are not cut"},
		"another namespace":   {func(b *bench, _ *flows.World) { b.local = []netip.Addr{ip("10.1.0.9")} }, "namespace: this network namespace has none of the addresses of node fra-1"},
		"the kernel":          {func(b *bench, _ *flows.World) { b.err = errors.New("conntrack: dump: not permitted") }, "kernel: conntrack: dump: not permitted"},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(b *bench) {
				b.update(world("10.1.0.9/32"))
				b.wantReady(200)
				w := world("10.1.0.2/32")
				b.set(func() { c.change(b, &w) })
				b.update(w)
				b.after(time.Minute)
				b.wantReady(503, "not ready", c.want)
				if n := b.lines("not cutting open flows", strings.Split(c.want, ":")[0]); n != 1 {
					t.Errorf("said %d times, want once: %s", n, b.log.String())
				}
				b.set(func() { b.err, b.local = nil, []netip.Addr{ip("192.0.2.1")} })
				b.update(world("10.1.0.2/32"))
				b.after(time.Minute)
				b.wantReady(200, "ok\n")
			})
		})
	}
}

// TestAChangeOfNothingThatIsCutSweepsNothing: every node of a large cluster reports now and then.
func TestAChangeOfNothingThatIsCutSweepsNothing(t *testing.T) {
	run(t, func(b *bench) {
		b.update(world("10.1.0.2/32"))
		b.after(time.Minute)
		sweeps := b.swept()
		for i := range 100 {
			w := world("10.1.0.2/32")
			w.Hosts[netip.AddrFrom4([4]byte{192, 0, 2, byte(100 + i)})] = "another node"
			b.update(w)
		}
		if b.swept() != sweeps {
			t.Errorf("%d sweeps for changes of Nodes", b.swept()-sweeps)
		}
		b.after(flows.SlowPeriod)
		if b.swept() != sweeps+1 {
			t.Errorf("%d sweeps in a slow period after them", b.swept()-sweeps)
		}
	})
}

func TestHealthIsALoopThatTurns(t *testing.T) {
	run(t, func(b *bench) {
		b.after(time.Hour)
		if code, body := b.ask("/healthz"); code != 200 {
			t.Errorf("%d %s", code, body)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		b := &bench{T: t, cutter: cutter.New(cutter.Options{Log: slog.New(slog.DiscardHandler), Now: time.Now})} // never run
		time.Sleep(2 * time.Minute)
		if code, body := b.ask("/healthz"); code != 503 || !strings.Contains(body, "no sign of life for 2m0s") {
			t.Errorf("%d %s", code, body)
		}
	})
}
