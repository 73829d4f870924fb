package plan

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/desired"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

// Part is something that operations put in place together and that others rest on.
type Part struct {
	Kind PartKind
	// Name is what a kind says; empty for Cluster.
	Name string
}

// String is for people.
func (p Part) String() string {
	if p.Name == "" {
		return string(p.Kind)
	}
	return string(p.Kind) + " " + p.Name
}

// PartKind is a kind of part.
type PartKind string

// The kinds of parts.
const (
	// Cluster is what closes everywhere: Calico's tier, its global default deny, attested-egress, and the policy about revoked
	// addresses. It is the only part on which everything rests.
	Cluster PartKind = "cluster"
	// Namespace (by its name) is what closes one namespace: its default deny, allow-nothing, STRICT.
	Namespace PartKind = "namespace"
	// Policy (namespace/name) is a TrustPolicy's own objects.
	Policy PartKind = "TrustPolicy"
	// Leaving (namespace/name of a TrustPolicy) is what of a policy's goes: labels that pods may not keep, gates that are shut.
	Leaving PartKind = "what goes of TrustPolicy"
	// LeavingIn (namespace) is Leaving of all policies of a namespace.
	LeavingIn PartKind = "what goes in namespace"
	// Labels (namespace/name of a TrustPolicy) is labels that pods get. Nothing rests on it: one pod's label is nobody else's.
	Labels PartKind = "labels of TrustPolicy"
	// Identity (SPIFFE ID) is SPIRE's entries that issue an ID, IdentityAt (SPIFFE ID, "by", its parent's) those by one agent.
	Identity   PartKind = "identity"
	IdentityAt PartKind = "issued"
	// Machine (a node's name) is the revoked addresses that the machine had, and its labels and taint. The empty name is of
	// addresses of which nobody knows the machine.
	Machine PartKind = "machine"
)

// Domain says whose trouble it is when an operation is not carried out.
type Domain struct {
	// Parts are what the operation belongs to. The status of a policy tells of the operations of its own parts.
	Parts []Part
	// Holds is true when whatever needs one of Parts waits while the operation is not carried out.
	Holds bool
	// Needs are parts that have to be in place first. Only operations that open need any.
	Needs []Part
}

func part(kind PartKind, name ...string) Part { return Part{Kind: kind, Name: strings.Join(name, "/")} }

// source names the TrustPolicy (namespace/name) that an object was made for, if it is one.
func source(o *unstructured.Unstructured) string {
	if o == nil {
		return ""
	}
	s := o.GetAnnotations()[v1alpha1.SourceAnnotation]
	if namespace, name, ok := strings.Cut(s, "/"); !ok || namespace == "" || name == "" {
		return ""
	}
	return s
}

// objectDomain is the domain of a create or an update of a wanted object.
func (d *differ) objectDomain(live *unstructured.Unstructured, want desired.Object, phase Phase) Domain {
	out := Domain{Holds: phase != Retire}
	namespace, policy := want.GetNamespace(), source(want.Unstructured)
	switch {
	case want.Class == desired.Blacklist:
		out.Parts = d.machines(live, want)
	case policy != "":
		out.Parts = []Part{part(Policy, policy)}
	case namespace != "":
		out.Parts = []Part{part(Namespace, namespace)}
	case want.Class == desired.Barrier:
		out.Parts = []Part{part(Cluster)}
	default:
		out.Parts, out.Holds = []Part{part(Cluster)}, false // it shows something (a staged policy), and nothing rests on it
	}
	if phase.Closing() {
		return out
	}
	out.Needs = []Part{part(Cluster)}
	if namespace != "" && want.Class != desired.Blacklist {
		out.Needs = append(out.Needs, part(Namespace, namespace))
	}
	if policy != "" {
		out.Needs = append(out.Needs, part(Policy, policy), part(Leaving, policy))
	}
	return out
}

// deleteDomain is the domain of a delete. What is superseded holds up nothing but the end of what closes in its place.
func deleteDomain(live *unstructured.Unstructured, phase Phase) Domain {
	namespace, policy := live.GetNamespace(), source(live)
	var out Domain
	if policy != "" {
		out.Parts = []Part{part(Leaving, policy)}
	}
	if namespace != "" {
		out.Parts = append(out.Parts, part(LeavingIn, namespace))
	}
	if phase.Closing() {
		out.Holds = true
		return out
	}
	out.Needs = []Part{part(Cluster)}
	switch {
	case policy != "":
		out.Needs = append(out.Needs, part(Leaving, policy))
	case namespace != "":
		out.Needs = append(out.Needs, part(LeavingIn, namespace))
	}
	return out
}

// machines are those that had the addresses that a set of revoked addresses gets: what stands there already is in force.
func (d *differ) machines(live *unstructured.Unstructured, want desired.Object) []Part {
	var out []Part
	for _, path := range want.Closes {
		missing := remaining(want, elements(want.Unstructured, path), pieces(want, elements(live, path)), false)
		for _, e := range missing {
			prefixes(e, func(p netip.Prefix) { out = append(out, part(Machine, d.revoked[p])) })
		}
	}
	slices.SortFunc(out, compareParts)
	return slices.Compact(out)
}

func compareParts(a, b Part) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
}

// prefixes calls f for each address or prefix that stands anywhere in v.
func prefixes(v any, f func(netip.Prefix)) {
	switch v := v.(type) {
	case map[string]any:
		for _, e := range v {
			prefixes(e, f)
		}
	case []any:
		for _, e := range v {
			prefixes(e, f)
		}
	case string:
		if p, err := netip.ParsePrefix(v); err == nil {
			f(p)
		} else if a, err := netip.ParseAddr(v); err == nil {
			f(netip.PrefixFrom(a, a.BitLen()))
		}
	}
}

