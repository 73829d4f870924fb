package plan_test

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

// addresses of the demo's enrolled pods.
var (
	fraPods  = []string{"10.1.0.10", "10.1.0.11"}
	evilPods = []string{"10.3.0.10", "10.3.0.11"}
)

func nodeAddresses(s *snapshot.Snapshot, node string, addresses ...string) {
	for i := range s.Nodes {
		if s.Nodes[i].Name != node {
			continue
		}
		for _, a := range addresses {
			s.Nodes[i].Status.Addresses = append(s.Nodes[i].Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
		}
	}
}

func podCIDR(s *snapshot.Snapshot, node string, cidrs ...string) {
	for i := range s.Nodes {
		if s.Nodes[i].Name == node {
			s.Nodes[i].Spec.PodCIDR, s.Nodes[i].Spec.PodCIDRs = "", cidrs
		}
	}
}

func silent(s *snapshot.Snapshot, node string) {
	for i := range s.NodeTrusts {
		if s.NodeTrusts[i].Name == node {
			s.NodeTrusts[i].Spec.ValidUntil = metav1.NewMicroTime(s.At)
		}
	}
}

// TestThreat34_NobodySparesAddressesButTheTrusted: a kubelet writes its Node's addresses, its pod CIDR where nobody has set
// one, and its pods' statuses; with its machine's Calico credentials it writes block affinities.
func TestThreat34_NobodySparesAddressesButTheTrusted(t *testing.T) {
	stranger := func(s *snapshot.Snapshot) {
		s.Nodes = append(s.Nodes, snapshottest.Node("new-1", "10.4.0.0/24"))
	}
	cases := map[string]struct {
		change func(s *snapshot.Snapshot)
		want   []string
	}{
		"a silent machine lists its pods' addresses as its own": {func(s *snapshot.Snapshot) {
			silent(s, "fra-1")
			nodeAddresses(s, "fra-1", fraPods...)
		}, slices.Concat(fraPods, evilPods)},
		"a silent machine lists another's": {func(s *snapshot.Snapshot) {
			silent(s, "fra-1")
			nodeAddresses(s, "fra-1", evilPods...)
		}, slices.Concat(fraPods, evilPods)},
		"an untrusted machine lists its pods' addresses": {func(s *snapshot.Snapshot) { nodeAddresses(s, "evil-1", evilPods...) }, evilPods},
		"a machine that nobody knows lists them": {func(s *snapshot.Snapshot) {
			stranger(s)
			nodeAddresses(s, "new-1", evilPods...)
		}, evilPods},
		"a machine that nobody knows claims the block": {func(s *snapshot.Snapshot) {
			stranger(s)
			podCIDR(s, "new-1", "10.3.0.0/24")
		}, evilPods},
		"a machine that nobody knows claims part of the block": {func(s *snapshot.Snapshot) {
			stranger(s)
			podCIDR(s, "new-1", "10.3.0.8/29")
		}, evilPods},
		"a machine that nobody knows has an affinity for the block": {func(s *snapshot.Snapshot) {
			stranger(s)
			s.Blocks = map[string][]netip.Prefix{"new-1": {netip.MustParsePrefix("10.3.0.0/24")}}
			podCIDR(s, "new-1")
		}, evilPods},
		"a pod of a silent machine claims one": {func(s *snapshot.Snapshot) {
			silent(s, "fra-1")
			s.Pods = append(s.Pods, snapshottest.Pod("other", "accomplice", "default", "fra-1", "10.3.0.10"))
		}, slices.Concat(fraPods, evilPods)},
		"a trusted machine has one": {func(s *snapshot.Snapshot) { nodeAddresses(s, "fra-1", "10.3.0.10") }, evilPods[1:]},
		"a trusted machine's pod has one": {func(s *snapshot.Snapshot) {
			s.Pods = append(s.Pods, snapshottest.Pod("other", "heir", "default", "fra-1", "10.3.0.10"))
		}, evilPods[1:]},
		"a held machine has one": {func(s *snapshot.Snapshot) {
			s.Config.MaxHold = time.Hour
			silent(s, "fra-1")
			nodeAddresses(s, "fra-1", "10.3.0.10")
		}, evilPods[1:]},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := remembered(t)
			c.change(&s)
			if got := revokedOf(t, s); !slices.Equal(got, c.want) {
				t.Errorf("revoked %v, want %v", got, c.want)
			}
		})
	}
}

