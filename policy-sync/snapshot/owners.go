package snapshot

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// ImageOwners says how far owners' images are told apart.
type ImageOwners string

// The values of ImageOwners.
const (
	// ImagesOfAll makes no difference: one question about an image is for all pods.
	ImagesOfAll ImageOwners = ""
	// ImagesOfNamespaces asks for each namespace, because not the same registries and verifiers count for all.
	ImagesOfNamespaces ImageOwners = "namespaces"
	// ImagesOfAccounts asks for each service account and its pull secrets.
	ImagesOfAccounts ImageOwners = "accounts"
)

// maxPullSecrets bounds the names in one question; package pullsecret reads one less.
const maxPullSecrets = 17

// ImagesOf lists the pod's images (ImagesOf), with whose they are in their keys.
func (c Config) ImagesOf(pod *corev1.Pod, platform string) []PodImage {
	out := ImagesOf(pod, platform)
	if c.ImageOwners == ImagesOfAll {
		return out
	}
	owner := ImageOwner{Namespace: pod.Namespace}
	if c.ImageOwners == ImagesOfAccounts {
		var names []string
		for _, reference := range pod.Spec.ImagePullSecrets[:min(len(pod.Spec.ImagePullSecrets), maxPullSecrets)] {
			names = append(names, reference.Name)
		}
		owner.Account, owner.PullSecrets = ServiceAccount(pod), strings.Join(names, ",")
	}
	for i := range out {
		if k := &out[i].Key; k.ImageID != "" {
			k.Owner = owner
		}
	}
	return out
}
