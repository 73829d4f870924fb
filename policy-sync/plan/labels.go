package plan

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/desired"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

// labelDiff splits a change of labels into what goes (nil values of a merge patch) and
// what comes. A value that changes goes first and comes in a later plan.
func labelDiff(live, want map[string]string, ours func(key string) bool) (gone, come map[string]any) {
	gone, come = map[string]any{}, map[string]any{}
	for k, v := range live {
		if w, ok := want[k]; ours(k) && (!ok || w != v) {
			gone[k] = nil
		}
	}
	for k, v := range want {
		if have, ok := live[k]; !ok || have != v {
			come[k] = v
		}
	}
	return gone, come
}

// patch makes a merge patch. Labels that only go need no resourceVersion: taking trust
// away is right whatever else has changed, and must not lose a race.
func patch(uid, resourceVersion string, labels map[string]any, taints *[]corev1.Taint) ([]byte, error) {
	meta := map[string]any{"uid": uid}
	if resourceVersion != "" {
		meta["resourceVersion"] = resourceVersion
	}
	if len(labels) > 0 {
		meta["labels"] = labels
	}
	body := map[string]any{"metadata": meta}
	if taints != nil {
		body["spec"] = map[string]any{"taints": *taints}
	}
	out, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("plan: patch: %w", err)
	}
	return out, nil
}

func (d *differ) nodes(want []desired.Node) error {
	live := map[string]*corev1.Node{}
	for i := range d.s.Nodes {
		live[d.s.Nodes[i].Name] = &d.s.Nodes[i]
	}
	for _, w := range want {
		n, ok := live[w.Name]
		if !ok || string(n.UID) != w.UID {
			continue // what is not there, or is another object by now, inherits nothing
		}
		if err := d.node(n, w); err != nil {
			return err
		}
	}
	return nil
}

func (d *differ) node(n *corev1.Node, w desired.Node) error {
	gone, come := labelDiff(n.Labels, w.Labels, func(k string) bool { return strings.HasPrefix(k, v1alpha1.NodeLabelPrefix) })
	for k, v := range w.Keep {
		if n.Labels[k] == v {
			delete(gone, k)
		}
	}
	if v, ok := come[v1alpha1.NodeVerdictLabel]; ok && v == string(v1alpha1.VerdictUntrusted) {
		gone[v1alpha1.NodeVerdictLabel] = v // it opens nothing: it stands in the place of what goes
		delete(come, v1alpha1.NodeVerdictLabel)
	}
	tainted := slices.ContainsFunc(n.Spec.Taints, ours)
	var on, off *[]corev1.Taint
	if w.Taint != nil && *w.Taint && !tainted {
		list := append(slices.Clone(n.Spec.Taints), corev1.Taint{Key: v1alpha1.UntrustedTaint, Effect: corev1.TaintEffectNoSchedule})
		on = &list
	}
	if w.Taint != nil && !*w.Taint && tainted {
		list := slices.DeleteFunc(slices.Clone(n.Spec.Taints), ours)
		off = &list
	}
	op := Operation{
		Action: Patch, Proved: w.Proved, Reason: w.Reason,
		Target: Target{GroupVersionKind: corev1.SchemeGroupVersion.WithKind("Node"), Name: n.Name, UID: string(n.UID), ResourceVersion: n.ResourceVersion},
	}
	var err error
	switch {
	case len(gone) > 0 || on != nil:
		rv := ""
		if on != nil {
			rv = n.ResourceVersion // the list of taints is written whole
		}
		op.Phase = Tighten
		op.Domain = nodeDomain(n.Name, op.Phase)
		op.MergePatch, err = patch(string(n.UID), rv, gone, on)
		d.p.Again = d.p.Again || len(come) > 0 || off != nil
	case len(come) > 0 || off != nil:
		op.Phase = Trust
		op.Domain = nodeDomain(n.Name, op.Phase)
		op.MergePatch, err = patch(string(n.UID), n.ResourceVersion, come, off)
	default:
		return nil
	}
	d.add(op)
	return err
}

func ours(t corev1.Taint) bool {
	return t.Key == v1alpha1.UntrustedTaint && t.Effect == corev1.TaintEffectNoSchedule
}

func (d *differ) pods(want []desired.Pod) error {
	live := map[string]*corev1.Pod{}
	for _, p := range d.s.AllPods() {
		live[snapshot.Key(p)] = p
	}
	for _, w := range want {
		p, ok := live[w.Namespace+"/"+w.Name]
		if !ok || string(p.UID) != w.UID {
			continue
		}
		if err := d.pod(p, w); err != nil {
			return err
		}
	}
	return nil
}

func (d *differ) pod(p *corev1.Pod, w desired.Pod) error {
	gone, come := labelDiff(p.Labels, w.Labels, trustgraph.TrustKey)
	if w.KeepOnly {
		clear(come)
	}
	op := Operation{
		Action: Patch, Proved: w.Proved, Reason: w.Reason,
		Target: Target{GroupVersionKind: corev1.SchemeGroupVersion.WithKind("Pod"), Namespace: p.Namespace, Name: p.Name, UID: string(p.UID), ResourceVersion: p.ResourceVersion},
	}
	var err error
	switch {
	case len(gone) > 0:
		op.Phase = Tighten
		op.Domain = d.podDomain(p, gone, op.Phase)
		op.MergePatch, err = patch(string(p.UID), "", gone, nil)
		d.p.Again = d.p.Again || len(come) > 0
	case len(come) > 0:
		op.Phase = Trust
		// It opens what all of the pod's policies allow, not only the one whose label comes.
		op.Domain = d.podDomain(p, anyValues(w.Labels), op.Phase)
		op.MergePatch, err = patch(string(p.UID), p.ResourceVersion, come, nil)
	default:
		return nil
	}
	d.sure[subject(op)] = w.Failed
	d.add(op)
	return err
}

func anyValues(labels map[string]string) map[string]any {
	out := make(map[string]any, len(labels))
	for k, v := range labels {
		out[k] = v
	}
	return out
}
