package plan_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
)

// TestThreat16_ARecreatedNodeInheritsNothing: a kubelet that could delete its Node and
// make it anew finds neither label nor trust there.
func TestThreat16_ARecreatedNodeInheritsNothing(t *testing.T) {
	for name, uid := range map[string]string{"proof bound to a UID": "", "proof without a UID": "none"} {
		t.Run(name, func(t *testing.T) {
			w := settled(t)
			if uid == "none" {
				w.NodeTrusts[0].Spec.NodeUID = ""
			}
			n := w.nodeNamed("fra-1")
			n.UID, n.CreationTimestamp = "another", metav1.NewTime(w.At)
			n.Spec.Taints = nil // and registers without the taint
			w.settle(t, nil)
			n = w.nodeNamed("fra-1")
			if _, ok := n.Labels[v1alpha1.NodeVerdictLabel]; ok || len(n.Spec.Taints) != 1 {
				t.Errorf("labels %v, taints %v", n.Labels, n.Spec.Taints)
			}
			if _, ok := w.podNamed("payments/api-fra-1").Labels[v1alpha1.PodAttestedLabel]; ok {
				t.Error("its pod is still attested")
			}
		})
	}
}

// TestThreat17_ForgedTrustLabelsAreFoundAndRemoved: whoever wrote them while admission
// was off.
func TestThreat17_ForgedTrustLabelsAreFoundAndRemoved(t *testing.T) {
	forged := map[string]string{
		v1alpha1.PodAttestedLabel:      v1alpha1.True,
		v1alpha1.PolicyLabel("api"):    v1alpha1.True,
		v1alpha1.PodTagPrefix + "rack": "7",
	}
	for _, key := range []string{"payments/api-evil-1", "payments/api-par-1", "other/stranger-fra-1", "payments/api-fra-1"} {
		t.Run(key, func(t *testing.T) {
			w := settled(t)
			p := w.podNamed(key)
			for k, v := range forged {
				p.Labels[k] = v
			}
			first := mustMake(t, w.Snapshot).Plan
			if !slices.ContainsFunc(first.Closing(), func(o plan.Operation) bool { return o.Target.Kind == "Pod" && strings.Contains(o.String(), key) }) {
				t.Fatalf("not found:\n%s", first)
			}
			w.settle(t, nil)
			p = w.podNamed(key)
			if key == "payments/api-fra-1" { // attested: only what it did not earn goes
				delete(forged, v1alpha1.PodAttestedLabel)
				delete(forged, v1alpha1.PolicyLabel("api"))
			}
			for k := range forged {
				if _, ok := p.Labels[k]; ok {
					t.Errorf("still bears %s", k)
				}
			}
			if p.Labels["app"] == "" {
				t.Error("its own label is gone")
			}
		})
	}
}

func TestThreat17_ForgedNodeLabelsAreFoundAndRemoved(t *testing.T) {
	w := settled(t)
	n := w.nodeNamed("evil-1")
	n.Labels = map[string]string{v1alpha1.NodeVerdictLabel: "trusted", v1alpha1.NodeTagPrefix + "country": "DE"}
	n.Spec.Taints = nil
	w.settle(t, nil)
	if n = w.nodeNamed("evil-1"); len(n.Labels) != 1 || n.Labels[v1alpha1.NodeVerdictLabel] != string(v1alpha1.VerdictUntrusted) || len(n.Spec.Taints) != 1 {
		t.Errorf("labels %v, taints %v", n.Labels, n.Spec.Taints)
	}
}

// TestANodeThatIsProvedBadSaysSoAndRecovers: each change settles, and afterwards there is nothing more to write.
func TestANodeThatIsProvedBadSaysSoAndRecovers(t *testing.T) {
	w := settled(t)
	for _, verdict := range []v1alpha1.Verdict{v1alpha1.VerdictUntrusted, v1alpha1.VerdictTrusted, v1alpha1.VerdictUntrusted} {
		w.NodeTrusts[0].Spec.Verdict = verdict
		w.settle(t, nil)
		if got := w.nodeNamed("fra-1").Labels[v1alpha1.NodeVerdictLabel]; got != string(verdict) {
			t.Errorf("the node says %q, want %q", got, verdict)
		}
		if left := mustMake(t, w.Snapshot).Plan; len(left.Closing())+len(left.Opening()) > 0 {
			t.Errorf("%s: not settled:\n%s", verdict, left)
		}
	}
}

