package snapshot

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// ImageState says how much a pod's status tells about one of the pod's images.
type ImageState string

// The states of an image.
const (
	// ImageUsed is an image of a container that was created: PodImage.Key is what its node reports.
	ImageUsed ImageState = "used"
	// ImageWaiting is an image of a container that was not created yet: nothing of it runs. PodImage.Key is about the
	// spec's reference where that names a digest, and empty otherwise.
	ImageWaiting ImageState = "waiting"
	// ImageUntold is an image that is in use, and of which the node reports no digest.
	ImageUntold ImageState = "untold"
	// ImageLost is an image of a container that ran, and of which the node reports nothing any more.
	ImageLost ImageState = "lost"
	// ImageRepeated is an image of a container that the node reports more than once.
	ImageRepeated ImageState = "repeated"
)

// The kinds of PodImage.
const (
	KindInit      = "init"
	KindApp       = "app"
	KindEphemeral = "ephemeral"
	KindVolume    = "volume"
)

// PodImage is one image that a pod's spec brings onto its node, and what the pod's status tells of it.
type PodImage struct {
	// Kind is KindInit, KindApp, KindEphemeral (a container's image) or KindVolume (an image that is mounted).
	Kind string
	// Name is the container's or the volume's name.
	Name string
	// In is the container that mounts the volume ("app main"); empty for containers, and for a volume that none mounts.
	In string
	// Reference is the image that the spec names.
	Reference string
	State     ImageState
	// ContainerID is the container's, where the node reports one. A container never changes its image.
	ContainerID string
	// Key is what to ask about; Key.ImageID is empty when there is nothing to ask.
	Key ImageKey
}

// Subject names the image's place for a person: "app container main", "image volume models of app container main".
func (i PodImage) Subject() string {
	switch {
	case i.Kind != KindVolume:
		return i.Kind + " container " + i.Name
	case i.In == "":
		return "image volume " + i.Name
	}
	kind, name, _ := strings.Cut(i.In, " ")
	return "image volume " + i.Name + " of " + kind + " container " + name
}

// ImagesOf lists every image that a pod's spec brings onto its node: those of its three kinds of containers, and those
// of its image volumes, once for each container that mounts one. Whoever asks about images and whoever judges them goes
// by this list, so that no image gets into a pod beside it. Statuses of containers that the spec does not have are no
// part of it.
func ImagesOf(pod *corev1.Pod, platform string) []PodImage {
	v := podView{pod: pod, platform: platform, statuses: map[string][]corev1.ContainerStatus{}}
	for kind, list := range map[string][]corev1.ContainerStatus{
		KindInit: pod.Status.InitContainerStatuses, KindApp: pod.Status.ContainerStatuses, KindEphemeral: pod.Status.EphemeralContainerStatuses,
	} {
		for _, s := range list {
			v.statuses[kind+" "+s.Name] = append(v.statuses[kind+" "+s.Name], s)
		}
	}
	var containers []mounter
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		containers = append(containers, mounter{KindInit, c.Name, c.Image, c.VolumeMounts})
	}
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		containers = append(containers, mounter{KindApp, c.Name, c.Image, c.VolumeMounts})
	}
	for i := range pod.Spec.EphemeralContainers {
		c := &pod.Spec.EphemeralContainers[i]
		containers = append(containers, mounter{KindEphemeral, c.Name, c.Image, c.VolumeMounts})
	}
	out := make([]PodImage, 0, len(containers))
	for _, c := range containers {
		out = append(out, v.container(c))
	}
	ranBefore(out)
	return append(out, v.volumes(containers, out)...)
}

// mounter is what the three kinds of containers have in common.
type mounter struct {
	kind, name, image string
	mounts            []corev1.VolumeMount
}

type podView struct {
	pod      *corev1.Pod
	platform string
	statuses map[string][]corev1.ContainerStatus
}