// revokedBy is which machine had each revoked address.
func revokedBy(in []trustgraph.Revoked) map[netip.Prefix]string {
	out := map[netip.Prefix]string{}
	for _, r := range in {
		if a, err := netip.ParseAddr(r.Address); err == nil {
			out[netip.PrefixFrom(a, a.BitLen())] = r.Node
		}
	}
	return out
}

// nodeDomain: nothing rests on a node's label or taint, which only say where pods are placed.
func nodeDomain(name string, phase Phase) Domain {
	out := Domain{Parts: []Part{part(Machine, name)}}
	if !phase.Closing() {
		out.Needs = []Part{part(Cluster)}
	}
	return out
}

// podDomain: a label opens what the policies that it names allow, under the pod's identity. Labels are those that go or come.
func (d *differ) podDomain(p *corev1.Pod, labels map[string]any, phase Phase) Domain {
	var policies []string
	for key := range labels {
		name, ok := strings.CutSuffix(key, v1alpha1.PolicyLabel(""))
		if ok {
			policies = append(policies, p.Namespace+"/"+name)
		}
	}
	slices.Sort(policies)
	if phase.Closing() {
		out := Domain{Holds: true, Parts: []Part{part(LeavingIn, p.Namespace)}}
		for _, policy := range policies {
			out.Parts = append(out.Parts, part(Leaving, policy))
		}
		return out
	}
	id := trustgraph.SPIFFEID(d.s.Config.TrustDomain, p.Namespace, snapshot.ServiceAccount(p))
	out := Domain{Needs: []Part{part(Cluster), part(Namespace, p.Namespace), part(Machine, p.Spec.NodeName), part(Machine),
		issued(id, d.agents[p.Spec.NodeName])}}
	for _, policy := range policies {
		out.Parts = append(out.Parts, part(Labels, policy))
		out.Needs = append(out.Needs, part(Policy, policy))
	}
	return out
}

func issued(id, parent string) Part { return Part{Kind: IdentityAt, Name: id + " by " + parent} }

// entryDomain: an identity rests on its parent and on what closes its namespace; a superseded entry goes when what stands in its
// place is there.
func entryDomain(e snapshot.Entry, action Action, phase Phase) Domain {
	out := Domain{Parts: []Part{part(Identity, e.SPIFFEID), issued(e.SPIFFEID, e.ParentID)}, Holds: action != DeleteEntry}
	switch {
	case phase.Closing():
		return out
	case action == DeleteEntry:
		out.Needs = []Part{part(Cluster), part(Identity, e.SPIFFEID)}
		return out
	}
	out.Needs = []Part{part(Cluster), part(Identity, e.ParentID)}
	if namespace := entryNamespace(e); namespace != "" {
		out.Needs = append(out.Needs, part(Namespace, namespace))
	}
	return out
}

// NamespaceOf is the namespace that an operation belongs to: that of its target, or of the account that an entry is for. It is empty
// for what belongs to the cluster.
func NamespaceOf(o Operation) string { return namespaceOf(o) }

// entryNamespace reads the namespace from spiffe://<trust domain>/ns/<namespace>/sa/<service account>; nothing for other IDs.
func entryNamespace(e snapshot.Entry) string {
	_, path, _ := strings.Cut(strings.TrimPrefix(e.SPIFFEID, "spiffe://"), "/")
	parts := strings.Split(path, "/")
	if len(parts) != 4 || parts[0] != "ns" || parts[2] != "sa" {
		return ""
	}
	return parts[1]
}

// Missing keeps what is not in place, and says what has to wait for it. The zero value is ready for use.
type Missing struct {
	why map[Part]error
}

// Add notes that an operation was not carried out, and why.
func (m *Missing) Add(o Operation, err error) {
	if !o.Domain.Holds {
		return
	}
	for _, p := range o.Domain.Parts {
		m.AddPart(p, fmt.Errorf("%s %s%s: %w", o.Action, o.subject(), ofPolicy(o), err))
	}
}

// AddPart notes that a part is not in place. Of several reasons the first one is kept.
func (m *Missing) AddPart(p Part, why error) {
	if m.why == nil {
		m.why = map[Part]error{}
	}
	if m.why[p] == nil {
		m.why[p] = why
	}
}

// Holds returns why an operation has to wait, or nil: the first part that it needs and that is not in place.
func (m *Missing) Holds(o Operation) error {
	for _, p := range o.Domain.Needs {
		if why := m.why[p]; why != nil {
			return &WaitsError{For: p, Cause: why}
		}
	}
	return nil
}

// WaitsError says why an operation was not tried.
type WaitsError struct {
	// For is what is not in place, Cause why.
	For   Part
	Cause error
}

// Error names the cause, which names the operation that failed and whose it is.
func (e *WaitsError) Error() string { return "waits for " + e.Cause.Error() }

// Root is the text of the failure at the beginning: what an operation waits for may itself wait.
func (e *WaitsError) Root() string {
	var within *WaitsError
	if errors.As(e.Cause, &within) {
		return within.Root()
	}
	return e.Cause.Error()
}

// Unwrap returns the cause.
func (e *WaitsError) Unwrap() error { return e.Cause }

// ofPolicy names the TrustPolicy of an operation, when its subject does not.
func ofPolicy(o Operation) string {
	for _, p := range o.Domain.Parts {
		if p.Kind == Policy || p.Kind == Leaving {
			return " (TrustPolicy " + p.Name + ")"
		}
	}
	return ""
}