// TestThreat16_ATrustedMachineSparesNoPodThatFell: neither its own, as an address of the machine, nor another trusted one's.
func TestThreat16_ATrustedMachineSparesNoPodThatFell(t *testing.T) {
	for name, change := range map[string]func(*snapshot.Snapshot){
		"its own":   func(s *snapshot.Snapshot) { nodeAddresses(s, "fra-1", "10.1.0.10") },
		"another's": func(s *snapshot.Snapshot) { nodeAddresses(s, "par-1", "10.1.0.10") },
		"another's by pod": func(s *snapshot.Snapshot) {
			s.Pods = append(s.Pods, snapshottest.Pod("other", "liar", "default", "par-1", "10.1.0.10"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := remembered(t)
			podOf(t, &s, "payments/api-fra-1").Status.ContainerStatuses[0].ImageID = "registry.example/api@" + snapshottest.Digest("other")
			change(&s)
			if got := revokedOf(t, s); !slices.Contains(got, "10.1.0.10") {
				t.Errorf("revoked %v", got)
			}
		})
	}
}

// TestThreat34_AnUntrustedMachineRevokesNothingOfOthers: whatever block and address it claims.
func TestThreat34_AnUntrustedMachineRevokesNothingOfOthers(t *testing.T) {
	cases := map[string]struct {
		change func(s *snapshot.Snapshot)
		claim  string
	}{
		"an address outside of the cluster, by a CIDR of everything": {func(s *snapshot.Snapshot) { podCIDR(s, "evil-1", "0.0.0.0/0") }, "192.168.5.10"},
		"the same in IPv6": {func(s *snapshot.Snapshot) { podCIDR(s, "evil-1", "::/0") }, "2001:db8::5"},
		"the same mapped":  {func(s *snapshot.Snapshot) { podCIDR(s, "evil-1", "::ffff:0.0.0.0/96") }, "192.168.5.10"},
		"a trusted node's pod, by a CIDR around its": {func(s *snapshot.Snapshot) { podCIDR(s, "evil-1", "10.1.0.0/20") }, "10.1.0.10"},
		"a trusted node's free address":              {func(s *snapshot.Snapshot) { podCIDR(s, "evil-1", "10.1.0.0/24") }, "10.1.0.99"},
		"a trusted node itself": {func(s *snapshot.Snapshot) {
			podCIDR(s, "evil-1", "172.16.0.0/24")
			nodeAddresses(s, "fra-1", "172.16.0.5")
		}, "172.16.0.5"},
		"an older node that nobody knows": {func(s *snapshot.Snapshot) {
			n := snapshottest.Node("old-1", "10.4.0.0/24")
			n.CreationTimestamp = metav1.NewTime(n.CreationTimestamp.Add(-time.Hour))
			s.Nodes = append(s.Nodes, n)
			podCIDR(s, "evil-1", "10.4.0.0/24")
		}, "10.4.0.9"},
		"the name server's address": {func(s *snapshot.Snapshot) {
			s.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}
			podCIDR(s, "evil-1", "10.96.0.0/24")
		}, "10.96.0.10"},
		"every node's DNS cache": {func(s *snapshot.Snapshot) { podCIDR(s, "evil-1", "169.254.20.0/24") }, "169.254.20.10"},
		"every node's loopback":  {func(s *snapshot.Snapshot) { podCIDR(s, "evil-1", "127.0.0.0/24") }, "127.0.0.1"},
		"an address outside of the pools": {func(s *snapshot.Snapshot) {
			s.Pools = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/14")}
			s.Blocks = map[string][]netip.Prefix{"fra-1": {netip.MustParsePrefix("10.1.0.0/26")}, "par-1": {netip.MustParsePrefix("10.2.0.0/26")}, "evil-1": {netip.MustParsePrefix("192.168.5.0/26")}}
			podCIDR(s, "evil-1", "192.168.5.0/24")
		}, "192.168.5.10"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := remembered(t)
			c.change(&s)
			s.Pods = append(s.Pods, snapshottest.Pod("shop", "mirror-evil-1", "default", "evil-1", c.claim))
			r := mustMake(t, s)
			for _, revoked := range r.Graph.Revoked {
				if revoked.Address == c.claim {
					t.Errorf("%s is revoked: %s", c.claim, revoked.Reason)
				}
			}
			if reports := strings.Join(r.Graph.Reports, "\n"); !strings.Contains(reports, "mirror-evil-1 has address "+c.claim) {
				t.Errorf("it is not reported: %s", reports)
			}
		})
	}
}

