package trustgraph

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// The widest blocks that Calico's IPAM makes (IPPool.spec.blockSize: 20 to 32, and 116 to 128 for IPv6).
const (
	widestAffinity4 = 20
	widestAffinity6 = 116
)

// blocks says which node an address belongs to. It holds the believed address blocks of all nodes, sorted once; a lookup is a binary
// search and a walk up the blocks that contain the address (at most one per prefix length).
//
// The kubelet controls Node.spec.podCIDRs where the cluster's controller has not set them, and every node's Calico
// credentials may write block affinities. So a source is believed only where the cluster's IPAM uses it, and a block only
// within the bounds that an honest one has; see newBlocks.
type blocks struct {
	entries []block // sorted by address, wide before narrow
	// owners are the nodes that have at least one believed block.
	owners map[string]bool
	// affinities is true where Calico's IPAM hands out addresses.
	affinities bool
	// refused says what is not believed, sorted.
	refused []string
}

// block is one prefix and the nodes that have it.
type block struct {
	prefix netip.Prefix
	// parent is the index of the narrowest block around this one, or -1.
	parent int
	// nodes have it, sorted.
	nodes []string
	// trusted are the first two, by name, of its nodes that are trusted or held.
	trusted []string
	// oldest are the two of the others whose Node objects are oldest.
	oldest []aged
}

// aged is a node and when its Node object was created.
type aged struct {
	name    string
	created time.Time
}

// ranges are the prefixes that are believed of each source, by node.
type ranges struct {
	cidrs, affinities map[string][]netip.Prefix
	// refused says what is not believed, sorted.
	refused []string
}

// believedRanges chooses what to believe:
//
//   - Where Calico's IPAM is in use, only confirmed block affinities, and only within an IP pool (where pools were read) and not
//     wider than Calico makes them. Node.spec.podCIDRs mean nothing there, although a kubelet may set them.
//   - Elsewhere Node.spec.podCIDRs, not wider than Config allows: the controller's defaults are /24 and /64
//     (kube-controller-manager, --node-cidr-mask-size-ipv4 and -ipv6). A node without any, such as one whose Node object is
//     gone, keeps its affinities.
//   - Never a range of Services, nor addresses that no pod has (loopback, link-local, multicast).
func (c *common) believedRanges() ranges {
	var r ranges
	r.cidrs, r.affinities = c.podCIDRs(&r.refused), c.confirmed(&r.refused)
	slices.Sort(r.refused)
	return r
}

// newBlocks chooses between the two sources.
func (c *common) newBlocks(r ranges, byAffinity *blocks, tally map[string]*votes) *blocks {
	out := byAffinity
	if !c.calicoIPAM(byAffinity, tally) {
		mixed := maps.Clone(r.cidrs)
		for node, list := range r.affinities {
			if len(mixed[node]) == 0 {
				mixed[node] = list
			}
		}
		out = c.index(mixed)
	} else {
		out.affinities = true
	}
	out.refused = r.refused
	return out
}

// podCIDRs reads the pod CIDRs that a controller could have given to a node, in canonical form.
func (c *common) podCIDRs(refused *[]string) map[string][]netip.Prefix {
	widest4, widest6 := c.s.Config.PodCIDRWidths()
	out := map[string][]netip.Prefix{}
	for i := range c.s.Nodes {
		n := &c.s.Nodes[i]
		var seen []netip.Prefix
		for _, text := range append(slices.Clone(n.Spec.PodCIDRs), n.Spec.PodCIDR) {
			p, err := netip.ParsePrefix(text)
			if err != nil || slices.Contains(seen, canonical(p)) {
				continue
			}
			p = canonical(p)
			seen = append(seen, p)
			if why := c.oddRange(p, widest4, widest6); why != "" {
				*refused = append(*refused, fmt.Sprintf("pod CIDR %s of node %s is not believed: %s", p, n.Name, why))
				continue
			}
			out[n.Name] = append(out[n.Name], p)
		}
	}
	return out
}

