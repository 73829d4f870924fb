package trustgraph

import (
	"fmt"
	"regexp"
	"slices"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

// maxProblems is how many problems of one policy are told.
const maxProblems = 32

// problems lists what keeps a policy from being turned into objects, at most maxProblems. The API's schema refuses the same, for
// whom writes a policy (charts/keelson/crds); it is checked again here because a schema can be switched off, and because an
// object may be older than its schema. test/policyapi compares the two.
func problems(tp *v1alpha1.TrustPolicy) []string {
	var out []string
	add := func(format string, args ...any) {
		if len(out) < maxProblems {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	if tp.Name == v1alpha1.ReservedPolicy {
		add("metadata.name: %q is reserved", v1alpha1.ReservedPolicy)
	}
	if len(tp.Name) > v1alpha1.MaxPolicyName {
		add("metadata.name: %d characters; at most %d fit into the label that the policy puts on pods", len(tp.Name), v1alpha1.MaxPolicyName)
	}
	checkUnread(add, tp.Spec)
	w := tp.Spec.Workloads
	if w.ServiceAccount == "" && w.Selector == nil {
		add("workloads: name a serviceAccount or a selector")
	}
	if w.ServiceAccount != "" {
		checkName(add, "workloads.serviceAccount", w.ServiceAccount)
	}
	checkSelector(add, "workloads.selector", w.Selector)
	checkRequirements(add, tp.Spec.Require)
	if len(tp.Spec.Ingress) > v1alpha1.MaxRules || len(tp.Spec.Egress) > v1alpha1.MaxRules {
		add("ingress, egress: at most %d rules each", v1alpha1.MaxRules)
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
	checkBounds(add, tp)
	return out
}

type adder func(format string, args ...any)

// checkUnread refuses what the policy asks and this version does not check: the fields that are kept for later versions, and
// fields that nobody knows.
func checkUnread(add adder, s v1alpha1.TrustPolicySpec) {
	for _, f := range []struct {
		name  string
		there bool
	}{
		{"require.drift", s.Require.Drift != nil}, {"require.image.scan", s.Require.Image.Scan != nil},
		{"require.image.sbom", s.Require.Image.SBOM != nil}, {"require.image.provenance", s.Require.Image.Provenance != nil},
		{"require.image.drift", s.Require.Image.Drift != nil},
	} {
		if f.there {
			add("%s is not supported yet: remove it; this version would not check it", f.name)
		}
	}
	for _, path := range s.Unknown {
		add("unknown field %.200q: this version does not know it and would not check it; correct the name or remove it", path)
	}
}

// atMost refuses a list that is longer than its schema lets it be.
func atMost(add adder, where string, count, limit int) bool {
	if count > limit {
		add("%s: %d entries; at most %d are possible", where, count, limit)
	}
	return count <= limit
}

func checkName(add adder, where, name string) {
	if msgs := validation.IsDNS1123Subdomain(name); len(msgs) > 0 {
		add("%s: %.80q is not a name: %s", where, name, msgs[0])
	}
	// Calico labels a pod with its service account only when the name is shorter than 63
	// characters; selecting by a longer one would match nothing, or a label that the
	// pod's author wrote.
	if len(name) > v1alpha1.MaxServiceAccount {
		add("%s: %d characters; Calico can select service accounts of at most %d", where, len(name), v1alpha1.MaxServiceAccount)
	}
}

func checkSelector(add adder, where string, s *metav1.LabelSelector) {
	if s == nil {
		return
	}
	if !atMost(add, where+".matchLabels", len(s.MatchLabels), v1alpha1.MaxMatchLabels) ||
		!atMost(add, where+".matchExpressions", len(s.MatchExpressions), v1alpha1.MaxMatchExpressions) {
		return
	}
	if _, err := metav1.LabelSelectorAsSelector(s); err != nil {
		add("%s: %v", where, err)
	}
	for _, k := range sortedKeys(s.MatchLabels) {
		checkKey(add, where+".matchLabels", k)
	}
	for i, e := range s.MatchExpressions {
		at := fmt.Sprintf("%s.matchExpressions[%d]", where, i)
		checkKey(add, at, e.Key)
		atMost(add, at+".values", len(e.Values), v1alpha1.MaxMatchValues)
	}
}

// checkKey: the schema cannot bound the two halves of a label's key apart, so both halves together have to fit.
func checkKey(add adder, where, key string) {
	if len(key) > v1alpha1.MaxName {
		add("%s: key %.80q has %d characters; at most %d are possible", where, key, len(key), v1alpha1.MaxName)
	}
}

func checkRequirements(add adder, r v1alpha1.Requirements) {
	if !atMost(add, "require.node.references", len(r.Node.References), v1alpha1.MaxReferences) ||
		!atMost(add, "require.image.verifiedBy", len(r.Image.VerifiedBy), v1alpha1.MaxVerifiers) ||
		!atMost(add, "require.image.verifiedByAll", len(r.Image.VerifiedByAll), v1alpha1.MaxVerifiers) ||
		!atMost(add, "require.image.digests", len(r.Image.Digests), v1alpha1.MaxDigests) {
		return
	}
	for _, ref := range r.Node.References {
		if ref == "" || utf8.RuneCountInString(ref) > v1alpha1.MaxName {
			add("require.node.references: %.80q is no name of a reference set", ref)
		}
	}
	checkTags(add, "require.node.tags", r.Node.Tags)
	checkVerifiers(add, r.Image)
	for _, d := range r.Image.Digests {
		if _, err := workloadclaim.ParseManifestDigest(d); err != nil {
			add("require.image.digests: %v", err)
		}
	}
	if _, ok := levelOf(r.Runtime); !ok {
		add("require.runtime: %.80q is none of %s, %s and %s", r.Runtime, v1alpha1.RuntimeBaseline, v1alpha1.RuntimeRestricted, v1alpha1.RuntimeAny)
	}
	alternatives := max(1, len(r.Node.References))
	for _, values := range r.Node.Tags {
		alternatives = min(alternatives*max(1, len(values)), maxAlternatives+1)
	}
	images := choices(r.Image) * max(1, len(r.Image.Digests))
	if alternatives > maxAlternatives || images > maxAlternatives {
		add("require: more than %d alternatives; name fewer references, tag values, verifiers or digests", maxAlternatives)
	}
}

// checkTags: keys and values become parts of label keys and label values.
func checkTags(add adder, where string, tags map[string][]string) {
	if !atMost(add, where, len(tags), v1alpha1.MaxTags) {
		return
	}
	for _, key := range sortedKeys(tags) {
		if !atMost(add, fmt.Sprintf("%s.%.80s", where, key), len(tags[key]), v1alpha1.MaxTagValues) {
			continue
		}
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
	if len(peers) == 0 || len(peers) > v1alpha1.MaxPeers {
		add("%s: %d peers; 1 to %d are possible", where, len(peers), v1alpha1.MaxPeers)
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
	if !atMost(add, where, len(ports), v1alpha1.MaxPorts) {
		return
	}
	for _, p := range ports {
		if p < 1 || p > 65535 {
			add("%s: %d is no TCP port", where, p)
		}
	}
}

// httpMethod is an HTTP method as it is registered (RFC 9110, section 16.1, and IANA's HTTP Method Registry): upper case.
var httpMethod = regexp.MustCompile(`^[A-Z][A-Z0-9_-]*$`)

func checkHTTP(add adder, where string, rules []v1alpha1.HTTPRule) {
	if !atMost(add, where, len(rules), v1alpha1.MaxHTTP) {
		return
	}
	for i, r := range rules {
		if len(r.Methods) == 0 && len(r.Paths) == 0 {
			add("%s[%d]: name methods or paths", where, i)
		}
		if !atMost(add, fmt.Sprintf("%s[%d].methods", where, i), len(r.Methods), v1alpha1.MaxMethods) ||
			!atMost(add, fmt.Sprintf("%s[%d].paths", where, i), len(r.Paths), v1alpha1.MaxPaths) {
			continue
		}
		for _, m := range r.Methods {
			if !httpMethod.MatchString(m) || len(m) > v1alpha1.MaxMethod {
				add("%s[%d].methods: %.40q is no HTTP method in upper case", where, i, m)
			}
		}
		for _, p := range r.Paths {
			if err := CheckPath(p); err != nil {
				add("%s[%d].paths: %.80q %v", where, i, p, err)
			}
		}
	}
}