// TestThreat18_TrustIsGivenOnlyAfterDefaultDenyAndPolicy: within one plan, and no label
// when a closing operation could still fail.
func TestThreat18_TrustIsGivenOnlyAfterDefaultDenyAndPolicy(t *testing.T) {
	p := mustMake(t, snapshottest.Demo()).Plan
	last := plan.Revoke
	for _, o := range p.Operations {
		if o.Phase < last {
			t.Fatalf("out of order: %s", o)
		}
		last = o.Phase
		if (o.Target.Kind == "Pod" || o.Target.Kind == "Node") && o.Phase != plan.Trust && o.Phase != plan.Tighten {
			t.Errorf("%s", o)
		}
	}
	if len(p.Closing())+len(p.Opening()) != len(p.Operations) {
		t.Error("an operation is neither closing nor opening")
	}
}

func TestThreat19_ASharedServiceAccountIsReportedOrRefused(t *testing.T) {
	s := snapshottest.Demo()
	s.Policies[0].Spec.Workloads.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "api"}}
	outsider := snapshottest.Pod("payments", "job", "api", "fra-1", "10.1.0.20")
	outsider.Labels = nil
	s.Pods = append(s.Pods, outsider)
	snapshottest.Verify(&s)
	r := mustMake(t, s)
	p, _ := r.Graph.Policy("payments", "api")
	if !strings.Contains(strings.Join(p.Notes, "; "), "service account api is shared with pods outside of every policy (job") {
		t.Errorf("not reported: %q", p.Notes)
	}
	if pod, _ := r.Graph.Pod("payments", "api-fra-1"); !pod.Attested {
		t.Error("refused without being asked to")
	}
	s.Config.RefuseSharedServiceAccounts = true
	r = mustMake(t, s)
	if pod, _ := r.Graph.Pod("payments", "api-fra-1"); pod.Attested {
		t.Error("not refused")
	}
	for _, e := range r.Entries() {
		if strings.HasSuffix(e.SPIFFEID, "/sa/api") {
			t.Errorf("an SVID is issued all the same: %v", e)
		}
	}
}

// TestThreat19_TheSVIDOfASharedServiceAccountNeedsWhatEveryPolicyAsks: two policies with
// one account must not add up to "either".
func TestThreat19_TheSVIDOfASharedServiceAccountNeedsWhatEveryPolicyAsks(t *testing.T) {
	w := demo()
	second := snapshottest.API()
	second.Name, second.UID = "second", "second"
	second.Spec.Require = v1alpha1.Requirements{Node: v1alpha1.NodeRequirement{Tags: map[string][]string{"country": {"FR"}}}}
	w.Policies = append(w.Policies, second)
	w.settle(t, nil)
	for _, key := range []string{"payments/api-fra-1", "payments/api-par-1"} {
		if ids := svids(w.Snapshot, w.podNamed(key)); len(ids) > 0 {
			t.Errorf("%s meets one of two policies and has SVIDs %q", key, ids)
		}
	}
	p, _ := mustMake(t, w.Snapshot).Graph.Policy("payments", "api")
	if !strings.Contains(strings.Join(p.Blockers, "; "), "no value of tag country in common") {
		t.Errorf("blockers %q", p.Blockers)
	}
}

func TestThreat19_MutualTLSIsStrictAndTheTrustDomainConfigured(t *testing.T) {
	w := settled(t)
	strict := 0
	for _, o := range w.Objects {
		if o.GetKind() == "PeerAuthentication" {
			strict++
		}
		if text := render([]*unstructured.Unstructured{o}); strings.Contains(text, "cluster.local") {
			t.Errorf("a trust domain that nobody configured: %s", text)
		}
	}
	if strict != 2 {
		t.Errorf("%d PeerAuthentications, want one per enforced namespace", strict)
	}
	permissive := foreign("security.istio.io/v1", "PeerAuthentication", "payments", "old")
	_ = unstructured.SetNestedField(permissive.Object, "PERMISSIVE", "spec", "mtls", "mode")
	w.Objects = append(w.Objects, permissive)
	g := mustMake(t, w.Snapshot).Graph
	p, _ := g.Policy("payments", "api")
	if c := g.Status(p, nil).Conditions[1]; c.Status != metav1.ConditionFalse || !strings.Contains(c.Message, "other than strict") {
		t.Errorf("condition %v", c)
	}
}