// confirmed returns the snapshot's block affinities that Calico could have made, in canonical form.
func (c *common) confirmed(refused *[]string) map[string][]netip.Prefix {
	pools := c.index(map[string][]netip.Prefix{"": c.s.Pools})
	inPool := func(p netip.Prefix) bool {
		in := c.s.Pools == nil
		pools.around(p.Addr(), func(pool *block) bool { in = covers(pool.prefix, p); return !in })
		return in
	}
	out := map[string][]netip.Prefix{}
	for node, list := range c.s.Blocks {
		for _, p := range list {
			p = canonical(p)
			why := c.oddRange(p, widestAffinity4, widestAffinity6)
			if why == "" && !inPool(p) {
				why = "it lies in no IP pool"
			}
			if why != "" {
				*refused = append(*refused, fmt.Sprintf("block affinity %s of node %s is not believed: %s", p, node, why))
				continue
			}
			out[node] = append(out[node], p)
		}
	}
	return out
}

// calicoIPAM reports whether Calico's IPAM hands out the pods' addresses. Whether affinities exist does not decide that alone,
// because a bad node's credentials may write one where pod CIDRs are in use, and so take everyone's blocks away. Nodes that
// are trusted or held decide (if there is none, those whose proofs ended): each by where the addresses of its pods lie. Where
// that does not tell, because affinities and pod CIDRs are the same, affinities are in use if one of these nodes has any.
func (c *common) calicoIPAM(byAffinity *blocks, tally map[string]*votes) bool {
	var voters []string
	for name := range c.nodes {
		if c.believed(name) {
			voters = append(voters, name)
		}
	}
	if len(voters) == 0 {
		for name, n := range c.nodes {
			if n.Verdict == v1alpha1.VerdictStale {
				voters = append(voters, name)
			}
		}
	}
	there, sum := false, 0
	for _, name := range voters {
		there = there || byAffinity.known(name)
		sum += tally[name].says()
	}
	return there && sum >= 0
}

// oddRange says why no honest node has such a block, or nothing.
func (c *common) oddRange(p netip.Prefix, widest4, widest6 int) string {
	widest := widest6
	if p.Addr().Is4() {
		widest = widest4
	}
	switch {
	case p.Bits() < widest:
		return fmt.Sprintf("it is wider than /%d", widest)
	case !p.Addr().IsGlobalUnicast():
		return "no pod has such addresses"
	}
	for _, services := range c.s.ServiceCIDRs {
		if canonical(services).Overlaps(p) {
			return fmt.Sprintf("it overlaps the Services' range %s", services)
		}
	}
	return ""
}

// index sorts prefixes, by node, and links each with the one around it.
func (c *common) index(byNode map[string][]netip.Prefix) *blocks {
	t := &blocks{owners: map[string]bool{}}
	owned := map[netip.Prefix][]string{}
	for node, list := range byNode {
		for _, p := range list {
			owned[canonical(p)] = append(owned[canonical(p)], node)
			t.owners[node] = true
		}
	}
	for p, nodes := range owned {
		t.entries = append(t.entries, c.newBlock(p, nodes))
	}
	slices.SortFunc(t.entries, func(x, y block) int {
		return cmp.Or(x.prefix.Addr().Compare(y.prefix.Addr()), cmp.Compare(x.prefix.Bits(), y.prefix.Bits()))
	})
	last := -1
	for i := range t.entries {
		for last >= 0 && !covers(t.entries[last].prefix, t.entries[i].prefix) {
			last = t.entries[last].parent
		}
		t.entries[i].parent, last = last, i
	}
	return t
}

// newBlock makes the entry of a prefix that the given nodes have.
func (c *common) newBlock(p netip.Prefix, nodes []string) block {
	slices.Sort(nodes)
	e := block{prefix: p, parent: -1, nodes: slices.Compact(nodes)}
	for _, name := range e.nodes {
		switch n := c.nodes[name]; {
		case n.Verdict != v1alpha1.VerdictTrusted && !n.Held:
			e.oldest = append(e.oldest, aged{name, n.created})
		case len(e.trusted) < 2:
			e.trusted = append(e.trusted, name)
		}
	}
	slices.SortStableFunc(e.oldest, func(x, y aged) int { return x.created.Compare(y.created) })
	e.oldest = slices.Clip(e.oldest[:min(2, len(e.oldest))])
	return e
}

// around calls f with each believed block that contains the address, narrow before wide, until f returns false.
func (t *blocks) around(addr netip.Addr, f func(*block) bool) {
	addr = addr.Unmap()
	i, _ := slices.BinarySearchFunc(t.entries, addr, func(e block, a netip.Addr) int {
		return cmp.Or(e.prefix.Addr().Compare(a), -1) // one that begins at the address lies before the place that is looked for
	})
	for i--; i >= 0; i = t.entries[i].parent {
		if e := &t.entries[i]; e.prefix.Contains(addr) && !f(e) {
			return
		}
	}
}

