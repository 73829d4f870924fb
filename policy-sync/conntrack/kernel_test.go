package conntrack_test

import (
	"encoding/binary"
	"net"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/keelson-project/keelson/policy-sync/conntrack"
	"github.com/keelson-project/keelson/policy-sync/flows"
)

// TestOneCapabilityIsEnough: CAP_NET_ADMIN alone sweeps; without it the error says so.
func TestOneCapabilityIsEnough(t *testing.T) {
	w := newLab(t)
	for name, c := range map[string]struct {
		capabilities uint32
		want         string
	}{
		"with CAP_NET_ADMIN alone": {1 << unix.CAP_NET_ADMIN, ""},
		"with every other":         {^uint32(1 << unix.CAP_NET_ADMIN), "CAP_NET_ADMIN"},
	} {
		t.Run(name, func(t *testing.T) {
			type result struct{ check, sweep error }
			done := make(chan result)
			go func() {
				runtime.LockOSThread() // never unlocked: the thread, which has lost its rights, ends with the goroutine
				var r result
				w.In(w.Node, func() {
					header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
					data := [2]unix.CapUserData{}
					w.must(unix.Capget(&header, &data[0]))
					data[0].Effective &= c.capabilities
					kept := data
					w.must(unix.Capset(&header, &data[0]))
					r.check = conntrack.Table{}.Check()
					_, r.sweep = conntrack.Table{}.Sweep(func(*flows.Entry) bool { return true })
					kept[0].Effective = kept[0].Permitted // back to the home namespace
					w.must(unix.Capset(&header, &kept[0]))
				})
				done <- r
			}()
			got := <-done
			for _, err := range []error{got.check, got.sweep} {
				if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %v, want %q", err, c.want)
				}
			}
		})
	}
}

// makeEntry makes an entry of a flow that is established.
func makeEntry(tb testing.TB, from, to string, port uint16) {
	tb.Helper()
	f := &netlink.ConntrackFlow{FamilyType: unix.AF_INET, TimeOut: 3600, ProtoInfo: &netlink.ProtoInfoTCP{State: 3},
		Forward: netlink.IPTuple{SrcIP: net.ParseIP(from).To4(), DstIP: net.ParseIP(to).To4(), SrcPort: port, DstPort: 80, Protocol: unix.IPPROTO_TCP},
		Reverse: netlink.IPTuple{SrcIP: net.ParseIP(to).To4(), DstIP: net.ParseIP(from).To4(), SrcPort: 80, DstPort: port, Protocol: unix.IPPROTO_TCP}}
	if err := netlink.ConntrackCreate(netlink.ConntrackTable, unix.AF_INET, f); err != nil {
		tb.Fatal(err)
	}
}

// theirs is this package's question for the library's own filters.
type theirs struct{ addresses map[string]bool }

// MatchConntrackFlow compares the four addresses.
func (f theirs) MatchConntrackFlow(c *netlink.ConntrackFlow) bool {
	return f.addresses[string(c.Forward.SrcIP)] || f.addresses[string(c.Forward.DstIP)] || f.addresses[string(c.Reverse.SrcIP)] || f.addresses[string(c.Reverse.DstIP)]
}

// BenchmarkSweep sweeps a table of 20,000 entries: without a hit, with 1,000, and without a hit by the library's own function.
func BenchmarkSweep(b *testing.B) {
	const entries, revoked = 20_000, 1_000
	w := newLab(b)
	ip := func(i int) string {
		return net.IP(binary.BigEndian.AppendUint32(nil, 10<<24|1<<16|uint32(i))).String()
	}
	nets := make([]string, revoked)
	for i := range nets {
		nets[i] = net.IP(binary.BigEndian.AppendUint32(nil, 10<<24|9<<16|uint32(i))).String()
	}
	w.In(w.Node, func() {
		for i := range entries {
			makeEntry(b, ip(i), "10.2.0.1", uint16(1024+i))
		}
	})
	targets, _ := flows.Judge(nets, nil)
	addresses := map[string]bool{}
	for _, n := range nets {
		addresses[string(net.ParseIP(n).To4())] = true
	}
	run := func(name string, each func(b *testing.B)) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			w.In(w.Node, func() {
				for b.Loop() {
					each(b)
				}
			})
		})
	}
	sweep := func(b *testing.B, cut int) {
		got, err := conntrack.Table{}.Sweep(targets.Match)
		if err != nil || got.Cut != cut || got.Entries < entries {
			b.Fatalf("%+v, %v", got, err)
		}
	}
	run("nothing to cut", func(b *testing.B) { sweep(b, 0) })
	run("1000 to cut", func(b *testing.B) {
		b.StopTimer()
		for i, a := range nets {
			makeEntry(b, a, "10.2.0.1", uint16(1024+i))
		}
		b.StartTimer()
		sweep(b, revoked)
	})
	run("nothing to cut, ConntrackDeleteFilters", func(b *testing.B) {
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, theirs{addresses}); err != nil {
			b.Fatal(err)
		}
	})
}
