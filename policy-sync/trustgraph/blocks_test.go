package trustgraph

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
)

// judged is what a graph of the snapshot is made from.
func judged(t rapid.TB, s snapshot.Snapshot) *common {
	t.Helper()
	s.Config = s.Config.WithDefaults()
	c, e := newCommon(s, confines{}), new(Engine)
	lists, err := s.PodsByNamespace()
	if err != nil {
		t.Fatal(err)
	}
	e.forget()
	e.changes(nil, c, false, lists)
	return c
}

func prefixes(texts ...string) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(texts))
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

// TestALookupFindsWhatASearchFinds: nested, equal and disjoint blocks of nodes of every sort.
func TestALookupFindsWhatASearchFinds(t *testing.T) {
	names := []string{"n0", "n1", "n2", "n3", "n4"}
	rapid.Check(t, func(rt *rapid.T) {
		b := judged(rt, snapshottest.Demo())
		for _, n := range names {
			verdict := rapid.SampledFrom([]v1alpha1.Verdict{v1alpha1.VerdictTrusted, v1alpha1.VerdictUntrusted, v1alpha1.VerdictUnknown}).Draw(rt, "verdict")
			b.nodes[n] = Node{Name: n, Verdict: verdict, created: time.Unix(int64(rapid.IntRange(0, 3).Draw(rt, "created")), 0)}
		}
		byNode := map[string][]netip.Prefix{}
		for range rapid.IntRange(0, 12).Draw(rt, "blocks") {
			addr := netip.AddrFrom4([4]byte{10, 0, 0, rapid.Byte().Draw(rt, "byte")})
			if rapid.Bool().Draw(rt, "v6") {
				addr = netip.AddrFrom16([16]byte{0xfd, 15: rapid.Byte().Draw(rt, "byte")})
			}
			n := rapid.SampledFrom(names).Draw(rt, "node")
			byNode[n] = append(byNode[n], netip.PrefixFrom(addr, addr.BitLen()-rapid.IntRange(0, 8).Draw(rt, "width")))
		}
		table := b.index(byNode)
		for i := range 256 {
			for _, addr := range []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), netip.AddrFrom16([16]byte{0xfd, 15: byte(i)}), netip.AddrFrom4([4]byte{11, 0, 0, byte(i)})} {
				compare(rt, b, table, byNode, names, addr)
			}
		}
	})
}

func compare(t *rapid.T, b *common, table *blocks, byNode map[string][]netip.Prefix, names []string, addr netip.Addr) {
	has := func(n string) bool {
		return slices.ContainsFunc(byNode[n], func(p netip.Prefix) bool { return p.Contains(addr) })
	}
	for _, n := range names {
		if got := table.has(n, addr); got != has(n) {
			t.Fatalf("%v: %s has %s: %t", byNode, n, addr, got)
		}
		trusted, older := false, false
		for _, other := range names {
			if other == n || !has(other) {
				continue
			}
			trusted = trusted || b.nodes[other].Verdict == v1alpha1.VerdictTrusted
			older = older || b.nodes[other].Verdict != v1alpha1.VerdictTrusted && b.nodes[other].created.Before(b.nodes[n].created)
		}
		if got := table.trusted(n, addr); (got != "") != trusted || got == n || got != "" && !has(got) {
			t.Fatalf("%v: beside %s, %q is trusted and has %s, want one: %t", byNode, n, got, addr, trusted)
		}
		if got := table.older(n, b.nodes[n].created, addr); (got != "") != older || got == n || got != "" && !has(got) {
			t.Fatalf("%v: beside %s, %q is older and has %s, want one: %t", byNode, n, got, addr, older)
		}
	}
	b.addresses.blocks = table
	owner, ok := b.blockOwner(addr)
	if want := slices.ContainsFunc(names, has); ok != want || ok && !has(owner) {
		t.Fatalf("%v: %s is in a block of %q, %t", byNode, addr, owner, ok)
	}
}

