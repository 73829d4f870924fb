package plan_test

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

func revokedOf(t *testing.T, s snapshot.Snapshot) []string {
	t.Helper()
	var out []string
	for _, r := range mustMake(t, s).Graph.Revoked {
		out = append(out, r.Address)
	}
	return out
}

// remembered is the demo after a first look at it, with what that remembers.
func remembered(t *testing.T) snapshot.Snapshot {
	t.Helper()
	s := snapshottest.Demo()
	s.Attested = mustMake(t, s).Graph.Attested
	if len(s.Attested) == 0 {
		t.Fatal("nothing is remembered")
	}
	return s
}

func bad(s *snapshot.Snapshot, node string) {
	for i := range s.NodeTrusts {
		if s.NodeTrusts[i].Name == node {
			s.NodeTrusts[i].Spec.Verdict = v1alpha1.VerdictUntrusted
		}
	}
}

func podOf(t *testing.T, s *snapshot.Snapshot, key string) *corev1.Pod {
	t.Helper()
	for i := range s.Pods {
		if snapshot.Key(s.Pods[i]) == key {
			return s.Pods[i]
		}
	}
	t.Fatalf("no pod %s", key)
	return nil
}

func without(s *snapshot.Snapshot, node string) {
	s.Pods = slices.DeleteFunc(s.Pods, func(p *corev1.Pod) bool { return p.Spec.NodeName == node })
}

// TestThreat34_WhatAMachineHadIsCutOffWhateverItSaysNow: with its credentials a machine that is about to fail its next
// attestation can take its pods out of the API, or change what is written there about them, and let the containers run on.
func TestThreat34_WhatAMachineHadIsCutOffWhateverItSaysNow(t *testing.T) {
	evil, fra := []string{"10.3.0.10", "10.3.0.11"}, []string{"10.1.0.10", "10.1.0.11"} // of evil-1, and of fra-1
	both := append(slices.Clone(fra), evil...)
	cases := map[string]struct {
		change func(s *snapshot.Snapshot)
		want   []string
	}{
		"nothing":           {func(*snapshot.Snapshot) {}, both},
		"its pods are gone": {func(s *snapshot.Snapshot) { without(s, "fra-1") }, both},
		"its pods have other addresses": {func(s *snapshot.Snapshot) {
			for _, key := range []string{"payments/api-fra-1", "shop/frontend-fra-1"} {
				podOf(t, s, key).Status.PodIP, podOf(t, s, key).Status.PodIPs = "10.99.0.1", nil
			}
		}, both},
		"its pods have ended": {func(s *snapshot.Snapshot) {
			for i := range s.Pods {
				s.Pods[i].Status.Phase = corev1.PodSucceeded
			}
		}, both},
		"a trusted node is said to have its block": {func(s *snapshot.Snapshot) {
			s.Blocks = map[string][]netip.Prefix{"par-1": {netip.MustParsePrefix("10.1.0.0/24")}}
		}, both},
		"its blocks are gone": {func(s *snapshot.Snapshot) { s.Nodes[0].Spec.PodCIDR, s.Nodes[0].Spec.PodCIDRs = "", nil }, both},
		"the Node is gone": {func(s *snapshot.Snapshot) {
			s.Nodes = s.Nodes[1:]
			without(s, "fra-1")
		}, both},
		"a trusted node's pod has one by now": {func(s *snapshot.Snapshot) {
			without(s, "fra-1")
			s.Pods = append(s.Pods, snapshottest.Pod("other", "heir", "default", "par-1", "10.1.0.10"))
		}, both[1:]},
		"it is too long ago": {func(s *snapshot.Snapshot) {
			without(s, "fra-1")
			s.At = s.At.Add(trustgraph.Remember + 5*time.Minute) // it is known to five minutes
			for i := range s.NodeTrusts {
				s.NodeTrusts[i].Spec.ValidUntil = metav1.NewMicroTime(s.At.Add(time.Minute))
			}
		}, evil},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := remembered(t)
			bad(&s, "fra-1")
			c.change(&s)
			if got := revokedOf(t, s); !slices.Equal(got, c.want) {
				t.Errorf("revoked %v, want %v", got, c.want)
			}
		})
	}
}