// TestClaimsThatAreNotBelievedAreCountedBeyondAFew: a kubelet makes as many mirror pods as it likes.
func TestClaimsThatAreNotBelievedAreCountedBeyondAFew(t *testing.T) {
	s := snapshottest.Demo()
	for i := range 500 {
		s.Pods = append(s.Pods, snapshottest.Pod("shop", fmt.Sprintf("mirror-%d", i), "default", "evil-1", fmt.Sprintf("192.168.%d.%d", i/250, i%250+1)))
	}
	reports := mustMake(t, s).Graph.Reports
	if len(reports) > 20 || !strings.Contains(strings.Join(reports, "\n"), "492 more addresses of its pods are not its own to give") {
		t.Errorf("%d reports", len(reports))
	}
}

// TestWithoutAddressBlocksATrustedNodesWordIsRemembered: another CNI plugin hands out addresses and Calico only enforces.
func TestWithoutAddressBlocksATrustedNodesWordIsRemembered(t *testing.T) {
	s := snapshottest.Demo()
	for _, n := range []string{"fra-1", "par-1", "evil-1"} {
		podCIDR(&s, n)
	}
	s.NodeTrusts[2] = snapshottest.Trust("evil-1", "DE")
	nodeAddresses(&s, "par-1", "10.3.0.11") // of two that have one address, none may lose it
	r := mustMake(t, s)
	if got := strings.Join(r.Graph.Reports, "\n"); !strings.Contains(got, "no address block is known of nodes evil-1, fra-1, par-1") {
		t.Errorf("reports %s", got)
	}
	p, _ := r.Graph.Policy("payments", "api")
	if got := strings.Join(p.Notes, "\n"); !strings.Contains(got, "no address block is known of nodes evil-1, fra-1, par-1: addresses of the policy's pods there") {
		t.Errorf("notes %s", got)
	}
	s.Attested = r.Graph.Attested
	bad(&s, "evil-1")
	without(&s, "evil-1")
	if got := revokedOf(t, s); !slices.Equal(got, evilPods[:1]) {
		t.Errorf("revoked %v, want %v", got, evilPods[:1])
	}
	s.Attested = nil
	if got := revokedOf(t, s); len(got) != 0 {
		t.Errorf("revoked %v on the word of an untrusted machine", got)
	}
}

// TestARequirementThatNoNodeMeetsIsNoted: a reference set or a tag that is misspelt.
func TestARequirementThatNoNodeMeetsIsNoted(t *testing.T) {
	cases := map[string]struct {
		change func(*v1alpha1.NodeRequirement)
		note   string
	}{
		"a set that no node matches": {func(r *v1alpha1.NodeRequirement) { r.References = []string{"production"} }, "no node matches any of references [production]; nodes match: prod"},
		"one of two":                 {func(r *v1alpha1.NodeRequirement) { r.References = []string{"production", "prod"} }, ""},
		"a tag that no node has":     {func(r *v1alpha1.NodeRequirement) { r.Tags = map[string][]string{"county": {"DE"}} }, "no node has tag county with any of [DE]; nodes have: none"},
		"another value":              {func(r *v1alpha1.NodeRequirement) { r.Tags = map[string][]string{"country": {"Germany"}} }, "no node has tag country with any of [Germany]; nodes have: DE, FR"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := snapshottest.Demo()
			c.change(&s.Policies[0].Spec.Require.Node)
			p, _ := mustMake(t, s).Graph.Policy("payments", "api")
			notes := strings.Join(p.Notes, "\n")
			if c.note != "" && !strings.Contains(notes, c.note) || c.note == "" && strings.Contains(notes, "no node") {
				t.Errorf("notes %s", notes)
			}
		})
	}
}

