package trustgraph

import (
	"cmp"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// claim is what one pod's status says of its addresses.
type claim struct {
	namespace, key, uid, node string
	addresses                 []netip.Addr
	// host is true for a pod on its node's network, ended for one that will never run again, and
	// leaving for one that is being deleted: its address may have gone to another one already.
	host, ended, leaving bool
}

// claimOf reads a pod's addresses; nil for a pod that is on no node or reports none.
func claimOf(pod *corev1.Pod) *claim {
	addresses := podAddresses(pod)
	if pod.Spec.NodeName == "" || len(addresses) == 0 {
		return nil
	}
	return &claim{namespace: pod.Namespace, key: snapshot.Key(pod), uid: string(pod.UID), node: pod.Spec.NodeName, addresses: addresses,
		host: pod.Spec.HostNetwork, ended: snapshot.Ended(pod), leaving: pod.DeletionTimestamp != nil}
}

func (c *claim) equal(o *claim) bool {
	return c.key == o.key && c.uid == o.uid && c.node == o.node && c.host == o.host && c.ended == o.ended && c.leaving == o.leaving &&
		slices.Equal(c.addresses, o.addresses)
}

// addresses say who reports an address, and by the nodes' blocks and verdicts whose it is. Claims are
// kept from one graph to the next; what follows from them is worked out when it is asked for, once
// for each address and graph.
type addresses struct {
	c      *common
	blocks *blocks
	// reporters are the claims to each address, nodes the nodes that report it as their own.
	reporters map[netip.Addr][]*claim
	nodes     map[netip.Addr][]string
	// tally counts, for each node, its pods' addresses that lie in its block affinities alone and in
	// its pod CIDRs alone.
	tally map[string]*votes
	// swung is true when one of the tallies has come to say something else.
	swung bool
	known map[netip.Addr]resolved
}

type votes struct{ affinity, cidr int }

// says is 1 where all of a node's pods have addresses of its block affinities, -1 where all have
// addresses of its pod CIDRs, and 0 where that does not tell.
func (v *votes) says() int {
	switch {
	case v == nil:
	case v.affinity > 0 && v.cidr == 0:
		return 1
	case v.cidr > 0 && v.affinity == 0:
		return -1
	}
	return 0
}

// resolved is what is worked out of one address.
type resolved struct {
	// node is a trusted or held node that has the address itself; empty when none has.
	node string
	// holders are pods of trusted or held nodes that report it and whose own it may be.
	holders []holder
	// user is who that is trusted has it; used is false when nobody has.
	user user
	used bool
}

// holder is a pod that reports an address which may be its own.
type holder struct {
	uid, key string
	leaving  bool
	// before is true when the address was the pod's when it was last attested.
	before bool
}

// user is who has an address: words for a person, and a pod's UID.
type user struct{ owner, uid string }

func (a *addresses) add(c *claim) {
	for _, addr := range c.addresses {
		a.reporters[addr] = append(a.reporters[addr], c)
	}
}

func (a *addresses) remove(c *claim) {
	for _, addr := range c.addresses {
		if list := slices.DeleteFunc(a.reporters[addr], func(o *claim) bool { return o == c }); len(list) > 0 {
			a.reporters[addr] = list
		} else {
			delete(a.reporters, addr)
		}
	}
}

// count adds the addresses of a claim to the tally of its node, or takes them away again.
func (a *addresses) count(c *claim, byAffinity, byCIDR *blocks, by int) {
	if c.host || c.ended {
		return
	}
	for _, addr := range c.addresses {
		in, within := byAffinity.has(c.node, addr), byCIDR.has(c.node, addr)
		if in == within {
			continue
		}
		v := a.tally[c.node]
		if v == nil {
			v = &votes{}
			a.tally[c.node] = v
		}
		before := v.says()
		if in {
			v.affinity += by
		} else {
			v.cidr += by
		}
		a.swung = a.swung || v.says() != before
	}
}

// readNodes takes up which addresses nodes report as their own.
func (a *addresses) readNodes(nodes []corev1.Node) {
	a.nodes = map[netip.Addr][]string{}
	for i := range nodes {
		for _, reported := range nodes[i].Status.Addresses {
			if addr, err := netip.ParseAddr(reported.Address); err == nil {
				a.nodes[addr.Unmap()] = append(a.nodes[addr.Unmap()], nodes[i].Name)
			}
		}
	}
}

// of works out whose an address is. Only the word of a trusted or held node counts: any other could
// take an attested pod's label away, or spare a bad node's addresses, or its own. Nor does such a
// node's word count for an address in the blocks of another one, or for an address of its own blocks
// that it says is the machine's own: it would spare pods that are no longer attested.
func (a *addresses) of(addr netip.Addr) resolved {
	if r, ok := a.known[addr]; ok {
		return r
	}
	r := resolved{}
	unowned := a.blocks.trusted("", addr) == ""
	// Of several users always the same one is named.
	use := func(u user) {
		if !r.used || u.owner < r.user.owner || u.owner == r.user.owner && u.uid < r.user.uid {
			r.user, r.used = u, true
		}
	}
	for _, name := range a.nodes[addr] {
		if !unowned || !a.c.believed(name) {
			continue
		}
		if r.node == "" || name < r.node {
			r.node = name
		}
		use(user{owner: "node " + name})
	}
	for _, c := range a.reporters[addr] {
		if c.ended || !a.c.believed(c.node) {
			continue
		}
		if !c.host && a.c.misplaced(c.node, addr) == "" {
			had, _ := a.c.s.Attested.Pod(c.namespace, c.uid)
			r.holders = append(r.holders, holder{c.uid, c.key, c.leaving, slices.Contains(had.Addresses, addr)})
		}
		if unowned || !c.host && a.blocks.has(c.node, addr) {
			use(user{"a pod of node " + c.node, c.uid})
		}
	}
	slices.SortFunc(r.holders, func(x, y holder) int { return cmp.Compare(x.key, y.key) })
	a.known[addr] = r
	return r
}

// believed reports whether a node's word counts: it is trusted, or held.
func (c *common) believed(node string) bool {
	n := c.nodes[node]
	return n.Verdict == v1alpha1.VerdictTrusted || n.Held
}

// podAddresses are the addresses that the pod's status reports, as far as they can be read.
func podAddresses(pod *corev1.Pod) []netip.Addr {
	texts := make([]string, 0, 1+len(pod.Status.PodIPs))
	texts = append(texts, pod.Status.PodIP)
	for _, ip := range pod.Status.PodIPs {
		texts = append(texts, ip.IP)
	}
	var out []netip.Addr
	for _, t := range texts {
		if a, err := netip.ParseAddr(t); err == nil && a.Zone() == "" && !slices.Contains(out, a.Unmap()) {
			out = append(out, a.Unmap())
		}
	}
	return out
}
