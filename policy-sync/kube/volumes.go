package kube

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// volumeObjects are the kinds that say what a claim is.
func volumeObjects() []client.Object {
	return []client.Object{&corev1.PersistentVolumeClaim{}, &corev1.PersistentVolume{}}
}

// volumeCache makes a cache hold of claims and volumes only what is read of them.
func volumeCache(o *cache.Options) {
	for _, object := range volumeObjects() {
		o.ByObject[object] = cache.ByObject{Transform: func(object any) (any, error) {
			snapshot.TrimVolume(object)
			return object, nil
		}}
	}
}

// readVolumes reads the claims and the PersistentVolumes.
func (s *Store) readVolumes(ctx context.Context, out *snapshot.Snapshot) error {
	claims, err := every[*corev1.PersistentVolumeClaim](ctx, s.reader, &corev1.PersistentVolumeClaim{}, func(ctx context.Context) ([]*corev1.PersistentVolumeClaim, error) {
		var list corev1.PersistentVolumeClaimList
		err := s.reader.List(ctx, &list)
		return pointers(list.Items), err
	})
	if err != nil {
		return fmt.Errorf("kube: list persistentvolumeclaims: %w", err)
	}
	volumes, err := every[*corev1.PersistentVolume](ctx, s.reader, &corev1.PersistentVolume{}, func(ctx context.Context) ([]*corev1.PersistentVolume, error) {
		var list corev1.PersistentVolumeList
		err := s.reader.List(ctx, &list)
		return pointers(list.Items), err
	})
	if err != nil {
		return fmt.Errorf("kube: list persistentvolumes: %w", err)
	}
	out.Volumes = &snapshot.Volumes{Claims: claims, PersistentVolumes: volumes}
	return nil
}

// every returns the cache's own objects where the reader is a cache, and a list's otherwise.
func every[T client.Object](ctx context.Context, reader client.Reader, kind T, list func(context.Context) ([]T, error)) ([]T, error) {
	if out, ok, err := held[T](ctx, reader, kind); ok || err != nil {
		return out, err
	}
	return list(ctx)
}

func pointers[T any](items []T) []*T {
	out := make([]*T, 0, len(items))
	for i := range items {
		out = append(out, &items[i])
	}
	return out
}
