// Package desired turns what is known into what should be, for no vendor in particular:
// which namespaces are closed, who may talk with whom, which labels stand on pods and
// nodes, which SPIFFE IDs are issued on what proof. Each intent carries its reason.
//
// It denies by default: what no intent names stays closed.
package desired

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

// Intents is everything that should be, sorted.
type Intents struct {
	Config snapshot.Config
	// Namespaces are closed unless something below opens them.
	Namespaces []trustgraph.Namespace
	Workloads  []Workload
	Nodes      []Node
	Pods       []Pod
	Identities []trustgraph.Identity
	Revoked    []trustgraph.Revoked
	Evict      []trustgraph.Eviction
	// OwnEntries are the IDs of the live SPIRE entries that this cluster's policy-sync made, sorted.
	OwnEntries []string
	// RevokedSets is in which set (from 0) revoked addresses stand now, so that they stay there.
	RevokedSets map[string]int
}

// WhyRevoked joins the reasons of all revoked addresses, of which it gives the first sixteen.
func (in Intents) WhyRevoked() string {
	if len(in.Revoked) == 0 {
		return "no address is revoked"
	}
	reasons := map[string]bool{}
	for _, r := range in.Revoked {
		reasons[r.Reason] = true
	}
	out := sortedKeys(reasons)
	if rest := len(out) - maxReasons; rest > 0 {
		out = append(out[:maxReasons], fmt.Sprintf("and %d more reasons", rest))
	}
	return strings.Join(out, "; ")
}

// maxReasons bounds the reasons of one operation.
const maxReasons = 16

// RevokedShards deals revoked addresses out into sets of a bounded size. An address stays in the set where it stands while
// others come and go; a new one takes the first set with room. The first set is always there, if empty; should there ever be
// more addresses than all sets hold, the last one takes them, for none may be left out.
func (in Intents) RevokedShards() [][]trustgraph.Revoked {
	out := make([][]trustgraph.Revoked, v1alpha1.MaxRevokedSets)
	var unplaced []trustgraph.Revoked
	for _, r := range in.Revoked {
		i, placed := in.RevokedSets[r.Address]
		if !placed || i < 0 || i >= len(out) || len(out[i]) >= v1alpha1.MaxRevokedPerSet {
			unplaced = append(unplaced, r)
			continue
		}
		out[i] = append(out[i], r)
	}
	next := 0
	for _, r := range unplaced {
		for next < len(out)-1 && len(out[next]) >= v1alpha1.MaxRevokedPerSet {
			next++
		}
		out[next] = append(out[next], r)
	}
	for i := range out {
		slices.SortFunc(out[i], func(a, b trustgraph.Revoked) int { return cmp.Compare(a.Address, b.Address) })
	}
	for len(out) > 1 && len(out[len(out)-1]) == 0 {
		out = out[:len(out)-1]
	}
	return out
}

// Workload is the pods of one TrustPolicy and who may talk with them.
type Workload struct {
	Namespace, Policy string
	Mode              string
	Ambient           bool
	ServiceAccounts   []string
	Ingress           []Flow
	Egress            []Flow
	// Others is what other policies that select some of the same pods let in: this one's DENY leaves it alone.
	Others []Flow
	Reason string
}

// Flow is one way that is open, between attested pods only.
type Flow struct {
	// Namespace and ServiceAccount of the other end.
	Namespace, ServiceAccount string
	// PolicyLabel, when set, is the label that the other end must bear besides.
	PolicyLabel string
	// Selector and Tags narrow the other end; no X.509 identity can express them.
	Selector *metav1.LabelSelector
	Tags     map[string][]string
	// Ports are TCP ports; none means all.
	Ports []int32
	// HTTP narrows to requests; none means all.
	HTTP []v1alpha1.HTTPRule
	// Ambient is true when packets of the flow carry Istio's HBONE, on port 15008.
	Ambient bool
}

