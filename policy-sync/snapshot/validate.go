package snapshot

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

// Limits and defaults of Config.
const (
	// DefaultTierOrder comes before every tier that Calico makes itself (the first has 1000).
	DefaultTierOrder = 50
	// DefaultWidestPodCIDR4 and DefaultWidestPodCIDR6 leave room around what kube-controller-manager gives a node (/24 and /64,
	// --node-cidr-mask-size-ipv4 and -ipv6).
	DefaultWidestPodCIDR4 = 20
	DefaultWidestPodCIDR6 = 56
	// DefaultPendingGrace covers a registry's outage of a minute and a kubelet that is slow to report.
	DefaultPendingGrace = 2 * time.Minute
	// NoPendingGrace is a Config.PendingGrace of no time.
	NoPendingGrace = time.Duration(-1)
	// MaxPendingGrace is shorter than what is remembered (trustgraph.Remember).
	MaxPendingGrace = 30 * time.Minute
	// MinX509SVIDTTL keeps agents from renewing without end.
	MinX509SVIDTTL = 10 * time.Second
	// MaxX509SVIDTTL bounds how long an SVID outlives a lost verdict.
	MaxX509SVIDTTL = 24 * time.Hour
	// DefaultMaxEntries is what one SPIRE server's database, and a reading of it, take with ease.
	DefaultMaxEntries = 100_000
	// DefaultMaxRead is how many entries, and how many agents, of a SPIRE server are read at most.
	DefaultMaxRead = 500_000
	// DefaultMaxNamespaceEntries leaves room for many large namespaces beside each other.
	DefaultMaxNamespaceEntries = 20_000
)

// WithDefaults fills what the operator left out.
func (c Config) WithDefaults() Config {
	if c.TierOrder == 0 {
		c.TierOrder = DefaultTierOrder
	}
	if c.X509SVIDTTL == 0 {
		c.X509SVIDTTL = 5 * time.Minute
	}
	if c.MaxEntries == 0 {
		c.MaxEntries = DefaultMaxEntries
	}
	if c.MaxNamespaceEntries == 0 {
		c.MaxNamespaceEntries = DefaultMaxNamespaceEntries
	}
	if c.PendingGrace == 0 {
		c.PendingGrace = DefaultPendingGrace
	}
	if c.DNS == (Service{}) {
		c.DNS = Service{Namespace: "kube-system", Label: "k8s-app", Value: "kube-dns"}
	}
	if c.Istiod == (Service{}) {
		c.Istiod = Service{Namespace: "istio-system", Label: "app", Value: "istiod"}
	}
	if c.DNSNets == nil {
		c.DNSNets = slices.Clone(DefaultDNSNets)
	}
	if len(c.DNSPorts) == 0 {
		c.DNSPorts = slices.Clone(DefaultDNSPorts)
	}
	return c
}

// DefaultDNSNets is where NodeLocal DNSCache answers on each node, and DefaultDNSPorts where that and CoreDNS do (5353 on
// OpenShift).
var (
	DefaultDNSNets  = []string{"169.254.20.10"}
	DefaultDNSPorts = []int32{53, 5353}
)

// RootNamespace is the mesh's root namespace, in which policies are for every namespace.
func (c Config) RootNamespace() string {
	if c.IstioRootNamespace != "" {
		return c.IstioRootNamespace
	}
	return c.WithDefaults().Istiod.Namespace
}

// checkDNS reports what is wrong with the places that answer DNS.
func (c Config) checkDNS(add func(format string, args ...any)) {
	for i, s := range c.MoreDNS {
		if s.Namespace == "" || s.Label == "" || s.Value == "" {
			add("DNS service %d needs a namespace and one label with a value", i+2)
		}
	}
	for _, n := range c.DNSNets {
		if _, err := netip.ParseAddr(n); err == nil {
			continue
		}
		if p, err := netip.ParsePrefix(n); err != nil || p.Masked() != p {
			add("DNS address %q is neither an address nor a block of addresses (like 169.254.20.10 or 10.0.0.0/24)", n)
		} else if p.Addr().BitLen()-p.Bits() > 16 {
			add("DNS block %q holds more than 65536 addresses, which every enrolled pod could call", n)
		}
	}
	for _, p := range c.DNSPorts {
		if p < 1 || p > 65535 {
			add("DNS port %d is no port", p)
		}
	}
	if ns := c.IstioRootNamespace; ns != "" && len(validation.IsDNS1123Label(ns)) > 0 {
		add("Istio's root namespace %q is no namespace's name", ns)
	}
}

// PodCIDRWidths are the shortest prefixes of Node.spec.podCIDRs that are believed, of IPv4 and of IPv6.
func (c Config) PodCIDRWidths() (v4, v6 int) {
	return cmp.Or(c.WidestPodCIDR4, DefaultWidestPodCIDR4), cmp.Or(c.WidestPodCIDR6, DefaultWidestPodCIDR6)
}

