package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

func addExplain(root *cobra.Command) {
	explain := group("explain", "Say who is trusted with what, and why or why not")
	explain.AddCommand(
		explainCommand("node NAME", "Say whether a node is trusted, on what proof, and what runs there", explainNode),
		explainCommand("pod NAMESPACE/NAME", "Say whether a pod is attested, policy by policy", explainPod))
	root.AddCommand(explain)
}

// explanation is an answer for people and for programs.
type explanation interface{ text(io.Writer) error }

func explainCommand(use, short string, explain func(string, snapshot.Snapshot, plan.Result) (explanation, error)) *cobra.Command {
	o := &observer{}
	var format string
	c := &cobra.Command{Use: use, Short: short, Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		if format != "text" && format != "json" {
			return fmt.Errorf("output %q is neither text nor json", format)
		}
		seen, err := o.observe(cmd.Context())
		if err != nil {
			return err
		}
		e, err := explain(args[0], seen.snapshot, seen.result)
		if err != nil {
			return err
		}
		untold := ""
		if e, ok := e.(seer); ok {
			untold = e.see(seen)
		}
		if format == "json" {
			err = writeJSON(cmd.OutOrStdout(), e)
		} else {
			for _, n := range seen.notes {
				cmd.PrintErrln("note:", n)
			}
			err = e.text(cmd.OutOrStdout())
		}
		if err == nil && untold != "" {
			return errUntold(untold)
		}
		return err
	}}
	o.flags(c)
	outputFlag(c, &format)
	return c
}

// seer is an explanation that takes up what was seen besides the snapshot. It returns what cannot be told without verifiers.
type seer interface{ see(observed) string }

// notKnown tells whether nothing speaks against a pod, and not everything that its policies require is known.
func notKnown(p trustgraph.Pod) bool {
	return !p.Attested && !p.Ended && len(p.Matches) > 0 && !slices.ContainsFunc(p.Matches, func(m trustgraph.Match) bool { return len(m.Why) > 0 })
}

// explainedNode is what is known of a node.
type explainedNode struct {
	Node      string            `json:"node"`
	Verdict   v1alpha1.Verdict  `json:"verdict"`
	Why       []string          `json:"why,omitempty"`
	Reference string            `json:"reference,omitempty"`
	Tags      map[string]string `json:"tags,omitempty"`
	EKHash    string            `json:"ekHash,omitempty"`
	AgentID   string            `json:"agentID,omitempty"`
	// Agent tells whether SPIRE knows the agent now: yes, no, or unknown when it was not read.
	Agent string `json:"agent"`
	// Labelled and Tainted are what the Node object bears now.
	Labelled   bool           `json:"labelled"`
	Tainted    bool           `json:"tainted"`
	AttestedAt string         `json:"attestedAt,omitempty"`
	ValidUntil string         `json:"validUntil,omitempty"`
	Pods       []explainedRow `json:"pods,omitempty"`
	Next       []string       `json:"next,omitempty"`
}

type explainedRow struct {
	Pod      string `json:"pod"`
	Attested bool   `json:"attested"`
	// NotKnown is true when nothing speaks against the pod, and not everything is known of it.
	NotKnown bool   `json:"notKnown,omitempty"`
	Why      string `json:"why,omitempty"`
}

func (e *explainedNode) see(seen observed) string {
	if !seen.verified && slices.ContainsFunc(e.Pods, func(r explainedRow) bool { return r.NotKnown }) {
		return "which pods of node " + e.Node + " are attested"
	}
	return ""
}

func explainNode(name string, s snapshot.Snapshot, r plan.Result) (explanation, error) {
	n, ok := r.Graph.Node(name)
	if !ok {
		return nil, fmt.Errorf("there is no node %s; kubectl get nodes lists them", name)
	}
	e := explainedNode{Node: n.Name, Verdict: n.Verdict, Why: n.Why, Reference: n.Reference, Tags: n.Tags, EKHash: n.EKHash,
		AgentID: n.AgentID, Agent: "unknown", Next: pending(r.Plan, "Node "+name)}
	for i := range s.NodeTrusts {
		if t := s.NodeTrusts[i]; t.Name == name {
			e.AttestedAt, e.ValidUntil = stamp(t.Spec.AttestedAt.Time), stamp(t.Spec.ValidUntil.Time)
		}
	}
	for i := range s.Nodes {
		if live := s.Nodes[i]; live.Name == name {
			e.Labelled = live.Labels[v1alpha1.NodeVerdictLabel] == string(v1alpha1.VerdictTrusted)
			for _, t := range live.Spec.Taints {
				e.Tainted = e.Tainted || t.Key == v1alpha1.UntrustedTaint
			}
		}
	}
	if s.SPIRE != nil {
		e.Agent = "no"
		if slices.ContainsFunc(s.SPIRE.Agents, func(a snapshot.Agent) bool { return a.ID == n.AgentID }) {
			e.Agent = "yes"
		}
	}
	for _, p := range r.Graph.Pods() {
		if p.Node == name {
			e.Pods = append(e.Pods, explainedRow{Pod: p.Key(), Attested: p.Attested, NotKnown: notKnown(*p), Why: strings.Join(p.Why, "; ")})
		}
	}
	return &e, nil
}