// TestWhichBlocksAreBelieved: whose addresses lie in fra-1's, par-1's and evil-1's blocks. In the demo these are the pod CIDRs
// 10.1.0.0/24, 10.2.0.0/24 and 10.3.0.0/24.
func TestWhichBlocksAreBelieved(t *testing.T) {
	calico := func(s *snapshot.Snapshot) {
		s.Pools = prefixes("10.0.0.0/14", "fd00::/48")
		s.Blocks = map[string][]netip.Prefix{"fra-1": prefixes("10.1.0.0/26"), "par-1": prefixes("10.2.0.0/26"), "evil-1": prefixes("10.3.0.0/26")}
	}
	cidr := func(node int, texts ...string) func(*snapshot.Snapshot) {
		return func(s *snapshot.Snapshot) { s.Nodes[node].Spec.PodCIDR, s.Nodes[node].Spec.PodCIDRs = texts[0], texts }
	}
	const evil = 2
	cases := map[string]struct {
		change []func(*snapshot.Snapshot)
		// in and out are addresses in and out of evil-1's blocks.
		in, out []string
		report  string
	}{
		"pod CIDRs where Calico hands out nothing": {in: []string{"10.3.0.10", "10.3.0.255"}, out: []string{"10.1.0.10", "10.4.0.1"}},
		"a pod CIDR of all addresses": {change: []func(*snapshot.Snapshot){cidr(evil, "0.0.0.0/0", "::/0")}, out: []string{"10.3.0.10", "192.168.5.10", "fd00::1"},
			report: "pod CIDR 0.0.0.0/0 of node evil-1 is not believed: it is wider than /20"},
		"a pod CIDR of many nodes": {change: []func(*snapshot.Snapshot){cidr(evil, "10.0.0.0/19")}, out: []string{"10.0.0.1"}},
		"a pod CIDR of one node":   {change: []func(*snapshot.Snapshot){cidr(evil, "10.3.0.0/20", "fd00:3::/56")}, in: []string{"10.3.15.255", "fd00:3::1"}},
		"a wide one that is allowed": {change: []func(*snapshot.Snapshot){cidr(evil, "10.3.0.0/16"), func(s *snapshot.Snapshot) { s.Config.WidestPodCIDR4 = 16 }},
			in: []string{"10.3.200.1"}},
		"one that is not masked":            {change: []func(*snapshot.Snapshot){cidr(evil, "10.3.0.77/24")}, in: []string{"10.3.0.10"}, out: []string{"10.3.1.10"}},
		"one of mapped addresses":           {change: []func(*snapshot.Snapshot){cidr(evil, "::ffff:10.3.0.0/120")}, in: []string{"10.3.0.10"}, out: []string{"10.3.1.10"}},
		"a wide one of mapped addresses":    {change: []func(*snapshot.Snapshot){cidr(evil, "::ffff:0:0/96")}, out: []string{"10.3.0.10", "192.168.5.10"}},
		"one that is not readable":          {change: []func(*snapshot.Snapshot){cidr(evil, "10.3.0.0")}, out: []string{"10.3.0.0", "10.3.0.10"}},
		"loopback":                          {change: []func(*snapshot.Snapshot){cidr(evil, "127.0.0.0/24", "::1/128")}, out: []string{"127.0.0.1", "::1"}},
		"the DNS cache of every node":       {change: []func(*snapshot.Snapshot){cidr(evil, "169.254.20.0/24", "fe80::/64")}, out: []string{"169.254.20.10", "fe80::1"}},
		"the range of Services":             {change: []func(*snapshot.Snapshot){cidr(evil, "10.96.0.0/20"), func(s *snapshot.Snapshot) { s.ServiceCIDRs = prefixes("10.96.0.0/12") }}, out: []string{"10.96.0.1"}, report: "overlaps the Services' range 10.96.0.0/12"},
		"affinities within pools":           {change: []func(*snapshot.Snapshot){calico}, in: []string{"10.3.0.10"}, out: []string{"10.3.0.100"}},
		"a pod CIDR where affinities count": {change: []func(*snapshot.Snapshot){calico, cidr(evil, "192.168.5.0/24")}, in: []string{"10.3.0.10"}, out: []string{"192.168.5.10"}},
		"a pod CIDR without an affinity where affinities count": {change: []func(*snapshot.Snapshot){calico, cidr(evil, "192.168.5.0/24"), func(s *snapshot.Snapshot) { delete(s.Blocks, "evil-1") }},
			out: []string{"10.3.0.10", "192.168.5.10"}},
		"an affinity outside of every pool": {change: []func(*snapshot.Snapshot){calico, func(s *snapshot.Snapshot) { s.Blocks["evil-1"] = prefixes("192.168.5.0/26", "10.3.0.0/26") }},
			in: []string{"10.3.0.10"}, out: []string{"192.168.5.10"}, report: "block affinity 192.168.5.0/26 of node evil-1 is not believed: it lies in no IP pool"},
		"an affinity around its pool": {change: []func(*snapshot.Snapshot){calico, func(s *snapshot.Snapshot) {
			s.Pools, s.Blocks["evil-1"] = prefixes("10.0.0.0/15", "10.2.0.0/16", "10.3.0.0/25"), prefixes("10.3.0.0/24")
		}}, out: []string{"10.3.0.10"}},
		"an affinity of a whole pool":                 {change: []func(*snapshot.Snapshot){calico, func(s *snapshot.Snapshot) { s.Blocks["evil-1"] = prefixes("10.0.0.0/14") }}, out: []string{"10.3.0.10", "10.1.0.10"}},
		"a bad node's affinity where pod CIDRs count": {change: []func(*snapshot.Snapshot){func(s *snapshot.Snapshot) { s.Blocks = map[string][]netip.Prefix{"evil-1": prefixes("10.9.0.0/26")} }}, in: []string{"10.3.0.10"}, out: []string{"10.9.0.1"}},
		"forged affinities of all where pod CIDRs count": {change: []func(*snapshot.Snapshot){func(s *snapshot.Snapshot) {
			s.Blocks = map[string][]netip.Prefix{"evil-1": prefixes("10.9.0.0/26"), "fra-1": prefixes("10.9.1.0/26"), "par-1": prefixes("10.9.2.0/26")}
		}}, in: []string{"10.3.0.10"}, out: []string{"10.9.0.1"}},
		"pod CIDRs that Calico's IPAM does not use": {change: []func(*snapshot.Snapshot){calico, cidr(0, "10.244.0.0/24"), cidr(1, "10.244.1.0/24"), cidr(evil, "10.244.2.0/24"),
			func(s *snapshot.Snapshot) { s.Pools = prefixes("10.0.0.0/8") }}, in: []string{"10.3.0.10"}, out: []string{"10.244.2.1"}},
		"affinities after every proof ended": {change: []func(*snapshot.Snapshot){calico, cidr(evil, "192.168.5.0/24"), func(s *snapshot.Snapshot) { s.At = s.At.Add(time.Hour) }},
			in: []string{"10.3.0.10"}, out: []string{"192.168.5.10"}},
		"an affinity of a Node that is gone": {change: []func(*snapshot.Snapshot){func(s *snapshot.Snapshot) {
			s.Blocks, s.Nodes = map[string][]netip.Prefix{"evil-1": prefixes("10.3.0.0/26")}, s.Nodes[:evil]
		}}, in: []string{"10.3.0.10"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := snapshottest.Demo()
			for _, change := range c.change {
				change(&s)
			}
			b := judged(t, s)
			for _, text := range c.in {
				if !b.addresses.blocks.has("evil-1", netip.MustParseAddr(text)) {
					t.Errorf("%s is in none of evil-1's blocks", text)
				}
			}
			for _, text := range c.out {
				if b.addresses.blocks.has("evil-1", netip.MustParseAddr(text)) {
					t.Errorf("%s is in a block of evil-1's", text)
				}
			}
			w := &whole{common: b}
			w.reportBlocks()
			if reports := strings.Join(w.reports, "\n"); !strings.Contains(reports, c.report) {
				t.Errorf("reports %s", reports)
			}
		})
	}
}

