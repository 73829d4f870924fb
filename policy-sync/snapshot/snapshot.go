// Package snapshot is what Kubernetes and SPIRE said at one moment, as plain data.
//
// It holds no client and decides nothing. Everything after it in the pipeline is a
// function of it, so that two runs over one snapshot give the same bytes.
//
// Who controls the content: pods' specs and labels are their author's, pods' statuses
// their kubelet's (so package trustgraph believes them only from trusted nodes),
// NodeTrusts the SPIRE server's account, TrustPolicies an app team's.
package snapshot

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// Snapshot is one consistent reading of the world. The order of its slices carries no
// meaning: the same elements in any order give the same plan.
//
// A list, a map or an object of a snapshot is never changed. So what is the same list in memory (Same)
// as in the snapshot before holds the same, and no one looks at it again. That goes for Images and
// Blocks too: where something has changed, the map is another one.
type Snapshot struct {
	// At is when the reading was taken; verdicts are judged stale against it.
	At     time.Time
	Config Config

	Nodes      []corev1.Node
	NodeTrusts []v1alpha1.NodeTrust
	Namespaces []corev1.Namespace
	// Pods are shared with the cache that they were read from: nobody changes them, and a pod that
	// has changed is another pointer.
	Pods []*corev1.Pod
	// PodLists are the pods by namespace, each list sorted by name. A reader that keeps pods so from one
	// reading to the next fills it instead of Pods (AllPods, PodsByNamespace).
	PodLists map[string][]*corev1.Pod
	// PodChanges say in which namespaces PodLists is another than an earlier one; nil where that is not
	// known.
	PodChanges *PodChanges
	Policies   []v1alpha1.TrustPolicy
	// Volumes say what the pods' claims are; nil when they were not read.
	Volumes *Volumes
	// Objects are all live objects of every kind in Kinds(Config), ours and others'.
	Objects []*unstructured.Unstructured
	// Images are the verifiers' results, by what a container's status says of its image.
	Images map[ImageKey]Image
	// Blocks are Calico's confirmed block affinities by node name. They, or Node.spec.podCIDRs where Calico's IPAM is not
	// in use, bound which addresses a revocation may name.
	Blocks map[string][]netip.Prefix
	// Pools are Calico's IP pools for workloads: an affinity outside of them is not believed. Nil means that pools were not
	// read; empty, that there are none.
	Pools []netip.Prefix
	// ServiceCIDRs are the ranges of Services' addresses, which no node has.
	ServiceCIDRs []netip.Prefix
	// Attested are the pods that were attested lately, as the graph before told (trustgraph.Graph.Attested). A machine
	// that turns bad can take its pods and their addresses out of the API first; what it had stays known from here.
	Attested Memory
	// InheritUntil is until when a pod that bears trust labels and is not in Attested counts as labelled by another
	// replica; zero when Attested holds all that was ever attested.
	InheritUntil time.Time
	// SPIRE is what the SPIRE server said; nil when it could not be read. Without it
	// nothing is opened and no entry is touched, but doors still close.
	SPIRE *SPIRE
	// Unread names what else could not be read, wholly or in part. With anything in it
	// there is no plan at all: absence in a partial reading proves nothing.
	Unread []string
}

// Memory is pods that were attested lately, by namespace, in the order of their UIDs. Nobody changes
// a list: what has changed is another one.
type Memory map[string][]Attested

// NewMemory sorts pods into a memory. Of several with one UID in a namespace the first one counts.
func NewMemory(pods []Attested) Memory {
	out := Memory{}
	for _, a := range pods {
		out[a.Namespace] = append(out[a.Namespace], a)
	}
	for namespace, list := range out {
		slices.SortStableFunc(list, func(x, y Attested) int { return strings.Compare(x.UID, y.UID) })
		out[namespace] = slices.CompactFunc(list, func(x, y Attested) bool { return x.UID == y.UID })
	}
	return out
}

// Pod finds what is remembered of a pod.
func (m Memory) Pod(namespace, uid string) (Attested, bool) {
	list := m[namespace]
	i, ok := slices.BinarySearchFunc(list, uid, func(a Attested, uid string) int { return strings.Compare(a.UID, uid) })
	if !ok {
		return Attested{}, false
	}
	return list[i], true
}

// Count is how many pods are remembered.
func (m Memory) Count() int {
	n := 0
	for _, list := range m {
		n += len(list)
	}
	return n
}

// All lists the pods, by namespace and UID.
func (m Memory) All() []Attested {
	out := make([]Attested, 0, m.Count())
	for _, namespace := range slices.Sorted(maps.Keys(m)) {
		out = append(out, m[namespace]...)
	}
	return out
}

