package trustgraph

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// container is what the three kinds of containers in a pod's spec have in common.
type container struct {
	kind, name string
}

// containers lists every container that a pod's spec has, of all three kinds.
func containers(pod *corev1.Pod) []container {
	var out []container
	for i := range pod.Spec.InitContainers {
		out = append(out, container{"init", pod.Spec.InitContainers[i].Name})
	}
	for i := range pod.Spec.Containers {
		out = append(out, container{"app", pod.Spec.Containers[i].Name})
	}
	for i := range pod.Spec.EphemeralContainers {
		out = append(out, container{"ephemeral", pod.Spec.EphemeralContainers[i].Name})
	}
	return out
}

// unmetImages checks the running image of every container. The caller has made sure
// that the pod's status comes from a trusted node. Each container of the spec must
// have exactly one status, and no status may be about a container that is not there.
func (b *builder) unmetImages(pod *corev1.Pod, p *Policy) []string {
	var why []string
	if g := pod.Status.ObservedGeneration; g != 0 && g < pod.Generation {
		why = append(why, "the pod's spec has changed and its node has not reported on it yet")
	}
	statuses := map[string][]corev1.ContainerStatus{}
	add := func(kind string, list []corev1.ContainerStatus) {
		for _, s := range list {
			statuses[kind+" "+s.Name] = append(statuses[kind+" "+s.Name], s)
		}
	}
	add("init", pod.Status.InitContainerStatuses)
	add("app", pod.Status.ContainerStatuses)
	add("ephemeral", pod.Status.EphemeralContainerStatuses)
	for _, c := range containers(pod) {
		key := c.kind + " " + c.name
		found := statuses[key]
		delete(statuses, key)
		if len(found) != 1 || found[0].ImageID == "" {
			why = append(why, fmt.Sprintf("%s container %s: its node has not reported which image it runs", c.kind, c.name))
			continue
		}
		if text := b.unmetImage(found[0], b.platforms[pod.Spec.NodeName], p); text != "" {
			why = append(why, fmt.Sprintf("%s container %s: %s", c.kind, c.name, text))
		}
	}
	for _, key := range sortedKeys(statuses) {
		why = append(why, fmt.Sprintf("%s container: its node reports it, but the pod's spec has none of that name", key))
	}
	return why
}

// unmetImage says why a running image does not meet the policy, or nothing.
func (b *builder) unmetImage(s corev1.ContainerStatus, platform string, p *Policy) string {
	req := p.Spec.Require.Image
	image, ok := b.s.Images[snapshot.KeyOf(s, platform)]
	switch {
	case !ok:
		return fmt.Sprintf("image %s has not been examined", s.ImageID)
	case len(image.Manifests) == 0:
		return fmt.Sprintf("image %s has no known manifest: %s", s.ImageID, image.Problem)
	}
	if len(req.Digests) > 0 && !amongDigests(image, req.Digests) {
		return fmt.Sprintf("image manifest %s is not among the digests that policy %s accepts", list(sorted(slices.Clone(image.Manifests))), p.Name)
	}
	if len(req.VerifiedBy) == 0 {
		return ""
	}
	var reasons []string
	for _, name := range req.VerifiedBy {
		v, asked := image.Verifiers[name]
		switch {
		case !asked:
			reasons = append(reasons, name+" was not asked")
		case !v.Accepted:
			reasons = append(reasons, name+" says: "+v.Reason)
		case !v.ValidUntil.IsZero() && !b.s.At.Before(v.ValidUntil):
			reasons = append(reasons, name+"'s acceptance has expired")
		default:
			return ""
		}
	}
	return fmt.Sprintf("image %s is accepted by none of the verifiers of policy %s: %v", list(sorted(slices.Clone(image.Manifests))), p.Name, sorted(reasons))
}

// amongDigests tells whether a policy lists the image: each manifest that may be what runs, or an index that leads to no
// other ones.
func amongDigests(image snapshot.Image, digests []string) bool {
	listed := func(digest string) bool { return slices.Contains(digests, digest) }
	return slices.ContainsFunc(image.Indexes, listed) ||
		!slices.ContainsFunc(image.Manifests, func(m string) bool { return !listed(m) })
}
