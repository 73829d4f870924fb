package kube

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// Read fills the parts of a snapshot that Kubernetes knows; At, Images and SPIRE are the caller's. Any list that fails is an
// error: absence in a partial reading proves nothing. Where the store follows its reader's changes (Watch), only what has
// changed is read, and the rest is the lists of the reading before.
func (s *Store) Read(ctx context.Context) (snapshot.Snapshot, error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	what := s.changes.take()
	if err := s.reread(ctx, what); err != nil {
		s.changes.giveBack(what)
		return snapshot.Snapshot{}, err
	}
	out := s.kept.snapshot
	out.Config, out.PodLists, out.PodChanges = s.config, s.kept.pods, s.kept.podChanges
	if more := s.unlabelled(ctx, out.Objects); len(more) > 0 {
		out.Objects = slices.Concat(out.Objects, more)
	}
	return out, nil
}

// indexed is what a cache's informer has beside controller-runtime's own interface: the objects
// that it holds.
type indexed interface{ GetIndexer() toolscache.Indexer }

// held returns the cache's own objects of a type, which nobody may change, and false where the
// reader is no cache. They are shared from one reading to the next: an object that has not changed
// is the same pointer.
func held[O any](ctx context.Context, reader client.Reader, of client.Object) ([]O, bool, error) {
	index, err := indexer(ctx, reader, of)
	if index == nil || err != nil {
		return nil, false, err
	}
	list := index.List()
	out := make([]O, 0, len(list))
	for _, o := range list {
		one, ok := o.(O)
		if !ok {
			return nil, true, fmt.Errorf("the cache holds a %T", o)
		}
		out = append(out, one)
	}
	return out, true, nil
}

// indexer is what holds a cache's objects of a type; nil where the reader is no cache.
func indexer(ctx context.Context, reader client.Reader, of client.Object) (toolscache.Indexer, error) {
	c, ok := reader.(cache.Informers)
	if !ok {
		return nil, nil //nolint:nilnil // there is none, and nothing is wrong
	}
	informer, err := c.GetInformer(ctx, of)
	if err != nil {
		return nil, err
	}
	if with, ok := informer.(indexed); ok {
		return with.GetIndexer(), nil
	}
	return nil, nil //nolint:nilnil // there is none, and nothing is wrong
}

// pods lists all pods: the cache's own objects where there is a cache, because copies of a hundred
// thousand pods would be made for nothing in each pass.
func (s *Store) pods(ctx context.Context) ([]*corev1.Pod, error) {
	out, ok, err := held[*corev1.Pod](ctx, s.reader, &corev1.Pod{})
	if err != nil {
		return nil, fmt.Errorf("kube: list pods: %w", err)
	}
	if ok {
		return out, nil
	}
	var list corev1.PodList
	if err := s.reader.List(ctx, &list); err != nil {
		return nil, fmt.Errorf("kube: list pods: %w", err)
	}
	for i := range list.Items {
		out = append(out, &list.Items[i])
	}
	return out, nil
}

// readBlocks reads which addresses Calico gives out and to which node's pods.
func (s *Store) readBlocks(ctx context.Context, out *snapshot.Snapshot) error {
	affinities, err := s.list(ctx, blockAffinity)
	if err != nil {
		return err
	}
	pools, err := s.list(ctx, ipPool)
	if err != nil {
		return err
	}
	out.Blocks, out.Pools = nodeBlocks(affinities), workloadPools(pools)
	return nil
}