// known reports whether a node has at least one believed block.
func (t *blocks) known(node string) bool { return t.owners[node] }

// has reports whether the address lies in a block of the node.
func (t *blocks) has(node string, addr netip.Addr) bool {
	found := false
	t.around(addr, func(e *block) bool {
		_, found = slices.BinarySearch(e.nodes, node)
		return !found
	})
	return found
}

// trusted returns a trusted or held node other than the given one that has the address in a block, or nothing.
func (t *blocks) trusted(except string, addr netip.Addr) string {
	other := ""
	t.around(addr, func(e *block) bool {
		if i := slices.IndexFunc(e.trusted, func(n string) bool { return n != except }); i >= 0 {
			other = e.trusted[i]
		}
		return other == ""
	})
	return other
}

// older returns a node without trust, other than the given one, that has the address in a block and whose Node object is older,
// or nothing. Where two claim one range, the later one took it: controllers hand out none twice.
func (t *blocks) older(node string, created time.Time, addr netip.Addr) string {
	other := ""
	t.around(addr, func(e *block) bool {
		if i := slices.IndexFunc(e.oldest, func(a aged) bool { return a.name != node && a.created.Before(created) }); i >= 0 {
			other = e.oldest[i].name
		}
		return other == ""
	})
	return other
}

// blockOwner returns a node that has the address in one of its blocks: a trusted or held one if there is one, otherwise the
// one whose Node object is oldest, of the narrowest block. ok is false where no believed block contains the address.
func (c *common) blockOwner(addr netip.Addr) (node string, ok bool) {
	t := c.addresses.blocks
	if node = t.trusted("", addr); node != "" {
		return node, true
	}
	t.around(addr, func(e *block) bool {
		node = e.oldest[0].name
		return false
	})
	return node, node != ""
}

// misplaced says why the address cannot be that of a pod on the node, or nothing. Where the node's blocks are not known, only
// an address in another node's block is refused. Calico's IPAM borrows single addresses of other nodes' blocks when its pools
// have no free block left (IPAMConfig, strictAffinity false): such a pod cannot be told from one that lies, and is refused.
func (c *common) misplaced(node string, addr netip.Addr) string {
	t := c.addresses.blocks
	addr = addr.Unmap()
	switch {
	case !addr.IsGlobalUnicast():
		return fmt.Sprintf("address %s is none that a pod has", addr)
	case t.has(node, addr):
		return ""
	}
	if owner, ok := c.blockOwner(addr); ok {
		text := fmt.Sprintf("address %s lies in a block of node %s, not of node %s", addr, owner, node)
		if t.affinities {
			text += "; if Calico's IPAM lent it, make the IP pools larger or set strictAffinity"
		}
		return text
	}
	if t.known(node) {
		return fmt.Sprintf("address %s lies in none of the address blocks of node %s", addr, node)
	}
	return ""
}

// reportBlocks reports what of the nodes' blocks is not believed, and where no block is known.
func (w *whole) reportBlocks() {
	const most = 16
	t := w.addresses.blocks
	for i, text := range t.refused {
		if i == most {
			w.report("%d more address blocks are not believed", len(t.refused)-most)
			break
		}
		w.report("%s", text)
	}
	var unknown []string
	for name := range w.nodes {
		if !t.known(name) {
			unknown = append(unknown, name)
		}
	}
	if len(unknown) == 0 {
		return
	}
	slices.Sort(unknown)
	w.report("no address block is known of %s: an address there can be revoked only after its pod was attested, for %s after that (neither a block affinity of Calico's IPAM nor a pod CIDR bounds what such a node may report)",
		some("node", unknown), Remember)
}

// some names up to 16 of many: "node a", "nodes a, b and 3 more".
func some(noun string, names []string) string {
	if len(names) != 1 {
		noun += "s"
	}
	return noun + " " + someOf(names)
}

// someOf joins up to 16 texts of many: "a, b and 3 more".
func someOf(texts []string) string {
	const most = 16
	switch n := len(texts); {
	case n == 0:
		return "none"
	case n > most:
		return fmt.Sprintf("%s and %d more", strings.Join(texts[:most], ", "), n-most)
	default:
		return strings.Join(texts, ", ")
	}
}

// canonical masks a prefix and turns one of IPv4-mapped IPv6 addresses (::ffff:a.c.c.d/96 and narrower) into IPv4's.
func canonical(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

// covers reports whether outer contains all of inner.
func covers(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}
