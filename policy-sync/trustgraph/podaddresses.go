package trustgraph

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// notItsAddresses says which of the addresses that a pod on a trusted or held node reports are not its own. The data planes let
// in whoever has an attested pod's address, and a node's credentials may be used by someone else to report any address.
func (b *builder) notItsAddresses(pod *corev1.Pod) []string {
	had, _ := b.remembered(string(pod.UID))
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
		whose := b.addresses.of(addr)
		if whose.node != "" {
			why = append(why, fmt.Sprintf("address %s is one of node %s", addr, whose.node))
			continue
		}
		if len(whose.holders) > 1 {
			b.contested = true // it matters what is remembered of the others
		}
		for _, other := range whose.holders {
			if other.uid != string(pod.UID) && !other.leaving && (pod.DeletionTimestamp != nil || other.before || !before) {
				why = append(why, fmt.Sprintf("address %s is reported of pod %s too", addr, other.key))
				break
			}
		}
	}
	return why
}