// Attested is a pod that was attested, with the addresses that it had then on a node that was trusted then.
type Attested struct {
	Namespace, Name, UID, Node string
	// Addresses are the newest ones it had, oldest first.
	Addresses []netip.Addr
	// At is when it was last attested.
	At time.Time
	// Pending is since when something that is required of it is not known; zero while all is known.
	Pending time.Time
	// Images are the images that it used when it was last attested, each with its place in the pod.
	Images []UsedImage
}

// Equal reports whether two records say the same.
func (a Attested) Equal(b Attested) bool {
	return a.Namespace == b.Namespace && a.Name == b.Name && a.UID == b.UID && a.Node == b.Node && a.At.Equal(b.At) &&
		a.Pending.Equal(b.Pending) && slices.Equal(a.Addresses, b.Addresses) && slices.Equal(a.Images, b.Images)
}

// UsedImage is an image that a pod used while it was attested.
type UsedImage struct {
	// Place is PodImage.Subject.
	Place string
	// Reference is the spec's; ImageID, and the ContainerID of the container that ran it, are what the pod's node reported.
	Reference, ImageID, ContainerID string
}

// Image returns the image that the pod used at a place.
func (a Attested) Image(place string) (UsedImage, bool) {
	for _, i := range a.Images {
		if i.Place == place {
			return i, true
		}
	}
	return UsedImage{}, false
}

// Config is what the operator set.
type Config struct {
	// TrustDomain is the SPIFFE trust domain's name, without scheme ("example.org").
	TrustDomain string
	// ClusterName is part of the ID of every SPIRE entry, so that clusters that share a SPIRE server leave each other's entries alone: a
	// DNS label. Empty means the UID of namespace kube-system, which no two clusters share (Snapshot.ClusterName).
	ClusterName string
	// OwnID is the SPIFFE ID with which policy-sync administers the SPIRE server, where its SVID does not say (SPIRE.OwnID).
	OwnID string
	// AdminNodes name the machines whose agents may be issued that ID, as Nodes.
	AdminNodes []string
	// MaxEntries and MaxNamespaceEntries bound the SPIRE entries of all identities and of one namespace's; 0 means the defaults.
	MaxEntries, MaxNamespaceEntries int
	// X509SVIDTTL is the lifetime of workload X.509-SVIDs.
	X509SVIDTTL time.Duration
	// MaxHold is the brake: how long an expired trusted verdict may keep what it had
	// opened. It never opens anything and never holds back a proved-bad verdict.
	MaxHold time.Duration
	// PendingGrace is how long an attested pod on a trusted node keeps what it has while something that is required of it
	// is not known yet: a container's image that its node has not reported, or that no verifier has answered about. 0 means
	// DefaultPendingGrace, a negative value no time at all (NoPendingGrace).
	PendingGrace time.Duration
	// Absent are the optional kinds, as "<plural>.<group>", that the API server does not serve (kube.Found): they are not read.
	Absent []string
	// Calico and Istio say which data planes are there to be written to.
	Calico, Istio bool
	// Taint puts v1alpha1.UntrustedTaint on nodes that are not trusted, but for those that were there before Keelson: admission
	// puts it on every node that is created. With TaintExisting it is put on these too.
	Taint, TaintExisting bool
	// RefuseSharedServiceAccounts withholds the trust label from pods whose service
	// account is also used by a pod that no TrustPolicy selects.
	RefuseSharedServiceAccounts bool
	// AllowedHostPaths are folders or files of the node that a pod may mount read-only and still meet a level of "runtime".
	AllowedHostPaths []string
	// ImageOwners says how far owners' images are told apart.
	ImageOwners ImageOwners
	// TierOrder is the order of the Calico tier; 0 means DefaultTierOrder.
	TierOrder float64
	// DNS and Istiod name the pods that every enrolled pod may call; zero values mean
	// the defaults (kube-system k8s-app=kube-dns, istio-system app=istiod).
	DNS, Istiod Service
	// MoreDNS are further pods that answer DNS, beside DNS.
	MoreDNS []Service
	// DNSNets are addresses or blocks that answer DNS without being a pod, as caches on the nodes do; nil means DefaultDNSNets,
	// an empty list none.
	DNSNets []string
	// DNSPorts are where DNS is answered, over UDP and TCP; none means DefaultDNSPorts.
	DNSPorts []int32
	// IstioRootNamespace is the mesh's root namespace (MeshConfig.rootNamespace); empty means Istiod's.
	IstioRootNamespace string
	// CalicoDefinitions is true where Calico's API is served from definitions alone, without Calico's API server.
	CalicoDefinitions bool
	// WidestPodCIDR4 and WidestPodCIDR6 are the shortest prefixes of Node.spec.podCIDRs, in bits, that bound a node's
	// addresses; 0 means DefaultWidestPodCIDR4 and DefaultWidestPodCIDR6. A kubelet may set its Node's pod CIDR where the
	// cluster's controller sets none.
	WidestPodCIDR4, WidestPodCIDR6 int
	// MaxDeletePercent is a rail: a plan that would delete more than this share of our
	// policies or entries (and more than a handful) is refused; 0 means no rail.
	MaxDeletePercent int
}

