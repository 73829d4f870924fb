package trustgraph

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

func (b *builder) buildPods() {
	mode := b.modes[b.namespace]
	for _, pod := range b.source.pods {
		if mode == "" && !BearsTrust(pod.Labels) {
			continue
		}
		p := b.judgePod(pod, mode)
		b.pods = append(b.pods, &p)
		b.raw = append(b.raw, pod)
	}
	b.shareServiceAccounts()
	for i, p := range b.pods {
		b.retain(p, b.raw[i])
	}
	for i, p := range b.pods {
		b.countPod(p, b.raw[i])
	}
}

// TrustKey reports whether a pod's label key is one that only policy-sync may set.
func TrustKey(key string) bool {
	prefix, _, _ := strings.Cut(key, "/")
	if strings.HasSuffix(prefix, v1alpha1.PolicyLabelDomain) {
		return true
	}
	return prefix == v1alpha1.Group && (key == v1alpha1.PodAttestedLabel || key == v1alpha1.PodEnforcedLabel || strings.HasPrefix(key, v1alpha1.PodTagPrefix))
}

// BearsTrust reports whether labels hold a key that only policy-sync may set.
func BearsTrust(labels map[string]string) bool {
	for k := range labels {
		if TrustKey(k) {
			return true
		}
	}
	return false
}

// judgePod decides on one pod. First what holds for every policy, then each policy.
func (b *builder) judgePod(pod *corev1.Pod, mode string) Pod {
	out := Pod{
		Namespace: pod.Namespace, Name: pod.Name, UID: string(pod.UID), Node: pod.Spec.NodeName,
		ServiceAccount: snapshot.ServiceAccount(pod), HostNetwork: pod.Spec.HostNetwork, Ended: snapshot.Ended(pod), Mode: mode,
	}
	why := b.general(pod, mode)
	if pod.Spec.HostNetwork && mode != "" {
		out.Reports = append(out.Reports, fmt.Sprintf("pod %s uses its node's network: network policy does not bind it, only mutual TLS does", out.Key()))
	}
	node, known := b.nodes[pod.Spec.NodeName]
	if known && node.Held {
		why = append(why, b.held(pod, node)...)
	}
	met := true
	for _, c := range b.choosers {
		p := c.policy
		if !c.selects(pod) {
			continue
		}
		lacks := b.unmet(pod, node, p)
		m := Match{Policy: p.Name, Why: append(slices.Clone(why), lacks.why...), Pending: lacks.pending, unexamined: lacks.unexamined}
		m.Met = len(m.Why) == 0 && len(m.Pending) == 0
		met = met && m.Met
		out.Matches = append(out.Matches, m)
	}
	slices.SortFunc(out.Matches, func(x, y Match) int { return strings.Compare(x.Policy, y.Policy) })
	switch {
	case len(out.Matches) == 0:
		out.Why = append(append(why, "no TrustPolicy selects the pod"), b.refusedOnes(pod)...)
	case !met:
		for _, m := range out.Matches {
			for _, w := range m.Reasons() {
				if !slices.Contains(out.Why, w) {
					out.Why = append(out.Why, w)
				}
			}
		}
	default:
		out.Attested, out.Tags = true, maps.Clone(node.Tags)
	}
	return out
}

// general lists what speaks against the pod whatever a policy asks.
func (b *builder) general(pod *corev1.Pod, mode string) []string {
	var why []string
	if mode == "" {
		why = append(why, fmt.Sprintf("namespace %s is not enrolled", pod.Namespace))
	}
	if snapshot.Ended(pod) {
		why = append(why, "the pod has ended")
	}
	if snapshot.Mirror(pod) {
		why = append(why, "the pod mirrors a file on its node: its kubelet made it by itself, and nobody else admitted it")
	}
	if pod.Spec.HostNetwork {
		why = append(why, "the pod uses its node's network, which no label can tell from the node itself")
	}
	for _, key := range sortedKeys(pod.Labels) {
		if forgesCalico(key) {
			why = append(why, fmt.Sprintf("label %s is one that Calico gives itself: on a pod it could forge a namespace or a service account", key))
		}
	}
	switch node, ok := b.nodes[pod.Spec.NodeName]; {
	case pod.Spec.NodeName == "":
		why = append(why, "the pod is not on a node yet")
	case !ok:
		why = append(why, fmt.Sprintf("node %s does not exist", pod.Spec.NodeName))
	case node.Verdict != v1alpha1.VerdictTrusted && !node.Held:
		why = append(why, node.Why...)
	case mode != "" && !pod.Spec.HostNetwork && !snapshot.Ended(pod):
		why = append(why, b.notItsAddresses(pod)...)
	}
	return why
}

// forgesCalico: Felix looks a label up on the endpoint first and in its namespace's and
// service account's profiles (prefixes pcns. and pcsa.) second, so a pod's own label of
// that form would override what namespaceSelector and serviceAccounts are meant to see
// (felix/labelindex). projectcalico.org/serviceaccount is not overwritten by Calico when
// the account's name is long (libcalico-go, workload_endpoint_default.go).
func forgesCalico(key string) bool {
	return strings.HasPrefix(key, "pcns.") || strings.HasPrefix(key, "pcsa.") || strings.HasPrefix(key, "projectcalico.org/")
}

