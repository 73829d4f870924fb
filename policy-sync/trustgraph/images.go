package trustgraph

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// unmet is what a pod lacks of one policy's requirements. Three things are kept apart: what is proved otherwise, what is
// not known yet, and what waits for a container that has not been created and so runs nothing.
type unmet struct {
	why, pending, waiting []string
	// images is how many images are in use and met.
	images int
	// unexamined is true when nobody has been asked about an image that is in use.
	unexamined bool
}

// state is what is known of one image.
type state int

const (
	met state = iota
	refused
	unknown
	unborn // of a container that was not created
)

// judgeImages judges every image that the pod's spec brings along. The caller has made sure that the pod's status comes
// from a trusted node. What has been created is judged: a container that has not been created runs nothing, so it keeps
// nothing from a pod of which another container runs. No status may be about a container that the spec does not have.
func (b *builder) judgeImages(pod *corev1.Pod, p *Policy) unmet {
	var out unmet
	images := b.s.Config.ImagesOf(pod, b.platforms[pod.Spec.NodeName])
	had, remembered := b.remembered(string(pod.UID))
	if text := lags(pod, images, had, remembered); text != "" {
		out.pending = append(out.pending, text)
	}
	for _, i := range images {
		text, is := b.judgeImage(i, had, p)
		if text != "" {
			text = i.Subject() + ": " + text
		}
		switch is {
		case met:
			out.images++
		case refused:
			if i.Kind == snapshot.KindEphemeral || strings.HasPrefix(i.In, snapshot.KindEphemeral+" ") {
				text += "; an ephemeral container stays in its pod: delete the pod to be rid of it"
			}
			out.why = append(out.why, text)
		case unknown:
			out.pending = append(out.pending, text)
			_, asked := b.image(i.Key)
			out.unexamined = out.unexamined || i.State == snapshot.ImageUsed && !asked
		case unborn:
			out.waiting = append(out.waiting, text)
		}
	}
	for _, key := range strangers(pod) {
		out.why = append(out.why, fmt.Sprintf("%s container: its node reports it, but the pod's spec has none of that name", key))
	}
	if out.images == 0 {
		out.pending = append(out.pending, out.waiting...)
	}
	return out
}

// lags says what of a spec that is newer than the status may change what runs. A pod's generation also rises when it is
// deleted with grace, resized in place, or given a toleration, and its kubelet answers later; of all that may change
// after a pod is bound, only a container's image and a new ephemeral container decide about trust. The latter is
// judged like any container. A pod that was never attested is not given anything while its status lags.
func lags(pod *corev1.Pod, images []snapshot.PodImage, had snapshot.Attested, remembered bool) string {
	if g := pod.Status.ObservedGeneration; g == 0 || g >= pod.Generation {
		return ""
	}
	for _, i := range images {
		if i.Kind == snapshot.KindVolume || i.State != snapshot.ImageUsed {
			continue
		}
		used, ok := had.Image(i.Subject())
		if ok && used.Reference != i.Reference || !ok && !sameName(i.Reference, i.Key) {
			return fmt.Sprintf("%s: the pod's spec has changed to image %s and its node has not reported on it yet", i.Subject(), i.Reference)
		}
	}
	if remembered || pod.Labels[v1alpha1.PodAttestedLabel] == v1alpha1.True {
		return ""
	}
	return "the pod's spec has changed and its node has not reported on it yet"
}

// sameName tells whether a spec's reference is what a status calls the image, as far as names tell: runtimes write
// Docker Hub's names out in full.
func sameName(reference string, key snapshot.ImageKey) bool {
	plain := func(s string) string {
		for _, prefix := range []string{"docker.io/", "index.docker.io/", "library/"} {
			s = strings.TrimPrefix(s, prefix)
		}
		return strings.TrimSuffix(s, ":latest")
	}
	return reference == "" || plain(reference) == plain(key.Image) || plain(reference) == plain(key.ImageID)
}