// TestWhereAPodsAddressMayLie: in its node's blocks, and where these are not known in nobody else's.
func TestWhereAPodsAddressMayLie(t *testing.T) {
	unknown := func(s *snapshot.Snapshot) { s.Nodes[0].Spec.PodCIDR, s.Nodes[0].Spec.PodCIDRs = "", nil }
	cases := map[string]struct {
		change func(*snapshot.Snapshot)
		addr   string
		why    string
	}{
		"in a block of its node":                 {addr: "10.1.0.200"},
		"written as IPv6":                        {addr: "::ffff:10.1.0.200"},
		"in another node's block":                {addr: "10.3.0.12", why: "lies in a block of node evil-1, not of node fra-1"},
		"in nobody's block":                      {addr: "192.168.5.10", why: "lies in none of the address blocks of node fra-1"},
		"of another family":                      {addr: "fd00::1", why: "lies in none of the address blocks of node fra-1"},
		"loopback":                               {addr: "127.0.0.1", why: "is none that a pod has"},
		"where no block is known":                {change: unknown, addr: "192.168.5.10"},
		"in another's block where none is known": {change: unknown, addr: "10.2.0.10", why: "lies in a block of node par-1"},
		"link-local where no block is known":     {change: unknown, addr: "169.254.20.10", why: "is none that a pod has"},
		"lent by another node's block":           {change: affinities, addr: "10.2.0.60", why: "if Calico's IPAM lent it"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := snapshottest.Demo()
			if c.change != nil {
				c.change(&s)
			}
			got := judged(t, s).misplaced("fra-1", netip.MustParseAddr(c.addr))
			if (got == "") != (c.why == "") || !strings.Contains(got, c.why) {
				t.Errorf("%s: %q, want %q", c.addr, got, c.why)
			}
		})
	}
}

func affinities(s *snapshot.Snapshot) {
	s.Pools = prefixes("10.0.0.0/14")
	s.Blocks = map[string][]netip.Prefix{"fra-1": prefixes("10.1.0.0/26"), "par-1": prefixes("10.2.0.0/26"), "evil-1": prefixes("10.3.0.0/26")}
}