// Node is what a Node object should bear.
type Node struct {
	Name, UID string
	// Labels are all labels under v1alpha1.NodeLabelPrefix; others of that prefix go.
	Labels map[string]string
	// Keep are labels that stay where the Node has them, and are not added, while the grace period holds the node.
	Keep map[string]string
	// Taint says whether v1alpha1.UntrustedTaint is on it; nil leaves taints alone.
	Taint *bool
	// Proved is true when the node is proved bad: what follows from it is never held back.
	Proved bool
	Reason string
}

// Pod is what a Pod object should bear.
type Pod struct {
	Namespace, Name, UID string
	// Labels are all trust labels (trustgraph.TrustKey); others of that form go.
	Labels map[string]string
	// KeepOnly is true while the brake holds the pod's node, and for a pod that is retained: labels may stay, none is added.
	KeepOnly bool
	// Proved is true when the pod's node is proved bad.
	Proved bool
	// Failed is true when a policy selects the pod and it does not meet what is asked.
	Failed bool
	Reason string
}

// From turns a graph into intents.
func From(g trustgraph.Graph) Intents {
	out := Urgent(g)
	out.Workloads = Workloads(g)
	return out
}

// Workloads are the policies in force and what they allow.
func Workloads(g trustgraph.Graph) []Workload {
	var out []Workload
	known := map[*trustgraph.Answer][]keyed{}
	for _, p := range g.Policies {
		if p.Accepted && p.Mode != "" {
			out = append(out, workload(g, p, known))
		}
	}
	return out
}

// Urgent is From without what policies allow: what closes needs none of it, and it costs no more than the graph has nodes and pods.
func Urgent(g trustgraph.Graph) Intents {
	out := Shared(g)
	for _, n := range g.Nodes {
		out.Nodes = append(out.Nodes, NodeOf(g, n))
	}
	for _, p := range g.Pods() {
		out.Pods = append(out.Pods, PodOf(g, p))
	}
	return out
}

// Shared is what is intended of no single policy, node or pod.
func Shared(g trustgraph.Graph) Intents {
	return Intents{Config: g.Config, Namespaces: g.Namespaces, Revoked: g.Revoked, Evict: g.Evict, Identities: g.Identities, OwnEntries: g.OwnEntries}
}

// workload makes the intents of one policy. Known are the flows of lists of answers, which policies for the same accounts share.
func workload(g trustgraph.Graph, p trustgraph.Policy, known map[*trustgraph.Answer][]keyed) Workload {
	w := Workload{
		Namespace: p.Namespace, Policy: p.Name, Mode: p.Mode, Ambient: p.Ambient, ServiceAccounts: p.ServiceAccounts,
		Reason: fmt.Sprintf("TrustPolicy %s", p.Key()),
	}
	in, out, others := flows{}, flows{}, flows{}
	in.ingress(p, p.Ambient)
	for _, name := range p.SharesPodsWith {
		if other, ok := g.Policy(p.Namespace, name); ok {
			others.ingress(other, other.Ambient)
		}
	}
	for _, rule := range p.Spec.Egress {
		ports := sortedPorts(rule.Ports)
		for _, peer := range rule.To {
			f := flow(p, peer, ports)
			other, _ := g.Namespace(f.Namespace)
			f.Ambient = other.Ambient || g.AmbientAccounts[f.Namespace+"/"+f.ServiceAccount]
			out.add(f, "")
		}
	}
	if len(p.Answers) > 0 {
		list, ok := known[&p.Answers[0]]
		if !ok {
			list = answers(g, p.Answers)
			known[&p.Answers[0]] = list
		}
		out.list = append(out.list, list...)
	}
	w.Ingress, w.Egress, w.Others = in.sorted(), out.sorted(), others.sorted()
	return w
}

// flows collects flows without repeats. Keys order them.
type flows struct {
	list []keyed
	http map[string]shared
}

type keyed struct {
	key  string
	flow Flow
}

// shared is one list of HTTP rules for all flows that have the same.
type shared struct {
	rules []v1alpha1.HTTPRule
	hash  string
}

