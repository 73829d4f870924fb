package trustgraph_test

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
)

// slip makes an edit of payments/api that policy-sync does not accept.
func slip(s *snapshot.Snapshot) {
	p := &s.Policies[0]
	p.Generation++
	p.Spec.Ingress[0].HTTP[0].Methods = []string{"post"}
}

// TestTheLastAcceptedSpecStaysInForce: an edit with a problem takes nothing that runs, and says so.
func TestTheLastAcceptedSpecStaysInForce(t *testing.T) {
	s := labelled(t)
	s.Policies[0].Generation = 3
	g := build(t, s)
	p, _ := g.Policy("payments", "api")
	s.Policies[0].Status = g.Status(p, nil)
	if last := s.Policies[0].Status.LastAccepted; last == nil || last.Generation != 3 {
		t.Fatalf("kept %+v", last)
	}
	slip(&s)
	s.Policies[0].Spec.Require.Node.Tags = map[string][]string{"country": {"US"}}
	if got, why := fateOf(t, s); got != attested {
		t.Errorf("%s: %s", got, why)
	}
	g = build(t, s)
	p, _ = g.Policy("payments", "api")
	if !p.Accepted || p.Spec.Ingress[0].HTTP[0].Methods[0] != "POST" || len(p.Problems) == 0 {
		t.Errorf("in force: %t %+v, problems %q", p.Accepted, p.Spec, p.Problems)
	}
	st := g.Status(p, nil)
	if st.LastAccepted == nil || st.LastAccepted.Generation != 3 || st.ObservedGeneration != 4 {
		t.Errorf("status %+v", st)
	}
	for _, c := range st.Conditions[:2] {
		if c.Status != metav1.ConditionFalse || c.Message == "" {
			t.Errorf("condition %+v", c)
		}
	}
	if !strings.Contains(strings.Join(st.Notes, " "), "generation 4 is refused; generation 3, the last one that was accepted, stays in force") {
		t.Errorf("notes %q", st.Notes)
	}
	s.Policies[0].Spec = *st.LastAccepted.Spec.DeepCopy()
	s.Policies[0].Generation = 5
	p, _ = build(t, s).Policy("payments", "api")
	if p.LastAccepted == nil || p.LastAccepted.Generation != 5 {
		t.Errorf("after it was put right: %+v", p.LastAccepted)
	}
}

// TestASpecThatIsNotAcceptedAnyMore, or that the policy never had, is not put in force.
func TestASpecThatIsNotAcceptedAnyMore(t *testing.T) {
	cases := map[string]func(last *v1alpha1.AcceptedSpec){
		"it has a problem itself":     func(last *v1alpha1.AcceptedSpec) { last.Spec.Require.Runtime = "tight" },
		"it is of a later generation": func(last *v1alpha1.AcceptedSpec) { last.Generation = 9 },
	}
	for name, change := range cases {
		t.Run(name, func(t *testing.T) {
			s := snapshottest.Demo()
			last := &v1alpha1.AcceptedSpec{Generation: 0, Spec: *s.Policies[0].Spec.DeepCopy()}
			change(last)
			s.Policies[0].Status.LastAccepted = last
			slip(&s)
			g := build(t, s)
			if p, _ := g.Policy("payments", "api"); p.Accepted {
				t.Error("in force")
			}
			if p, _ := g.Pod("payments", "api-fra-1"); p.Attested {
				t.Error("a pod is attested by it")
			}
		})
	}
}

// TestANewPolicyThatIsRefused is as if it were not there: it takes nothing from pods that others let in, whomever it selects.
func TestANewPolicyThatIsRefused(t *testing.T) {
	workloads := map[string]v1alpha1.Workloads{
		"it selects the pod by account":  {ServiceAccount: "api"},
		"it selects the pod by labels":   {Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "api"}}},
		"it selects nobody":              {Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "x"}}},
		"its selector cannot be read":    {Selector: badSelector()},
		"it does not say whom it is for": {},
	}
	for name, w := range workloads {
		t.Run(name, func(t *testing.T) {
			s := labelled(t)
			other := snapshottest.API()
			other.Name, other.UID, other.Spec.Workloads = "other", "other", w
			other.Spec.Ingress[0].HTTP[0].Methods = []string{"post"}
			s.Policies = append(s.Policies, other)
			if got, why := fateOf(t, s); got != attested {
				t.Errorf("%s: %s", got, why)
			}
			g := build(t, s)
			p, _ := g.Policy("payments", "other")
			if p.Accepted || len(p.Problems) == 0 || len(p.Attested) > 0 {
				t.Errorf("%+v", p)
			}
			if got, want := slices.Contains(p.Selected, "payments/api-fra-1"), strings.Contains(name, "the pod"); got != want {
				t.Errorf("selects the pod: %t, want %t", got, want)
			}
			s.Policies = s.Policies[1:]
			if pod, _ := build(t, s).Pod("payments", "api-fra-1"); pod.Attested {
				t.Error("attested by a refused policy")
			}
		})
	}
}