func foreign(apiVersion, kind, namespace, name string) *unstructured.Unstructured {
	o := &unstructured.Unstructured{}
	o.SetAPIVersion(apiVersion)
	o.SetKind(kind)
	o.SetNamespace(namespace)
	o.SetName(name)
	return o
}

// TestThreat22_NoBranchFailsOpen: whatever is missing, expired or unreadable, neither
// label, nor entry, nor rule comes of it. (The branches of a single pod are in
// trustgraph's TestRefusals.)
func TestThreat22_NoBranchFailsOpen(t *testing.T) {
	cases := map[string]func(s *snapshot.Snapshot){
		"no verdicts at all":       func(s *snapshot.Snapshot) { s.NodeTrusts = nil },
		"no images examined":       func(s *snapshot.Snapshot) { s.Images = nil },
		"no nodes read":            func(s *snapshot.Snapshot) { s.Nodes = nil },
		"no policies":              func(s *snapshot.Snapshot) { s.Policies = nil },
		"all verdicts expired":     func(s *snapshot.Snapshot) { s.At = s.At.AddDate(1, 0, 0) },
		"no namespace is enrolled": func(s *snapshot.Snapshot) { s.Namespaces = nil },
	}
	for name, change := range cases {
		t.Run(name, func(t *testing.T) {
			s := snapshottest.Demo()
			change(&s)
			for _, o := range mustMake(t, s).Plan.Operations {
				if o.Target.Kind == "Pod" && o.Phase == plan.Trust {
					t.Errorf("trust is given: %s", o)
				}
			}
		})
	}
}

func TestThreat26_ALabelledSetOrHostEndpointIsReportedAndDefeatsPolicies(t *testing.T) {
	for _, kind := range []string{"GlobalNetworkSet", "NetworkSet", "HostEndpoint"} {
		t.Run(kind, func(t *testing.T) {
			w := settled(t)
			forged := foreign("projectcalico.org/v3", kind, "", "forged")
			forged.SetLabels(map[string]string{v1alpha1.PodAttestedLabel: "true"})
			w.Objects = append(w.Objects, forged)
			r := mustMake(t, w.Snapshot)
			if !strings.Contains(strings.Join(r.Graph.Reports, "; "), kind+" forged bears a trust label") {
				t.Errorf("reports %q", r.Graph.Reports)
			}
			p, _ := r.Graph.Policy("payments", "api")
			if c := r.Graph.Status(p, nil).Conditions[1]; c.Status != metav1.ConditionFalse {
				t.Error("the policy is called programmed")
			}
		})
	}
}

func TestThreat28_AForeignEntryForAnEnrolledIDWithholdsProgrammed(t *testing.T) {
	cases := map[string]struct{ id, policy string }{
		"the workload's own ID": {"spiffe://demo.example/ns/payments/sa/api", "payments/api"},
		"a permitted peer's ID": {"spiffe://demo.example/ns/shop/sa/frontend", "payments/api"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := settled(t)
			snapshottest.WithoutHTTP(&w.Snapshot)
			w.settle(t, nil)
			ns, policy, _ := strings.Cut(c.policy, "/")
			g := mustMake(t, w.Snapshot).Graph
			p, _ := g.Policy(ns, policy)
			if cond := g.Status(p, nil).Conditions[1]; cond.Status != metav1.ConditionTrue {
				t.Fatalf("not programmed to begin with: %v", cond)
			}
			w.SPIRE.Entries = append(w.SPIRE.Entries, snapshot.Entry{ID: "default-clusterspiffeid", SPIFFEID: c.id, ParentID: "spiffe://demo.example/x", Selectors: []snapshot.Selector{{Type: "k8s", Value: "ns:x"}}})
			r := mustMake(t, w.Snapshot)
			p, _ = r.Graph.Policy(ns, policy)
			if cond := r.Graph.Status(p, nil).Conditions[1]; cond.Status != metav1.ConditionFalse || !strings.Contains(cond.Message, "default-clusterspiffeid") {
				t.Errorf("condition %v", cond)
			}
			if !r.Plan.Empty() {
				t.Errorf("the foreign entry is touched:\n%s", r.Plan)
			}
		})
	}
}