// TestThreat34_AMachineThatKeepsSilentIsCutOff: whoever takes a machine over can also keep it from attesting. Then its proof
// ends, and with it what is open.
func TestThreat34_AMachineThatKeepsSilentIsCutOff(t *testing.T) {
	evil := []string{"10.3.0.10", "10.3.0.11"}
	s := remembered(t)
	s.NodeTrusts[1].Spec.ValidUntil = metav1.NewMicroTime(s.At) // par-1's
	if got, want := revokedOf(t, s), append([]string{"10.2.0.10", "10.2.0.11"}, evil...); !slices.Equal(got, want) {
		t.Errorf("revoked %v, want %v", got, want)
	}
	s.Config.MaxHold = time.Minute
	if got := revokedOf(t, s); !slices.Equal(got, evil) {
		t.Errorf("within the brake %v is revoked, want %v", got, evil)
	}
}

// TestThreat16_APodThatFallsIsCutOff: its label goes, which closes new connections only.
func TestThreat16_APodThatFallsIsCutOff(t *testing.T) {
	evil, fell := []string{"10.3.0.10", "10.3.0.11"}, []string{"10.1.0.10", "10.3.0.10", "10.3.0.11"}
	cases := map[string]struct {
		change func(s *snapshot.Snapshot, pod *corev1.Pod)
		want   []string
	}{
		"nothing happens": {func(*snapshot.Snapshot, *corev1.Pod) {}, evil},
		"its image is another one": {func(_ *snapshot.Snapshot, pod *corev1.Pod) {
			pod.Status.ContainerStatuses[0].ImageID = "registry.example/api@" + snapshottest.Digest("other")
		}, fell},
		"it got another address too": {func(_ *snapshot.Snapshot, pod *corev1.Pod) {
			pod.Status.ContainerStatuses[0].ImageID = "registry.example/api@" + snapshottest.Digest("other")
			pod.Status.PodIP, pod.Status.PodIPs = "10.1.0.99", nil
		}, fell},
		"its node has moved": {func(s *snapshot.Snapshot, _ *corev1.Pod) {
			s.NodeTrusts[0].Spec.Tags = map[string]string{"country": "US"}
		}, fell},
		"it has ended":                  {func(_ *snapshot.Snapshot, pod *corev1.Pod) { pod.Status.Phase = corev1.PodSucceeded }, evil},
		"its policy was withdrawn":      {func(s *snapshot.Snapshot, _ *corev1.Pod) { s.Policies = nil }, evil},
		"its namespace is not enrolled": {func(s *snapshot.Snapshot, _ *corev1.Pod) { delete(s.Namespaces[0].Labels, v1alpha1.ModeLabel) }, []string{"10.3.0.11"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := remembered(t)
			c.change(&s, podOf(t, &s, "payments/api-fra-1"))
			if got := revokedOf(t, s); !slices.Equal(got, c.want) {
				t.Errorf("revoked %v, want %v", got, c.want)
			}
		})
	}
}

// TestThreat29_AProofOfTheContraryIsBelievedWhateverItsDate: a server whose clock runs ahead may date it, and doors must not
// stay open until that moment.
func TestThreat29_AProofOfTheContraryIsBelievedWhateverItsDate(t *testing.T) {
	s := snapshottest.Demo()
	bad(&s, "fra-1")
	s.NodeTrusts[0].Spec.AttestedAt = metav1.NewMicroTime(s.At.Add(5 * time.Hour))
	s.NodeTrusts[0].Spec.ValidUntil = metav1.NewMicroTime(s.At.Add(4 * time.Hour))
	g := mustMake(t, s).Graph
	if n, _ := g.Node("fra-1"); n.Verdict != v1alpha1.VerdictUntrusted {
		t.Errorf("the node is %s: %v", n.Verdict, n.Why)
	}
	if len(g.Revoked) != 4 || len(g.Evict) != 2 {
		t.Errorf("revoked %v, evicted %v", g.Revoked, g.Evict)
	}
}

// TestWhatIsRememberedDoesNotAddUp: addresses that a pod had are bounded, and what was remembered goes on being so.
func TestWhatIsRememberedDoesNotAddUp(t *testing.T) {
	s := remembered(t)
	before := s.Attested.Count()
	for i := range 40 {
		s.At = s.At.Add(time.Second)
		podOf(t, &s, "payments/api-fra-1").Status.PodIP = netip.AddrFrom4([4]byte{10, 1, 0, byte(50 + i)}).String()
		podOf(t, &s, "payments/api-fra-1").Status.PodIPs = nil
		s.Attested = mustMake(t, s).Graph.Attested
	}
	if s.Attested.Count() != before {
		t.Errorf("%d pods are remembered, before it were %d", s.Attested.Count(), before)
	}
	for _, a := range s.Attested.All() {
		if a.Name == "api-fra-1" && (len(a.Addresses) != 16 || a.Addresses[15].String() != "10.1.0.89") {
			t.Errorf("remembered of %s: %v, want the newest 16", a.Name, a.Addresses)
		}
	}
}