func (v podView) container(c mounter) PodImage {
	out := PodImage{Kind: c.kind, Name: c.name, Reference: c.image}
	found := v.statuses[c.kind+" "+c.name]
	switch {
	case len(found) == 0:
		out.State = ImageWaiting
	case len(found) > 1:
		out.State = ImageRepeated
	default:
		out.State = stateOf(found[0])
	}
	switch out.State {
	case ImageUsed:
		out.Key, out.ContainerID = KeyOf(found[0], v.platform), found[0].ContainerID
		if c.image != out.Key.Image && !strings.HasPrefix(c.image, "sha256:") {
			out.Key.Asked = c.image
		}
	case ImageWaiting:
		out.Key = v.referenced(c.image)
	case ImageUntold, ImageLost, ImageRepeated:
	}
	return out
}

// stateOf reads the status of one container. A kubelet that was restarted, or whose runtime has removed a container,
// reports how the container ended without its image (k8s.io/kubernetes pkg/kubelet/kubelet_pods.go,
// convertToAPIContainerStatuses).
func stateOf(s corev1.ContainerStatus) ImageState {
	ended := s.State.Terminated != nil || s.LastTerminationState.Terminated != nil || s.RestartCount > 0
	switch {
	case s.ImageID != "":
		return ImageUsed
	case s.State.Running != nil:
		return ImageUntold
	case ended:
		return ImageLost
	case s.ContainerID != "":
		return ImageUntold
	}
	return ImageWaiting
}

// ranBefore corrects the states of init containers: one is created only after those before it, and an app's container
// after all of them. So an init container of which nothing is reported has run if a later one was created.
func ranBefore(images []PodImage) {
	later := false
	for _, i := range images {
		later = later || i.Kind == KindApp && i.State != ImageWaiting
	}
	for n := len(images) - 1; n >= 0; n-- {
		i := &images[n]
		if i.Kind != KindInit {
			continue
		}
		if i.State == ImageWaiting && later {
			i.State, i.Key = ImageLost, ImageKey{}
		}
		later = later || i.State != ImageWaiting
	}
}

// volumes lists the image volumes, once for each container that mounts one.
func (v podView) volumes(containers []mounter, images []PodImage) []PodImage {
	var out []PodImage
	for i := range v.pod.Spec.Volumes {
		volume := &v.pod.Spec.Volumes[i]
		if volume.Image == nil {
			continue
		}
		before := len(out)
		for n, c := range containers {
			for _, m := range c.mounts {
				if m.Name == volume.Name {
					out = append(out, v.mounted(volume, c, m, images[n].State))
				}
			}
		}
		if len(out) == before {
			one := PodImage{Kind: KindVolume, Name: volume.Name, Reference: volume.Image.Reference, State: ImageUsed, Key: v.referenced(volume.Image.Reference)}
			if one.Key.ImageID == "" {
				one.State = ImageUntold
			}
			out = append(out, one)
		}
	}
	return out
}

// mounted is an image volume in one container. What the container's status reports of it counts (field
// volumeMounts[].volumeStatus.image.imageRef, Kubernetes 1.35 and later), and where that is missing, the spec's
// reference if it names a digest: a tag does not tell what was mounted.
func (v podView) mounted(volume *corev1.Volume, c mounter, m corev1.VolumeMount, container ImageState) PodImage {
	out := PodImage{Kind: KindVolume, Name: volume.Name, In: c.kind + " " + c.name, Reference: volume.Image.Reference, State: container}
	out.Key = v.referenced(out.Reference)
	if container != ImageUsed {
		return out
	}
	for _, s := range v.statuses[out.In][0].VolumeMounts {
		if s.Name == volume.Name && s.MountPath == m.MountPath && s.VolumeStatus != nil && s.VolumeStatus.Image != nil {
			out.Key = ImageKey{Image: out.Reference, ImageID: s.VolumeStatus.Image.ImageRef, Platform: v.platform}
		}
	}
	if out.Key.ImageID == "" {
		out.State = ImageUntold
	}
	return out
}

// referenced is the question about a spec's reference; without an ImageID where the reference names no digest.
func (v podView) referenced(reference string) ImageKey {
	if _, digest, ok := strings.Cut(reference, "@"); !ok || !strings.HasPrefix(digest, "sha256:") {
		return ImageKey{}
	}
	return ImageKey{Image: reference, ImageID: reference, Platform: v.platform}
}