// TestAHeldNodeKeepsTheLabelsThatItsPodsRequire: a kubelet that restarts fails pods whose required affinity is not met. It gets
// the taint, and no label that it did not have.
func TestAHeldNodeKeepsTheLabelsThatItsPodsRequire(t *testing.T) {
	w := demo()
	w.Config.MaxHold = time.Hour
	w.settle(t, nil)
	before := w.nodeNamed("fra-1").Labels
	w.NodeTrusts[0].Spec.ValidUntil = metav1.NewMicroTime(w.At.Add(-time.Second))
	w.settle(t, nil)
	n := w.nodeNamed("fra-1")
	if n.Labels[v1alpha1.NodeVerdictLabel] != string(v1alpha1.VerdictTrusted) || n.Labels[v1alpha1.NodeReferenceLabel] != "prod" || n.Labels[v1alpha1.NodeTagPrefix+"country"] != "DE" {
		t.Errorf("labels %v, before %v", n.Labels, before)
	}
	if !slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == v1alpha1.UntrustedTaint }) {
		t.Error("nothing keeps new pods away")
	}
	delete(n.Labels, v1alpha1.NodeTagPrefix+"country")
	n.Labels[v1alpha1.NodeReferenceLabel] = "other"
	w.settle(t, nil)
	if n := w.nodeNamed("fra-1"); n.Labels[v1alpha1.NodeTagPrefix+"country"] != "" || n.Labels[v1alpha1.NodeReferenceLabel] != "" {
		t.Errorf("a held node got labels, or kept wrong ones: %v", n.Labels)
	}
	w.At = w.At.Add(2 * time.Hour)
	w.settle(t, nil)
	if n := w.nodeNamed("fra-1"); len(n.Labels) != 0 {
		t.Errorf("after the grace period it bears %v", n.Labels)
	}
}

// TestWhoseWordRevokesAndSpares: random worlds, in which machines without trust claim what they like. Changing what they say
// never has an address revoked that is a trusted machine's, one of its pods' or nobody's, and never spares what was revoked.
func TestWhoseWordRevokesAndSpares(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := snapshottest.Demo()
		affinities := rapid.Bool().Draw(rt, "affinities")
		if affinities {
			s.Pools, s.Blocks = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/13")}, map[string][]netip.Prefix{}
		}
		verdicts := map[string]string{"fra-1": "trusted"}
		for i, n := range []string{"par-1", "evil-1", "x-1", "y-1"} {
			verdicts[n] = rapid.SampledFrom([]string{"trusted", "untrusted", "stale", "unknown"}).Draw(rt, "verdict of "+n)
			if i > 1 {
				s.Nodes = append(s.Nodes, snapshottest.Node(n, fmt.Sprintf("10.%d.0.0/24", i+2)))
				s.Pods = append(s.Pods, snapshottest.Pod("shop", "frontend-"+n, "frontend", n, fmt.Sprintf("10.%d.0.11", i+2)))
			}
		}
		s.NodeTrusts = nil
		for i, n := range s.Nodes {
			if affinities {
				s.Blocks[n.Name] = []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/24", i+1))}
			}
			nodeAddresses(&s, n.Name, fmt.Sprintf("172.16.0.%d", i+1))
			s.NodeTrusts = append(s.NodeTrusts, snapshottest.Trust(n.Name, "DE"))
		}
		snapshottest.Verify(&s)
		s.Attested = mustMake(rt, s).Graph.Attested
		s.NodeTrusts = slices.DeleteFunc(s.NodeTrusts, func(n v1alpha1.NodeTrust) bool { return verdicts[n.Name] == "unknown" })
		for i := range s.NodeTrusts {
			switch n := &s.NodeTrusts[i]; verdicts[n.Name] {
			case "untrusted":
				n.Spec.Verdict = v1alpha1.VerdictUntrusted
			case "stale":
				n.Spec.ValidUntil = metav1.NewMicroTime(s.At)
			}
		}
		honest := map[string]bool{}
		for _, r := range mustMake(rt, s).Graph.Revoked {
			honest[r.Address] = true
		}
		lie(rt, &s, verdicts, affinities)
		lied := map[string]bool{}
		for _, r := range mustMake(rt, s).Graph.Revoked {
			lied[r.Address] = true
			a := netip.MustParseAddr(r.Address)
			owner := -1
			for i := range s.Nodes {
				if netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/24", i+1)).Contains(a) {
					owner = i
				}
			}
			if owner < 0 || verdicts[s.Nodes[owner].Name] == "trusted" {
				rt.Fatalf("%s is revoked: %s", a, r.Reason)
			}
		}
		for a := range honest {
			if !lied[a] {
				rt.Fatalf("%s is spared", a)
			}
		}
	})
}

