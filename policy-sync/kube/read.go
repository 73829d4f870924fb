package kube

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// Read fills the parts of a snapshot that Kubernetes knows; At, Images and SPIRE are the caller's. Any list that fails is an
// error: absence in a partial reading proves nothing.
func (s *Store) Read(ctx context.Context) (snapshot.Snapshot, error) {
	var (
		nodes      corev1.NodeList
		namespaces corev1.NamespaceList
		pods       corev1.PodList
		trusts     v1alpha1.NodeTrustList
		policies   v1alpha1.TrustPolicyList
	)
	for what, list := range map[string]client.ObjectList{
		"nodes": &nodes, "namespaces": &namespaces, "pods": &pods, "nodetrusts": &trusts, "trustpolicies": &policies,
	} {
		if err := s.reader.List(ctx, list); err != nil {
			return snapshot.Snapshot{}, fmt.Errorf("kube: list %s: %w", what, err)
		}
	}
	out := snapshot.Snapshot{Config: s.config, Nodes: nodes.Items, Namespaces: namespaces.Items, Pods: pods.Items,
		NodeTrusts: trusts.Items, Policies: policies.Items}
	for _, k := range s.kinds {
		objects, err := s.list(ctx, k)
		if err != nil {
			return snapshot.Snapshot{}, err
		}
		out.Objects = append(out.Objects, objects...)
	}
	if s.config.Calico {
		blocks, err := s.list(ctx, blockAffinity)
		if err != nil {
			return snapshot.Snapshot{}, err
		}
		if out.Blocks, err = nodeBlocks(blocks); err != nil {
			return snapshot.Snapshot{}, err
		}
	}
	return out, nil
}

// selector is what a kind's list is narrowed to; nil is everything. Calico's API server narrows a list or a watch of tiered
// policies that names no tier to the tiers that exist when it begins (apiserver/pkg/registry/projectcalico/util,
// EnsureTierSelector): a watch from before our tier would never see our policies, and would not say so. So our tier is named.
// What stands in other tiers is not read: it is decided on after ours (or before, which the tiers' order tells).
func selector(k snapshot.Kind) labels.Selector {
	if k.Group != blockAffinity.Group || !strings.HasSuffix(k.Kind, "NetworkPolicy") {
		return nil
	}
	return labels.SelectorFromSet(labels.Set{"projectcalico.org/tier": v1alpha1.CalicoTier})
}

// blockAffinity is Calico's record of which node an address block belongs to.
var blockAffinity = snapshot.Kind{
	GroupVersionKind: schema.GroupVersionKind{Group: "projectcalico.org", Version: "v3", Kind: "BlockAffinity"},
	Resource:         "blockaffinities",
}

func nodeBlocks(objects []*unstructured.Unstructured) (map[string][]netip.Prefix, error) {
	out := map[string][]netip.Prefix{}
	for _, o := range objects {
		spec, _, err := unstructured.NestedMap(o.Object, "spec")
		if err != nil {
			return nil, fmt.Errorf("kube: BlockAffinity %s: %w", o.GetName(), err)
		}
		node, _ := spec["node"].(string)
		cidr, _ := spec["cidr"].(string)
		// A block that is pending or going away may be another node's the next moment; a virtual one has no node.
		if deleted, _ := spec["deleted"].(bool); deleted || spec["state"] != "confirmed" || spec["type"] == "virtual" || node == "" {
			continue
		}
		prefix, err := netip.ParsePrefix(cidr)
		if err != nil {
			return nil, fmt.Errorf("kube: BlockAffinity %s: %w", o.GetName(), err)
		}
		out[node] = append(out[node], prefix)
	}
	return out, nil
}

func (s *Store) list(ctx context.Context, k snapshot.Kind) ([]*unstructured.Unstructured, error) {
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(listKind(k.GroupVersionKind))
	if err := s.reader.List(ctx, list, &client.ListOptions{LabelSelector: selector(k)}); err != nil {
		return nil, fmt.Errorf("kube: list %s.%s: %w", k.Resource, k.Group, err)
	}
	out := make([]*unstructured.Unstructured, 0, len(list.Items))
	for i := range list.Items {
		// Items of an aggregated API's list may lack their kind.
		list.Items[i].SetGroupVersionKind(k.GroupVersionKind)
		out = append(out, &list.Items[i])
	}
	return out, nil
}

func listKind(k schema.GroupVersionKind) schema.GroupVersionKind {
	k.Kind += "List"
	return k
}
