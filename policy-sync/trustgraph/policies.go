package trustgraph

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

// Limits on what one policy may ask. The API's schema bounds most; these are what the
// pipeline itself relies on, for a schema can be switched off.
const (
	maxRules        = 64
	maxPeers        = 64
	maxNotes        = 32
	maxPolicyName   = 200 // it becomes part of a label key, whose prefix has at most 253 characters
	maxAlternatives = 256 // SPIRE entries of one kind for one identity
)

// ReservedPolicy is a name that no TrustPolicy may have: Keelson's own default deny
// of a namespace is named by it.
const ReservedPolicy = "default-deny"

func (b *builder) buildPolicies() {
	for i := range b.s.Policies {
		tp := &b.s.Policies[i]
		p := Policy{Namespace: tp.Namespace, Name: tp.Name, UID: string(tp.UID), Generation: tp.Generation, Spec: *tp.Spec.DeepCopy(), Mode: b.modes[tp.Namespace]}
		p.Problems = problems(tp)
		p.Accepted = len(p.Problems) == 0
		if sa := tp.Spec.Workloads.ServiceAccount; sa != "" {
			p.ServiceAccounts = []string{sa}
		}
		if p.Mode == "" {
			p.Notes = append(p.Notes, fmt.Sprintf("namespace %s is not enrolled (label %s), so the policy does nothing", tp.Namespace, v1alpha1.ModeLabel))
		}
		b.notePolicy(&p)
		b.g.Policies = append(b.g.Policies, p)
	}
	b.choosers = map[string][]chooser{}
	for i := range b.g.Policies {
		p := &b.g.Policies[i]
		b.choosers[p.Namespace] = append(b.choosers[p.Namespace], newChooser(p))
	}
}

// notePolicy notes what of an accepted policy no data plane can express.
func (b *builder) notePolicy(p *Policy) {
	note := func(format string, args ...any) { p.Notes = append(p.Notes, fmt.Sprintf(format, args...)) }
	if p.Spec.Workloads.Selector != nil {
		note("workloads.selector binds network policy only: an SVID cannot tell pods of one service account apart by labels")
	}
	for i, rule := range p.Spec.Ingress {
		if len(rule.HTTP) > 0 && !b.s.Config.Istio {
			note("ingress[%d].http needs Istio, which is not configured: the rule allows every request on its ports", i)
		}
		b.notePeers(p, fmt.Sprintf("ingress[%d].from", i), rule.From)
	}
	for i, rule := range p.Spec.Egress {
		b.notePeers(p, fmt.Sprintf("egress[%d].to", i), rule.To)
	}
	if !b.s.Config.Calico && !b.s.Config.Istio {
		p.Blockers = append(p.Blockers, "neither Calico nor Istio is there to enforce the policy: it only decides on SVIDs and labels")
	}
	if ns, ok := b.ambient(p.Namespace); ok {
		note("IdentityNotAttested: namespace %s is in Istio's ambient mode, whose ztunnel has no identity from SPIRE yet", ns)
		if slices.ContainsFunc(p.Spec.Ingress, func(r v1alpha1.IngressRule) bool { return len(r.HTTP) > 0 }) {
			note("ingress.http: ztunnel reads no HTTP, so these rules let nothing in; name ports alone, or use sidecars")
		}
	}
}

func (b *builder) ambient(namespace string) (string, bool) {
	i := slices.IndexFunc(b.g.Namespaces, func(n Namespace) bool { return n.Name == namespace && n.Ambient })
	return namespace, i >= 0
}

func (b *builder) notePeers(p *Policy, where string, peers []v1alpha1.Peer) {
	for j, peer := range peers {
		namespace := PeerNamespace(p.Namespace, peer)
		if b.modes[namespace] == "" {
			p.Notes = append(p.Notes, fmt.Sprintf("%s[%d]: namespace %s is not enrolled, so no pod there can be attested", where, j, namespace))
		}
		if b.s.Config.Istio && (peer.PodSelector != nil || len(peer.Tags) > 0) {
			p.Notes = append(p.Notes, fmt.Sprintf("%s[%d]: podSelector and tags bind in Calico only: an X.509 identity has neither", where, j))
		}
	}
}

// PeerNamespace is the namespace of a peer of a policy in namespace own.
func PeerNamespace(own string, p v1alpha1.Peer) string {
	if p.Namespace == "" {
		return own
	}
	return p.Namespace
}

// problems lists everything that keeps a policy from being turned into objects.
func problems(tp *v1alpha1.TrustPolicy) []string {
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if tp.Name == ReservedPolicy {
		add("metadata.name: %q is reserved", ReservedPolicy)
	}
	if len(tp.Name) > maxPolicyName {
		add("metadata.name: %d characters; at most %d fit into the label that the policy puts on pods", len(tp.Name), maxPolicyName)
	}
	w := tp.Spec.Workloads
	if w.ServiceAccount == "" && w.Selector == nil {
		add("workloads: name a serviceAccount or a selector")
	}
	if w.ServiceAccount != "" {
		checkName(add, "workloads.serviceAccount", w.ServiceAccount)
	}
	checkSelector(add, "workloads.selector", w.Selector)
	checkRequirements(add, tp.Spec.Require)
	if len(tp.Spec.Ingress) > maxRules || len(tp.Spec.Egress) > maxRules {
		add("ingress, egress: at most %d rules each", maxRules)
		return out
	}
	for i, r := range tp.Spec.Ingress {
		checkPeers(add, fmt.Sprintf("ingress[%d].from", i), r.From)
		checkPorts(add, fmt.Sprintf("ingress[%d].ports", i), r.Ports)
		checkHTTP(add, fmt.Sprintf("ingress[%d].http", i), r.HTTP)
	}
	for i, r := range tp.Spec.Egress {
		checkPeers(add, fmt.Sprintf("egress[%d].to", i), r.To)
		checkPorts(add, fmt.Sprintf("egress[%d].ports", i), r.Ports)
	}
	return out
}

