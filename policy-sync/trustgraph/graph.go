// Package trustgraph works out who is who: which node is trusted, which pod runs where
// and proved what, which policy selects it, and why it is or is not attested.
//
// It decides and explains; it makes no objects. Every reason is a sentence for a
// person. What it cannot read, parse or find counts as not trusted.
package trustgraph

import (
	"cmp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// Graph is what a snapshot means at one moment. Its slices are sorted by name.
type Graph struct {
	At         time.Time
	Config     snapshot.Config
	Namespaces []Namespace // enrolled ones only
	Nodes      []Node
	// Parts are the pods of enrolled namespaces, and any other pod that bears a trust label, by
	// namespace and in the order of their keys. A part of which nothing has changed is the same
	// pointer in the next graph of one Engine. So is every other list of the graph the same list.
	Parts []*Part
	// Policies are all of them, ByNamespace the same in lists of one namespace each, in the order of
	// Parts.
	Policies    []Policy
	ByNamespace [][]Policy `json:"-"`
	// Identities are what SPIRE may issue, one per service account.
	Identities []Identity
	// Revoked are addresses of enrolled pods on nodes that are proved bad or whose proof has ended, and of pods that were
	// attested and are not any more.
	Revoked []Revoked
	// Attested are the pods to remember: they are the next snapshot's.
	Attested snapshot.Memory
	// NodeTrusts are those whose status is to change.
	NodeTrusts []NodeTrustState
	// Evict are the SPIRE agents of nodes that are proved bad.
	Evict []Eviction
	// OwnEntries are the IDs of the SPIRE entries that this cluster's policy-sync made.
	OwnEntries []string
	// SPIRERead is false when the SPIRE server could not be read.
	SPIRERead bool
	// AmbientAccounts are service accounts ("namespace/name") of pods that are in ambient mode by their own label.
	AmbientAccounts map[string]bool
	// Reports are findings that belong to no single policy.
	Reports []string
}

// Part is the pods of one namespace.
type Part struct {
	Namespace string
	Pods      []*Pod
	// Live are the pods as they were read, in the same order.
	Live []*corev1.Pod `json:"-"`

	pendingEnds time.Time
}

// Namespace is one that is enrolled.
type Namespace struct {
	Name string
	// Mode is v1alpha1.ModeEnforce or v1alpha1.ModeAudit.
	Mode string
	// Ambient is true when Istio's ambient mode serves it (peers arrive on port 15008).
	Ambient bool
}

// Node is a node and its verdict.
type Node struct {
	Name, UID string
	Verdict   v1alpha1.Verdict
	// Held is true for a stale node within the brake: pods keep what they have.
	Held      bool
	Reference string
	Tags      map[string]string
	EKHash    string
	AgentID   string
	// Expired is when the verdict ended; only for a stale node.
	Expired time.Time
	// Why says why the verdict is not trusted.
	Why []string
	// Untouched is true for a node that was there before Keelson and that nobody has judged: admission puts the taint on every node
	// that is created, and only policy-sync takes it off, when the node is trusted. Nothing of a node that was ever trusted or
	// proved bad is untouched.
	Untouched bool
	// created is when the Node object was made.
	created time.Time
}

// Pod is a pod and what was proved of it.
type Pod struct {
	Namespace, Name, UID string
	Node                 string
	ServiceAccount       string
	HostNetwork          bool
	// Ended is true for a pod that will never run again.
	Ended bool
	// Mode of its namespace; empty when that is not enrolled.
	Mode string
	// Matches are the policies that select it, sorted.
	Matches []Match
	// Attested is true when at least one policy selects the pod and all that do are met.
	Attested bool
	// Retained is true for a pod that is not attested, and keeps the labels and addresses that it has: it was attested, nothing
	// is proved otherwise, and what is not known of it has not been unknown for longer than Config.PendingGrace.
	Retained bool
	// PendingSince is since when something is not known of a pod that was attested; zero otherwise.
	PendingSince time.Time
	// Tags of its node, when attested or retained.
	Tags map[string]string
	// Why says why the pod is not attested.
	Why []string
	// Reports are findings that do not decide.
	Reports []string
}

// Key is namespace/name.
func (p Pod) Key() string { return p.Namespace + "/" + p.Name }

// Match is one policy's judgement on a pod.
type Match struct {
	Policy string
	// Met is true when all that the policy requires is proved.
	Met bool
	// Why says what is proved otherwise.
	Why []string
	// Pending says what is not known yet. It opens nothing and, for Config.PendingGrace, closes nothing.
	Pending []string

	// unexamined is true when nobody has been asked about an image that is in use.
	unexamined bool
}

// Reasons are all reasons why the policy is not met.
func (m Match) Reasons() []string { return append(slices.Clone(m.Why), m.Pending...) }

// Policy is a TrustPolicy and what it comes to.
type Policy struct {
	Namespace, Name string
	UID             string
	Generation      int64
	Spec            v1alpha1.TrustPolicySpec
	// Mode of its namespace; empty when that is not enrolled.
	Mode string
	// Accepted is true when Spec is in force: it is the present spec and has no problem, or it is LastAccepted's. A policy without
	// a spec in force is as if it were not there: it opens nothing, and takes nothing.
	Accepted bool
	// Problems are those of the present spec.
	Problems []string
	// LastAccepted is the newest spec without problems, for the policy's status; nil when there is none to keep.
	LastAccepted *v1alpha1.AcceptedSpec
	// ServiceAccounts are those of the workloads: the named one, or those of selected pods.
	ServiceAccounts []string
	// Selected and Attested are the keys of pods.
	Selected, Attested []string
	// Answers are other policies that let this one's pods in.
	Answers []Answer
	// SharesPodsWith are other policies, by name, that select some of the same pods, where what these allow fits into this
	// one's DENY.
	SharesPodsWith []string
	// Ambient is true when Istio's ambient mode may serve one of the pods.
	Ambient bool
	// Notes say what the data plane cannot express, and what was found.
	Notes []string
	// Blockers say why the policy may not be called programmed.
	Blockers []string
}

// Key is namespace/name.
func (p Policy) Key() string { return p.Namespace + "/" + p.Name }

// Revoked is an address that nobody may talk with any more.
type Revoked struct {
	Address string
	Reason  string
	// Node is the machine that had the address: while the address could not be written, no pod there gets a label.
	Node string
}

// Eviction is a SPIRE agent to delete.
type Eviction struct {
	AgentID string
	Reason  string
}

// Build works out the graph of one snapshot. It fails only when no plan may be made from the
// snapshot. Who builds many graphs one after the other uses an Engine.
func Build(s snapshot.Snapshot) (Graph, error) { return new(Engine).Build(s) }

// sorted sorts in place and drops repeats.
func sorted(s []string) []string {
	slices.Sort(s)
	return slices.Compact(s)
}

// Node finds a node by name.
func (g Graph) Node(name string) (Node, bool) {
	i, ok := slices.BinarySearchFunc(g.Nodes, name, func(n Node, name string) int { return cmp.Compare(n.Name, name) })
	if !ok {
		return Node{}, false
	}
	return g.Nodes[i], true
}

// Pods lists the pods of all parts.
func (g Graph) Pods() []*Pod {
	var out []*Pod
	for _, part := range g.Parts {
		out = append(out, part.Pods...)
	}
	return out
}

// Pod finds a pod by namespace and name.
func (g Graph) Pod(namespace, name string) (Pod, bool) {
	i, ok := slices.BinarySearchFunc(g.Parts, namespace+"/", func(p *Part, key string) int { return cmp.Compare(p.Namespace+"/", key) })
	if !ok {
		return Pod{}, false
	}
	pods := g.Parts[i].Pods
	if i, ok = slices.BinarySearchFunc(pods, name, func(p *Pod, name string) int { return cmp.Compare(p.Name, name) }); !ok {
		return Pod{}, false
	}
	return *pods[i], true
}

// Policy finds a policy by namespace and name.
func (g Graph) Policy(namespace, name string) (Policy, bool) {
	i, ok := slices.BinarySearchFunc(g.Policies, namespace+"/"+name, func(p Policy, key string) int { return cmp.Compare(p.Key(), key) })
	if !ok {
		return Policy{}, false
	}
	return g.Policies[i], true
}

// Namespace finds an enrolled namespace.
func (g Graph) Namespace(name string) (Namespace, bool) {
	i, ok := slices.BinarySearchFunc(g.Namespaces, name, func(n Namespace, name string) int { return cmp.Compare(n.Name, name) })
	if !ok {
		return Namespace{}, false
	}
	return g.Namespaces[i], true
}

// list joins values for a sentence: "prod", "prod or canary".
func list(values []string) string {
	switch len(values) {
	case 0:
		return "nothing"
	case 1:
		return values[0]
	}
	return strings.Join(values[:len(values)-1], ", ") + " or " + values[len(values)-1]
}
