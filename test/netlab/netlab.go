// Package netlab is a small network for tests of what happens to open connections: three network namespaces on a real kernel,
// clients and a server, and between them a node that forwards as a Kubernetes node with Felix does: packets of established
// connections pass before any other rule is asked.
//
//	Client 10.77.1.2, .3, fd77:1::2, ::3 ── Node ── 10.77.2.2, .3, fd77:2::2, ::3 Server
//
// It needs root. Nothing of it is visible outside of its namespaces, which end with the test.
package netlab

import (
	"context"
	"fmt"
	"io"
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

// Lab is the network. T is where it reports; a test with parts sets it to each part's own.
type Lab struct {
	T testing.TB
	// Client, Node and Server are the namespaces.
	Client, Node, Server netns.NsHandle
	iptables             string
}

// New makes a network that ends with the test. A machine that cannot have one skips the test, with the reason.
func New(t testing.TB) *Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make network namespaces")
	}
	paths, err := parts.EnsureSystem(t.Context(), t.Output(), "iptables")
	if err != nil {
		t.Skip(err)
	}
	l := &Lab{T: t, iptables: paths["iptables"]}
	l.Client, l.Node, l.Server = l.namespace(), l.namespace(), l.namespace()
	l.join(l.Client, 1)
	l.join(l.Server, 2)
	l.In(l.Node, func() {
		for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
			l.must(os.WriteFile("/proc/sys/"+key, []byte("1"), 0o644))
		}
		// Namespaces that are no container's start with what the machine has set; Linux' own default is 1.
		l.must(os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_tcp_loose", []byte("1"), 0o644))
	})
	for _, family := range []string{"iptables", "ip6tables"} {
		l.Rule(family, "-A", "FORWARD", "-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT")
	}
	return l
}

func (l *Lab) must(err error) {
	l.T.Helper()
	if err != nil {
		l.T.Fatal(err)
	}
}

func (l *Lab) namespace() netns.NsHandle {
	var ns netns.NsHandle
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, in its new namespace
		var err error
		ns, err = netns.New()
		done <- err
	}()
	l.must(<-done)
	l.T.Cleanup(func() { _ = ns.Close() })
	l.In(ns, func() {
		lo, err := netlink.LinkByName("lo")
		l.must(err)
		l.must(netlink.LinkSetUp(lo))
	})
	return ns
}

// In runs f in a namespace and ends the test if f ends it.
func (l *Lab) In(ns netns.NsHandle, f func()) {
	l.T.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	l.must(err)
	defer func() { l.must(home.Close()) }()
	defer func() { l.must(netns.Set(home)) }()
	l.must(netns.Set(ns))
	f()
}

// join links a namespace to the node by the networks 10.77.n.0/24 and fd77:n::/64, of which the node has .1, the other .2 and .3.
func (l *Lab) join(ns netns.NsHandle, n int) {
	name := fmt.Sprintf("veth%d", n)
	l.In(l.Node, func() {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		l.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns)}))
		l.up(name, n, 1)
	})
	l.In(ns, func() {
		l.up("eth0", n, 2, 3)
		for _, gateway := range []string{fmt.Sprintf("10.77.%d.1", n), fmt.Sprintf("fd77:%d::1", n)} {
			l.must(netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(gateway)}))
		}
	})
}

func (l *Lab) up(link string, n int, hosts ...int) {
	device, err := netlink.LinkByName(link)
	l.must(err)
	l.must(netlink.LinkSetUp(device))
	for _, h := range hosts {
		for _, text := range []string{fmt.Sprintf("10.77.%d.%d/24", n, h), fmt.Sprintf("fd77:%d::%d/64", n, h)} {
			a, err := netlink.ParseAddr(text)
			l.must(err)
			a.Flags = 0x02 // IFA_F_NODAD: usable at once
			l.must(netlink.AddrAdd(device, a))
		}
	}
}

// Rule adds a rule on the node: family is iptables or ip6tables.
func (l *Lab) Rule(family string, args ...string) {
	l.T.Helper()
	l.In(l.Node, func() {
		cmd := exec.CommandContext(l.T.Context(), l.iptables, append([]string{family, "-w"}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			l.T.Fatalf("%s: %v: %s", strings.Join(cmd.Args, " "), err, out)
		}
	})
}

// Drop is what Felix programs for a revoked address: after the rule for established connections.
func (l *Lab) Drop(address string) { l.dropRules("-A", address) }

// Undrop takes it back.
func (l *Lab) Undrop(address string) { l.dropRules("-D", address) }

func (l *Lab) dropRules(verb, address string) {
	family := "iptables"
	if netip.MustParseAddr(address).Is6() {
		family = "ip6tables"
	}
	l.Rule(family, verb, "FORWARD", "-s", address, "-j", "DROP")
	l.Rule(family, verb, "FORWARD", "-d", address, "-j", "DROP")
}

// Echo serves TCP and UDP on a port of the server's namespace, and says back what it is told.
func (l *Lab) Echo(port int) {
	l.In(l.Server, func() {
		var listen net.ListenConfig
		listener, err := listen.Listen(context.Background(), "tcp", fmt.Sprintf(":%d", port))
		l.must(err)
		l.T.Cleanup(func() { _ = listener.Close() })
		go accept(listener)
		for _, host := range []string{"10.77.2.2", "10.77.2.3"} { // one each, so that answers come from the address that was asked
			p, err := listen.ListenPacket(context.Background(), "udp", fmt.Sprintf("%s:%d", host, port))
			l.must(err)
			l.T.Cleanup(func() { _ = p.Close() })
			go answer(p)
		}
	})
}

func accept(listener net.Listener) {
	for {
		c, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			_, _ = io.Copy(c, c) // until the client has gone
			_ = c.Close()
		}()
	}
}

func answer(p net.PacketConn) {
	b := make([]byte, 64)
	for {
		n, from, err := p.ReadFrom(b)
		if err != nil {
			return
		}
		_, _ = p.WriteTo(b[:n], from)
	}
}

// Dial opens a flow from an address of the client's namespace.
func (l *Lab) Dial(network, from, to string) net.Conn {
	l.T.Helper()
	var c net.Conn
	l.In(l.Client, func() {
		d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		if network == "udp" {
			d.LocalAddr = &net.UDPAddr{IP: net.ParseIP(from)}
		}
		var err error
		if c, err = d.DialContext(l.T.Context(), network, to); err != nil {
			l.T.Fatalf("%s from %s to %s: %v", network, from, to, err)
		}
	})
	l.T.Cleanup(func() { _ = c.Close() })
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

// MustTalk ends the test unless an answer comes; why says what it is expected for.
func (l *Lab) MustTalk(c net.Conn, why string) {
	l.T.Helper()
	if !talks(c, patient) {
		l.T.Fatalf("%s → %s: no answer, but %s", c.LocalAddr(), c.RemoteAddr(), why)
	}
}

// MustNot ends the test if an answer comes.
func (l *Lab) MustNot(c net.Conn, why string) {
	l.T.Helper()
	if talks(c, brief) {
		l.T.Fatalf("%s → %s: an answer, but %s", c.LocalAddr(), c.RemoteAddr(), why)
	}
}

// Entries are the lines of the node's table, for messages of failing tests.
func (l *Lab) Entries() string {
	var out []string
	l.In(l.Node, func() {
		for _, family := range []netlink.InetFamily{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			all, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
			l.must(err)
			for _, f := range all {
				out = append(out, f.String())
			}
		}
	})
	return strings.Join(out, "\n")
}
