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

// buildRevocations collects the addresses of pods on nodes that are proved bad, and
// their agents. A pod's addresses are its kubelet's word, here a bad one's: an address
// outside of the node's own blocks, or (where no block is known) one that a pod on
// another node has too, is not believed, so that a bad node cannot cut off others.
func (b *builder) buildRevocations() {
	for i := range b.s.Nodes {
		n := &b.s.Nodes[i]
		node := b.nodes[n.Name]
		if node.Verdict != v1alpha1.VerdictUntrusted {
			continue
		}
		blocks := b.blocks(n)
		for j := range b.s.Pods {
			pod := &b.s.Pods[j]
			if pod.Spec.NodeName != n.Name || pod.Spec.HostNetwork || snapshot.Ended(pod) {
				continue
			}
			for _, addr := range podAddresses(pod) {
				b.revoke(pod, addr, blocks)
			}
		}
	}
	b.evictions()
}

func (b *builder) revoke(pod *corev1.Pod, addr netip.Addr, blocks []netip.Prefix) {
	node := pod.Spec.NodeName
	own := slices.ContainsFunc(blocks, func(p netip.Prefix) bool { return p.Contains(addr) })
	if len(blocks) == 0 {
		own = !b.usedElsewhere(addr, node)
	}
	if !own {
		b.report("node %s is proved bad and says that its pod %s has address %s, which is not its own to give: not revoked", node, snapshot.Key(pod), addr)
		return
	}
	b.g.Revoked = append(b.g.Revoked, Revoked{Address: addr.String(), Reason: fmt.Sprintf("node %s is proved bad", node)})
}

func (b *builder) blocks(n *corev1.Node) []netip.Prefix {
	out := slices.Clone(b.s.Blocks[n.Name])
	for _, text := range append(slices.Clone(n.Spec.PodCIDRs), n.Spec.PodCIDR) {
		if p, err := netip.ParsePrefix(text); err == nil {
			out = append(out, p)
		}
	}
	return out
}

func (b *builder) usedElsewhere(addr netip.Addr, node string) bool {
	for i := range b.s.Pods {
		pod := &b.s.Pods[i]
		if pod.Spec.NodeName != node && !snapshot.Ended(pod) && slices.Contains(podAddresses(pod), addr) {
			return true
		}
	}
	return false
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
