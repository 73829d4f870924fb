package trustgraph

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// buildRevocations collects the addresses of enrolled pods on machines that are untrusted or have stopped proving themselves,
// and the agents of the former. A machine that turns bad and then keeps silent must not keep its open flows, so the end of a
// proof cuts as well, unless the grace period holds it.
//
// All that says which addresses those are comes from that machine: its kubelet reports the pods' addresses (and whether
// they have ended, so that is not asked), may have registered the Node with a range of its choice, and its CNI plugin claims
// blocks. So an address is believed only if it lies in the node's own blocks (see blocks.go), in no block of a node that is
// trusted or has had it longer, and if no one who is trusted has it: a bad machine cannot cut off others. What it had while it
// was trusted is remembered; see recallRevocations.
func (b *builder) buildRevocations() {
	causes := b.lost()
	refused := map[string][]string{}
	for i := range b.s.Pods {
		pod := b.s.Pods[i]
		cause := causes[pod.Spec.NodeName]
		// Who was never let in has nothing to lose, and others need it: SPIRE's server, a name server or istiod may run there
		// (design/2026-11-25-whose-addresses-are-revoked.md).
		if cause == "" || pod.Spec.HostNetwork || b.modes[pod.Namespace] == "" {
			continue
		}
		for _, addr := range podAddresses(pod) {
			if why := b.notItsOwn(pod.Spec.NodeName, addr); why != "" {
				refused[pod.Spec.NodeName] = append(refused[pod.Spec.NodeName],
					fmt.Sprintf("its pod %s has address %s, which is not its own to give (%s): not revoked", snapshot.Key(pod), addr, why))
				continue
			}
			b.g.Revoked = append(b.g.Revoked, Revoked{Address: addr.String(), Reason: cause, Node: pod.Spec.NodeName})
		}
	}
	b.reportRefused(causes, refused)
	b.recallRevocations(causes)
	b.reportBlocks()
	b.noteUnknownBlocks()
	b.evictions()
}

// maxDisbelieved bounds what is reported of one node's claims: its kubelet chooses how many there are.
const maxDisbelieved = 8

// reportRefused reports which addresses of lost nodes are not believed, by node.
func (b *builder) reportRefused(causes map[string]string, refused map[string][]string) {
	for node, texts := range refused {
		slices.Sort(texts)
		for _, text := range texts[:min(len(texts), maxDisbelieved)] {
			b.report("%s; it says that %s", causes[node], text)
		}
		if more := len(texts) - maxDisbelieved; more > 0 {
			b.report("%s; %d more addresses of its pods are not its own to give: not revoked", causes[node], more)
		}
	}
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

// notItsOwn says why the address of a machine that is not trusted is not believed, or nothing.
func (b *builder) notItsOwn(node string, addr netip.Addr) string {
	t := b.blockTable()
	if !t.has(node, addr) {
		return "it is in none of the node's address blocks"
	}
	if user, ok := b.shields()[addr]; ok {
		return user.owner + " has it"
	}
	if other := t.trusted(node, addr); other != "" {
		return "it is in a block of node " + other
	}
	if other := t.older(node, b.nodes[node].created, addr); other != "" {
		return "it is in a block of node " + other + ", which had it first"
	}
	return ""
}

// user is who has an address: words for a person, and a pod's UID.
type user struct{ owner, uid string }

// shields returns who that is trusted has an address now. Only the word of a trusted or held node counts: any other could spare
// a bad node's addresses, or its own. Nor does a trusted node's word count for an address in the blocks of another such node, or
// for an address of its own blocks that it says is the machine's own: it would spare pods that are no longer attested.
func (b *builder) shields() map[netip.Addr]user {
	if b.used != nil {
		return b.used
	}
	b.used = map[netip.Addr]user{}
	t := b.blockTable()
	// Of several users always the same one is named.
	use := func(addr netip.Addr, u user) {
		if have, ok := b.used[addr]; !ok || u.owner < have.owner || u.owner == have.owner && u.uid < have.uid {
			b.used[addr] = u
		}
	}
	trusted := b.trustedNames()
	for i := range b.s.Nodes {
		n := &b.s.Nodes[i]
		for _, a := range n.Status.Addresses {
			if addr, err := netip.ParseAddr(a.Address); err == nil && trusted[n.Name] && t.trusted("", addr) == "" {
				use(addr.Unmap(), user{owner: "node " + n.Name})
			}
		}
	}
	for i := range b.s.Pods {
		pod := b.s.Pods[i]
		node := pod.Spec.NodeName
		if !trusted[node] || snapshot.Ended(pod) {
			continue
		}
		for _, addr := range podAddresses(pod) {
			owned := !pod.Spec.HostNetwork && t.has(node, addr)
			if owned || t.trusted("", addr) == "" {
				use(addr, user{"a pod of node " + node, string(pod.UID)})
			}
		}
	}
	return b.used
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

// evictions deletes the agents of machines that are proved bad, where they are still there: that of the EK that the proof is
// about, whatever became of the Node object, and every other that the server lets speak for the node, such as one admitted by
// another EK of the machine. Only agents that our own node attestor admitted are ever touched.
func (b *builder) evictions() {
	if b.s.SPIRE == nil {
		return
	}
	bad := map[string]string{} // an agent's ID or the selector of its node -> the node's name
	for i := range b.s.NodeTrusts {
		t := &b.s.NodeTrusts[i]
		if t.Spec.Verdict != v1alpha1.VerdictUntrusted {
			continue
		}
		bad[nodeSelector(t.Name).String()] = t.Name
		if ek, err := nodeclaim.ParseEKHash(t.Spec.EKHash); err == nil {
			bad["spiffe://"+b.s.Config.TrustDomain+nodeclaim.AgentPath(ek)] = t.Name
		}
	}
	for _, a := range b.s.SPIRE.Agents {
		if a.Banned || !ownAttestor(b.s.Config.TrustDomain, a.ID) {
			continue
		}
		node := bad[a.ID]
		for _, s := range a.Selectors {
			node = cmp.Or(node, bad[s.String()])
		}
		if node != "" {
			b.g.Evict = append(b.g.Evict, Eviction{AgentID: a.ID, Reason: fmt.Sprintf("node %s is proved bad", node)})
		}
	}
}
