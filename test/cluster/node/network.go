package node

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Network is one bridge that the pods of all nodes of a run hang on, in one /16, a range for each node. Pods reach each other
// and nothing else: there is no gateway and no forwarding, so no setting of the machine is changed.
type Network struct {
	// Bridge is the interface's name, unique to the run. The CNI plugin makes it with the first pod.
	Bridge string
	// Subnet is a /16 of 10.0.0.0/8 that no interface of this machine is in.
	Subnet netip.Prefix
	// cache is the folder that the CNI library makes outside of any configuration; ours to remove when it was not there.
	cache string
}

// cniCache is where libcni keeps the results of plugins until they are undone. containerd offers no setting for it.
const cniCache = "/var/lib/cni"

// NewNetwork chooses a name and a subnet; nothing is made before the first pod.
func NewNetwork() (*Network, error) {
	used, err := usedPrefixes()
	if err != nil {
		return nil, err
	}
	var random [3]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, fmt.Errorf("node: network: %w", err)
	}
	for i := range 256 {
		second := byte(int(random[0]) + i)
		subnet := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, second, 0, 0}), 16)
		if !overlaps(used, subnet) {
			n := &Network{Bridge: "klsn" + hex.EncodeToString(random[1:]), Subnet: subnet}
			if _, err := os.Stat(cniCache); errors.Is(err, os.ErrNotExist) {
				n.cache = cniCache
			}
			return n, nil
		}
	}
	return nil, errors.New("node: network: no free /16 in 10.0.0.0/8")
}

func usedPrefixes() ([]netip.Prefix, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("node: network: %w", err)
	}
	var used []netip.Prefix
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			used = append(used, p.Masked())
		}
	}
	return used, nil
}

func overlaps(used []netip.Prefix, p netip.Prefix) bool {
	for _, u := range used {
		if u.Overlaps(p) {
			return true
		}
	}
	return false
}

// PodCIDR is the range of the node with this number, 1 to 250.
func (n *Network) PodCIDR(number int) netip.Prefix {
	base := n.Subnet.Addr().As4()
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{base[0], base[1], byte(number), 0}), 24)
}

// writeCNI writes the configuration of the bridge plugin for one node.
func (n *Network) writeCNI(confDir, dataDir string, number int) error {
	cidr := n.PodCIDR(number).Addr().As4()
	at := func(last byte) string { return netip.AddrFrom4([4]byte{cidr[0], cidr[1], cidr[2], last}).String() }
	config := map[string]any{
		"cniVersion": "1.0.0", "name": "keelson",
		"plugins": []any{map[string]any{
			"type": "bridge", "bridge": n.Bridge, "isGateway": false, "ipMasq": false,
			"ipam": map[string]any{
				"type": "host-local", "dataDir": dataDir,
				"ranges": []any{[]any{map[string]any{
					"subnet": n.Subnet.String(), "rangeStart": at(10), "rangeEnd": at(250),
				}}},
			},
		}},
	}
	content, err := json.MarshalIndent(config, "", "  ")
	if err != nil {
		return fmt.Errorf("node: network: %w", err)
	}
	if err := os.MkdirAll(confDir, 0o755); err != nil {
		return fmt.Errorf("node: network: %w", err)
	}
	if err := os.WriteFile(filepath.Join(confDir, "10-keelson.conflist"), content, 0o600); err != nil {
		return fmt.Errorf("node: network: %w", err)
	}
	return nil
}

// Close removes the bridge. The pods' ends of their links went with the pods' network namespaces.
func (n *Network) Close() error {
	if n.cache != "" {
		_ = os.Remove(filepath.Join(n.cache, "results")) // not when another runtime uses it by now: Remove takes empty ones
		_ = os.Remove(n.cache)
	}
	if _, err := net.InterfaceByName(n.Bridge); err != nil {
		return nil // never made
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("node: network: %w", err)
	}
	defer func() { _ = unix.Close(fd) }() // nothing was written to it
	request, err := unix.NewIfreq(n.Bridge)
	if err != nil {
		return fmt.Errorf("node: network: %w", err)
	}
	request.SetUint16(0) // down: the kernel deletes no bridge that is up
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("node: network: %s down: %w", n.Bridge, err)
	}
	name, err := unix.BytePtrFromString(n.Bridge)
	if err != nil {
		return fmt.Errorf("node: network: %w", err)
	}
	// #nosec G103 -- SIOCBRDELBR takes a plain string, for which x/sys has no wrapper.
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCBRDELBR, uintptr(unsafe.Pointer(name))); errno != 0 {
		return fmt.Errorf("node: network: delete %s: %w", n.Bridge, errno)
	}
	return nil
}