// Validate reports every problem of the configuration at once.
func (c Config) Validate() error {
	var problems []error
	add := func(format string, args ...any) {
		problems = append(problems, fmt.Errorf("snapshot: configuration: "+format, args...))
	}
	if _, err := spiffeid.TrustDomainFromString(c.TrustDomain); err != nil || strings.Contains(c.TrustDomain, "/") {
		add("trust domain %q is not the name of a trust domain (like example.org)", c.TrustDomain)
	}
	c = c.WithDefaults()
	if c.X509SVIDTTL < MinX509SVIDTTL || c.X509SVIDTTL > MaxX509SVIDTTL || c.X509SVIDTTL%time.Second != 0 {
		add("X.509-SVID lifetime %s is not a whole number of seconds between %s and %s", c.X509SVIDTTL, MinX509SVIDTTL, MaxX509SVIDTTL)
	}
	if c.MaxHold < 0 || c.MaxHold > 24*time.Hour {
		add("brake %s is outside 0 to 24h", c.MaxHold)
	}
	if c.PendingGrace > MaxPendingGrace {
		add("pending grace %s is outside 0 to %s", c.PendingGrace, MaxPendingGrace)
	}
	if c.TierOrder < 0 {
		add("tier order %v is negative", c.TierOrder)
	}
	if w4, w6 := c.PodCIDRWidths(); w4 < 8 || w4 > 32 || w6 < 32 || w6 > 128 {
		add("widest pod CIDRs /%d and /%d are outside /8 to /32 and /32 to /128", w4, w6)
	}
	if c.MaxDeletePercent < 0 || c.MaxDeletePercent > 100 {
		add("largest share of deletes %d%% is outside 0 to 100", c.MaxDeletePercent)
	}
	c.validateIdentities(add)
	for _, p := range c.AllowedHostPaths {
		if err := workloadclaim.CheckHostPath(p); err != nil {
			add("allowed host path %v", err)
		}
	}
	for name, s := range map[string]Service{"DNS": c.DNS, "istiod": c.Istiod} {
		if s.Namespace == "" || s.Label == "" || s.Value == "" {
			add("service %s needs a namespace and one label with a value", name)
		}
	}
	c.checkDNS(add)
	slices.SortFunc(problems, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(problems...)
}

// validateIdentities checks what concerns entries at the SPIRE server.
func (c Config) validateIdentities(add func(format string, args ...any)) {
	if msgs := validation.IsDNS1123Label(c.ClusterName); c.ClusterName != "" && len(msgs) > 0 {
		add("cluster name %.80q is not a DNS label: %s", c.ClusterName, msgs[0])
	}
	if c.ClusterName == entryKindClass || c.ClusterName == entryKindWorkload {
		add("cluster name %q is a word that entry IDs use themselves: choose another", c.ClusterName)
	}
	if c.OwnID != "" {
		if id, err := spiffeid.FromString(c.OwnID); err != nil || id.TrustDomain().Name() != c.TrustDomain {
			add("own ID %.200q is not a SPIFFE ID of trust domain %s", c.OwnID, c.TrustDomain)
		}
	}
	for _, name := range c.AdminNodes {
		if msgs := validation.IsDNS1123Subdomain(name); len(msgs) > 0 {
			add("admin node %.80q is not the name of a Node: %s", name, msgs[0])
		}
	}
	if c.MaxEntries < 1 || c.MaxNamespaceEntries < 1 {
		add("largest number of entries %d (%d of a namespace) is less than 1", c.MaxEntries, c.MaxNamespaceEntries)
	}
}

// Validate reports why no plan may be made from the snapshot: configuration, parts
// that could not be read, one object read twice. Pods are left to who deals them out to their
// namespaces, and what a SPIRE server said to SPIRE.Validate.
func (s Snapshot) Validate() error { return s.ValidateAfter(nil) }

// ValidateAfter is Validate where an earlier snapshot was valid: its lists are not looked at again.
func (s Snapshot) ValidateAfter(before *Snapshot) error {
	problems := []error{s.Config.Validate()}
	if s.At.IsZero() {
		problems = append(problems, errors.New("snapshot: it carries no time"))
	}
	for _, u := range s.Unread {
		problems = append(problems, fmt.Errorf("snapshot: not read: %s", u))
	}
	had := Snapshot{}
	if before != nil {
		had = *before
	}
	problems = append(problems,
		once(had.Nodes, s.Nodes, func(i int) identity { return identity{kind: "Node", name: s.Nodes[i].Name} }),
		once(had.NodeTrusts, s.NodeTrusts, func(i int) identity { return identity{kind: "NodeTrust", name: s.NodeTrusts[i].Name} }),
		once(had.Namespaces, s.Namespaces, func(i int) identity { return identity{kind: "Namespace", name: s.Namespaces[i].Name} }),
		once(had.Policies, s.Policies, func(i int) identity {
			return identity{kind: "TrustPolicy", namespace: s.Policies[i].Namespace, name: s.Policies[i].Name}
		}),
		once(had.Objects, s.Objects, func(i int) identity {
			o := s.Objects[i]
			return identity{o.GetAPIVersion(), o.GetKind(), o.GetNamespace(), o.GetName()}
		}))
	return errors.Join(problems...)
}

// identity tells one object from all others.
type identity struct{ api, kind, namespace, name string }

// once reports the objects of a list that are there twice. It does not look at a list that it has seen.
func once[T any](before, list []T, of func(i int) identity) error {
	if Same(before, list) {
		return nil
	}
	var problems []error
	seen := make(map[identity]bool, len(list))
	for n := range list {
		i := of(n)
		if seen[i] {
			problems = append(problems, fmt.Errorf("snapshot: %s was read twice", strings.TrimSpace(i.api+" "+i.kind+" "+strings.TrimPrefix(i.namespace+"/"+i.name, "/"))))
		}
		seen[i] = true
	}
	return errors.Join(problems...)
}

// Validate reports why no plan may be made from what a SPIRE server said: one entry read twice.
func (s *SPIRE) Validate() error {
	if s == nil {
		return nil
	}
	var problems []error
	seen := make(map[string]bool, len(s.Entries))
	for i := range s.Entries {
		if id := s.Entries[i].ID; seen[id] {
			problems = append(problems, fmt.Errorf("snapshot: SPIRE entry %s was read twice", id))
		} else {
			seen[id] = true
		}
	}
	return errors.Join(problems...)
}