func TestThreat32_ForeignAllowsAndFiltersAreReportedAndDoNotWiden(t *testing.T) {
	w := settled(t)
	allow := foreign("security.istio.io/v1", "AuthorizationPolicy", "payments", "open")
	_ = unstructured.SetNestedSlice(allow.Object, []any{map[string]any{}}, "spec", "rules") // allows everything
	filter := foreign("networking.istio.io/v1alpha3", "EnvoyFilter", "payments", "odd")
	w.Objects = append(w.Objects, allow, filter)
	w.podNamed("payments/api-fra-1").Annotations = map[string]string{"traffic.sidecar.istio.io/excludeInboundPorts": "8443", "proxy.istio.io/config": "{}", "sidecar.istio.io/discoveryAddress": "elsewhere"}
	text := strings.Join(mustMake(t, w.Snapshot).Graph.Reports, "\n")
	for _, want := range []string{"AuthorizationPolicy payments/open", "EnvoyFilter payments/odd", "annotation traffic.sidecar.istio.io/excludeInboundPorts",
		"annotation proxy.istio.io/config", "annotation sidecar.istio.io/discoveryAddress"} {
		if !strings.Contains(text, want) {
			t.Errorf("no report of %s in:\n%s", want, text)
		}
	}
	d := newDataplane(w.Snapshot)
	for _, src := range []string{"other/stranger-fra-1", "shop/frontend-evil-1"} {
		if calls(w.Snapshot, d, w.podNamed(src), w.podNamed("payments/api-fra-1"), 8443, "POST", "/charge") {
			t.Errorf("%s got in", src)
		}
	}
	if !proxyDenies(w, "shop/frontend-fra-1", "payments/api-fra-1", 9090) {
		t.Error("the foreign ALLOW opened a port that the policy does not name")
	}
	from, to := w.podNamed("shop/frontend-fra-1"), w.podNamed("payments/api-fra-1")
	for _, c := range [][2]string{{"GET", "/charge"}, {"POST", "/other"}} {
		if calls(w.Snapshot, d, from, to, 8443, c[0], c[1]) {
			t.Errorf("the foreign ALLOW opened %s %s, which the policy does not name", c[0], c[1])
		}
	}
	if !calls(w.Snapshot, d, from, to, 8443, "POST", "/charge") {
		t.Error("what the policy lets in is shut out")
	}
}

func proxyDenies(w *world, src, dst string, port int) bool {
	r := request{address: netipOf(w.podNamed(src).Status.PodIP), port: port, method: "POST", path: "/charge"}
	for _, id := range svids(w.Snapshot, w.podNamed(src)) {
		r.principal = strings.TrimPrefix(id, "spiffe://")
	}
	return r.principal != "" && !proxyAllows(w.Snapshot, w.podNamed(dst), r)
}

// TestWhoWasNeverLetInIsNotRevoked: SPIRE's server, a name server, istiod may run on a machine that is proved bad. Their flows are
// nobody's trust, and cutting them would cut every other node off its verifier.
func TestWhoWasNeverLetInIsNotRevoked(t *testing.T) {
	s := snapshottest.Demo()
	s.Pods = append(s.Pods, snapshottest.Pod("spire", "spire-server-0", "spire-server", "evil-1", "10.3.0.77"))
	for _, r := range mustMake(t, s).Graph.Revoked {
		if r.Address == "10.3.0.77" {
			t.Error("the address of a pod of a namespace that is not enrolled is revoked")
		}
	}
}

