package trustgraph

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// holder is a pod that reports an address which may be its own.
type holder struct {
	uid, key string
	// leaving is true for a pod that is being deleted: its address may have gone to another one already.
	leaving bool
	// before is true when the address was the pod's when it was last attested.
	before bool
}

// notItsAddresses says which of the addresses that a pod on a trusted or held node reports are not its own. The data planes let
// in whoever has an attested pod's address, and a node's credentials may be used by someone else to report any address.
func (b *builder) notItsAddresses(pod *corev1.Pod) []string {
	b.findHolders()
	had := b.memory[string(pod.UID)]
	var why []string
	for _, addr := range podAddresses(pod) {
		before := slices.Contains(had.Addresses, addr)
		if text := b.misplaced(pod.Spec.NodeName, addr); text != "" {
			// A block that is given back, or a pool that is taken away, takes nothing from who has an address of it.
			if _, taken := b.blockOwner(addr); taken || !before {
				why = append(why, text)
				continue
			}
		}
		if node, ok := b.nodeAddresses[addr]; ok {
			why = append(why, fmt.Sprintf("address %s is one of node %s", addr, node))
			continue
		}
		for _, other := range b.holders[addr] {
			if other.uid != string(pod.UID) && !other.leaving && (pod.DeletionTimestamp != nil || other.before || !before) {
				why = append(why, fmt.Sprintf("address %s is reported of pod %s too", addr, other.key))
				break
			}
		}
	}
	return why
}

// findHolders collects who reports each address. Only trusted and held nodes count, and only for addresses that may be theirs:
// any other could take an attested pod's label away.
func (b *builder) findHolders() {
	if b.holders != nil {
		return
	}
	b.holders, b.nodeAddresses = map[netip.Addr][]holder{}, map[netip.Addr]string{}
	trusted := b.trustedNames()
	t := b.blockTable()
	for i := range b.s.Nodes {
		n := &b.s.Nodes[i]
		for _, a := range n.Status.Addresses {
			addr, err := netip.ParseAddr(a.Address)
			if err != nil || !trusted[n.Name] || t.trusted("", addr.Unmap()) != "" {
				continue
			}
			if have, ok := b.nodeAddresses[addr.Unmap()]; !ok || n.Name < have {
				b.nodeAddresses[addr.Unmap()] = n.Name
			}
		}
	}
	for i := range b.s.Pods {
		pod := b.s.Pods[i]
		if !trusted[pod.Spec.NodeName] || pod.Spec.HostNetwork || snapshot.Ended(pod) {
			continue
		}
		had := b.memory[string(pod.UID)]
		for _, addr := range podAddresses(pod) {
			if b.misplaced(pod.Spec.NodeName, addr) == "" {
				b.holders[addr] = append(b.holders[addr], holder{uid: string(pod.UID), key: snapshot.Key(pod),
					leaving: pod.DeletionTimestamp != nil, before: slices.Contains(had.Addresses, addr)})
			}
		}
	}
	for _, list := range b.holders {
		slices.SortFunc(list, func(x, y holder) int { return cmp.Compare(x.key, y.key) })
	}
}
