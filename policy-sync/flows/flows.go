// Package flows says which open flows a node cuts when addresses are revoked, and when: functions of what the Kubernetes API and
// the kernel said, without either.
//
// Why flows have to be cut: Felix accepts packets of established connections before it asks any policy, so a connection that was
// open when an address was revoked goes on. An entry of the kernel's connection tracking table is what makes a packet one of an
// established connection. With the entry deleted the next packet is a new connection's and meets policy; if policy still lets it
// pass (Felix programs a change some 10 to 500 ms after it was made) it makes a new entry, which has to be deleted again.
//
// Who controls the input: the sets of revoked addresses are policy-sync's, which bounds them to the blocks of the machine that is
// proved bad; guards keep others from writing it. Judge is the second line: whatever the sets say, nobody is cut off from a
// node, from the API server or from a whole range.
package flows

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// MaxAddresses bounds how many addresses a node cuts: as many as policy-sync writes (v1alpha1.MaxRevokedSets sets of
// v1alpha1.MaxRevokedPerSet addresses).
const MaxAddresses = 160_000

// World is what the Kubernetes API said, as far as it said anything.
type World struct {
	// Known is set once the set of revoked addresses and the Nodes have both been read. What was known is kept when the API
	// goes away.
	Known bool
	// Problem says why nothing is known, or why what is known may be old. Empty when the API answers.
	Problem string
	// Nets are the set's entries as they stand there.
	Nets []string
	// Hosts are addresses that are never cut, with whose they are.
	Hosts map[netip.Addr]string
	// Self are the addresses that this node's Node object reports.
	Self []netip.Addr
	// EBPF is set when Felix runs its eBPF data plane, whose own table of connections nobody here can delete from.
	EBPF bool
}

// Reasons why an entry of the set is refused; the values of a metric's label.
const (
	Unreadable = "unreadable" // no address
	Range      = "range"      // more than one address
	Reserved   = "reserved"   // an address that no pod can have
	Host       = "host"       // a node's, or the API server's
	Limit      = "limit"      // one beyond MaxAddresses
)

// Reasons lists them all.
func Reasons() []string { return []string{Unreadable, Range, Reserved, Host, Limit} }

// Refusal is an entry of the set that is not acted on.
type Refusal struct {
	Net    string
	Reason string
	// Why is the reason for people.
	Why string
}

// Targets are the addresses whose flows are cut. The zero value has none.
type Targets struct{ addresses map[netip.Addr]struct{} }

// Judge says which of the set's entries are cut. One that is refused does not keep the others from being cut.
func Judge(nets []string, hosts map[netip.Addr]string) (Targets, []Refusal) {
	t := Targets{addresses: make(map[netip.Addr]struct{}, min(len(nets), MaxAddresses))}
	var refused []Refusal
	for _, text := range nets {
		addr, reason, why := cuttable(text, hosts)
		if reason == "" && len(t.addresses) >= MaxAddresses && !t.Has(addr) {
			reason, why = Limit, fmt.Sprintf("more than %d addresses are revoked", MaxAddresses)
		}
		if reason != "" {
			refused = append(refused, Refusal{Net: fmt.Sprintf("%.64s", text), Reason: reason, Why: why})
			continue
		}
		t.addresses[addr] = struct{}{}
	}
	return t, refused
}

// cuttable reads one entry of the set: a prefix that holds one address, as policy-sync writes it, or a bare address, which Calico
// allows too. An IPv4 address in IPv6's clothes is judged as what it is.
func cuttable(text string, hosts map[netip.Addr]string) (addr netip.Addr, reason, why string) {
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		if addr, err = netip.ParseAddr(text); err != nil || addr.Zone() != "" {
			return netip.Addr{}, Unreadable, "it is neither an address nor a prefix"
		}
		prefix = netip.PrefixFrom(addr, addr.BitLen())
	}
	if !prefix.IsSingleIP() {
		return netip.Addr{}, Range, "it is wider than one address"
	}
	addr = prefix.Addr().Unmap()
	switch {
	case addr.IsUnspecified(), addr.IsLoopback(), addr.IsLinkLocalUnicast(), addr.IsMulticast(), addr == broadcast:
		return netip.Addr{}, Reserved, "no pod has such an address"
	case hosts[addr] != "":
		return netip.Addr{}, Host, "it is an address of " + hosts[addr]
	}
	return addr, "", ""
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// Len is how many addresses are cut.
func (t Targets) Len() int { return len(t.addresses) }

// Has tells whether an address is one of them.
func (t Targets) Has(a netip.Addr) bool {
	_, ok := t.addresses[a]
	return ok
}

// Equal tells whether both are the same addresses.
func (t Targets) Equal(other Targets) bool { return maps.Equal(t.addresses, other.addresses) }

// Some lists up to most of the addresses that other lacks, in order.
func (t Targets) Some(other Targets, most int) []string {
	var beyond []netip.Addr
	for a := range t.addresses {
		if !other.Has(a) {
			beyond = append(beyond, a)
		}
	}
	slices.SortFunc(beyond, netip.Addr.Compare)
	out := make([]string, 0, most)
	for _, a := range beyond[:min(most, len(beyond))] {
		out = append(out, a.String())
	}
	return out
}

// Beyond counts the addresses that other lacks.
func (t Targets) Beyond(other Targets) int {
	n := 0
	for a := range t.addresses {
		if !other.Has(a) {
			n++
		}
	}
	return n
}
