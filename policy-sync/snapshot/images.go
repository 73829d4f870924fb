package snapshot

import (
	"cmp"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// ImageQuestion is one image whose facts belong into Snapshot.Images, and the
// verifiers to ask about it.
type ImageQuestion struct {
	ImageKey
	// Verifiers are sorted names; none means that only the manifest is wanted.
	Verifiers []string
}

// ImageQuestions lists what has to be known about images before trustgraph.Build can
// judge the pods: one question per image that runs in a namespace with policies, sorted.
func ImageQuestions(pods []corev1.Pod, policies []v1alpha1.TrustPolicy, nodes []corev1.Node) []ImageQuestion {
	platforms := Platforms(nodes)
	verifiers := map[string][]string{}
	for _, p := range policies {
		verifiers[p.Namespace] = append(verifiers[p.Namespace], p.Spec.Require.Image.VerifiedBy...)
	}
	asked := map[ImageKey][]string{}
	for i := range pods {
		names, ok := verifiers[pods[i].Namespace]
		if !ok || Ended(&pods[i]) {
			continue
		}
		for _, c := range ContainerStatuses(&pods[i]) {
			if c.ImageID != "" {
				key := KeyOf(c, platforms[pods[i].Spec.NodeName])
				asked[key] = append(asked[key], names...)
			}
		}
	}
	out := make([]ImageQuestion, 0, len(asked))
	for key, names := range asked {
		slices.Sort(names)
		out = append(out, ImageQuestion{ImageKey: key, Verifiers: slices.Compact(names)})
	}
	slices.SortFunc(out, func(a, b ImageQuestion) int {
		return cmp.Or(cmp.Compare(a.ImageID, b.ImageID), cmp.Compare(a.Image, b.Image), cmp.Compare(a.Platform, b.Platform))
	})
	return out
}

// KeyOf is what a container's status says of its image, on a node of that platform.
func KeyOf(s corev1.ContainerStatus, platform string) ImageKey {
	return ImageKey{Image: s.Image, ImageID: s.ImageID, Platform: platform}
}

// Platforms are the nodes' platforms by name, "os/architecture", where their kubelets say.
func Platforms(nodes []corev1.Node) map[string]string {
	out := make(map[string]string, len(nodes))
	for i := range nodes {
		if info := nodes[i].Status.NodeInfo; info.OperatingSystem != "" && info.Architecture != "" {
			out[nodes[i].Name] = info.OperatingSystem + "/" + info.Architecture
		}
	}
	return out
}

// ContainerStatuses are the statuses of a pod's init, ephemeral and app containers.
func ContainerStatuses(p *corev1.Pod) []corev1.ContainerStatus {
	return slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses)
}

// Ended reports whether the pod will never run again.
func Ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// ServiceAccount is the name of the pod's service account.
func ServiceAccount(p *corev1.Pod) string {
	if p.Spec.ServiceAccountName == "" {
		return "default"
	}
	return p.Spec.ServiceAccountName
}

// Key is namespace/name.
func Key(o metav1.Object) string { return o.GetNamespace() + "/" + o.GetName() }
