package trustgraph

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// retain decides what becomes of a pod that was attested, and of which something is not known now. For
// Config.PendingGrace since that began it keeps what it has; afterwards what is unknown counts as proved otherwise. Only a
// trusted node's pods are retained, and only those that bear the label: nothing opens.
func (b *builder) retain(p *Pod, pod *corev1.Pod) {
	node := b.nodes[p.Node]
	had, remembered := b.remembered(p.UID)
	labelled := pod.Labels[v1alpha1.PodAttestedLabel] == v1alpha1.True
	if !onlyPending(p) || p.Ended || p.HostNetwork || node.Verdict != v1alpha1.VerdictTrusted || !remembered && !labelled {
		return
	}
	p.PendingSince = b.s.At
	if remembered && !had.Pending.IsZero() && had.Pending.Before(b.s.At) {
		p.PendingSince = had.Pending
	}
	b.changesAt(p.PendingSince.Add(b.s.Config.PendingGrace))
	if !b.s.At.Before(p.PendingSince.Add(b.s.Config.PendingGrace)) {
		b.givenUp(p)
		return
	}
	if labelled && (remembered || b.labelledByAnother(p, pod)) {
		p.Retained, p.Tags = true, node.Tags
	}
}

// onlyPending tells whether policies select the pod, and nothing that they require is proved otherwise, but not all is known.
func onlyPending(p *Pod) bool {
	return p.Mode != "" && !p.Attested && len(p.Matches) > 0 && !slices.ContainsFunc(p.Matches, func(m Match) bool { return len(m.Why) > 0 })
}

// labelledByAnother tells whether a pod that bears the label and is not remembered may have been labelled by a replica
// before this one. A label of which nobody remembers the reason could be forged, and one that the pod could not have
// earned was.
func (b *builder) labelledByAnother(p *Pod, pod *corev1.Pod) bool {
	for key, value := range pod.Labels {
		if TrustKey(key) && !b.mayBear(p, key, value) {
			return false
		}
	}
	if b.s.InheritUntil.IsZero() {
		return !slices.ContainsFunc(p.Matches, func(m Match) bool { return m.unexamined })
	}
	b.changesAt(b.s.InheritUntil)
	return b.s.At.Before(b.s.InheritUntil)
}

// mayBear tells whether the pod would bear a trust label if all were met.
func (b *builder) mayBear(p *Pod, key, value string) bool {
	if tag, ok := strings.CutPrefix(key, v1alpha1.PodTagPrefix); ok {
		return b.nodes[p.Node].Tags[tag] == value
	}
	return value == v1alpha1.True && (key == v1alpha1.PodAttestedLabel || key == v1alpha1.PodEnforcedLabel ||
		slices.ContainsFunc(p.Matches, func(m Match) bool { return key == v1alpha1.PolicyLabel(m.Policy) }))
}

// givenUp turns what has been unknown for too long into what is proved otherwise.
func (b *builder) givenUp(p *Pod) {
	grace := max(b.s.Config.PendingGrace, 0)
	text := fmt.Sprintf("this is not known since %s, longer than pendingGrace (%s), so it counts as a refusal", p.PendingSince.UTC().Format(time.RFC3339), grace)
	for i := range p.Matches {
		if m := &p.Matches[i]; len(m.Pending) > 0 {
			m.Why, m.Pending = append(m.Reasons(), text), nil
		}
	}
	p.Why = append(p.Why, text)
}

// PendingEnds returns the first moment at which a pod has been pending for too long; zero when none is pending.
func (g Graph) PendingEnds() time.Time {
	var first time.Time
	for _, part := range g.Parts {
		if end := part.pendingEnds; !end.IsZero() && (first.IsZero() || end.Before(first)) {
			first = end
		}
	}
	return first
}

// pendingEnds is PendingEnds of one namespace.
func pendingEnds(pods []*Pod, grace time.Duration) time.Time {
	var first time.Time
	for _, p := range pods {
		if p.PendingSince.IsZero() || !onlyPending(p) {
			continue
		}
		if end := p.PendingSince.Add(grace); first.IsZero() || end.Before(first) {
			first = end
		}
	}
	return first
}

// usedImages lists the images that an attested pod uses, and those that it used and of which its node reports nothing any more.
func (b *builder) usedImages(pod *corev1.Pod, had snapshot.Attested) []snapshot.UsedImage {
	images := snapshot.ImagesOf(pod, b.platforms[pod.Spec.NodeName])
	out := make([]snapshot.UsedImage, 0, len(images))
	for _, i := range images {
		used, known := had.Image(i.Subject())
		switch {
		case i.State == snapshot.ImageUsed:
			out = append(out, snapshot.UsedImage{Place: i.Subject(), Reference: i.Reference, ImageID: i.Key.ImageID, ContainerID: i.ContainerID})
		case known:
			out = append(out, used)
		}
	}
	if slices.Equal(out, had.Images) {
		return had.Images // shares the memory
	}
	return out
}
