package trustgraph

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/workloadattestor/confined"
)

// part is what the graph says of one namespace. It rests on common and on what the snapshot holds of
// that namespace: its pods, policies and memory. Whatever concerns several namespaces is left to
// whole. Nobody changes a part that is made.
type part struct {
	policies   []Policy
	pods       []*Pod
	public     *Part
	identities []Identity
	attested   []snapshot.Attested
	revoked    []Revoked
	// disbelieved says, by node, which addresses of lost nodes are not revoked.
	disbelieved map[string][]string
	// ambientAccounts are as in Graph, without the namespace.
	ambientAccounts map[string]bool
	// runs are the service accounts of pods that have not ended.
	runs    map[string]bool
	reports []string
	// live are the pods that have not ended, by namespace/name.
	live map[string]*corev1.Pod
	// asked are the questions about the pods' images.
	asked snapshot.Asked
	// entries is how many SPIRE entries its identities need.
	entries int
	rests
}

// rests is what a part rests on beside its own objects.
type rests struct {
	// nodes are those that its pods are bound to, and those of pods that are remembered.
	nodes map[string]bool
	// images are the answers that were used.
	images map[snapshot.ImageKey]answer
	// volumes are what was said of claims.
	volumes map[volumeQuestion]confined.Volume
	// volumesFrom is what said it.
	volumesFrom *volumeIndex
	// until is the first moment at which the part may change by itself; zero for never.
	until time.Time
	// contested is true where the part rests on what is remembered of other namespaces' pods.
	contested bool
}

type answer struct {
	image snapshot.Image
	ok    bool
}

// source is what the snapshot holds of one namespace.
type source struct {
	pods     []*corev1.Pod
	policies []*v1alpha1.TrustPolicy
	had      []snapshot.Attested
}

// builder makes one part.
type builder struct {
	*common
	part
	namespace string
	source    source
	// choosers are the policies with their selectors parsed; refused those that have no spec in force.
	choosers, refused []chooser
	// raw are the pods that part.pods are about, in the same order.
	raw []*corev1.Pod
	// shared are service accounts that pods outside of every policy use too, with the sentence that
	// says so.
	shared map[string]string
}

// newPart judges one namespace.
func newPart(c *common, namespace string, from source) *part {
	b := &builder{common: c, namespace: namespace, source: from}
	b.rests = rests{nodes: map[string]bool{}, images: map[snapshot.ImageKey]answer{}, volumes: map[volumeQuestion]confined.Volume{}, volumesFrom: c.volumes}
	b.ambientAccounts, b.runs, b.disbelieved = map[string]bool{}, map[string]bool{}, map[string][]string{}
	b.live = b.livePods()
	b.buildPolicies()
	b.buildPods()
	b.buildShared()
	b.buildAmbient()
	b.buildIdentities()
	b.remember()
	b.buildRevocations()
	b.noteUnknownBlocks()
	b.buildEnforcement()
	b.exclusions()
	b.asked = b.ask()
	b.finish()
	return &b.part
}

// remembered finds what is remembered of a pod of the namespace.
func (b *builder) remembered(uid string) (snapshot.Attested, bool) {
	return b.s.Attested.Pod(b.namespace, uid)
}

func (b *builder) report(format string, args ...any) {
	b.part.reports = append(b.part.reports, fmt.Sprintf(format, args...))
}

// livePods are the pods of an enrolled namespace that have not ended, by namespace/name.
func (b *builder) livePods() map[string]*corev1.Pod {
	out := make(map[string]*corev1.Pod, len(b.source.pods))
	for _, pod := range b.source.pods {
		b.rests.nodes[pod.Spec.NodeName] = true
		if b.modes[pod.Namespace] != "" && !snapshot.Ended(pod) {
			out[snapshot.Key(pod)] = pod
			b.runs[snapshot.ServiceAccount(pod)] = true
		}
	}
	for _, a := range b.source.had {
		b.rests.nodes[a.Node] = true
	}
	return out
}

// finish puts everything into an order that does not depend on the snapshot's.
func (b *builder) finish() {
	slices.SortFunc(b.policies, func(x, y Policy) int { return cmp.Compare(x.Name, y.Name) })
	for i := range b.policies {
		b.policies[i].sort()
	}
	for _, p := range b.pods {
		p.Reports = sorted(p.Reports)
	}
	b.public = &Part{b.namespace, b.pods, b.raw, pendingEnds(b.pods, b.s.Config.PendingGrace)}
	slices.SortFunc(b.identities, func(x, y Identity) int { return cmp.Compare(x.ServiceAccount, y.ServiceAccount) })
	for _, id := range b.identities {
		b.entries += id.entries()
	}
	slices.SortFunc(b.attested, func(x, y snapshot.Attested) int { return cmp.Compare(x.UID, y.UID) })
	if slices.EqualFunc(b.attested, b.source.had, snapshot.Attested.Equal) {
		b.attested = b.source.had // an unchanged memory stays the same list
	}
}

// changesAt notes that the part may change at a moment, unless that has passed.
func (b *builder) changesAt(t time.Time) {
	if t.After(b.s.At) && (b.until.IsZero() || t.Before(b.until)) {
		b.until = t
	}
}

// failedPart is the part of a namespace that could not be judged: its policies are there and not in
// force, its pods are there and not attested, and what was remembered stays.
func failedPart(c *common, namespace string, from source, cause any) *part {
	why := fmt.Sprintf("namespace %s could not be judged, %s: %v", namespace, ownFault, cause)
	b := &builder{common: c, namespace: namespace, source: from}
	b.rests = rests{nodes: map[string]bool{}, contested: true, volumesFrom: c.volumes} // it is tried again each time
	b.attested, b.disbelieved = from.had, map[string][]string{}
	b.part.reports = []string{why}
	b.live = map[string]*corev1.Pod{}
	mode := c.modes[namespace]
	for _, pod := range from.pods {
		if mode == "" && !BearsTrust(pod.Labels) {
			continue
		}
		b.raw = append(b.raw, pod)
		b.pods = append(b.pods, &Pod{Namespace: pod.Namespace, Name: pod.Name, UID: string(pod.UID), Node: pod.Spec.NodeName,
			ServiceAccount: snapshot.ServiceAccount(pod), HostNetwork: pod.Spec.HostNetwork, Ended: snapshot.Ended(pod), Mode: mode, Why: []string{why}})
	}
	for _, tp := range from.policies {
		b.policies = append(b.policies, Policy{Namespace: namespace, Name: tp.Name, UID: string(tp.UID), Generation: tp.Generation, Mode: mode,
			LastAccepted: tp.Status.LastAccepted, Problems: []string{why}})
	}
	b.public = &Part{Namespace: b.namespace, Pods: b.pods, Live: b.raw}
	b.revokeStill()
	return &b.part
}

// revokeStill revokes what a namespace that could not be judged has on lost nodes: who makes the judgement
// fail must not keep a bad machine's flows open. A panic here leaves the addresses out.
func (b *builder) revokeStill() {
	defer func() {
		if p := recover(); p != nil {
			b.revoked = nil
			b.report("namespace %s: nor could its addresses on lost nodes be revoked: %v", b.namespace, p)
		}
	}()
	b.buildRevocations()
}
