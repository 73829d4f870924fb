package cutter_test

import (
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keelson-project/keelson/policy-sync/cutter"
	"github.com/keelson-project/keelson/policy-sync/flows"
)

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
