package revocations

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/flows"
)

// reader puts together what the API says.
type reader struct {
	o Options

	mu      sync.Mutex
	sets    [v1alpha1.MaxRevokedSets]set
	nets    []string // of all sets
	nodes   nodes
	servers servers
	ebpf    bool
	told    flows.World
	telling bool
	// further wakes watchSets.
	further chan struct{}
}

// change changes what is known and tells the world where it differs from what was told last.
func (r *reader) change(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
	w := r.world()
	if r.telling && equal(r.told, w) {
		return
	}
	r.told, r.telling = w, true
	r.o.Update(w)
}

func (r *reader) note(f func()) { r.change(f) }

func equal(a, b flows.World) bool {
	return a.Known == b.Known && a.Problem == b.Problem && a.EBPF == b.EBPF && slices.Equal(a.Nets, b.Nets) && slices.Equal(a.Self, b.Self) && maps.Equal(a.Hosts, b.Hosts)
}

// world is what is known now.
func (r *reader) world() flows.World {
	w := flows.World{Known: r.sets[0].known && r.nodes.known, Nets: r.nets, EBPF: r.ebpf, Hosts: map[netip.Addr]string{}}
	for name, n := range r.nodes.byName {
		if n.trusted {
			for _, a := range n.addresses {
				if other, ok := w.Hosts[a]; !ok || "node "+name < other {
					w.Hosts[a] = "node " + name
				}
			}
		}
	}
	for a := range r.servers.addresses {
		w.Hosts[a] = "the API server"
	}
	w.Self = r.nodes.byName[r.o.Node].internal
	var problems []string
	for i := range r.sets {
		problems = append(problems, r.sets[i].problem)
	}
	problems = slices.DeleteFunc(append(problems, r.nodes.problem), func(s string) bool { return s == "" })
	if r.nodes.known && r.nodes.byName[r.o.Node].addresses == nil {
		problems = append(problems, fmt.Sprintf("there is no Node %q with an address: check --node", r.o.Node))
	}
	w.Problem = strings.Join(problems, "; ")
	if !w.Known && w.Problem == "" {
		w.Problem = "the Kubernetes API has not answered yet"
	}
	return w
}

// changeSet changes one of the sets.
func (r *reader) changeSet(i int, f func(*set)) {
	r.change(func() {
		s := &r.sets[i]
		s.name, s.further = v1alpha1.RevokedSetName(i), i > 0
		f(s)
		r.nets = nil
		for i := range r.sets {
			r.nets = append(r.nets, r.sets[i].nets...)
		}
	})
}

// set is one set of revoked addresses. What was read once stays known.
type set struct {
	name string
	// further is true for all but the first, which policy-sync makes and deletes as it needs them.
	further bool
	known   bool
	nets    []string
	missing bool
	failure string
	problem string
}

func (s *set) noted(err error) {
	s.failure = ""
	if err != nil {
		s.failure = fmt.Sprintf("the API does not serve GlobalNetworkSet %s: %v", s.name, err)
	}
	s.settle()
}

func (s *set) settle() {
	switch {
	case s.failure != "" && s.further && !s.known:
		s.problem = "" // nothing says that there is such a set
	case s.failure != "":
		s.problem = s.failure
	case s.missing && s.further:
		s.known, s.nets, s.problem = false, nil, ""
	case s.missing && s.known:
		s.problem = fmt.Sprintf("GlobalNetworkSet %s is gone; what it last held is still cut", s.name)
	case s.missing:
		s.problem = fmt.Sprintf("there is no GlobalNetworkSet %s: policy-sync makes it", s.name)
	default:
		s.problem = ""
	}
}

func (s *set) put(o any) {
	u, ok := o.(*unstructured.Unstructured)
	if !ok || u.GetName() != s.name {
		return
	}
	nets, _, err := unstructured.NestedStringSlice(u.Object, "spec", "nets")
	if err != nil {
		s.failure = fmt.Sprintf("GlobalNetworkSet %s cannot be read: %v", s.name, err)
		s.settle()
		return
	}
	s.known, s.nets, s.missing, s.failure = true, nets, false, ""
	s.settle()
}

func (s *set) gone() {
	s.missing = true
	s.settle()
}

func (s *set) replace(all []any) {
	s.missing = true
	for _, o := range all {
		s.put(o)
	}
	s.settle()
}

// nodes are the cluster's.
type nodes struct {
	known   bool
	byName  map[string]node
	problem string
}

type node struct {
	trusted             bool
	addresses, internal []netip.Addr
}

func (n *nodes) noted(err error) func() {
	return func() {
		n.problem = ""
		if err != nil {
			n.problem = fmt.Sprintf("the API does not serve Nodes: %v", err)
		}
	}
}

func (n *nodes) put(o any) {
	if from, ok := o.(*corev1.Node); ok {
		if n.byName == nil {
			n.byName = map[string]node{}
		}
		n.byName[from.Name] = facts(from)
	}
}

func (n *nodes) remove(o any) {
	if from, ok := o.(*corev1.Node); ok {
		delete(n.byName, from.Name)
	}
}

func (n *nodes) replace(all []any) {
	n.known, n.byName = true, make(map[string]node, len(all))
	for _, o := range all {
		n.put(o)
	}
}

// facts is what is kept of a Node.
func facts(from *corev1.Node) node {
	out := node{trusted: from.Labels[v1alpha1.NodeVerdictLabel] == string(v1alpha1.VerdictTrusted)}
	for _, a := range from.Status.Addresses {
		addr, err := netip.ParseAddr(a.Address)
		if err != nil {
			continue // a host name
		}
		out.addresses = append(out.addresses, addr.Unmap())
		if a.Type == corev1.NodeInternalIP {
			out.internal = append(out.internal, addr.Unmap())
		}
	}
	return out
}

// servers are the API server's addresses: those that were connected to, and those behind its Service.
type servers struct{ addresses map[netip.Addr]struct{} }

// maxServers bounds them: a load balancer may have another address each time.
const maxServers = 64

func (s *servers) add(addresses ...netip.Addr) {
	if s.addresses == nil {
		s.addresses = map[netip.Addr]struct{}{}
	}
	for _, a := range addresses {
		if len(s.addresses) >= maxServers {
			clear(s.addresses) // those still in use are met again
		}
		s.addresses[a.Unmap()] = struct{}{}
	}
}
