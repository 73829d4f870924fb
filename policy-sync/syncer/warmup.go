package syncer

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
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
	held := map[string]bool{}
	for _, p := range unanswered {
		if n, ok := g.Node(p.Spec.NodeName); ok && n.Verdict == v1alpha1.VerdictTrusted {
			held[snapshot.Key(p)] = true
		}
	}
	return held
}

// unansweredPods lists the pods of which an image was not asked about yet.
func unansweredPods(snap snapshot.Snapshot) []*corev1.Pod {
	missing := map[snapshot.ImageKey]bool{}
	for _, q := range snapshot.ImageQuestions(snap.Pods, snap.Policies) {
		if _, ok := snap.Images[q.ImageKey]; !ok {
			missing[q.ImageKey] = true
		}
	}
	var out []*corev1.Pod
	for i := range snap.Pods {
		pod := &snap.Pods[i]
		if slices.ContainsFunc(snapshot.ContainerStatuses(pod), func(c corev1.ContainerStatus) bool {
			return missing[snapshot.ImageKey{Image: c.Image, ImageID: c.ImageID}]
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