// strangers lists the statuses that are about containers that the spec does not have, as "kind name", sorted.
func strangers(pod *corev1.Pod) []string {
	var specs, out []string
	for i := range pod.Spec.InitContainers {
		specs = append(specs, snapshot.KindInit+" "+pod.Spec.InitContainers[i].Name)
	}
	for i := range pod.Spec.Containers {
		specs = append(specs, snapshot.KindApp+" "+pod.Spec.Containers[i].Name)
	}
	for i := range pod.Spec.EphemeralContainers {
		specs = append(specs, snapshot.KindEphemeral+" "+pod.Spec.EphemeralContainers[i].Name)
	}
	for kind, list := range map[string][]corev1.ContainerStatus{
		snapshot.KindInit: pod.Status.InitContainerStatuses, snapshot.KindApp: pod.Status.ContainerStatuses, snapshot.KindEphemeral: pod.Status.EphemeralContainerStatuses,
	} {
		for _, s := range list {
			if key := kind + " " + s.Name; !slices.Contains(specs, key) {
				out = append(out, key)
			}
		}
	}
	return sorted(out)
}

// judgeImage says what is known of one image of a pod, and what it lacks.
func (b *builder) judgeImage(i snapshot.PodImage, had snapshot.Attested, p *Policy) (string, state) {
	const untold = "its node has not reported which image it runs"
	used, known := had.Image(i.Subject())
	switch i.State {
	case snapshot.ImageRepeated:
		return untold + ": it reports the container more than once", refused
	case snapshot.ImageWaiting:
		// What the spec names by digest can be judged before it runs, and a refusal counts.
		if text, is := b.judgeKey(i.Key, p); i.Key.ImageID != "" && is == refused {
			return text, refused
		}
		return untold + ": it has not been created", unborn
	case snapshot.ImageLost:
		if known {
			return untold + " any more; what it ran when the pod was attested was proved", unborn
		}
		return untold, unknown
	case snapshot.ImageUntold:
		if i.Kind == snapshot.KindVolume {
			return fmt.Sprintf("its node does not report its digest, and the pod's spec names it by tag (%s): name it by digest", i.Reference), unknown
		}
		return untold, unknown
	case snapshot.ImageUsed:
	}
	text, is := b.judgeKey(i.Key, p)
	if is == unknown && known && used.ImageID != i.Key.ImageID && (used.ContainerID == "" || used.ContainerID != i.ContainerID) {
		return fmt.Sprintf("%s, and it is not the one that was proved (%s)", text, used.ImageID), refused
	}
	return text, is
}

// image finds what is known of an image. Where it was looked for does not matter: its digest says what it is.
func (b *builder) image(key snapshot.ImageKey) (snapshot.Image, bool) {
	image, ok := b.answer(key)
	if !ok && key.Asked != "" {
		key.Asked = ""
		image, ok = b.answer(key)
	}
	return image, ok
}

// answer reads an answer and notes that the part rests on it.
func (b *builder) answer(key snapshot.ImageKey) (snapshot.Image, bool) {
	image, ok := b.s.Images[key]
	b.images[key] = answer{image, ok}
	return image, ok
}

// judgeKey says whether an image meets the policy, and what it lacks. An answer that proves nothing, such as a
// registry's error, is no refusal.
func (b *builder) judgeKey(key snapshot.ImageKey, p *Policy) (string, state) {
	req := p.Spec.Require.Image
	image, ok := b.image(key)
	switch {
	case !ok:
		return fmt.Sprintf("image %s has not been examined", key.ImageID), unknown
	case len(image.Manifests) == 0 && image.Final:
		return fmt.Sprintf("image %s has no known manifest: %s", key.ImageID, image.Problem), refused
	case len(image.Manifests) == 0:
		return fmt.Sprintf("image %s has no known manifest: %s", key.ImageID, image.Problem), unknown
	}
	if len(req.Digests) > 0 && !amongDigests(image, req.Digests) {
		is := refused
		if image.Partial {
			is = unknown
		}
		return fmt.Sprintf("image manifest %s is not among the digests that policy %s accepts", list(sorted(slices.Clone(image.Manifests))), p.Name), is
	}
	reasons, is := b.judgeVerifiers(req, image)
	if is == met {
		return "", met
	}
	return fmt.Sprintf("image %s is accepted by %s of policy %s: %v", list(sorted(slices.Clone(image.Manifests))), tooFew(req), p.Name, sorted(reasons)), is
}

// amongDigests tells whether a policy lists the image: each manifest that may be what runs, or an index that leads to no
// other ones.
func amongDigests(image snapshot.Image, digests []string) bool {
	listed := func(digest string) bool { return slices.Contains(digests, digest) }
	return slices.ContainsFunc(image.Indexes, listed) ||
		!slices.ContainsFunc(image.Manifests, func(m string) bool { return !listed(m) })
}
