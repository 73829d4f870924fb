package confined

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// VolumeKind is what a PersistentVolume is to its node.
type VolumeKind uint8

// The kinds of volumes. The zero value is NotKnown.
const (
	NotKnown  VolumeKind = iota // it could not be read, or there is none yet: Volume.Why says which
	Elsewhere                   // a storage system's
	HostPath                    // a path of the node: Volume.Path
	Local                       // a folder or disk of the node that the kubelet mounts or maps: Volume.Path
	Opaque                      // what it is, is decided where nothing of it is reported
)

// Volume is what is known of the PersistentVolume behind a claim.
type Volume struct {
	Kind VolumeKind
	Path string // of HostPath and Local
	Why  string // of NotKnown
}

// Claims says what the claim is that a pod's volume names. The volume has a PersistentVolumeClaim or an Ephemeral source.
type Claims interface {
	Claim(pod *corev1.Pod, volume *corev1.Volume) Volume
}

// ClaimName returns the name of the claim behind a volume: its own, or the one that Kubernetes makes for a generic ephemeral
// volume (<pod>-<volume>). owned is true for the latter: the claim must then be owned by the pod.
func ClaimName(pod *corev1.Pod, volume *corev1.Volume) (name string, owned bool) {
	if volume.PersistentVolumeClaim != nil {
		return volume.PersistentVolumeClaim.ClaimName, false
	}
	return pod.Name + "-" + volume.Name, true
}

// Bound returns the name of the PersistentVolume that a pod's claim is bound to. A claim's author writes spec.volumeName, so
// the volume has to name the claim as well: OfVolume checks that.
func Bound(pod *corev1.Pod, volume *corev1.Volume, claim *corev1.PersistentVolumeClaim) (string, error) {
	name, owned := ClaimName(pod, volume)
	if claim == nil || claim.Name != name || claim.Namespace != pod.Namespace {
		return "", fmt.Errorf("claim %s does not exist yet", name)
	}
	// The kubelet refuses to mount a claim that only happens to have the name (kubernetes, ephemeral.VolumeIsForPod).
	if owned && !metav1.IsControlledBy(claim, pod) {
		return "", fmt.Errorf("claim %s was not made for this pod", name)
	}
	if claim.Spec.VolumeName == "" {
		return "", fmt.Errorf("claim %s is not bound to a PersistentVolume yet", name)
	}
	return claim.Spec.VolumeName, nil
}

// OfVolume says what the PersistentVolume of a claim is. Its source cannot be changed once it is made.
func OfVolume(claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) Volume {
	unknown := func(format string, args ...any) Volume { return Volume{Why: fmt.Sprintf(format, args...)} }
	if pv == nil || pv.Name != claim.Spec.VolumeName {
		return unknown("PersistentVolume %s of claim %s does not exist", claim.Spec.VolumeName, claim.Name)
	}
	ref := pv.Spec.ClaimRef
	if ref == nil || ref.Namespace != claim.Namespace || ref.Name != claim.Name || ref.UID != claim.UID {
		return unknown("PersistentVolume %s is not bound to claim %s", pv.Name, claim.Name)
	}
	switch source := pv.Spec.PersistentVolumeSource; {
	case source.HostPath != nil:
		return Volume{Kind: HostPath, Path: source.HostPath.Path}
	case source.Local != nil:
		return Volume{Kind: Local, Path: source.Local.Path}
	case source.FlexVolume != nil, source == corev1.PersistentVolumeSource{}:
		// A FlexVolume's driver is a program on the node; no source at all is one that this version does not know.
		return Volume{Kind: Opaque}
	default:
		return Volume{Kind: Elsewhere}
	}
}