// pending are the operations that policy-sync has still to do about a subject.
func pending(p plan.Plan, subject string) []string {
	var out []string
	for _, o := range p.Operations {
		if o.Target.String() == subject {
			out = append(out, fmt.Sprintf("%s %s: %s", o.Action, o.MergePatch, o.Reason))
		}
	}
	return out
}

func (e explainedNode) text(out io.Writer) error {
	t := &lines{}
	t.add("node %s is %s", e.Node, e.Verdict)
	t.list("  because ", e.Why)
	t.fact("reference set", e.Reference)
	t.fact("tags", pairs(e.Tags))
	t.fact("EK", e.EKHash)
	t.fact("attested at", e.AttestedAt)
	t.fact("valid until", e.ValidUntil)
	t.fact("SPIRE agent", e.AgentID)
	t.fact("agent known to SPIRE", e.Agent)
	t.fact("trusted label now", yes(e.Labelled))
	t.fact("untrusted taint now", yes(e.Tainted))
	for _, p := range e.Pods {
		switch {
		case p.Attested:
			t.add("  pod %s: attested", p.Pod)
		case p.NotKnown:
			t.add("  pod %s: not known yet: %s", p.Pod, p.Why)
		default:
			t.add("  pod %s: not attested: %s", p.Pod, p.Why)
		}
	}
	t.list("  policy-sync has still to ", e.Next)
	return t.write(out)
}

// explainedPod is what is known of a pod.
type explainedPod struct {
	Pod            string           `json:"pod"`
	Node           string           `json:"node"`
	NodeVerdict    v1alpha1.Verdict `json:"nodeVerdict"`
	ServiceAccount string           `json:"serviceAccount"`
	SPIFFEID       string           `json:"spiffeID"`
	Mode           string           `json:"mode,omitempty"`
	Attested       bool             `json:"attested"`
	// NotKnown is true when nothing speaks against the pod, and not everything is known of it.
	NotKnown bool             `json:"notKnown,omitempty"`
	Why      []string         `json:"why,omitempty"`
	Policies []explainedMatch `json:"policies,omitempty"`
	// Labelled is what the Pod object bears now.
	Labelled bool     `json:"labelled"`
	Reports  []string `json:"reports,omitempty"`
	// Images are those that its node reports, with what policy-sync has noted of them.
	Images []explainedImage `json:"images,omitempty"`
	// Callers are who may call the pod, and Callees whom it may call, by policy.
	Callers []string `json:"callers,omitempty"`
	Callees []string `json:"callees,omitempty"`
	Next    []string `json:"next,omitempty"`
	// Lagging says why the label is not what it should be.
	Lagging string `json:"lagging,omitempty"`
}

// explainedMatch is one policy's judgement on a pod.
type explainedMatch struct {
	Policy string   `json:"policy"`
	Met    bool     `json:"met"`
	Why    []string `json:"why,omitempty"`
	// Pending is what is not known yet.
	Pending []string `json:"pending,omitempty"`
}