type adder func(format string, args ...any)

func checkName(add adder, where, name string) {
	if msgs := validation.IsDNS1123Subdomain(name); len(msgs) > 0 {
		add("%s: %.80q is not a name: %s", where, name, msgs[0])
	}
	// Calico labels a pod with its service account only when the name is shorter than 63
	// characters; selecting by a longer one would match nothing, or a label that the
	// pod's author wrote.
	if len(name) >= 63 {
		add("%s: %d characters; Calico can select service accounts of at most 62", where, len(name))
	}
}

func checkSelector(add adder, where string, s *metav1.LabelSelector) {
	if s == nil {
		return
	}
	if _, err := metav1.LabelSelectorAsSelector(s); err != nil {
		add("%s: %v", where, err)
	}
}

func checkRequirements(add adder, r v1alpha1.Requirements) {
	for _, ref := range r.Node.References {
		if ref == "" || len(ref) > 253 {
			add("require.node.references: %.80q is no name of a reference set", ref)
		}
	}
	checkTags(add, "require.node.tags", r.Node.Tags)
	for _, v := range r.Image.VerifiedBy {
		if _, err := workloadclaim.NewSelector(workloadclaim.KindSignedBy, v); err != nil {
			add("require.image.verifiedBy: %.80q is no verifier's name: %v", v, err)
		}
	}
	for _, d := range r.Image.Digests {
		if _, err := workloadclaim.ParseManifestDigest(d); err != nil {
			add("require.image.digests: %v", err)
		}
	}
	if r.Runtime != "" && r.Runtime != v1alpha1.RuntimeAny && r.Runtime != v1alpha1.RuntimeRestricted {
		add("require.runtime: %q is neither %s nor %s", r.Runtime, v1alpha1.RuntimeRestricted, v1alpha1.RuntimeAny)
	}
	alternatives := max(1, len(r.Node.References))
	for _, values := range r.Node.Tags {
		alternatives = min(alternatives*max(1, len(values)), maxAlternatives+1)
	}
	images := max(1, len(r.Image.VerifiedBy)) * max(1, len(r.Image.Digests))
	if alternatives > maxAlternatives || images > maxAlternatives {
		add("require: more than %d alternatives; name fewer references, tag values, verifiers or digests", maxAlternatives)
	}
}

// checkTags: keys and values become parts of label keys and label values.
func checkTags(add adder, where string, tags map[string][]string) {
	for _, key := range sortedKeys(tags) {
		if msgs := validation.IsQualifiedName(v1alpha1.PodTagPrefix + key); len(msgs) > 0 {
			add("%s: key %.80q cannot be part of a label: %s", where, key, msgs[0])
		}
		if len(tags[key]) == 0 {
			add("%s: key %q accepts no value", where, key)
		}
		for _, v := range tags[key] {
			if msgs := validation.IsValidLabelValue(v); len(msgs) > 0 || v == "" {
				add("%s: value %.80q of key %q cannot be a label's value", where, v, key)
			}
		}
	}
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

func checkPeers(add adder, where string, peers []v1alpha1.Peer) {
	if len(peers) == 0 || len(peers) > maxPeers {
		add("%s: %d peers; 1 to %d are possible", where, len(peers), maxPeers)
		return
	}
	for i, p := range peers {
		at := fmt.Sprintf("%s[%d]", where, i)
		if p.Namespace != "" && len(validation.IsDNS1123Label(p.Namespace)) > 0 {
			add("%s.namespace: %.80q is no namespace's name", at, p.Namespace)
		}
		if p.ServiceAccount == "" {
			add("%s: name a serviceAccount", at)
		} else {
			checkName(add, at+".serviceAccount", p.ServiceAccount)
		}
		checkSelector(add, at+".podSelector", p.PodSelector)
		checkTags(add, at+".tags", p.Tags)
	}
}

func checkPorts(add adder, where string, ports []int32) {
	for _, p := range ports {
		if p < 1 || p > 65535 {
			add("%s: %d is no TCP port", where, p)
		}
	}
}

func checkHTTP(add adder, where string, rules []v1alpha1.HTTPRule) {
	for i, r := range rules {
		if len(r.Methods) == 0 && len(r.Paths) == 0 {
			add("%s[%d]: name methods or paths", where, i)
		}
		for _, m := range r.Methods {
			if m == "" || strings.ToUpper(m) != m || strings.ContainsAny(m, " \t\r\n*") {
				add("%s[%d].methods: %.40q is no HTTP method in upper case", where, i, m)
			}
		}
		for _, p := range r.Paths {
			if !strings.HasPrefix(p, "/") {
				add("%s[%d].paths: %.80q does not begin with /", where, i, p)
			}
		}
	}
}

// chooser finds the pods of a policy.
type chooser struct {
	policy   *Policy
	account  string
	selector labels.Selector
}

// newChooser parses a policy's selector. A policy whose selector cannot be read is for
// every pod that it could mean, so that none of them is trusted; and so is one that
// names no pod at all.
func newChooser(p *Policy) chooser {
	c := chooser{policy: p, account: p.Spec.Workloads.ServiceAccount, selector: labels.Everything()}
	if p.Spec.Workloads.Selector == nil {
		return c
	}
	if sel, err := metav1.LabelSelectorAsSelector(p.Spec.Workloads.Selector); err == nil {
		c.selector = sel
	}
	return c
}

func (c chooser) selects(pod *corev1.Pod) bool {
	return (c.account == "" || c.account == snapshot.ServiceAccount(pod)) && c.selector.Matches(labels.Set(pod.Labels))
}
