package trustgraph

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// MaxSkew is how far a verdict may lie in the future before it is not believed: the
// clocks of SPIRE servers and of policy-sync differ by less.
const MaxSkew = 5 * time.Minute

func (b *builder) buildNodes() {
	trusts := map[string]v1alpha1.NodeTrust{}
	owners := map[string][]string{} // EK -> names of the NodeTrusts that claim it
	for i := range b.s.NodeTrusts {
		t := b.s.NodeTrusts[i]
		trusts[t.Name] = t
		owners[t.Spec.EKHash] = append(owners[t.Spec.EKHash], t.Name)
	}
	b.nodes = map[string]Node{}
	for i := range b.s.Nodes {
		n := &b.s.Nodes[i]
		node := Node{Name: n.Name, UID: string(n.UID), Verdict: v1alpha1.VerdictUnknown, created: n.CreationTimestamp.Time}
		trust, ok := trusts[n.Name]
		if !ok {
			node.Why = []string{fmt.Sprintf("node %s has no NodeTrust: it never proved itself, or an administrator deleted it", n.Name)}
			node.Untouched = untouched(n)
		} else {
			b.judge(&node, n, trust.Spec)
			b.refuseSharedEK(&node, owners[trust.Spec.EKHash])
		}
		b.nodes[n.Name] = node
		b.g.Nodes = append(b.g.Nodes, node)
	}
	if before := b.untouched(); b.s.Config.Taint && !b.s.Config.TaintExisting && len(before) > 0 {
		b.report("nodes that were there before Keelson and have never proved themselves bear no taint, so that pods are still placed there, where none is let in (taintExisting): %s", strings.Join(before, ", "))
	}
	for name := range trusts {
		if _, ok := b.nodes[name]; !ok {
			b.report("NodeTrust %s is about a node that does not exist", name)
		}
	}
	b.stateNodeTrusts()
}

// NodeTrustState is a NodeTrust whose status is to change.
type NodeTrustState struct {
	Name   string
	Status v1alpha1.NodeTrustStatus
}

// stateNodeTrusts fills Graph.NodeTrusts: those whose status does not say what the graph does.
func (b *builder) stateNodeTrusts() {
	for i := range b.s.NodeTrusts {
		t := &b.s.NodeTrusts[i]
		n, ok := b.nodes[t.Name]
		want := v1alpha1.NodeTrustStatus{Verdict: v1alpha1.NodeTrustState(n.Verdict), Why: joined(n.Why)}
		switch {
		case !ok && t.Spec.Verdict == v1alpha1.VerdictUntrusted:
			want.Verdict, want.Why = v1alpha1.NodeTrustState(v1alpha1.VerdictUntrusted), fmt.Sprintf("node %s is proved bad; there is no Node of this name", t.Name)
		case !ok:
			want.Verdict, want.Why = v1alpha1.NodeTrustState(v1alpha1.VerdictUnknown), "there is no Node of this name"
		case n.Held:
			want.Verdict = v1alpha1.NodeTrustState(v1alpha1.VerdictHeld)
		}
		have := t.Status
		if have.Verdict == want.Verdict && have.Why == want.Why {
			continue
		}
		if want.Since = have.Since; have.Verdict != want.Verdict || have.Since == nil {
			want.Since = &metav1.Time{Time: b.s.At.Truncate(time.Second)}
		}
		b.g.NodeTrusts = append(b.g.NodeTrusts, NodeTrustState{Name: t.Name, Status: want})
	}
	slices.SortFunc(b.g.NodeTrusts, func(x, y NodeTrustState) int { return strings.Compare(x.Name, y.Name) })
}

// untouched lists such nodes of the graph, sorted.
func (b *builder) untouched() []string {
	var out []string
	for _, n := range b.g.Nodes {
		if n.Untouched {
			out = append(out, n.Name)
		}
	}
	slices.Sort(out)
	return out
}

// untouched reports whether a node without a NodeTrust bears neither the taint nor a label of Keelson's. One whose NodeTrust was
// deleted while it was trusted bears the label still, and is closed with it.
func untouched(n *corev1.Node) bool {
	for k := range n.Labels {
		if strings.HasPrefix(k, v1alpha1.NodeLabelPrefix) {
			return false
		}
	}
	return !slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == v1alpha1.UntrustedTaint })
}

// judge turns a NodeTrust into a node's verdict. In order:
//   - untrusted stands until a newer verdict replaces it, whatever else the NodeTrust says: a date in the future comes
//     from a server's clock, and must not keep a door open. It is about the machine, whose EK holds the name until
//     an administrator deletes the NodeTrust, and outlasts the Node object, whoever deleted that;
//   - trust must be about this very Node object, not an earlier one of its name;
//   - what it says must be well formed and not of the future;
//   - trusted stands until validUntil, then it is stale.
func (b *builder) judge(node *Node, n *corev1.Node, t v1alpha1.NodeTrustSpec) {
	if t.Verdict == v1alpha1.VerdictUntrusted {
		node.Verdict, node.EKHash, node.AgentID = v1alpha1.VerdictUntrusted, t.EKHash, t.AgentID
		node.Why = []string{fmt.Sprintf("node %s is proved bad", n.Name)}
		for _, r := range t.Reasons {
			node.Why = append(node.Why, fmt.Sprintf("%s: %s", r.Check, r.Reason))
		}
		return
	}
	if why := b.malformed(n, t); why != "" {
		node.Why = []string{why}
		return
	}
	node.EKHash, node.AgentID, node.Reference, node.Tags = t.EKHash, t.AgentID, t.Reference, maps.Clone(t.Tags)
	switch {
	case b.s.At.Before(t.ValidUntil.Time):
		node.Verdict = v1alpha1.VerdictTrusted
	default:
		node.Verdict, node.Expired = v1alpha1.VerdictStale, t.ValidUntil.Time
		node.Held = b.s.At.Before(t.ValidUntil.Add(b.s.Config.MaxHold))
		node.Why = []string{fmt.Sprintf("node %s: its proof ended at %s", n.Name, t.ValidUntil.UTC().Format(time.RFC3339))}
	}
}

