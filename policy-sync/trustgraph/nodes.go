package trustgraph

import (
	"cmp"
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

func (c *common) buildNodes() {
	trusts := map[string]v1alpha1.NodeTrust{}
	owners := map[string][]string{} // EK -> names of the NodeTrusts that claim it
	for i := range c.s.NodeTrusts {
		t := c.s.NodeTrusts[i]
		trusts[t.Name] = t
		owners[t.Spec.EKHash] = append(owners[t.Spec.EKHash], t.Name)
	}
	c.nodes = map[string]Node{}
	for i := range c.s.Nodes {
		n := &c.s.Nodes[i]
		node := Node{Name: n.Name, UID: string(n.UID), Verdict: v1alpha1.VerdictUnknown, created: n.CreationTimestamp.Time}
		trust, ok := trusts[n.Name]
		if !ok {
			node.Why = []string{fmt.Sprintf("node %s has no NodeTrust: it never proved itself, or an administrator deleted it", n.Name)}
			node.Untouched = untouched(n)
		} else {
			c.confine("node "+n.Name, func() {
				c.judge(&node, n, trust.Spec)
				c.refuseSharedEK(&node, owners[trust.Spec.EKHash])
			}, func(cause any) { node = unjudged(n, trust.Spec, cause) })
		}
		c.nodes[n.Name] = node
		c.nodeList = append(c.nodeList, node)
	}
	slices.SortFunc(c.nodeList, func(x, y Node) int { return cmp.Compare(x.Name, y.Name) })
	if before := c.untouched(); c.s.Config.Taint && !c.s.Config.TaintExisting && len(before) > 0 {
		c.report("nodes that were there before Keelson and have never proved themselves bear no taint, so that pods are still placed there, where none is let in (taintExisting): %s", strings.Join(before, ", "))
	}
	for name := range trusts {
		if _, ok := c.nodes[name]; !ok {
			c.report("NodeTrust %s is about a node that does not exist", name)
		}
	}
	c.stateNodeTrusts()
}

// unjudged is a node whose judgement failed. It is not trusted; where its NodeTrust says that it is
// untrusted, that stands.
func unjudged(n *corev1.Node, t v1alpha1.NodeTrustSpec, cause any) Node {
	out := Node{Name: n.Name, UID: string(n.UID), Verdict: v1alpha1.VerdictUnknown, created: n.CreationTimestamp.Time,
		Why: []string{fmt.Sprintf("node %s could not be judged, %s: %v", n.Name, ownFault, cause)}}
	if t.Verdict == v1alpha1.VerdictUntrusted {
		out.Verdict, out.EKHash, out.AgentID = v1alpha1.VerdictUntrusted, t.EKHash, t.AgentID
	}
	return out
}

// NodeTrustState is a NodeTrust whose status is to change.
type NodeTrustState struct {
	Name   string
	Status v1alpha1.NodeTrustStatus
}

// stateNodeTrusts fills Graph.NodeTrusts: those whose status does not say what the graph does.
func (c *common) stateNodeTrusts() {
	for i := range c.s.NodeTrusts {
		t := &c.s.NodeTrusts[i]
		n, ok := c.nodes[t.Name]
		want := v1alpha1.NodeTrustStatus{ObservedGeneration: t.Generation, Verdict: v1alpha1.NodeTrustState(n.Verdict), Why: joined(n.Why)}
		switch {
		case !ok && t.Spec.Verdict == v1alpha1.VerdictUntrusted:
			want.Verdict, want.Why = v1alpha1.NodeTrustState(v1alpha1.VerdictUntrusted), fmt.Sprintf("node %s is proved bad; there is no Node of this name", t.Name)
		case !ok:
			want.Verdict, want.Why = v1alpha1.NodeTrustState(v1alpha1.VerdictUnknown), "there is no Node of this name"
		case n.Held:
			want.Verdict = v1alpha1.NodeTrustState(v1alpha1.VerdictHeld)
		}
		have := t.Status
		if have.Verdict == want.Verdict && have.Why == want.Why && have.ObservedGeneration == want.ObservedGeneration {
			continue
		}
		if want.Since = have.Since; have.Verdict != want.Verdict || have.Since == nil {
			want.Since = &metav1.Time{Time: c.s.At.Truncate(time.Second)}
		}
		c.states = append(c.states, NodeTrustState{Name: t.Name, Status: want})
	}
	slices.SortFunc(c.states, func(x, y NodeTrustState) int { return strings.Compare(x.Name, y.Name) })
}

// untouched lists such nodes of the graph, sorted.
func (c *common) untouched() []string {
	var out []string
	for _, n := range c.nodeList {
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
func (c *common) judge(node *Node, n *corev1.Node, t v1alpha1.NodeTrustSpec) {
	if t.Verdict == v1alpha1.VerdictUntrusted {
		node.Verdict, node.EKHash, node.AgentID = v1alpha1.VerdictUntrusted, t.EKHash, t.AgentID
		node.Why = []string{fmt.Sprintf("node %s is proved bad", n.Name)}
		for _, r := range t.Reasons {
			node.Why = append(node.Why, fmt.Sprintf("%s: %s", r.Check, r.Reason))
		}
		return
	}
	if why := c.malformed(n, t); why != "" {
		node.Why = []string{why}
		return
	}
	node.EKHash, node.AgentID, node.Reference, node.Tags = t.EKHash, t.AgentID, t.Reference, maps.Clone(t.Tags)
	switch {
	case c.s.At.Before(t.ValidUntil.Time):
		node.Verdict = v1alpha1.VerdictTrusted
	default:
		node.Verdict, node.Expired = v1alpha1.VerdictStale, t.ValidUntil.Time
		node.Held = c.s.At.Before(t.ValidUntil.Add(c.s.Config.MaxHold))
		node.Why = []string{fmt.Sprintf("node %s: its proof ended at %s", n.Name, t.ValidUntil.UTC().Format(time.RFC3339))}
	}
}

// malformed says why a NodeTrust that does not say untrusted cannot be believed about the node, or nothing.
func (c *common) malformed(n *corev1.Node, t v1alpha1.NodeTrustSpec) string {
	ek, err := nodeclaim.ParseEKHash(t.EKHash)
	agent := "spiffe://" + c.s.Config.TrustDomain + nodeclaim.AgentPath(ek)
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
	case t.AttestedAt.IsZero() || t.AttestedAt.After(c.s.At.Add(MaxSkew)):
		return fmt.Sprintf("node %s: its proof is dated %s, which lies in the future or is no date; set the clocks of the SPIRE servers right, and delete the NodeTrust of the future", n.Name, t.AttestedAt.UTC().Format(time.RFC3339))
	case !t.ValidUntil.After(t.AttestedAt.Time):
		return fmt.Sprintf("node %s: its proof ended before it began", n.Name)
	}
	return ""
}

// refuseSharedEK: one TPM cannot stand in two machines, so an EK that two NodeTrusts
// claim proves neither. A proved-bad verdict stays.
func (c *common) refuseSharedEK(node *Node, owners []string) {
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
	t := b.addresses.blocks
	nodes := map[string][]string{} // by policy
	for _, p := range b.pods {
		if _, there := b.nodes[p.Node]; !there || p.HostNetwork || p.Ended || t.known(p.Node) {
			continue
		}
		for _, m := range p.Matches {
			key := p.Namespace + "/" + m.Policy
			nodes[key] = append(nodes[key], p.Node)
		}
	}
	for i := range b.policies {
		p := &b.policies[i]
		if names := sorted(nodes[p.Key()]); len(names) > 0 {
			p.Notes = append(p.Notes, fmt.Sprintf("no address block is known of %s: addresses of the policy's pods there can be revoked only after these were attested, for %s after that",
				some("node", names), Remember))
		}
	}
}