// ingress adds what a policy lets in. What a list of HTTP rules says is read once for each rule, not for each peer.
func (fs *flows) ingress(p trustgraph.Policy, ambient bool) {
	for _, rule := range p.Spec.Ingress {
		ports, http := sortedPorts(rule.Ports), fs.shared(rule.HTTP)
		for _, peer := range rule.From {
			f := flow(p, peer, ports)
			f.HTTP, f.Ambient = http.rules, ambient
			fs.add(f, http.hash)
		}
	}
}

func (fs *flows) shared(rules []v1alpha1.HTTPRule) shared {
	if len(rules) == 0 {
		return shared{}
	}
	text := fmt.Sprintf("%q", rules)
	if fs.http == nil {
		fs.http = map[string]shared{}
	}
	s, ok := fs.http[text]
	if !ok {
		sum := sha256.Sum256([]byte(text))
		s = shared{rules, hex.EncodeToString(sum[:])}
		fs.http[text] = s
	}
	return s
}

// maxPortsPerFlow bounds the ports of a rule that another policy's ports add to one's egress.
const maxPortsPerFlow = 32

// answers are the ways out that follow from other policies' ingress: whom they let in may call them. What narrows the caller
// (selector, tags) is left to their ingress.
func answers(g trustgraph.Graph, list []trustgraph.Answer) []keyed {
	var fs flows
	for _, a := range list {
		f := Flow{Namespace: a.Namespace, PolicyLabel: v1alpha1.PolicyLabel(a.Policy)}
		if other, ok := g.Policy(a.Namespace, a.Policy); ok {
			f.Ambient = other.Ambient
		}
		if len(a.Ports) == 0 {
			fs.add(f, "")
		}
		for ports := range slices.Chunk(a.Ports, maxPortsPerFlow) {
			f.Ports = slices.Clone(ports)
			fs.add(f, "")
		}
	}
	return fs.list
}

func (fs *flows) add(f Flow, http string) {
	fs.list = append(fs.list, keyed{f.key() + " " + http, f})
}

func (fs *flows) sorted() []Flow {
	slices.SortFunc(fs.list, func(a, b keyed) int { return cmp.Compare(a.key, b.key) })
	var out []Flow
	for i, k := range fs.list {
		if i == 0 || fs.list[i-1].key != k.key {
			out = append(out, k.flow)
		}
	}
	return out
}

func sortedPorts(ports []int32) []int32 {
	ports = slices.Clone(ports)
	slices.Sort(ports)
	return slices.Compact(ports)
}

func flow(p trustgraph.Policy, peer v1alpha1.Peer, ports []int32) Flow {
	return Flow{
		Namespace: trustgraph.PeerNamespace(p.Namespace, peer), ServiceAccount: peer.ServiceAccount,
		Selector: peer.PodSelector, Tags: peer.Tags, Ports: ports,
	}
}