// held says why a pod on a node whose proof has expired, within the brake, may not keep
// its trust: the brake keeps what was there and adds nothing.
func (b *builder) held(pod *corev1.Pod, node Node) []string {
	var why []string
	if pod.Labels[v1alpha1.PodAttestedLabel] != v1alpha1.True {
		why = append(why, fmt.Sprintf("node %s is on hold since its proof ended: the pod was not attested before", node.Name))
	}
	if !pod.CreationTimestamp.Time.Before(node.Expired) {
		why = append(why, fmt.Sprintf("node %s is on hold since its proof ended: the pod is younger than that", node.Name))
	}
	return why
}

// unmet lists which requirements of one policy the pod does not meet, or is not known to meet.
func (b *builder) unmet(pod *corev1.Pod, node Node, p *Policy) unmet {
	var why []string
	var out unmet
	if node.Verdict == v1alpha1.VerdictTrusted || node.Held {
		why = append(why, unmetNode(node, p)...)
		// A status is the kubelet's word: it is worth what its node is worth.
		out = b.judgeImages(pod, p)
		why = append(why, out.why...)
	}
	posture := b.judgePosture(pod, p)
	out.why, out.pending = append(why, posture.Refused...), append(out.pending, posture.Unknown...)
	return out
}

func unmetNode(node Node, p *Policy) []string {
	var why []string
	req := p.Spec.Require.Node
	switch {
	case node.Reference == "":
		why = append(why, fmt.Sprintf("node %s matches no reference set", node.Name))
	case len(req.References) > 0 && !slices.Contains(req.References, node.Reference):
		why = append(why, fmt.Sprintf("node %s matches reference set %s, policy %s asks for %s", node.Name, node.Reference, p.Name, list(sorted(slices.Clone(req.References)))))
	}
	for _, key := range sortedKeys(req.Tags) {
		have, ok := node.Tags[key]
		want := list(sorted(slices.Clone(req.Tags[key])))
		switch {
		case !ok:
			why = append(why, fmt.Sprintf("node %s has no proved tag %s, policy %s asks for %s", node.Name, key, p.Name, want))
		case !slices.Contains(req.Tags[key], have):
			why = append(why, fmt.Sprintf("node %s has tag %s=%s, policy %s asks for %s", node.Name, key, have, p.Name, want))
		}
	}
	return why
}

// shareServiceAccounts finds service accounts that pods inside and outside of policies
// share: they cannot be told apart by their SPIFFE ID.
func (b *builder) shareServiceAccounts() {
	outside := map[string][]string{} // service account -> pods that no policy selects
	for _, pod := range b.live {
		if !slices.ContainsFunc(b.choosers, func(c chooser) bool { return c.selects(pod) }) {
			key := snapshot.ServiceAccount(pod)
			outside[key] = append(outside[key], pod.Name)
		}
	}
	b.shared = map[string]string{}
	for key, others := range outside {
		slices.Sort(others)
		b.shared[key] = fmt.Sprintf("service account %s is shared with pods outside of every policy (%s and %d more): they have the same SPIFFE ID", key, others[0], len(others)-1)
	}
	for _, p := range b.pods {
		text, shared := b.shared[p.ServiceAccount]
		if len(p.Matches) == 0 || !shared {
			continue
		}
		p.Reports = append(p.Reports, text)
		if b.s.Config.RefuseSharedServiceAccounts {
			p.Attested, p.Tags = false, nil
			p.Why = append(p.Why, text)
			for j := range p.Matches {
				p.Matches[j].Met = false
				p.Matches[j].Why = append(p.Matches[j].Why, text)
			}
		}
	}
}

// refusedOnes says which refused policies would select the pod, or which might if they could be read: the first few.
func (b *builder) refusedOnes(pod *corev1.Pod) []string {
	const most = 4
	var out []string
	for _, c := range b.refused {
		if w := c.policy.Spec.Workloads; c.selects(pod) || c.nobody && (w.ServiceAccount == "" || w.ServiceAccount == snapshot.ServiceAccount(pod)) {
			out = append(out, fmt.Sprintf("policy %s is not readable: %s", c.policy.Name, joined(c.policy.Problems)))
		}
	}
	slices.Sort(out)
	return out[:min(len(out), most)]
}

// countPod enters the pod with the policies that select it.
func (b *builder) countPod(pod *Pod, raw *corev1.Pod) {
	for _, m := range pod.Matches {
		p := b.policy(m.Policy)
		p.Selected = append(p.Selected, pod.Key())
		if m.Met {
			p.Attested = append(p.Attested, pod.Key())
		}
		if p.Spec.Workloads.ServiceAccount == "" && p.Accepted {
			p.ServiceAccounts = append(p.ServiceAccounts, pod.ServiceAccount)
		}
		for _, r := range pod.Reports {
			p.Notes = append(p.Notes, "pod "+pod.Name+": "+r)
		}
	}
	for _, c := range b.refused {
		if c.selects(raw) {
			c.policy.Selected = append(c.policy.Selected, pod.Key())
		}
	}
	if pod.HostNetwork && len(pod.Matches) == 0 {
		b.part.reports = append(b.part.reports, pod.Reports...)
	}
}

// policy finds a policy that is in force and that a pod names among its matches.
func (b *builder) policy(name string) *Policy {
	i := slices.IndexFunc(b.choosers, func(c chooser) bool { return c.policy.Name == name })
	return b.choosers[i].policy
}
