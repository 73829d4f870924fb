package snapshot

import corev1 "k8s.io/api/core/v1"

// Volumes are the claims and the PersistentVolumes of a cluster, as far as they say what a claim is (TrimVolume). They may be
// shared with the cache that they were read from, as pods are.
type Volumes struct {
	Claims            []*corev1.PersistentVolumeClaim
	PersistentVolumes []*corev1.PersistentVolume
}

// TrimVolume drops from a claim or a PersistentVolume what says nothing about what it is. Other objects stay as they are.
func TrimVolume(object any) {
	switch o := object.(type) {
	case *corev1.PersistentVolumeClaim:
		o.Labels, o.Annotations, o.ManagedFields = nil, nil, nil
		o.Spec = corev1.PersistentVolumeClaimSpec{VolumeName: o.Spec.VolumeName}
		o.Status = corev1.PersistentVolumeClaimStatus{}
	case *corev1.PersistentVolume:
		o.Labels, o.Annotations, o.ManagedFields = nil, nil, nil
		o.Spec = corev1.PersistentVolumeSpec{PersistentVolumeSource: o.Spec.PersistentVolumeSource, ClaimRef: o.Spec.ClaimRef}
		o.Status = corev1.PersistentVolumeStatus{}
	}
}