// malformed says why a NodeTrust that does not say untrusted cannot be believed about the node, or nothing.
func (b *builder) malformed(n *corev1.Node, t v1alpha1.NodeTrustSpec) string {
	ek, err := nodeclaim.ParseEKHash(t.EKHash)
	agent := "spiffe://" + b.s.Config.TrustDomain + nodeclaim.AgentPath(ek)
	switch {
	case t.NodeUID != "" && t.NodeUID != string(n.UID):
		return fmt.Sprintf("node %s: the proof is about an earlier Node of this name (UID %s, now %s)", n.Name, t.NodeUID, n.UID)
	case t.NodeUID == "":
		// The verifier writes the UID as soon as the Node exists, so that nothing has to be told from
		// creation times, which have whole seconds.
		return fmt.Sprintf("node %s: the proof names no Node UID, so that a recreated Node could inherit it; the verifier adds it within seconds", n.Name)
	case err != nil:
		return fmt.Sprintf("node %s: its NodeTrust is not readable: %v", n.Name, err)
	case t.AgentID != agent:
		return fmt.Sprintf("node %s: its NodeTrust names agent %q, but this EK's agent is %s", n.Name, t.AgentID, agent)
	case t.Verdict != v1alpha1.VerdictTrusted:
		return fmt.Sprintf("node %s: its NodeTrust says %q, which is no verdict", n.Name, t.Verdict)
	case t.AttestedAt.IsZero() || t.AttestedAt.After(b.s.At.Add(MaxSkew)):
		return fmt.Sprintf("node %s: its proof is dated %s, which lies in the future or is no date; set the clocks of the SPIRE servers right, and delete the NodeTrust of the future", n.Name, t.AttestedAt.UTC().Format(time.RFC3339))
	case !t.ValidUntil.After(t.AttestedAt.Time):
		return fmt.Sprintf("node %s: its proof ended before it began", n.Name)
	}
	return ""
}

// refuseSharedEK: one TPM cannot stand in two machines, so an EK that two NodeTrusts
// claim proves neither. A proved-bad verdict stays.
func (b *builder) refuseSharedEK(node *Node, owners []string) {
	if len(owners) < 2 || node.Verdict == v1alpha1.VerdictUntrusted {
		return
	}
	slices.Sort(owners)
	node.Verdict, node.Held = v1alpha1.VerdictUnknown, false
	node.Why = []string{fmt.Sprintf("node %s: its EK is claimed by several nodes (%s); an administrator has to say whose it is", node.Name, list(owners))}
}

// noteNodes notes what a policy requires of a node that no node has: a reference set or a tag that is misspelt closes every pod
// of the policy. What NodeTrusts say counts whatever
// their verdict is now, so that an outage changes no note.
func (b *builder) noteNodes(p *Policy) {
	if len(b.nodes) == 0 {
		return
	}
	if b.classes == nil {
		b.classes = map[string][]string{}
		for i := range b.s.NodeTrusts {
			t := &b.s.NodeTrusts[i].Spec
			if t.Reference != "" {
				b.classes[""] = append(b.classes[""], t.Reference)
			}
			for k, v := range t.Tags {
				b.classes[k] = append(b.classes[k], v)
			}
		}
		for k := range b.classes {
			b.classes[k] = sorted(b.classes[k])
		}
	}
	missing := func(want, have []string) bool {
		return len(want) > 0 && !slices.ContainsFunc(want, func(w string) bool { _, ok := slices.BinarySearch(have, w); return ok })
	}
	req := p.Spec.Require.Node
	if have := b.classes[""]; missing(req.References, have) {
		p.Notes = append(p.Notes, fmt.Sprintf("no node matches any of references [%s]; nodes match: %s", someOf(req.References), someOf(have)))
	}
	for _, key := range sortedKeys(req.Tags) {
		if have := b.classes[key]; key != "" && missing(req.Tags[key], have) {
			p.Notes = append(p.Notes, fmt.Sprintf("no node has tag %s with any of [%s]; nodes have: %s", key, someOf(req.Tags[key]), someOf(have)))
		}
	}
}

// noteUnknownBlocks notes in each policy which of its pods' nodes have no known address block.
func (b *builder) noteUnknownBlocks() {
	t := b.blockTable()
	nodes := map[string][]string{} // by policy
	for i := range b.g.Pods {
		p := &b.g.Pods[i]
		if _, there := b.nodes[p.Node]; !there || p.HostNetwork || p.Ended || t.known(p.Node) {
			continue
		}
		for _, m := range p.Matches {
			key := p.Namespace + "/" + m.Policy
			nodes[key] = append(nodes[key], p.Node)
		}
	}
	for i := range b.g.Policies {
		p := &b.g.Policies[i]
		if names := sorted(nodes[p.Key()]); len(names) > 0 {
			p.Notes = append(p.Notes, fmt.Sprintf("no address block is known of %s: addresses of the policy's pods there can be revoked only after these were attested, for %s after that",
				some("node", names), Remember))
		}
	}
}
