package kube

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// meshConfigKind is that of the one ConfigMap that is read: Istio's mesh configuration, which says which trust domains the proxies
// take for their own.
var meshConfigKind = snapshot.Kind{GroupVersionKind: schema.GroupVersionKind{Version: "v1", Kind: "ConfigMap"}, Resource: "configmaps", Namespaced: true}

// meshConfigKey names it in Istio's root namespace.
func meshConfigKey(config snapshot.Config) client.ObjectKey {
	return client.ObjectKey{Namespace: config.WithDefaults().Istiod.Namespace, Name: snapshot.MeshConfig}
}

// meshConfigCache narrows a cache to it.
func meshConfigCache(config snapshot.Config) cache.ByObject {
	key := meshConfigKey(config)
	return cache.ByObject{Namespaces: map[string]cache.Config{key.Namespace: {}}, Field: fields.OneTermEqualSelector("metadata.name", key.Name)}
}

// meshConfig reads it; an installation of Istio without one is none.
func (s *Store) meshConfig(ctx context.Context) ([]*unstructured.Unstructured, error) {
	o := object(meshConfigKind)
	err := s.reader.Get(ctx, meshConfigKey(s.config), o)
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("kube: get the mesh's configuration %s: %w", meshConfigKey(s.config), err)
	}
	o.SetGroupVersionKind(meshConfigKind.GroupVersionKind)
	return []*unstructured.Unstructured{o}, nil
}
