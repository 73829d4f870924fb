package revocations_test

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/conntrack"
	"github.com/keelson-project/keelson/policy-sync/cutter"
	"github.com/keelson-project/keelson/policy-sync/flows"
	"github.com/keelson-project/keelson/test/netlab"
)

// inside sweeps the kernel's table of a namespace.
type inside struct {
	lab *netlab.Lab
	at  chan time.Time // of each sweep that cut something, after it
}

func (i inside) Sweep(cut func(*flows.Entry) bool) (out flows.Swept, err error) {
	i.lab.In(i.lab.Node, func() { out, err = conntrack.Table{}.Sweep(cut) })
	if out.Cut > 0 {
		select {
		case i.at <- time.Now():
		default:
		}
	}
	return out, err
}

// TestThreatLiveConnectionsOutliveRevocation is row 18 of the threats on real parts: policy-sync's set is written to Calico's API,
// Felix's drop follows some time later, and a connection that was open is cut on a real kernel.
func TestThreatLiveConnectionsOutliveRevocation(t *testing.T) {
	lab := netlab.New(t)
	lab.Echo(8080)
	a := newAPI(t)
	a.node("fra-1", true, "10.77.1.1", "10.77.2.1")
	a.set(v1alpha1.RevokedSet)
	table := inside{lab, make(chan time.Time, 1)}
	c := cutter.New(cutter.Options{Node: "fra-1", Table: table, Now: time.Now, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Local: func() (out []netip.Addr, err error) {
			lab.In(lab.Node, func() { out, err = conntrack.Local() })
			return out, err
		}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	var w worlds
	a.watch(a.own(), func(n flows.World) { w.update(n); c.Update(n) })
	a.until(&w, "an empty set", func(w flows.World) bool { return w.Known && w.Problem == "" })

	mine, other := lab.Dial("tcp", "10.77.1.2", "10.77.2.2:8080"), lab.Dial("tcp", "10.77.1.3", "10.77.2.2:8080")
	lab.MustTalk(mine, "nothing is revoked yet")
	lab.MustTalk(other, "nothing is revoked yet")
	written := a.set(v1alpha1.RevokedSet, "10.77.1.2/32", "10.77.1.1/32")
	t.Logf("first cut %s after the set was written", (<-table.at).Sub(written))
	time.Sleep(60 * time.Millisecond) // Felix
	lab.Drop("10.77.1.2")
	time.Sleep(500 * time.Millisecond)
	lab.MustNot(mine, "its address is revoked, and a sweep followed the drop")
	lab.MustTalk(other, "its address is not revoked")
}