// large is a cluster of nodes whose proofs ended, with pods.
func large(nodes, podsPerNode int) snapshot.Snapshot {
	s := snapshottest.Demo()
	s.Nodes, s.NodeTrusts, s.Pods, s.Policies = nil, nil, nil, nil
	for i := range nodes {
		name := fmt.Sprintf("n%d", i)
		s.Nodes = append(s.Nodes, snapshottest.Node(name, fmt.Sprintf("10.%d.%d.0/24", i/256, i%256)))
		trust := snapshottest.Trust(name, "DE")
		trust.Spec.ValidUntil = metav1.NewMicroTime(s.At.Add(-time.Second))
		s.NodeTrusts = append(s.NodeTrusts, trust)
		for j := range podsPerNode {
			s.Pods = append(s.Pods, snapshottest.Pod("shop", fmt.Sprintf("p-%d-%d", i, j), "default", name, fmt.Sprintf("10.%d.%d.%d", i/256, i%256, j+1)))
		}
	}
	return s
}

// visits counts the blocks that are looked at for the revocation of every pod's address, and checks how
// many are revoked.
func visits(t *testing.T, s snapshot.Snapshot, want int) int {
	t.Helper()
	c := judged(t, s)
	c.modes["shop"] = v1alpha1.ModeEnforce
	b := &builder{common: c, namespace: "shop", source: source{pods: s.Pods}}
	b.disbelieved = map[string][]string{}
	b.buildRevocations()
	if len(b.revoked) != want {
		t.Fatalf("%d addresses are revoked, want %d", len(b.revoked), want)
	}
	n := 0
	for _, pod := range s.Pods {
		c.addresses.blocks.around(netip.MustParseAddr(pod.Status.PodIP), func(*block) bool { n++; return true })
	}
	return n
}

// TestRevocationsOfALargeCluster: how many blocks are looked at for an address grows neither with the
// nodes nor with the pods.
func TestRevocationsOfALargeCluster(t *testing.T) {
	for _, size := range []struct{ nodes, pods int }{{500, 40}, {5000, 4}, {5000, 20}} {
		all := size.nodes * size.pods
		if n := visits(t, large(size.nodes, size.pods), all); n != all {
			t.Errorf("%d addresses on %d nodes: %d blocks are looked at, want one for each", all, size.nodes, n)
		}
	}
}

// BenchmarkRevocations measures how long the revocation of every pod's address takes.
func BenchmarkRevocations(b *testing.B) {
	for _, size := range []struct{ nodes, pods int }{{500, 40}, {5000, 4}, {5000, 20}} {
		b.Run(fmt.Sprintf("%d/%d", size.nodes, size.nodes*size.pods), func(b *testing.B) {
			s := large(size.nodes, size.pods)
			for b.Loop() {
				b.StopTimer()
				c := judged(b, s)
				c.modes["shop"] = v1alpha1.ModeEnforce
				one := &builder{common: c, namespace: "shop", source: source{pods: s.Pods}}
				one.disbelieved = map[string][]string{}
				b.StartTimer()
				one.buildRevocations()
			}
		})
	}
}

// TestEqualClaimsOfManyNodesAreOneBlock: kubelets choose their pod CIDRs where no controller sets them.
func TestEqualClaimsOfManyNodesAreOneBlock(t *testing.T) {
	s := large(5000, 4)
	for i := range s.Nodes {
		s.Nodes[i].Spec.PodCIDR, s.Nodes[i].Spec.PodCIDRs = "10.0.0.0/20", nil
	}
	for i := range s.Pods {
		s.Pods[i].Status = corev1.PodStatus{PodIP: fmt.Sprintf("10.0.%d.%d", i/256%16, i%256)}
	}
	if n := visits(t, s, 20_000); n != 20_000 {
		t.Errorf("%d blocks are looked at for 20,000 addresses", n)
	}
}

// TestANamespaceThatCannotBeJudgedIsClosedAndCutOff: none of its pods is attested, and what it has on a bad node is revoked.
func TestANamespaceThatCannotBeJudgedIsClosedAndCutOff(t *testing.T) {
	s := snapshottest.Demo()
	c := judged(t, s)
	lists, err := s.PodsByNamespace()
	if err != nil {
		t.Fatal(err)
	}
	p := failedPart(c, "payments", source{pods: lists["payments"], policies: policiesOf(s.Policies)["payments"]}, "index out of range")
	for _, pod := range p.pods {
		if pod.Attested || pod.Retained || len(pod.Why) == 0 {
			t.Errorf("%s: %+v", pod.Key(), pod)
		}
	}
	if len(p.pods) != 3 || len(p.revoked) != 1 || p.revoked[0].Address != "10.3.0.10" || p.revoked[0].Node != "evil-1" {
		t.Errorf("%d pods, revoked %+v", len(p.pods), p.revoked)
	}
	if !p.contested {
		t.Error("it is not tried again")
	}
}