// Service names the pods of an infrastructure service.
type Service struct {
	Namespace string
	// Label and Value are one pod label.
	Label, Value string
}

// ImageKey is a container's image as its status reports it: texts that the node's
// kubelet controls.
type ImageKey struct {
	// Image is ContainerStatus.Image, a name.
	Image string
	// ImageID is ContainerStatus.ImageID: "repo@sha256:…" or a bare config digest.
	ImageID string
	// Asked is the name in the pod's spec, where it differs from Image: the pod's author controls it. It is a place to
	// look, for a node may know the image by another name, or by none.
	Asked string
	// Platform is the node's, "linux/arm64"; empty when its kubelet does not say. Where ImageID names an index, it decides
	// which of the index's images runs.
	Platform string
	// Owner says whose pod it is, as far as Config.ImageOwners tells owners apart.
	Owner ImageOwner
}

// ImageOwner is whose pod runs an image. The pod's author controls account and secrets.
type ImageOwner struct {
	Namespace, Account string
	// PullSecrets are the names in the pod's spec, joined by commas.
	PullSecrets string
}

// Image is what was found out about an image by asking its registry and the verifiers.
type Image struct {
	// Manifests are "sha256:<hex>" of every manifest that may be what runs, none when it
	// could not be told. A status that names an index leaves open which of the index's
	// images runs, so a policy has to accept each one.
	Manifests []string
	// Indexes are "sha256:<hex>" of indexes that lead to every one of Manifests: who
	// accepts one of them accepts the image.
	Indexes []string
	// Config is "sha256:<hex>" of the image's configuration, empty where more than one image may be what runs.
	Config string
	// SignedBy names the verifiers that accept it, with their signers, sorted. It is for people.
	SignedBy []string
	// Partial is true when one of Manifests could not be read: what it is is not known.
	Partial bool
	// Verifiers hold each asked verifier's answer, by its name.
	Verifiers map[string]Verification
	// Problem says why there are no Manifests.
	Problem string
	// Final is true when Problem will not pass by itself: every source has answered, and none has the image, or none may be
	// asked about it. Without it, no Manifests only means that nothing is known.
	Final bool
}

// Equal reports whether two answers about an image say the same, with the same ends.
func (i Image) Equal(o Image) bool {
	return i.Config == o.Config && i.Partial == o.Partial && i.Problem == o.Problem && i.Final == o.Final &&
		slices.Equal(i.Manifests, o.Manifests) && slices.Equal(i.Indexes, o.Indexes) && slices.Equal(i.SignedBy, o.SignedBy) &&
		maps.EqualFunc(i.Verifiers, o.Verifiers, func(x, y Verification) bool {
			return x.Accepted == y.Accepted && x.Unknown == y.Unknown && x.Reason == y.Reason && x.ValidUntil.Equal(y.ValidUntil)
		})
}

// Verification is one verifier's answer on one image.
type Verification struct {
	Accepted bool
	// Unknown is true when the verifier could not judge, because a registry gave no answer: not accepted, and not refused.
	Unknown bool
	// Reason says why it is not accepted.
	Reason string
	// ValidUntil ends the answer's life; zero means that it does not end.
	ValidUntil time.Time
}

// SPIRE is what a SPIRE server holds.
type SPIRE struct {
	Entries []Entry
	Agents  []Agent
	// OwnID is the SPIFFE ID of the SVID with which the server was asked; empty over its socket.
	OwnID string
}

// Selector is one SPIRE selector.
type Selector struct{ Type, Value string }

// String is "type:value".
func (s Selector) String() string { return s.Type + ":" + s.Value }

// Entry is a SPIRE registration entry. IDs are whole SPIFFE IDs.
type Entry struct {
	ID        string
	SPIFFEID  string
	ParentID  string
	Selectors []Selector
	// X509SVIDTTL is in whole seconds; 0 means the server's default.
	X509SVIDTTL time.Duration
	Hint        string
	// Admin is true when the entry gives rights over the SPIRE server itself (admin or downstream).
	Admin bool
	// Extra is true when the live entry has a field set that policy-sync never sets
	// (admin, downstream, DNS names, federation, expiry, store_svid, JWT lifetime).
	Extra bool
}

// Agent is an attested SPIRE agent.
type Agent struct {
	// ID is the agent's SPIFFE ID.
	ID string
	// Type is the node attestor's name.
	Type      string
	Selectors []Selector
	Banned    bool
	// ExpiresAt is when the agent's SVID ends.
	ExpiresAt time.Time
}
