package syncer

import (
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/desired"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

// A replica that has just started knows no image yet. "Not asked yet" is not "not verified": taking every pod's label away
// and giving it back seconds later would cut every connection whenever policy-sync restarts. So until all images were asked
// about once, and for Options.WarmUp at most, pods on trusted nodes keep the labels that they have when all that is missing is
// such an answer. Nothing is opened meanwhile, and what follows from a node's verdict is done at once. After that a new image
// counts as not verified from its first moment.

// warming returns the pods whose labels may stay for now; none once the warm-up is over.
func (s *Syncer) warming(snap snapshot.Snapshot, g trustgraph.Graph) map[string]bool {
	if s.warm {
		return nil
	}
	if s.began.IsZero() {
		s.began = snap.At
	}
	unanswered := unansweredPods(snap)
	if len(unanswered) == 0 || snap.At.Sub(s.began) >= s.o.WarmUp {
		s.warm = true
		return nil
	}
	best, err := trustgraph.Build(withAnswers(snap))
	if err != nil {
		return nil // the snapshot itself allows no plan
	}
	earned := map[string]map[string]string{}
	for _, p := range desired.From(best).Pods {
		earned[p.Namespace+"/"+p.Name] = p.Labels
	}
	held := map[string]bool{}
	for _, p := range unanswered {
		n, ok := g.Node(p.Spec.NodeName)
		if ok && n.Verdict == v1alpha1.VerdictTrusted && bearsOnly(p.Labels, earned[snapshot.Key(p)]) {
			held[snapshot.Key(p)] = true
		}
	}
	return held
}

// withAnswers is the snapshot as it would be if every image that was not asked about yet were accepted by everybody: what a
// pod lacks even then is not for want of an answer.
func withAnswers(snap snapshot.Snapshot) snapshot.Snapshot {
	var listed []string
	for i := range snap.Policies {
		listed = append(listed, snap.Policies[i].Spec.Require.Image.Digests...)
	}
	images := maps.Clone(snap.Images)
	if images == nil {
		images = map[snapshot.ImageKey]snapshot.Image{}
	}
	for _, q := range snapshot.ImageQuestions(snap.Pods, snap.Policies, snap.Nodes) {
		if _, ok := images[q.ImageKey]; ok {
			continue
		}
		image := snapshot.Image{Manifests: []string{"sha256:" + strings.Repeat("0", 64)}, Indexes: listed, Verifiers: map[string]snapshot.Verification{}}
		for _, name := range q.Verifiers {
			image.Verifiers[name] = snapshot.Verification{Accepted: true}
		}
		images[q.ImageKey] = image
	}
	snap.Images = images
	return snap
}

// bearsOnly tells whether every trust label among labels is in earned.
func bearsOnly(labels, earned map[string]string) bool {
	for k, v := range labels {
		if have, ok := earned[k]; trustgraph.TrustKey(k) && (!ok || have != v) {
			return false
		}
	}
	return true
}

// unansweredPods lists the pods of which an image was not asked about yet.
func unansweredPods(snap snapshot.Snapshot) []*corev1.Pod {
	missing := map[snapshot.ImageKey]bool{}
	for _, q := range snapshot.ImageQuestions(snap.Pods, snap.Policies, snap.Nodes) {
		if _, ok := snap.Images[q.ImageKey]; !ok {
			missing[q.ImageKey] = true
		}
	}
	platforms := snapshot.Platforms(snap.Nodes)
	var out []*corev1.Pod
	for i := range snap.Pods {
		pod := &snap.Pods[i]
		if slices.ContainsFunc(snapshot.ContainerStatuses(pod), func(c corev1.ContainerStatus) bool {
			return missing[snapshot.KeyOf(c, platforms[pod.Spec.NodeName])]
		}) {
			out = append(out, pod)
		}
	}
	return out
}

// without leaves out what would take labels from held pods.
func without(operations []plan.Operation, held map[string]bool) []plan.Operation {
	return slices.DeleteFunc(operations, func(o plan.Operation) bool {
		return o.Action == plan.Patch && o.Target.Kind == "Pod" && !o.Proved && held[o.Target.Namespace+"/"+o.Target.Name]
	})
}

// warmUntil is when the warm-up ends at the latest; zero when it is over.
func (s *Syncer) warmUntil() time.Time {
	if s.warm {
		return time.Time{}
	}
	return s.began.Add(s.o.WarmUp)
}
