package calico

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/desired"
)

// Labels that Calico itself puts on a pod's endpoint, over any of the pod's own
// (libcalico-go, workload_endpoint_default.go).
const (
	namespaceLabel      = "projectcalico.org/namespace"
	serviceAccountLabel = "projectcalico.org/serviceaccount"
	orchestratorLabel   = "projectcalico.org/orchestrator"
)

// tierLabel is the label of a policy that names its tier.
const tierLabel = "projectcalico.org/tier"

// Keys and values reach these functions only after trustgraph has checked that they can
// be label keys and values, which hold no quote; a quote would still be caught here,
// since Calico's selector language has no way to escape one.
func eq(key, value string) string { return fmt.Sprintf("%s == '%s'", key, quotable(value)) }

func quotable(value string) string {
	if strings.ContainsAny(value, "'\"\\") {
		return "refused by keelson" // no label has a value with spaces: matches nothing
	}
	return value
}

func and(parts ...string) string { return strings.Join(parts, " && ") }

func oneOf(key string, values []string, not bool) string {
	quoted := make([]string, 0, len(values))
	for _, v := range values {
		quoted = append(quoted, "'"+quotable(v)+"'")
	}
	slices.Sort(quoted)
	op := "in"
	if not {
		op = "not in"
	}
	return fmt.Sprintf("%s %s { %s }", key, op, strings.Join(slices.Compact(quoted), ", "))
}

func attested() string { return eq(v1alpha1.PodAttestedLabel, v1alpha1.True) }

// pods selects endpoints of pods, and no network set or host endpoint.
func pods() string { return eq(orchestratorLabel, "k8s") }

func namespaceIs(name string) string { return eq(namespaceLabel, name) }

// peer selects the other end of a flow: always an attested pod of one namespace.
func peer(f desired.Flow) string {
	parts := []string{attested(), namespaceIs(f.Namespace)}
	if f.ServiceAccount != "" {
		parts = append(parts, eq(serviceAccountLabel, f.ServiceAccount))
	}
	if f.PolicyLabel != "" {
		parts = append(parts, eq(f.PolicyLabel, v1alpha1.True))
	}
	for _, key := range sortedKeys(f.Tags) {
		parts = append(parts, oneOf(v1alpha1.PodTagPrefix+key, f.Tags[key], false))
	}
	return and(append(parts, labelSelector(f.Selector)...)...)
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// labelSelector writes a Kubernetes label selector in Calico's language, which has the
// same four operators with the same meaning where a key is absent.
func labelSelector(s *metav1.LabelSelector) []string {
	if s == nil {
		return nil
	}
	var out []string
	for _, key := range sortedKeys(s.MatchLabels) {
		out = append(out, eq(key, s.MatchLabels[key]))
	}
	for _, e := range s.MatchExpressions {
		switch e.Operator {
		case metav1.LabelSelectorOpIn:
			out = append(out, oneOf(e.Key, e.Values, false))
		case metav1.LabelSelectorOpNotIn:
			out = append(out, oneOf(e.Key, e.Values, true))
		case metav1.LabelSelectorOpExists:
			out = append(out, "has("+e.Key+")")
		case metav1.LabelSelectorOpDoesNotExist:
			out = append(out, "!has("+e.Key+")")
		default:
			out = append(out, "!all()") // an operator that nobody knows selects nothing
		}
	}
	slices.Sort(out)
	return out
}

func cidr(address string) string {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return address
	}
	return netip.PrefixFrom(a, a.BitLen()).String()
}
