package trustgraph

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

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
	for _, pod := range b.source.pods {
		cause := b.causes[pod.Spec.NodeName]
		// Who was never let in has nothing to lose, and others need it: SPIRE's server, a name server or istiod may run there
		// (design/2026-11-25-whose-addresses-are-revoked.md).
		if cause == "" || pod.Spec.HostNetwork || b.modes[pod.Namespace] == "" {
			continue
		}
		for _, addr := range podAddresses(pod) {
			if why := b.notItsOwn(pod.Spec.NodeName, addr); why != "" {
				b.disbelieved[pod.Spec.NodeName] = append(b.disbelieved[pod.Spec.NodeName],
					fmt.Sprintf("its pod %s has address %s, which is not its own to give (%s): not revoked", snapshot.Key(pod), addr, why))
				continue
			}
			b.revoked = append(b.revoked, Revoked{Address: addr.String(), Reason: cause, Node: pod.Spec.NodeName})
		}
	}
	b.recallRevocations()
}

// maxDisbelieved bounds what is reported of one node's claims: its kubelet chooses how many there are.
const maxDisbelieved = 8

// reportRefused reports which addresses of lost nodes are not believed, by node.
func (w *whole) reportRefused(refused map[string][]string) {
	for node, texts := range refused {
		slices.Sort(texts)
		for _, text := range texts[:min(len(texts), maxDisbelieved)] {
			w.report("%s; it says that %s", w.causes[node], text)
		}
		if more := len(texts) - maxDisbelieved; more > 0 {
			w.report("%s; %d more addresses of its pods are not its own to give: not revoked", w.causes[node], more)
		}
	}
}

// lost are the nodes whose pods are cut off, with the reason: those that are proved bad, those that are proved bad and
// whose Node object is gone (their pods may run on), and those whose proof has ended.
func (c *common) lost() map[string]string {
	out := map[string]string{}
	for name, n := range c.nodes {
		switch {
		case n.Verdict == v1alpha1.VerdictUntrusted:
			out[name] = fmt.Sprintf("node %s is proved bad", name)
		case n.Verdict == v1alpha1.VerdictStale && !n.Held:
			out[name] = n.Why[0]
		}
	}
	for i := range c.s.NodeTrusts {
		t := &c.s.NodeTrusts[i]
		if _, ok := c.nodes[t.Name]; !ok && t.Spec.Verdict == v1alpha1.VerdictUntrusted {
			out[t.Name] = fmt.Sprintf("node %s is proved bad", t.Name)
		}
	}
	return out
}

// notItsOwn says why the address of a machine that is not trusted is not believed, or nothing.
func (b *builder) notItsOwn(node string, addr netip.Addr) string {
	t := b.addresses.blocks
	if !t.has(node, addr) {
		return "it is in none of the node's address blocks"
	}
	if whose := b.addresses.of(addr); whose.used {
		return whose.user.owner + " has it"
	}
	if other := t.trusted(node, addr); other != "" {
		return "it is in a block of node " + other
	}
	if other := t.older(node, b.nodes[node].created, addr); other != "" {
		return "it is in a block of node " + other + ", which had it first"
	}
	return ""
}

// evictions deletes the agents of machines that are proved bad, where they are still there: that of the EK that the proof is
// about, whatever became of the Node object, and every other that the server lets speak for the node, such as one admitted by
// another EK of the machine. Only agents that our own node attestor admitted are ever touched.
func (w *whole) evictions() {
	if w.s.SPIRE == nil {
		return
	}
	bad := map[string]string{} // an agent's ID or the selector of its node -> the node's name
	for i := range w.s.NodeTrusts {
		t := &w.s.NodeTrusts[i]
		if t.Spec.Verdict != v1alpha1.VerdictUntrusted {
			continue
		}
		bad[nodeSelector(t.Name).String()] = t.Name
		if ek, err := nodeclaim.ParseEKHash(t.Spec.EKHash); err == nil {
			bad["spiffe://"+w.s.Config.TrustDomain+nodeclaim.AgentPath(ek)] = t.Name
		}
	}
	if len(bad) == 0 {
		return
	}
	for _, a := range w.s.SPIRE.Agents {
		if a.Banned || !ownAttestor(w.s.Config.TrustDomain, a.ID) {
			continue
		}
		node := bad[a.ID]
		for _, s := range a.Selectors {
			node = cmp.Or(node, bad[s.String()])
		}
		if node != "" {
			w.evict = append(w.evict, Eviction{AgentID: a.ID, Reason: fmt.Sprintf("node %s is proved bad", node)})
		}
	}
	slices.SortFunc(w.evict, func(x, y Eviction) int {
		return cmp.Or(cmp.Compare(x.AgentID, y.AgentID), cmp.Compare(x.Reason, y.Reason))
	})
	w.evict = slices.CompactFunc(w.evict, func(x, y Eviction) bool { return x.AgentID == y.AgentID })
}