func explainPod(name string, s snapshot.Snapshot, r plan.Result) (explanation, error) {
	namespace, pod, ok := strings.Cut(name, "/")
	if !ok {
		return nil, fmt.Errorf("%q is not NAMESPACE/NAME", name)
	}
	live := slices.IndexFunc(s.Pods, func(p *corev1.Pod) bool { return p.Namespace == namespace && p.Name == pod })
	if live < 0 {
		return nil, fmt.Errorf("there is no pod %s; kubectl get pods -n %s lists them", name, namespace)
	}
	object := s.Pods[live]
	e := explainedPod{Pod: name, Node: object.Spec.NodeName, ServiceAccount: snapshot.ServiceAccount(object), NodeVerdict: v1alpha1.VerdictUnknown,
		Labelled: object.Labels[v1alpha1.PodAttestedLabel] == v1alpha1.True, Next: pending(r.Plan, "Pod "+name),
		SPIFFEID: trustgraph.SPIFFEID(s.Config.TrustDomain, namespace, snapshot.ServiceAccount(object))}
	if n, ok := r.Graph.Node(object.Spec.NodeName); ok {
		e.NodeVerdict = n.Verdict
	}
	p, ok := r.Graph.Pod(namespace, pod)
	if !ok {
		e.Why = []string{fmt.Sprintf("namespace %s is not enrolled: label it with %s", namespace, v1alpha1.ModeLabel)}
		return &e, nil
	}
	e.Mode, e.Attested, e.Why, e.Reports, e.NotKnown = p.Mode, p.Attested, p.Why, p.Reports, notKnown(p)
	for _, m := range p.Matches {
		e.Policies = append(e.Policies, explainedMatch{Policy: m.Policy, Met: m.Met, Why: m.Why, Pending: m.Pending})
	}
	e.Callers, e.Callees = flows(p, r)
	return &e, nil
}

// flows says in words who may talk with the pod.
func flows(p trustgraph.Pod, r plan.Result) (callers, callees []string) {
	selected := func(policy string) bool {
		return slices.ContainsFunc(p.Matches, func(m trustgraph.Match) bool { return m.Policy == policy })
	}
	for _, w := range r.Intents.Workloads {
		if w.Namespace != p.Namespace || !selected(w.Policy) {
			continue
		}
		for _, f := range w.Ingress {
			callers = append(callers, describe(f)+" by policy "+w.Policy)
		}
		for _, f := range w.Egress {
			callees = append(callees, describe(f)+" by policy "+w.Policy)
		}
	}
	slices.Sort(callers)
	slices.Sort(callees)
	return slices.Compact(callers), slices.Compact(callees)
}

// see says why the label is not what it should be, which is policy-sync's doing.
func (e *explainedPod) see(seen observed) string {
	for _, pod := range seen.snapshot.Pods {
		if snapshot.Key(pod) == e.Pod {
			e.Images = imagesOf(pod, seen.snapshot, seen.images)
		}
	}
	if e.NotKnown && !seen.verified {
		e.Next = nil
		return "whether pod " + e.Pod + " is attested"
	}
	if e.Labelled == e.Attested || e.NotKnown {
		return ""
	}
	e.Lagging = "policy-sync has still to see to it"
	for _, w := range waits(seen.result.Plan) {
		if strings.Contains(w, " Pod "+e.Pod+" ") {
			e.Lagging = "it waits, as keelson plan says"
		}
	}
	if seen.running != nil && seen.running.fault() != "" {
		e.Lagging = seen.running.fault()
	}
	return ""
}

// headline follows the label, which is what lets others talk to the pod.
func (e explainedPod) headline() string {
	switch {
	case e.NotKnown && e.Labelled:
		return "it is not known yet whether pod " + e.Pod + " meets its policy; meanwhile it has its label"
	case e.NotKnown:
		return "it is not known yet whether pod " + e.Pod + " meets its policy"
	case e.Attested && e.Lagging != "":
		return "pod " + e.Pod + " meets its policy, but has no label yet: " + e.Lagging
	case e.Attested:
		return "pod " + e.Pod + " is attested"
	case e.Lagging != "":
		return "pod " + e.Pod + " is not attested, but has its label still: " + e.Lagging
	}
	return "pod " + e.Pod + " is not attested"
}

func (e explainedPod) text(out io.Writer) error {
	t := &lines{}
	t.add("%s", e.headline())
	t.list("  because ", e.Why)
	t.fact("node", fmt.Sprintf("%s (%s)", e.Node, e.NodeVerdict))
	t.fact("SPIFFE ID", e.SPIFFEID)
	t.fact("namespace's mode", e.Mode)
	t.fact("trust label now", yes(e.Labelled))
	for _, m := range e.Policies {
		if m.Met {
			t.add("  policy %s: met", m.Policy)
			continue
		}
		state := "not met"
		if len(m.Why) == 0 && len(m.Pending) > 0 {
			state = "not known yet"
		}
		t.add("  policy %s: %s", m.Policy, state)
		t.list("    because ", m.Why)
		t.list("    not known yet: ", m.Pending)
	}
	for _, i := range e.Images {
		i.text(t)
	}
	t.list("  may be called by ", e.Callers)
	t.list("  may call ", e.Callees)
	t.list("  found: ", e.Reports)
	t.list("  policy-sync has still to ", e.Next)
	return t.write(out)
}

func pairs(m map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+"="+m[k])
	}
	return strings.Join(out, ", ")
}
