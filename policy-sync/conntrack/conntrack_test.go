package conntrack_test

import (
	"encoding/binary"
	"hash/crc32"
	"net"
	"strings"
	"testing"

	"github.com/keelson-project/keelson/policy-sync/conntrack"
	"github.com/keelson-project/keelson/policy-sync/flows"
	"github.com/keelson-project/keelson/test/netlab"
)

// lab is a network on the real kernel.
type lab struct{ *netlab.Lab }

func newLab(t testing.TB) lab {
	t.Helper()
	return lab{netlab.New(t)}
}

func (w lab) must(err error) {
	w.T.Helper()
	if err != nil {
		w.T.Fatal(err)
	}
}

// sweep cuts the flows of addresses in the node's namespace.
func (w lab) sweep(nets ...string) flows.Swept {
	w.T.Helper()
	targets, refused := flows.Judge(nets, nil)
	if len(refused) > 0 {
		w.T.Fatal(refused)
	}
	var out flows.Swept
	w.In(w.Node, func() {
		var err error
		out, err = conntrack.Table{}.Sweep(targets.Match)
		w.must(err)
	})
	return out
}

// TestThreatOpenFlowsOutliveAClosedPolicy is row 18 of the threats, as far as it is the kernel's: a flow that was open goes on
// after a drop is in place, and ends with its entry; one between others goes on.
func TestThreatOpenFlowsOutliveAClosedPolicy(t *testing.T) {
	w := newLab(t)
	w.Echo(8080)
	w.Rule("iptables", "-t", "nat", "-A", "PREROUTING", "-d", "10.96.0.10", "-p", "tcp", "--dport", "80", "-j", "DNAT", "--to", "10.77.2.2:8080")
	w.Rule("iptables", "-t", "nat", "-A", "PREROUTING", "-d", "10.96.0.10", "-p", "udp", "--dport", "80", "-j", "DNAT", "--to", "10.77.2.2:8080")
	w.Rule("iptables", "-t", "nat", "-A", "POSTROUTING", "-s", "10.77.1.3", "-d", "10.77.2.3", "-j", "MASQUERADE")
	for name, c := range map[string]struct{ network, from, to, revoked string }{
		"the client's address is revoked":                              {"tcp", "10.77.1.2", "10.77.2.2:8080", "10.77.1.2/32"},
		"the server's address is revoked":                              {"tcp", "10.77.1.2", "10.77.2.3:8080", "10.77.2.3/32"},
		"the server is reached through a Service's address":            {"tcp", "10.77.1.2", "10.96.0.10:80", "10.77.2.2/32"},
		"the client's address is revoked and masqueraded":              {"tcp", "10.77.1.3", "10.77.2.3:8080", "10.77.1.3/32"},
		"over IPv6, the client's address is revoked":                   {"tcp", "fd77:1::2", "[fd77:2::2]:8080", "fd77:1::2/128"},
		"over IPv6, the server's address is revoked":                   {"tcp", "fd77:1::2", "[fd77:2::3]:8080", "fd77:2::3/128"},
		"datagrams, the client's address is revoked":                   {"udp", "10.77.1.2", "10.77.2.2:8080", "10.77.1.2/32"},
		"datagrams, the server is reached through a Service's address": {"udp", "10.77.1.2", "10.96.0.10:80", "10.77.2.2/32"},
	} {
		t.Run(name, func(t *testing.T) {
			w.T = t
			mine, other := w.Dial(c.network, c.from, c.to), w.Dial("tcp", "10.77.1.3", "10.77.2.2:8080")
			if c.from == "10.77.1.3" || strings.HasPrefix(c.revoked, "10.77.2.2") {
				other = w.Dial("tcp", "10.77.1.2", "10.77.2.3:8080")
			}
			w.MustTalk(mine, "nothing is revoked yet")
			w.MustTalk(other, "nothing is revoked yet")
			address := strings.Split(c.revoked, "/")[0]
			w.Drop(address)
			defer w.Undrop(address)
			w.MustTalk(mine, "Felix's first rule accepts what is established; if this fails the test shows nothing")
			got := w.sweep(c.revoked)
			if got.Cut == 0 || got.Failed > 0 {
				t.Fatalf("swept %+v of\n%s", got, w.Entries())
			}
			w.MustNot(mine, "its entry is deleted")
			w.MustTalk(other, "it has no revoked address")
			if again := w.sweep(c.revoked); again.Cut > 0 {
				t.Errorf("the drop is in place, but a second sweep found %+v", again)
			}
		})
	}
}

