package trustgraph

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

const (
	// Remember is how long an attested pod is remembered at least after it was last seen attested, and hardly longer (grain). A machine that takes its pods out of
	// the API has to wait as long before it fails an attestation, and is attested many times meanwhile.
	Remember = time.Hour
	// maxRemembered bounds the pods, and maxAddresses the addresses of each; the newest are kept. A cluster of 100,000 pods may
	// replace all of them within an hour, and half of them again.
	maxRemembered = 250_000
	maxAddresses  = 16
	// grain is how exact it is known when a pod was last attested: what is remembered of a pod changes no more often than that.
	grain = 5 * time.Minute
)

// remember works out what to remember from what was, and from the pods that are attested now.
func (b *builder) remember() {
	known := map[string]snapshot.Attested{}
	for _, a := range b.source.had {
		if end := a.At.Add(Remember + grain); b.s.At.Before(end) {
			known[a.UID] = a
			b.changesAt(end)
		}
	}
	kept := map[string]bool{}
	for i, p := range b.pods {
		if a, ok := b.rememberPod(p, b.raw[i], known[p.UID]); ok {
			known[p.UID], kept[p.UID] = a, true
		}
	}
	for _, a := range known {
		if len(a.Addresses) > 0 || kept[a.UID] {
			b.attested = append(b.attested, a)
		}
	}
}

// boundMemory keeps the newest of what is remembered in all namespaces together.
func boundMemory(m snapshot.Memory) snapshot.Memory {
	count := m.Count()
	if count <= maxRemembered {
		return m
	}
	surplus := count - maxRemembered*9/10 // a list that is cut is judged anew, so that is done seldom
	all := m.All()
	slices.SortFunc(all, func(x, y snapshot.Attested) int { return cmp.Or(x.At.Compare(y.At), cmp.Compare(x.UID, y.UID)) })
	return snapshot.NewMemory(all[surplus:])
}

// rememberPod is what to remember of a pod that is attested, or was and has something pending; false for others.
func (b *builder) rememberPod(p *Pod, pod *corev1.Pod, had snapshot.Attested) (snapshot.Attested, bool) {
	switch {
	case p.HostNetwork:
		return had, false
	case p.Attested:
		at := had.At
		if at.After(b.s.At) || !b.s.At.Before(at.Add(grain)) {
			at = b.s.At
		}
		b.changesAt(at.Add(grain))
		return snapshot.Attested{Namespace: pod.Namespace, Name: pod.Name, UID: p.UID, Node: p.Node, At: at,
			Addresses: b.addressesOf(pod, had.Addresses), Images: b.usedImages(pod, had)}, true
	case p.PendingSince.IsZero():
		return had, false
	case had.UID == "": // another replica's: its label says that it was attested
		had = snapshot.Attested{Namespace: pod.Namespace, Name: pod.Name, UID: p.UID, Node: p.Node, At: b.s.At, Addresses: b.addressesOf(pod, nil)}
	}
	had.Pending = p.PendingSince
	return had, true
}

// addressesOf are the addresses of a pod on a trusted node: those it had, and those it has now that may be its own. Where the
// node's blocks are known, these are the addresses in them. Where they are not (Calico for policy only, on another IPAM), the
// node's word is taken, because it is trusted, unless another node's block holds the address or someone trusted has it too.
func (b *builder) addressesOf(pod *corev1.Pod, had []netip.Addr) []netip.Addr {
	now := podAddresses(pod)
	if !slices.ContainsFunc(now, func(a netip.Addr) bool { return !slices.Contains(had, a) }) {
		return had
	}
	out := slices.Clone(had)
	for _, addr := range now {
		if !slices.Contains(out, addr) && b.itsOwn(pod, addr) {
			out = append(out, addr)
		}
	}
	return out[max(0, len(out)-maxAddresses):]
}

// itsOwn reports whether an address that a trusted node reports may be remembered as the pod's.
func (b *builder) itsOwn(pod *corev1.Pod, addr netip.Addr) bool {
	node := pod.Spec.NodeName
	if b.misplaced(node, addr) != "" {
		return false
	}
	if b.addresses.blocks.known(node) {
		return true
	}
	whose := b.addresses.of(addr)
	return (!whose.used || whose.user.uid == string(pod.UID)) && !b.inServices(addr)
}

// inServices reports whether the address lies in a range of Services' addresses.
func (b *builder) inServices(addr netip.Addr) bool {
	return slices.ContainsFunc(b.s.ServiceCIDRs, func(p netip.Prefix) bool { return canonical(p).Contains(addr) })
}

// recallRevocations revokes what attested pods had, unless somebody that is trusted has it now:
//
//   - on machines that are lost, also pods that the machine has taken out of the API, or given other addresses there;
//   - on trusted machines, pods that run on and are no longer attested although a policy still selects them: new
//     connections close with the label, and open ones have to be cut.
func (b *builder) recallRevocations() {
	if len(b.attested) == 0 {
		return
	}
	fallen := b.fallen()
	for _, a := range b.attested {
		cause := b.causes[a.Node]
		if cause == "" {
			cause = fallen[a.UID]
		}
		if cause == "" {
			continue
		}
		for _, addr := range a.Addresses {
			if whose := b.addresses.of(addr); !whose.used || whose.user.uid == a.UID {
				b.revoked = append(b.revoked, Revoked{Address: addr.String(), Reason: cause, Node: a.Node})
			}
		}
	}
}

// fallen are the running pods of enforcing namespaces on trusted nodes that a policy selects and that are proved not to meet it,
// by UID, with the reason. A pod of which something is not known yet has not fallen; see retain.
func (b *builder) fallen() map[string]string {
	out := map[string]string{}
	for _, p := range b.pods {
		if n := b.nodes[p.Node]; !p.Attested && p.Mode == v1alpha1.ModeEnforce && len(p.Matches) > 0 && n.Verdict == v1alpha1.VerdictTrusted && !p.Ended && !onlyPending(p) {
			out[p.UID] = "pod " + p.Key() + " is no longer attested: " + joined(p.Why)
		}
	}
	return out
}