// TestThreat34_ABadNodeCannotCutOffAddressesOfOthers: all that says which addresses are a
// bad node's comes from that node.
func TestThreat34_ABadNodeCannotCutOffAddressesOfOthers(t *testing.T) {
	own := []string{"10.3.0.10", "10.3.0.11"}
	cases := map[string]struct {
		change func(s *snapshot.Snapshot)
		want   []string
	}{
		"its pod claims the address of another node's pod": {func(*snapshot.Snapshot) {}, own},
		"none of its blocks is known":                      {func(s *snapshot.Snapshot) { s.Nodes[2].Spec.PodCIDR, s.Nodes[2].Spec.PodCIDRs = "", nil }, nil},
		"it registered with a range that holds everybody's": {func(s *snapshot.Snapshot) {
			s.Nodes[2].Spec.PodCIDR, s.Nodes[2].Spec.PodCIDRs = "10.0.0.0/8", []string{"10.0.0.0/8"}
		}, nil},
		"it claims a block of another node's": {func(s *snapshot.Snapshot) {
			s.Blocks = map[string][]netip.Prefix{"evil-1": {netip.MustParsePrefix("10.1.0.0/24")}}
		}, own},
		"a trusted node's pod borrowed an address of its block": {func(s *snapshot.Snapshot) {
			s.Pods = append(s.Pods, snapshottest.Pod("other", "borrower", "default", "fra-1", "10.3.0.10"))
		}, own[1:]},
		"a never proved node's pod claims to have one": {func(s *snapshot.Snapshot) {
			s.Nodes = append(s.Nodes, snapshottest.Node("new-1", "10.4.0.0/24"))
			s.Pods = append(s.Pods, snapshottest.Pod("other", "accomplice", "default", "new-1", "10.3.0.10"))
		}, own},
		"a machine has one": {func(s *snapshot.Snapshot) {
			s.Nodes[0].Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.3.0.11"}}
		}, own[:1]},
		"it says that its pods have ended": {func(s *snapshot.Snapshot) {
			for i := range s.Pods {
				if s.Pods[i].Spec.NodeName == "evil-1" {
					s.Pods[i].Status.Phase = corev1.PodFailed
				}
			}
		}, own},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := snapshottest.Demo()
			s.Pods = append(s.Pods, snapshottest.Pod("shop", "liar", "default", "evil-1", "10.1.0.10")) // payments/api-fra-1's
			c.change(&s)
			g := mustMake(t, s).Graph
			var got []string
			for _, r := range g.Revoked {
				got = append(got, r.Address)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("revoked %v, want %v", got, c.want)
			}
			if !strings.Contains(strings.Join(g.Reports, "; "), "its pod shop/liar has address 10.1.0.10, which is not its own to give") {
				t.Errorf("reports %q", g.Reports)
			}
		})
	}
}

// TestThreat16_AMachineProvedBadStaysBadWhateverBecomesOfItsNode: deleting the Node, or
// making it anew, must not lift the revocation of pods that run on.
func TestThreat16_AMachineProvedBadStaysBadWhateverBecomesOfItsNode(t *testing.T) {
	cases := map[string]func(s *snapshot.Snapshot){
		"its Node is another one": func(s *snapshot.Snapshot) { s.Nodes[2].UID = "another" },
		"its Node is younger and the proof names no UID": func(s *snapshot.Snapshot) {
			s.Nodes[2].CreationTimestamp, s.NodeTrusts[2].Spec.NodeUID = metav1.NewTime(s.At), ""
		},
		"its Node is gone": func(s *snapshot.Snapshot) {
			s.Nodes = s.Nodes[:2]
			s.Blocks = map[string][]netip.Prefix{"evil-1": {netip.MustParsePrefix("10.3.0.0/24")}}
		},
	}
	for name, change := range cases {
		t.Run(name, func(t *testing.T) {
			s := snapshottest.Demo()
			change(&s)
			g := mustMake(t, s).Graph
			if n, ok := g.Node("evil-1"); ok && n.Verdict != v1alpha1.VerdictUntrusted {
				t.Errorf("the node is %s: %v", n.Verdict, n.Why)
			}
			if len(g.Revoked) != 2 || len(g.Evict) != 1 {
				t.Errorf("revoked %v, evicted %v", g.Revoked, g.Evict)
			}
		})
	}
}

// TestACalicoLabelOfAPodsOwnDoesNotGetItOutOfDefaultDeny: Felix asks a pod's own labels
// before its namespace's.
func TestACalicoLabelOfAPodsOwnDoesNotGetItOutOfDefaultDeny(t *testing.T) {
	w := settled(t)
	p := w.podNamed("payments/api-fra-1")
	p.Labels["pcns."+v1alpha1.ModeLabel] = "audit"
	w.settle(t, nil)
	d := newDataplane(w.Snapshot)
	for _, src := range []string{"other/stranger-fra-1", "shop/frontend-evil-1", "shop/frontend-fra-1"} {
		if connects(w.Snapshot, d, w.podNamed(src), w.podNamed("payments/api-fra-1"), 8443) {
			t.Errorf("%s connects", src)
		}
	}
	if connects(w.Snapshot, d, w.podNamed("payments/api-fra-1"), w.podNamed("shop/frontend-fra-1"), 8443) {
		t.Error("it connects to an enrolled pod")
	}
}