// TestAFlowIsOpenAgainUntilTheDropIsInPlace: the reason to sweep again and again.
func TestAFlowIsOpenAgainUntilTheDropIsInPlace(t *testing.T) {
	w := newLab(t)
	w.Echo(8080)
	c := w.Dial("tcp", "10.77.1.2", "10.77.2.2:8080")
	w.MustTalk(c, "nothing is revoked yet")
	for range 2 {
		if got := w.sweep("10.77.1.2/32"); got.Cut != 1 {
			t.Fatalf("swept %+v, want one cut", got)
		}
		w.MustTalk(c, "no drop is in place: its next packet makes a new entry")
	}
	w.Drop("10.77.1.2")
	w.MustTalk(c, "it is established again")
	w.sweep("10.77.1.2/32")
	w.MustNot(c, "the drop is in place and the entry is gone")
}

// TestEveryProtocolIsCut: entries of protocols with and without ports, made by real packets.
func TestEveryProtocolIsCut(t *testing.T) {
	w := newLab(t)
	w.Echo(8080)
	for _, from := range []string{"10.77.1.2", "10.77.1.3"} {
		w.MustTalk(w.Dial("tcp", from, "10.77.2.2:8080"), "nothing is revoked")
		w.MustTalk(w.Dial("udp", from, "10.77.2.2:8080"), "nothing is revoked")
		for protocol, payload := range map[string][]byte{"icmp": echoRequest(), "sctp": sctpInit(), "47": make([]byte, 64), "50": make([]byte, 64)} {
			w.send(protocol, from, "10.77.2.2", payload)
		}
	}
	before := w.Entries()
	got := w.sweep("10.77.1.2")
	if got.Cut != 6 || got.Entries != 12 {
		t.Errorf("swept %+v, want 6 of 12 entries cut of\n%s", got, before)
	}
	if again := w.sweep("10.77.1.2"); again.Cut != 0 || again.Entries != 6 {
		t.Errorf("second sweep %+v, want the others' 6 left alone of\n%s", again, before)
	}
}

// send sends one packet of a protocol from the client's namespace.
func (w lab) send(protocol, from, to string, payload []byte) {
	w.T.Helper()
	w.In(w.Client, func() {
		c, err := net.DialIP("ip4:"+protocol, &net.IPAddr{IP: net.ParseIP(from)}, &net.IPAddr{IP: net.ParseIP(to)})
		w.must(err)
		defer c.Close()
		_, err = c.Write(payload)
		w.must(err)
	})
}

// echoRequest is a ping (RFC 792).
func echoRequest() []byte {
	b := []byte{8, 0, 0, 0, 0x12, 0x34, 0, 1}
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	binary.BigEndian.PutUint16(b[2:], ^uint16(sum+sum>>16))
	return b
}

// sctpInit is the first packet of an association (RFC 9260), without which the kernel tracks none.
func sctpInit() []byte {
	b := binary.BigEndian.AppendUint16(nil, 40000)
	b = binary.BigEndian.AppendUint16(b, 8080)
	b = append(b, make([]byte, 8)...)                  // verification tag 0, checksum
	b = append(b, 1, 0, 0, 20, 0, 0, 0, 7, 0, 1, 0, 0) // INIT, its length, initiate tag, window
	b = append(b, 0, 1, 0, 1, 0, 0, 0, 1)              // streams, first TSN
	sum := crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
	binary.LittleEndian.PutUint32(b[8:], sum)
	return b
}

func TestLocalAreTheNamespacesOwnAddresses(t *testing.T) {
	w := newLab(t)
	w.In(w.Client, func() {
		got, err := conntrack.Local()
		w.must(err)
		var texts []string
		for _, a := range got {
			texts = append(texts, a.String())
		}
		for _, want := range []string{"127.0.0.1", "10.77.1.2", "10.77.1.3", "fd77:1::3"} {
			if !strings.Contains(strings.Join(texts, " ")+" ", want+" ") {
				t.Errorf("own addresses are %v, without %s", texts, want)
			}
		}
	})
	_ = net.IP{}
}