// key is the same for flows that mean the same, but for their HTTP rules.
func (f Flow) key() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%q %q %q %v %v %q", f.Namespace, f.ServiceAccount, f.PolicyLabel, f.Ports, f.Ambient, metav1.FormatLabelSelector(f.Selector))
	for _, k := range sortedKeys(f.Tags) {
		fmt.Fprintf(&b, " %q=%q", k, f.Tags[k])
	}
	return b.String()
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// NodeOf is what a Node should bear: a trusted node bears its verdict, its reference set and its tags and no taint, any other node the taint alone, and an
// untrusted one that verdict too, by which policy-sync and SPIRE's server, who tolerate the taint, are kept away
// (design/2026-11-26-policy-sync-off-bad-nodes.md).
//
// A node in its grace period keeps the labels that it has: its pods' node affinity requires them (guard/affinity.go), and a
// kubelet that restarts fails a running pod whose required affinity its node does not meet (kubernetes #123980). It gets none
// that it does not have, and the taint, so that nothing new is placed there.
//
// A node that was there before Keelson and has never proved itself keeps its pods until an administrator asks for the taint: it
// has no label, so nothing on it is let in anyway, and a cluster would stand still while its nodes attest for the first time.
func NodeOf(g trustgraph.Graph, n trustgraph.Node) Node {
	out := Node{Name: n.Name, UID: n.UID, Labels: map[string]string{}, Proved: n.Verdict == v1alpha1.VerdictUntrusted}
	trusted := n.Verdict == v1alpha1.VerdictTrusted
	if trusted {
		out.Labels = trustedLabels(n)
	}
	if n.Held {
		out.Keep = trustedLabels(n)
	}
	if n.Verdict == v1alpha1.VerdictUntrusted {
		out.Labels[v1alpha1.NodeVerdictLabel] = string(v1alpha1.VerdictUntrusted)
	}
	if g.Config.Taint && (!n.Untouched || g.Config.TaintExisting) {
		taint := !trusted
		out.Taint = &taint
	}
	switch {
	case trusted:
		out.Reason = fmt.Sprintf("node %s is trusted: it matches reference set %s", n.Name, n.Reference)
	case n.Held:
		until := n.Expired.Add(g.Config.MaxHold).UTC().Format(time.RFC3339)
		out.Reason = fmt.Sprintf("%s; the brake holds its pods until %s, new ones are kept away", strings.Join(n.Why, "; "), until)
	default:
		out.Reason = strings.Join(n.Why, "; ")
	}
	return out
}

// trustedLabels are what a trusted node bears.
func trustedLabels(n trustgraph.Node) map[string]string {
	out := map[string]string{v1alpha1.NodeVerdictLabel: string(v1alpha1.VerdictTrusted)}
	if len(validation.IsValidLabelValue(n.Reference)) == 0 && n.Reference != "" {
		out[v1alpha1.NodeReferenceLabel] = n.Reference
	}
	for k, v := range n.Tags {
		putTag(out, v1alpha1.NodeTagPrefix, k, v)
	}
	return out
}

// putTag sets a label unless the tag's key or value cannot be one: then the tag opens
// nothing, which is the safe side.
func putTag(labels map[string]string, prefix, key, value string) {
	if len(validation.IsQualifiedName(prefix+key)) == 0 && len(validation.IsValidLabelValue(value)) == 0 && value != "" {
		labels[prefix+key] = value
	}
}

// PodOf is what a Pod should bear: an attested pod bears its own label, one per policy, and its node's tags. A pod
// under several policies of which it meets some bears no label at all.
func PodOf(g trustgraph.Graph, p *trustgraph.Pod) Pod {
	out := Pod{Namespace: p.Namespace, Name: p.Name, UID: p.UID, Labels: map[string]string{}}
	if n, ok := g.Node(p.Node); ok {
		out.Proved, out.KeepOnly = n.Verdict == v1alpha1.VerdictUntrusted, n.Held
	}
	out.KeepOnly = out.KeepOnly || p.Retained
	if !p.Attested && !p.Retained {
		out.Failed = len(p.Matches) > 0
		out.Reason = strings.Join(p.Why, "; ")
		return out
	}
	out.Labels[v1alpha1.PodAttestedLabel] = v1alpha1.True
	if g.Config.Istio && p.Mode == v1alpha1.ModeEnforce {
		out.Labels[v1alpha1.PodEnforcedLabel] = v1alpha1.True
	}
	var names []string
	for _, m := range p.Matches {
		out.Labels[v1alpha1.PolicyLabel(m.Policy)] = v1alpha1.True
		names = append(names, m.Policy)
	}
	for k, v := range p.Tags {
		putTag(out.Labels, v1alpha1.PodTagPrefix, k, v)
	}
	out.Reason = fmt.Sprintf("node %s, image and runtime meet policy %s", p.Node, strings.Join(names, ", "))
	if p.Retained {
		out.Reason = "it keeps what it has while this is not known: " + strings.Join(p.Why, "; ")
	}
	return out
}