// lie changes what machines without trust may write: their Node's addresses, pods' statuses, and pod CIDRs or, beside their
// own, block affinities that nobody has yet.
func lie(t *rapid.T, s *snapshot.Snapshot, verdicts map[string]string, affinities bool) {
	addr := func() string {
		return rapid.SampledFrom([]string{"10.1.0.10", "10.1.0.99", "10.2.0.11", "10.3.0.10", "10.4.0.11", "10.5.0.11", "172.16.0.1", "172.16.0.2", "192.168.5.10", "8.8.8.8", "fd00::1", "127.0.0.1"}).Draw(t, "address")
	}
	cidr := func() string {
		return rapid.SampledFrom([]string{"0.0.0.0/0", "::/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.0.0/20", "10.1.0.0/24", "10.2.0.0/24", "192.168.5.10/32", "192.168.0.0/16", "::ffff:192.168.5.0/100", "127.0.0.1/32"}).Draw(t, "cidr")
	}
	for i := range s.Nodes {
		n := &s.Nodes[i]
		if verdicts[n.Name] == "trusted" {
			continue
		}
		for range rapid.IntRange(0, 3).Draw(t, "addresses") {
			nodeAddresses(s, n.Name, addr())
		}
		for range rapid.IntRange(0, 3).Draw(t, "pods") {
			s.Pods = append(s.Pods, snapshottest.Pod("shop", fmt.Sprintf("mirror-%d", len(s.Pods)), "default", n.Name, addr()))
		}
		if !affinities {
			continue // the controller has set the pod CIDR, which nobody can change
		}
		if rapid.Bool().Draw(t, "sets its pod CIDR") {
			n.Spec.PodCIDR, n.Spec.PodCIDRs = cidr(), []string{cidr()}
		}
		if rapid.Bool().Draw(t, "writes an affinity") {
			s.Blocks[n.Name] = append(s.Blocks[n.Name], netip.MustParsePrefix(cidr()))
		}
	}
}

// TestANodeTrustSaysWhatItComesTo: in its status, which is written when that changes and not otherwise.
func TestANodeTrustSaysWhatItComesTo(t *testing.T) {
	status := func(t *testing.T, s *snapshot.Snapshot) map[string]string {
		t.Helper()
		for range 2 { // what is written is what the next pass wants
			written := mustMake(t, *s).Graph.NodeTrusts
			for _, n := range written {
				for i := range s.NodeTrusts {
					if s.NodeTrusts[i].Name == n.Name {
						s.NodeTrusts[i].Status = n.Status
					}
				}
			}
		}
		if again := mustMake(t, *s).Graph.NodeTrusts; len(again) > 0 {
			t.Errorf("it is written again: %v", again)
		}
		out := map[string]string{}
		for _, n := range s.NodeTrusts {
			out[n.Name] = string(n.Status.Verdict) + "|" + n.Status.Why
		}
		return out
	}
	s := snapshottest.Demo()
	s.NodeTrusts = append(s.NodeTrusts, snapshottest.Trust("gone-1", "DE"))
	expect := func(node, verdict, why string) {
		t.Helper()
		if got := status(t, &s)[node]; !strings.HasPrefix(got, verdict+"|") || !strings.Contains(got, why) {
			t.Errorf("%s: %s, want %s, %s", node, got, verdict, why)
		}
	}
	expect("fra-1", "trusted", "")
	expect("evil-1", "untrusted", "kernel command line")
	expect("gone-1", "unknown", "there is no Node of this name")
	since := s.NodeTrusts[0].Status.Since.Time
	s.At = s.At.Add(30 * time.Second)
	s.NodeTrusts[0].Spec.ValidUntil = metav1.NewMicroTime(s.At.Add(time.Minute)) // it is renewed
	if again := mustMake(t, s).Graph.NodeTrusts; len(again) > 0 {
		t.Errorf("a renewed proof changes the status: %v", again)
	}
	s.At = s.At.Add(time.Minute)
	expect("fra-1", "stale", "its proof ended at")
	if got := s.NodeTrusts[0].Status.Since.Time; !got.After(since) {
		t.Errorf("stale since %s", got)
	}
	s.Config.MaxHold = time.Hour
	expect("fra-1", "held", "its proof ended at")
	s.Nodes[0].UID = "another"
	expect("fra-1", "unknown", "an earlier Node")
}
