package trustgraph

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// buildRevocations collects the addresses of enrolled pods on machines that are proved bad or have stopped proving
// themselves, and the agents of the former. A machine that turns bad and then keeps silent must not keep its open flows, so
// the end of a proof cuts as well, unless the brake holds it.
//
// All that says which addresses those are comes from that machine: its kubelet reports the pods' addresses (and whether
// they have ended, so that is not asked), may have registered the Node with a range of its choice, and its CNI plugin claims
// blocks. So an address is believed only if it lies in the node's own blocks, in no other node's, and nobody that is
// trusted has it: a bad machine cannot cut off others. What it had while it was trusted is remembered; see recallRevocations.
func (b *builder) buildRevocations() {
	causes := b.lost()
	for i := range b.s.Pods {
		pod := &b.s.Pods[i]
		cause := causes[pod.Spec.NodeName]
		// Who was never let in has nothing to lose, and others need it: SPIRE's server, a name server or istiod may run there
		// (design/2026-11-25-whose-addresses-are-revoked.md).
		if cause == "" || pod.Spec.HostNetwork || b.modes[pod.Namespace] == "" {
			continue
		}
		for _, addr := range podAddresses(pod) {
			b.revoke(pod, addr, cause)
		}
	}
	b.recallRevocations(causes)
	b.evictions()
}

// lost are the nodes whose pods are cut off, with the reason: those that are proved bad, those that are proved bad and
// whose Node object is gone (their pods may run on), and those whose proof has ended.
func (b *builder) lost() map[string]string {
	out := map[string]string{}
	for name, n := range b.nodes {
		switch {
		case n.Verdict == v1alpha1.VerdictUntrusted:
			out[name] = fmt.Sprintf("node %s is proved bad", name)
		case n.Verdict == v1alpha1.VerdictStale && !n.Held:
			out[name] = n.Why[0]
		}
	}
	for i := range b.s.NodeTrusts {
		t := &b.s.NodeTrusts[i]
		if _, ok := b.nodes[t.Name]; !ok && t.Spec.Verdict == v1alpha1.VerdictUntrusted {
			out[t.Name] = fmt.Sprintf("node %s is proved bad", t.Name)
		}
	}
	return out
}

func (b *builder) revoke(pod *corev1.Pod, addr netip.Addr, cause string) {
	if why := b.notItsOwn(pod.Spec.NodeName, addr); why != "" {
		b.report("%s; it says that its pod %s has address %s, which is not its own to give (%s): not revoked", cause, snapshot.Key(pod), addr, why)
		return
	}
	b.g.Revoked = append(b.g.Revoked, Revoked{Address: addr.String(), Reason: cause, Node: pod.Spec.NodeName})
}

// notItsOwn says why the address of a machine that is not trusted is not believed, or nothing.
func (b *builder) notItsOwn(node string, addr netip.Addr) string {
	b.collectClaims()
	within := func(p netip.Prefix) bool { return p.Contains(addr) }
	if !slices.ContainsFunc(b.claims.blocks[node], within) {
		return "it is in none of the node's address blocks"
	}
	if user, ok := b.claims.used[addr]; ok {
		return user.owner + " has it"
	}
	for _, other := range sortedKeys(b.claims.blocks) {
		if b.nodes[other].Verdict != v1alpha1.VerdictUntrusted && other != node && slices.ContainsFunc(b.claims.blocks[other], within) {
			return "it is in a block of node " + other
		}
	}
	return ""
}

// claims are the address blocks of each node, and who that is trusted has an address.
type claims struct {
	blocks map[string][]netip.Prefix
	used   map[netip.Addr]user
}

// user is who has an address: words for a person, and a pod's UID.
type user struct{ owner, uid string }

// use notes who has an address; of several, always the same one is named.
func (c *claims) use(addr netip.Addr, u user) {
	if have, ok := c.used[addr]; !ok || u.owner < have.owner || u.owner == have.owner && u.uid < have.uid {
		c.used[addr] = u
	}
}

func (b *builder) collectClaims() {
	if b.claims != nil {
		return
	}
	c := &claims{blocks: map[string][]netip.Prefix{}, used: map[netip.Addr]user{}}
	for name, blocks := range b.s.Blocks {
		c.blocks[name] = slices.Clone(blocks)
	}
	for i := range b.s.Nodes {
		n := &b.s.Nodes[i]
		for _, text := range append(slices.Clone(n.Spec.PodCIDRs), n.Spec.PodCIDR) {
			if p, err := netip.ParsePrefix(text); err == nil {
				c.blocks[n.Name] = append(c.blocks[n.Name], p)
			}
		}
		if b.nodes[n.Name].Verdict == v1alpha1.VerdictUntrusted {
			continue
		}
		for _, a := range n.Status.Addresses {
			if addr, err := netip.ParseAddr(a.Address); err == nil {
				c.use(addr.Unmap(), user{owner: "node " + n.Name})
			}
		}
	}
	for i := range b.s.Pods {
		pod := &b.s.Pods[i]
		// Only a trusted node's word shields an address: any other could spare a bad one's.
		if n := b.nodes[pod.Spec.NodeName]; n.Verdict != v1alpha1.VerdictTrusted && !n.Held || snapshot.Ended(pod) {
			continue
		}
		for _, addr := range podAddresses(pod) {
			c.use(addr, user{"a pod of node " + pod.Spec.NodeName, string(pod.UID)})
		}
	}
	b.claims = c
}

// podAddresses are the addresses that the pod's status reports, as far as they can be read.
func podAddresses(pod *corev1.Pod) []netip.Addr {
	texts := []string{pod.Status.PodIP}
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

// evictions deletes the agents of machines that are proved bad, where they are still
// there. The proof is about the EK, so it holds whatever became of the Node object. Only
// agents that our own node attestor admitted are ever touched.
func (b *builder) evictions() {
	if b.s.SPIRE == nil {
		return
	}
	for i := range b.s.NodeTrusts {
		t := &b.s.NodeTrusts[i]
		ek, err := nodeclaim.ParseEKHash(t.Spec.EKHash)
		if err != nil || t.Spec.Verdict != v1alpha1.VerdictUntrusted {
			continue
		}
		id := "spiffe://" + b.s.Config.TrustDomain + nodeclaim.AgentPath(ek)
		if slices.ContainsFunc(b.s.SPIRE.Agents, func(a snapshot.Agent) bool { return a.ID == id && !a.Banned }) {
			b.g.Evict = append(b.g.Evict, Eviction{AgentID: id, Reason: fmt.Sprintf("node %s is proved bad", t.Name)})
		}
	}
}