// serviceCIDRs are the ranges of Services' addresses that can be read; the API server has validated them.
func serviceCIDRs(items []networkingv1.ServiceCIDR) []netip.Prefix {
	var out []netip.Prefix
	for i := range items {
		for _, text := range items[i].Spec.CIDRs {
			if p, err := netip.ParsePrefix(text); err == nil {
				out = append(out, p)
			}
		}
	}
	return out
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

// ipPool is a range from which Calico's IPAM takes blocks.
var ipPool = snapshot.Kind{
	GroupVersionKind: schema.GroupVersionKind{Group: "projectcalico.org", Version: "v3", Kind: "IPPool"},
	Resource:         "ippools",
}

// nodeBlocks are the nodes' confirmed blocks. Calico confirms a block for one node only (libcalico-go, ipam_block_reader_writer.go,
// confirmAffinity), but every node's Calico credentials may write an affinity. So of two that overlap, the older one counts, and
// one that cannot be read bounds nothing instead of ending the reading of all others.
func nodeBlocks(objects []*unstructured.Unstructured) map[string][]netip.Prefix {
	type claim struct {
		node, name string
		prefix     netip.Prefix
		created    metav1.Time
	}
	var claims []claim
	for _, o := range objects {
		spec, _, _ := unstructured.NestedMap(o.Object, "spec")
		node, _ := spec["node"].(string)
		cidr, _ := spec["cidr"].(string)
		// A block that is pending or going away may be another node's the next moment; a virtual one has no node.
		if deleted, _ := spec["deleted"].(bool); deleted || spec["state"] != "confirmed" || spec["type"] == "virtual" || node == "" {
			continue
		}
		prefix, err := netip.ParsePrefix(cidr)
		if err != nil {
			continue
		}
		claims = append(claims, claim{node, o.GetName(), prefix.Masked(), o.GetCreationTimestamp()})
	}
	slices.SortFunc(claims, func(x, y claim) int {
		return cmp.Or(x.created.Compare(y.created.Time), cmp.Compare(x.name, y.name))
	})
	out, taken := map[string][]netip.Prefix{}, map[netip.Prefix]claim{}
	for _, c := range claims {
		if first, ok := overlapping(taken, c.prefix, func(o claim) bool { return o.node != c.node }); ok && first.created.Before(&c.created) {
			continue
		}
		if _, ok := taken[c.prefix]; !ok {
			taken[c.prefix] = c
		}
		out[c.node] = append(out[c.node], c.prefix)
	}
	return out
}

// overlapping finds one of the taken prefixes that contains p and that other accepts: one look-up per length. One that lies
// within p is found by the graph, which believes no block that is wider than Calico makes them.
func overlapping[C any](taken map[netip.Prefix]C, p netip.Prefix, other func(C) bool) (C, bool) {
	for bits := p.Bits(); bits >= 0; bits-- {
		if c, ok := taken[netip.PrefixFrom(p.Addr(), bits).Masked()]; ok && other(c) {
			return c, true
		}
	}
	var none C
	return none, false
}

// workloadPools are the pools that pods may have addresses of. A disabled pool gives out none, but pods keep what they have. One
// that cannot be read has no blocks: every node's Calico credentials may write pools, too.
func workloadPools(objects []*unstructured.Unstructured) []netip.Prefix {
	out := []netip.Prefix{}
	for _, o := range objects {
		cidr, _, _ := unstructured.NestedString(o.Object, "spec", "cidr")
		uses, _, unreadable := unstructured.NestedStringSlice(o.Object, "spec", "allowedUses")
		prefix, err := netip.ParsePrefix(cidr)
		// Without allowedUses, a pool is for workloads and tunnels.
		if err != nil || unreadable != nil || len(uses) > 0 && !slices.Contains(uses, "Workload") {
			continue
		}
		out = append(out, prefix.Masked())
	}
	return out
}

// unlabelledEvery is how often objects of ours are looked for that the label of the tier does not find.
const unlabelledEvery = 10 * time.Minute

// unlabelled finds policies of ours, by the label of their owner, that the list by the tier's label (see selector) has not found.
// Where Calico's v3 kinds are plain custom resources, no API server sets the tier's label: an object of an earlier version, or one
// that has lost the label, would stay for ever and open what it opens. What cannot be listed so is looked for later: what was
// read is complete by the tier's label, as it always is where Calico has its API server.
func (s *Store) unlabelled(ctx context.Context, have []*unstructured.Unstructured) []*unstructured.Unstructured {
	last, now := s.looked.Load(), time.Now().UnixNano()
	if s.writer == nil || !s.config.Calico || last != 0 && now-last < int64(unlabelledEvery) || !s.looked.CompareAndSwap(last, now) {
		return nil
	}
	seen := map[string]bool{}
	key := func(o *unstructured.Unstructured) string {
		return o.GetKind() + " " + o.GetNamespace() + "/" + o.GetName()
	}
	for _, o := range have {
		seen[key(o)] = true
	}
	var out []*unstructured.Unstructured
	for _, k := range s.kinds {
		if selector(k) == nil {
			continue
		}
		found, err := s.listBy(ctx, s.writer, k, labels.SelectorFromSet(labels.Set{v1alpha1.OwnerLabel: v1alpha1.OwnerValue}))
		if err != nil {
			continue
		}
		out = append(out, slices.DeleteFunc(found, func(o *unstructured.Unstructured) bool { return seen[key(o)] || !inOurTier(o) })...)
	}
	return out
}

// inOurTier reports whether a policy is one of our tier.
func inOurTier(o *unstructured.Unstructured) bool {
	tier, _, err := unstructured.NestedString(o.Object, "spec", "tier")
	return err == nil && tier == v1alpha1.CalicoTier
}

func (s *Store) list(ctx context.Context, k snapshot.Kind) ([]*unstructured.Unstructured, error) {
	return s.listBy(ctx, s.reader, k, selector(k))
}

func (s *Store) listBy(ctx context.Context, from client.Reader, k snapshot.Kind, by labels.Selector) ([]*unstructured.Unstructured, error) {
	all, ok, err := held[*unstructured.Unstructured](ctx, from, object(k))
	if err != nil {
		return nil, fmt.Errorf("kube: list %s.%s: %w", k.Resource, k.Group, err)
	}
	if ok {
		return ofKind(all, k.GroupVersionKind), nil // CacheOptions has narrowed the cache by the same label
	}
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(listKind(k.GroupVersionKind))
	if err := from.List(ctx, list, &client.ListOptions{LabelSelector: by}); err != nil {
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

// ofKind gives objects their kind, which items of an aggregated API's list may lack. The cache's objects
// are not changed, so such an item is copied.
func ofKind(all []*unstructured.Unstructured, kind schema.GroupVersionKind) []*unstructured.Unstructured {
	api := kind.GroupVersion().String()
	for i, o := range all {
		if o.GetKind() != kind.Kind || o.GetAPIVersion() != api {
			all[i] = o.DeepCopy()
			all[i].SetGroupVersionKind(kind)
		}
	}
	return all
}

func listKind(k schema.GroupVersionKind) schema.GroupVersionKind {
	k.Kind += "List"
	return k
}
