package conntrack_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/keelson-project/keelson/test/parts"
)

// world is three network namespaces: clients and a server, and between them a node that forwards, with the rule that Felix puts
// first: packets of established connections pass.
//
//	client 10.77.1.2, .3, fd77:1::2, ::3 ── node ── 10.77.2.2, .3, fd77:2::2, ::3 server
type world struct {
	t                    testing.TB
	client, node, server netns.NsHandle
	iptables             string
}

func newWorld(t testing.TB) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make network namespaces")
	}
	paths, err := parts.EnsureSystem(t.Context(), t.Output(), "iptables")
	if err != nil {
		t.Skip(err)
	}
	w := &world{t: t, iptables: paths["iptables"]}
	w.client, w.node, w.server = w.namespace(), w.namespace(), w.namespace()
	w.join(w.client, 1)
	w.join(w.server, 2)
	w.in(w.node, func() {
		for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
			w.must(os.WriteFile("/proc/sys/"+key, []byte("1"), 0o644))
		}
		// Namespaces that are no container's start with what the machine has set; Linux' own default is 1.
		w.must(os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_tcp_loose", []byte("1"), 0o644))
	})
	for _, family := range []string{"iptables", "ip6tables"} {
		w.rule(family, "-A", "FORWARD", "-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT")
	}
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) namespace() netns.NsHandle {
	var ns netns.NsHandle
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, in its new namespace
		var err error
		ns, err = netns.New()
		done <- err
	}()
	w.must(<-done)
	w.t.Cleanup(func() { _ = ns.Close() })
	w.in(ns, func() {
		lo, err := netlink.LinkByName("lo")
		w.must(err)
		w.must(netlink.LinkSetUp(lo))
	})
	return ns
}

// in runs f in a namespace and ends the test if f ends it.
func (w *world) in(ns netns.NsHandle, f func()) {
	w.t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	w.must(err)
	defer home.Close()
	defer func() { w.must(netns.Set(home)) }()
	w.must(netns.Set(ns))
	f()
}

// join links a namespace to the node by the networks 10.77.n.0/24 and fd77:n::/64, of which the node has .1, the other .2 and .3.
func (w *world) join(ns netns.NsHandle, n int) {
	name := fmt.Sprintf("veth%d", n)
	w.in(w.node, func() {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		w.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns)}))
		w.up(name, n, 1)
	})
	w.in(ns, func() {
		w.up("eth0", n, 2, 3)
		for _, gateway := range []string{fmt.Sprintf("10.77.%d.1", n), fmt.Sprintf("fd77:%d::1", n)} {
			w.must(netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(gateway)}))
		}
	})
}

func (w *world) up(link string, n int, hosts ...int) {
	l, err := netlink.LinkByName(link)
	w.must(err)
	w.must(netlink.LinkSetUp(l))
	for _, h := range hosts {
		for _, text := range []string{fmt.Sprintf("10.77.%d.%d/24", n, h), fmt.Sprintf("fd77:%d::%d/64", n, h)} {
			a, err := netlink.ParseAddr(text)
			w.must(err)
			a.Flags = 0x02 // IFA_F_NODAD: usable at once
			w.must(netlink.AddrAdd(l, a))
		}
	}
}

// rule adds a rule on the node.
func (w *world) rule(family string, args ...string) {
	w.t.Helper()
	w.in(w.node, func() {
		cmd := exec.CommandContext(w.t.Context(), w.iptables, append([]string{family, "-w"}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			w.t.Fatalf("%s: %v: %s", strings.Join(cmd.Args, " "), err, out)
		}
	})
}

// drop is what Felix programs for a revoked address: after the rule for established connections.
func (w *world) drop(address string) { w.dropRules("-A", address) }

func (w *world) undrop(address string) { w.dropRules("-D", address) }

func (w *world) dropRules(verb, address string) {
	family := "iptables"
	if netip.MustParseAddr(address).Is6() {
		family = "ip6tables"
	}
	w.rule(family, verb, "FORWARD", "-s", address, "-j", "DROP")
	w.rule(family, verb, "FORWARD", "-d", address, "-j", "DROP")
}

// echo serves TCP and UDP on a port of the server's namespace, and says back what it is told.
func (w *world) echo(port int) {
	w.in(w.server, func() {
		var listen net.ListenConfig
		l, err := listen.Listen(context.Background(), "tcp", fmt.Sprintf(":%d", port))
		w.must(err)
		w.t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					b := make([]byte, 64)
					for {
						n, err := c.Read(b)
						if err != nil {
							return
						}
						_, _ = c.Write(b[:n])
					}
				}()
			}
		}()
		for _, host := range []string{"10.77.2.2", "10.77.2.3"} { // one each, so that answers come from the address that was asked
			p, err := listen.ListenPacket(context.Background(), "udp", fmt.Sprintf("%s:%d", host, port))
			w.must(err)
			w.t.Cleanup(func() { _ = p.Close() })
			go func() {
				b := make([]byte, 64)
				for {
					n, from, err := p.ReadFrom(b)
					if err != nil {
						return
					}
					_, _ = p.WriteTo(b[:n], from)
				}
			}()
		}
	})
}

// dial opens a flow from an address of the client's namespace.
func (w *world) dial(network, from, to string) net.Conn {
	w.t.Helper()
	var c net.Conn
	w.in(w.client, func() {
		d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		if network == "udp" {
			d.LocalAddr = &net.UDPAddr{IP: net.ParseIP(from)}
		}
		var err error
		if c, err = d.DialContext(w.t.Context(), network, to); err != nil {
			w.t.Fatalf("%s from %s to %s: %v", network, from, to, err)
		}
	})
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

// talks tells whether a message comes back within a while: long where an answer is expected, short where none is.
func talks(c net.Conn, within time.Duration) bool {
	const word = "keelson"
	if _, err := c.Write([]byte(word)); err != nil {
		return false
	}
	if err := c.SetReadDeadline(time.Now().Add(within)); err != nil {
		return false
	}
	b := make([]byte, 64)
	got := ""
	for len(got) < len(word) {
		n, err := c.Read(b)
		if err != nil {
			return false
		}
		got += string(b[:n])
	}
	return got == word
}

const (
	patient = 5 * time.Second
	brief   = 700 * time.Millisecond // a lost packet is sent again after some 200 ms, and twice more within this
)

// mustTalk and mustNot say what is wrong.
func (w *world) mustTalk(c net.Conn, why string) {
	w.t.Helper()
	if !talks(c, patient) {
		w.t.Fatalf("%s → %s: no answer, but %s", c.LocalAddr(), c.RemoteAddr(), why)
	}
}

func (w *world) mustNot(c net.Conn, why string) {
	w.t.Helper()
	if talks(c, brief) {
		w.t.Fatalf("%s → %s: an answer, but %s", c.LocalAddr(), c.RemoteAddr(), why)
	}
}

// entries are the lines of the node's table, for messages of failing tests.
func (w *world) entries() string {
	var out []string
	w.in(w.node, func() {
		for _, family := range []netlink.InetFamily{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			all, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
			w.must(errors.Join(err))
			for _, f := range all {
				out = append(out, f.String())
			}
		}
	})
	return strings.Join(out, "\n")
}
