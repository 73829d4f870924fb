package plan_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"pgregory.net/rapid"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

// monitored is the demo with a second policy on payments/api: monitoring/prometheus may call it on 9090.
func monitored() *world {
	w := demo()
	w.Namespaces = append(w.Namespaces, snapshottest.Namespace("monitoring", v1alpha1.ModeEnforce))
	w.Pods = append(w.Pods, snapshottest.Pod("monitoring", "prometheus-fra-1", "prometheus", "fra-1", "10.1.0.20"))
	snapshottest.Verify(&w.Snapshot)
	prom, metrics := snapshottest.Frontend(), snapshottest.API()
	prom.Namespace, prom.Name, prom.UID, prom.Spec.Workloads.ServiceAccount = "monitoring", "prometheus", "prom", "prometheus"
	metrics.Name, metrics.UID = "metrics", "metrics"
	metrics.Spec.Ingress = []v1alpha1.IngressRule{{From: []v1alpha1.Peer{{Namespace: "monitoring", ServiceAccount: "prometheus"}}, Ports: []int32{9090}}}
	w.Policies = append(w.Policies, prom, metrics)
	return w
}

func TestTwoPoliciesOfOnePodLetBothTheirCallersIn(t *testing.T) {
	w := monitored()
	w.settle(t, nil)
	for _, c := range []struct {
		src    string
		port   int
		method string
		path   string
		want   bool
	}{
		{"shop/frontend-fra-1", 8443, "POST", "/charge", true},
		{"shop/frontend-fra-1", 9090, "GET", "/metrics", false},
		{"monitoring/prometheus-fra-1", 9090, "GET", "/metrics", true},
		{"monitoring/prometheus-fra-1", 8443, "POST", "/charge", false},
	} {
		for name, calico := range map[string]bool{"Calico and Istio": true, "Istio": false} {
			d := newDataplane(w.Snapshot)
			d.tiered = d.tiered && calico
			if got := calls(w.Snapshot, d, w.podNamed(c.src), w.podNamed("payments/api-fra-1"), c.port, c.method, c.path); got != c.want {
				t.Errorf("%s: %s -> %d %s %s is %v, want %v", name, c.src, c.port, c.method, c.path, got, c.want)
			}
		}
	}
}

// TestASecondPolicyCutsNobody: while it comes and while it goes, whom the first one lets in keeps its way.
func TestASecondPolicyCutsNobody(t *testing.T) {
	w := monitored()
	metrics := w.Policies[len(w.Policies)-1]
	w.Policies = w.Policies[:len(w.Policies)-1]
	w.settle(t, nil)
	always := func() {
		if !calls(w.Snapshot, newDataplane(w.Snapshot), w.podNamed("shop/frontend-fra-1"), w.podNamed("payments/api-fra-1"), 8443, "POST", "/charge") {
			t.Fatal("frontend is cut off")
		}
	}
	w.Policies = append(w.Policies, metrics)
	w.settle(t, func(plan.Phase) { always() })
	w.Policies = w.Policies[:len(w.Policies)-1]
	w.settle(t, func(plan.Phase) { always() })
}

// TestMorePoliciesOfOnePodThanFitSaySo: their callers together do not fit into one DENY rule.
func TestMorePoliciesOfOnePodThanFitSaySo(t *testing.T) {
	w := demo()
	for i := range 3 {
		tp := shaped(shape{rules: 8, peers: 64, distinct: true})
		for j := range tp.Spec.Ingress {
			for k := range tp.Spec.Ingress[j].From {
				tp.Spec.Ingress[j].From[k].ServiceAccount += fmt.Sprint("-", i)
			}
		}
		tp.Name, tp.UID = fmt.Sprintf("many-%d", i), snapshottest.UID("TrustPolicy", fmt.Sprint(i))
		w.Policies = append(w.Policies, tp)
	}
	r := mustMake(t, w.Snapshot)
	withinLimits(t, r)
	for _, name := range []string{"api", "many-0"} {
		p, _ := r.Graph.Policy("payments", name)
		if !strings.Contains(strings.Join(p.Blockers, " "), "what the others allow is denied at L7") {
			t.Errorf("%s: blockers %q", name, p.Blockers)
		}
	}
}

// TestInvariant08_BothDataPlanesMeanTheUnion: a request gets through exactly when one policy of the called pod lets the caller in
// on that port (Calico: with its labels and tags), and one lets the caller's identity make that request (Istio).
func TestInvariant08_BothDataPlanesMeanTheUnion(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := draw(rt)
		w.Config.Calico, w.Config.Istio = true, true
		for i := range rapid.IntRange(0, 2).Draw(rt, "more policies") {
			w.Policies = append(w.Policies, drawPolicy(rt, "a", fmt.Sprintf("q%d", i)))
		}
		w.settle(rt, nil)
		d := newDataplane(w.Snapshot)
		for i := range w.Pods {
			for j := range w.Pods {
				src, dst := w.Pods[i], w.Pods[j]
				if i == j || !enforced(w, dst.Namespace) || !enforced(w, src.Namespace) || !attestedPod(src) || !attestedPod(dst) {
					continue
				}
				for _, port := range ports {
					for _, method := range []string{"GET", "POST"} {
						want := permits(w, src, dst, port, "", true) && permits(w, src, dst, port, method, false) && egress(w, src, dst, port)
						if got := calls(w.Snapshot, d, src, dst, int(port), method, "/"); got != want {
							rt.Fatalf("%s -> %s:%d %s is %v, want %v", snapshot.Key(src), snapshot.Key(dst), port, method, got, want)
						}
					}
				}
			}
		}
	})
}

