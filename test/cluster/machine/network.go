package machine

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
)

// Prefix starts the name of every bridge of a Network.
const Prefix = "klsn"

// Network is a bridge that machines hang on. The computer has the first address on it and a route to each machine's pods.
type Network struct {
	// Bridge is the interface's name, unique to the run.
	Bridge string
	// Subnet is a /16 of 10.0.0.0/8 that no interface of this computer is in: .0.0/24 is the bridge, .N.0/24 the pods of
	// machine N.
	Subnet netip.Prefix
}

// NewNetwork makes the bridge.
func NewNetwork() (*Network, error) {
	subnet, suffix, err := freeSubnet()
	if err != nil {
		return nil, err
	}
	n := &Network{Bridge: Prefix + suffix, Subnet: subnet}
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: n.Bridge}}
	if err := netlink.LinkAdd(bridge); err != nil {
		return nil, fmt.Errorf("machine: network: bridge %s: %w", n.Bridge, err)
	}
	err = addAddress(bridge, netip.PrefixFrom(n.Host(), 24))
	if err == nil {
		err = netlink.LinkSetUp(bridge)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("machine: network: %w", err), n.Close())
	}
	return n, nil
}

func freeSubnet() (netip.Prefix, string, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Prefix{}, "", fmt.Errorf("machine: network: %w", err)
	}
	used := map[byte]bool{}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && p.Addr().As4()[0] == 10 {
			used[p.Addr().As4()[1]] = true
		}
	}
	var random [3]byte
	if _, err := rand.Read(random[:]); err != nil {
		return netip.Prefix{}, "", fmt.Errorf("machine: network: %w", err)
	}
	for i := range 256 {
		second := random[0] + byte(i)
		if second != 96 && !used[second] { // 10.96.0.0/16 is for Services
			return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, second, 0, 0}), 16), hex.EncodeToString(random[1:]), nil
		}
	}
	return netip.Prefix{}, "", errors.New("machine: network: no free /16 in 10.0.0.0/8")
}

func addAddress(link netlink.Link, p netip.Prefix) error {
	return netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(p)})
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func (n *Network) address(third, fourth byte) netip.Addr {
	base := n.Subnet.Addr().As4()
	return netip.AddrFrom4([4]byte{base[0], base[1], third, fourth})
}

// Host is the computer's address in the network.
func (n *Network) Host() netip.Addr { return n.address(0, 1) }

// Machine is the address of the machine with this number, 1 to 200.
func (n *Network) Machine(number int) netip.Addr { return n.address(0, byte(10+number)) }

// PodCIDR is the range for the pods of the machine with this number.
func (n *Network) PodCIDR(number int) netip.Prefix {
	return netip.PrefixFrom(n.address(byte(number), 0), 24)
}

// Close removes the bridge, and with it the computer's routes.
func (n *Network) Close() error { return RemoveBridge(n.Bridge) }

// RemoveBridge removes a Network's bridge by its name, if it is there.
func RemoveBridge(name string) error {
	if !strings.HasPrefix(name, Prefix) {
		return fmt.Errorf("machine: network: %s is not a bridge of ours", name)
	}
	link, err := netlink.LinkByName(name)
	var notFound netlink.LinkNotFoundError
	if errors.As(err, &notFound) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil {
		return fmt.Errorf("machine: network: remove %s: %w", name, err)
	}
	return nil
}

// connect gives the process's network namespace an interface eth0 on the bridge, a default route by way of the computer and
// one to each other machine's pods, and the computer a route to this one's.
func (n *Network) connect(number, pid, machines int) error {
	bridge, err := netlink.LinkByName(n.Bridge)
	if err != nil {
		return fmt.Errorf("machine: network: %s: %w", n.Bridge, err)
	}
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprintf("%s-%d", n.Bridge, number), MasterIndex: bridge.Attrs().Index, MTU: bridge.Attrs().MTU},
		PeerName:  "eth0", PeerNamespace: netlink.NsPid(pid),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("machine: network: link of machine %d: %w", number, err)
	}
	if err := netlink.LinkSetUp(veth); err != nil {
		return fmt.Errorf("machine: network: link of machine %d: %w", number, err)
	}
	if err := n.inside(number, pid, machines); err != nil {
		return fmt.Errorf("machine: network: machine %d: %w", number, err)
	}
	if err := netlink.RouteReplace(&netlink.Route{Dst: ipNet(n.PodCIDR(number)), Gw: n.Machine(number).AsSlice()}); err != nil {
		return fmt.Errorf("machine: network: route to the pods of machine %d: %w", number, err)
	}
	return nil
}

func (n *Network) inside(number, pid, machines int) (err error) {
	handle, err := handleOf(pid)
	if err != nil {
		return err
	}
	defer handle.Close()
	eth0, err := handle.LinkByName("eth0")
	if err != nil {
		return err
	}
	if err := handle.AddrAdd(eth0, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(n.Machine(number), 24))}); err != nil {
		return err
	}
	if err := handle.LinkSetUp(eth0); err != nil {
		return err
	}
	routes := []*netlink.Route{{Gw: n.Host().AsSlice(), LinkIndex: eth0.Attrs().Index}}
	for other := 1; other <= machines; other++ {
		if other != number {
			routes = append(routes, &netlink.Route{Dst: ipNet(n.PodCIDR(other)), Gw: n.Machine(other).AsSlice(), LinkIndex: eth0.Attrs().Index})
		}
	}
	for _, r := range routes {
		if err := handle.RouteReplace(r); err != nil {
			return err
		}
	}
	return nil
}