// TestAddressesThatAreNotAPodsOwn: the data planes let in whoever has an attested pod's address, so a kubelet, or who has its
// credentials, must not choose one.
func TestAddressesThatAreNotAPodsOwn(t *testing.T) {
	set := func(p *corev1.Pod, addresses ...string) {
		p.Status.PodIP, p.Status.PodIPs = addresses[0], nil
		for _, a := range addresses {
			p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: a})
		}
	}
	cases := map[string]struct {
		change func(s *snapshot.Snapshot, p *corev1.Pod)
		why    string
	}{
		"its own":                 {func(*snapshot.Snapshot, *corev1.Pod) {}, ""},
		"another node's":          {func(_ *snapshot.Snapshot, p *corev1.Pod) { set(p, "10.3.0.12") }, "lies in a block of node evil-1"},
		"its own and a stray one": {func(_ *snapshot.Snapshot, p *corev1.Pod) { set(p, "10.1.0.10", "192.168.7.7") }, "none of the address blocks of node fra-1"},
		"no pod's":                {func(_ *snapshot.Snapshot, p *corev1.Pod) { set(p, "127.0.0.1") }, "none that a pod has"},
		"that of another pod there": {func(s *snapshot.Snapshot, p *corev1.Pod) {
			set(p, "10.1.0.12")
			s.Attested = nil
		}, "is reported of pod other/stranger-fra-1 too"},
		"that of a pod that is leaving": {func(s *snapshot.Snapshot, p *corev1.Pod) {
			now := metav1.NewTime(s.At)
			s.Pods[strangerFra].DeletionTimestamp = &now
			set(p, "10.1.0.12")
		}, ""},
		"one that went to another pod while it is leaving": {func(s *snapshot.Snapshot, p *corev1.Pod) {
			now := metav1.NewTime(s.At)
			p.DeletionTimestamp = &now
			set(s.Pods[strangerFra], "10.1.0.10")
		}, "is reported of pod other/stranger-fra-1 too"},
		"one that a bad node's pod claims, too": {func(s *snapshot.Snapshot, _ *corev1.Pod) {
			for i := range s.Pods {
				if s.Pods[i].Spec.NodeName == "evil-1" {
					set(s.Pods[i], "10.1.0.10")
				}
			}
		}, ""},
		"one that another trusted node's pod claims, too": {func(s *snapshot.Snapshot, _ *corev1.Pod) { set(s.Pods[frontPar], "10.1.0.10") }, ""},
		"one that another trusted node claims as its own": {func(s *snapshot.Snapshot, _ *corev1.Pod) {
			s.Nodes[1].Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.1.0.10"}}
		}, ""},
		"a node's": {func(s *snapshot.Snapshot, p *corev1.Pod) {
			s.Nodes[0].Spec.PodCIDR, s.Nodes[0].Spec.PodCIDRs = "", nil
			s.Nodes[1].Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.168.0.2"}}
			set(p, "192.168.0.2")
		}, "is one of node par-1"},
		"one that it has had, of a block that was given back": {func(s *snapshot.Snapshot, _ *corev1.Pod) {
			s.Nodes[0].Spec.PodCIDR, s.Nodes[0].Spec.PodCIDRs = "10.9.0.0/24", []string{"10.9.0.0/24"}
		}, ""},
		"none, for it is a mirror": {func(_ *snapshot.Snapshot, p *corev1.Pod) {
			p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"}
		}, "mirrors a file on its node"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := labelled(t)
			c.change(&s, s.Pods[apiFra])
			p, _ := build(t, s).Pod("payments", "api-fra-1")
			why := strings.Join(p.Why, "; ")
			if p.Attested != (c.why == "") || !strings.Contains(why, c.why) {
				t.Errorf("attested %t, want the reason %q: %s", p.Attested, c.why, why)
			}
		})
	}
}