func attestedPod(p *corev1.Pod) bool { return p.Labels[v1alpha1.PodAttestedLabel] == v1alpha1.True }

// permits reports whether a policy of dst lets src in: its labels and tags count at L4, its requests at L7.
func permits(w *world, src, dst *corev1.Pod, port int32, method string, l4 bool) bool {
	return slices.ContainsFunc(w.Policies, func(p v1alpha1.TrustPolicy) bool {
		return p.Namespace == dst.Namespace && dst.Labels[v1alpha1.PolicyLabel(p.Name)] == v1alpha1.True &&
			slices.ContainsFunc(p.Spec.Ingress, func(r v1alpha1.IngressRule) bool {
				if len(r.Ports) > 0 && !slices.Contains(r.Ports, port) {
					return false
				}
				http := l4 || len(r.HTTP) == 0 || slices.ContainsFunc(r.HTTP, func(h v1alpha1.HTTPRule) bool {
					return (len(h.Methods) == 0 || slices.Contains(h.Methods, method)) && (len(h.Paths) == 0 || slices.Contains(h.Paths, "/"))
				})
				return http && slices.ContainsFunc(r.From, func(peer v1alpha1.Peer) bool { return isPeer(p.Namespace, peer, src, l4) })
			})
	})
}

func isPeer(own string, peer v1alpha1.Peer, pod *corev1.Pod, l4 bool) bool {
	if trustgraph.PeerNamespace(own, peer) != pod.Namespace || peer.ServiceAccount != snapshot.ServiceAccount(pod) {
		return false
	}
	if !l4 {
		return true
	}
	for key, values := range peer.Tags {
		if !slices.Contains(values, pod.Labels[v1alpha1.PodTagPrefix+key]) {
			return false
		}
	}
	if peer.PodSelector == nil {
		return true
	}
	sel, err := metav1.LabelSelectorAsSelector(peer.PodSelector)
	return err == nil && sel.Matches(labels.Set(pod.Labels))
}

// egress reports whether src may call dst: by its own policies' egress, or because a policy of dst names its account.
func egress(w *world, src, dst *corev1.Pod, port int32) bool {
	return slices.ContainsFunc(w.Policies, func(p v1alpha1.TrustPolicy) bool {
		if p.Namespace == dst.Namespace && dst.Labels[v1alpha1.PolicyLabel(p.Name)] == v1alpha1.True &&
			slices.ContainsFunc(p.Spec.Ingress, func(r v1alpha1.IngressRule) bool {
				return (len(r.Ports) == 0 || slices.Contains(r.Ports, port)) &&
					slices.ContainsFunc(r.From, func(peer v1alpha1.Peer) bool { return isPeer(p.Namespace, peer, src, false) })
			}) {
			return true
		}
		return p.Namespace == src.Namespace && src.Labels[v1alpha1.PolicyLabel(p.Name)] == v1alpha1.True &&
			slices.ContainsFunc(p.Spec.Egress, func(r v1alpha1.EgressRule) bool {
				return (len(r.Ports) == 0 || slices.Contains(r.Ports, port)) &&
					slices.ContainsFunc(r.To, func(peer v1alpha1.Peer) bool { return isPeer(p.Namespace, peer, dst, true) })
			})
	})
}

func TestAPodThatIsNotAttestedLooksUpNames(t *testing.T) {
	w := settled(t)
	w.Pods = append(w.Pods, snapshottest.Pod("kube-system", "coredns", "coredns", "fra-1", "10.1.0.53"))
	w.podNamed("kube-system/coredns").Labels = map[string]string{"k8s-app": "kube-dns"}
	d := newDataplane(w.Snapshot)
	for _, src := range []string{"payments/api-par-1", "payments/api-fra-1"} {
		for _, to := range []string{"169.254.20.10", "10.1.0.53"} {
			for _, protocol := range []string{"UDP", "TCP"} {
				for _, port := range []uint16{53, 5353} {
					if !d.allows(d.pod(src), false, netip.MustParseAddr(to), protocol, port) {
						t.Errorf("%s looks up nothing at %s:%d %s", src, to, port, protocol)
					}
				}
				if src == "payments/api-par-1" && d.allows(d.pod(src), false, netip.MustParseAddr(to), protocol, 80) {
					t.Errorf("%s may call %s:80", src, to)
				}
			}
		}
	}
}

// TestAmbientByThePodsOwnLabel: it goes before the namespace's, and traffic arrives on HBONE's port.
func TestAmbientByThePodsOwnLabel(t *testing.T) {
	for mode, want := range map[string]bool{"ambient": true, "none": false, "": false} {
		w := demo()
		for _, key := range []string{"payments/api-fra-1", "shop/frontend-fra-1"} {
			w.podNamed(key).Labels["istio.io/dataplane-mode"] = mode
		}
		w.settle(t, nil)
		if got := connects(w.Snapshot, newDataplane(w.Snapshot), w.podNamed("shop/frontend-fra-1"), w.podNamed("payments/api-fra-1"), 15008); got != want {
			t.Errorf("label %q: port 15008 is open: %v, want %v", mode, got, want)
		}
		p, _ := mustMake(t, w.Snapshot).Graph.Policy("payments", "api")
		if noted := strings.Contains(strings.Join(p.Notes, " "), "ambient mode by its own label"); noted != want {
			t.Errorf("label %q: notes %q", mode, p.Notes)
		}
	}
}
