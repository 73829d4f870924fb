package plan_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

func netipOf(s string) netip.Addr { return netip.MustParseAddr(s) }

// dump is everything that follows from a snapshot, as bytes.
func dump(t tb, r plan.Result) string {
	t.Helper()
	out := r.Plan.String()
	for _, v := range []any{r.Graph, r.Objects, r.Entries(), r.Plan.Operations} {
		data, err := json.MarshalIndent(v, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		out += string(data)
	}
	return out
}

func shuffled(s snapshot.Snapshot, r *rand.Rand) snapshot.Snapshot {
	mix := func(n int, swap func(i, j int)) { r.Shuffle(n, swap) }
	s.Nodes, s.NodeTrusts, s.Namespaces = slices.Clone(s.Nodes), slices.Clone(s.NodeTrusts), slices.Clone(s.Namespaces)
	s.Pods, s.Policies, s.Objects = slices.Clone(s.Pods), slices.Clone(s.Policies), slices.Clone(s.Objects)
	mix(len(s.Nodes), func(i, j int) { s.Nodes[i], s.Nodes[j] = s.Nodes[j], s.Nodes[i] })
	mix(len(s.NodeTrusts), func(i, j int) { s.NodeTrusts[i], s.NodeTrusts[j] = s.NodeTrusts[j], s.NodeTrusts[i] })
	mix(len(s.Namespaces), func(i, j int) { s.Namespaces[i], s.Namespaces[j] = s.Namespaces[j], s.Namespaces[i] })
	mix(len(s.Pods), func(i, j int) { s.Pods[i], s.Pods[j] = s.Pods[j], s.Pods[i] })
	mix(len(s.Policies), func(i, j int) { s.Policies[i], s.Policies[j] = s.Policies[j], s.Policies[i] })
	mix(len(s.Objects), func(i, j int) { s.Objects[i], s.Objects[j] = s.Objects[j], s.Objects[i] })
	spire := snapshot.SPIRE{Entries: slices.Clone(s.SPIRE.Entries), Agents: slices.Clone(s.SPIRE.Agents)}
	mix(len(spire.Entries), func(i, j int) { spire.Entries[i], spire.Entries[j] = spire.Entries[j], spire.Entries[i] })
	mix(len(spire.Agents), func(i, j int) { spire.Agents[i], spire.Agents[j] = spire.Agents[j], spire.Agents[i] })
	s.SPIRE = &spire
	return s
}

func TestInvariant07_SameSnapshotSameBytesInAnyOrder(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := draw(rt)
		if rapid.Bool().Draw(rt, "settled") {
			w.settle(rt, nil)
			change(rt, w)
		}
		want := dump(rt, mustMake(rt, w.Snapshot))
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 1))
		if got := dump(rt, mustMake(rt, shuffled(w.Snapshot, r))); got != want {
			rt.Fatalf("order matters:\n%s\nand:\n%s", want, got)
		}
	})
}

var (
	nodeNames  = []string{"n1", "n2", "n3"}
	namespaces = []string{"a", "b", "open"}
	accounts   = []string{"x", "y"}
	countries  = []string{"DE", "FR"}
	ports      = []int32{80, 443}
)

// draw makes a random cluster: verdicts of every kind, images signed and not, policies
// that overlap, forged labels.
func draw(t *rapid.T) *world {
	w := &world{Snapshot: snapshot.Snapshot{
		At:     snapshottest.Now,
		Config: snapshot.Config{TrustDomain: snapshottest.TrustDomain, Calico: true, Istio: true, Taint: true},
		SPIRE:  &snapshot.SPIRE{}, Images: map[snapshot.ImageKey]snapshot.Image{},
	}}
	switch rapid.IntRange(0, 4).Draw(t, "data planes") {
	case 0:
		w.Config.Calico = false
	case 1:
		w.Config.Istio = false
	}
	for i, name := range nodeNames {
		w.Nodes = append(w.Nodes, snapshottest.Node(name, fmt.Sprintf("10.%d.0.0/24", i+1)))
		w.SPIRE.Agents = append(w.SPIRE.Agents, snapshot.Agent{ID: snapshottest.AgentID(name)})
		drawTrust(t, w, name)
	}
	modes := map[string]string{"a": v1alpha1.ModeEnforce, "b": rapid.SampledFrom([]string{v1alpha1.ModeEnforce, v1alpha1.ModeAudit}).Draw(t, "mode"), "open": ""}
	for _, ns := range namespaces {
		w.Namespaces = append(w.Namespaces, snapshottest.Namespace(ns, modes[ns]))
	}
	for _, ns := range namespaces[:2] {
		for i := range rapid.IntRange(0, 2).Draw(t, "policies of "+ns) {
			w.Policies = append(w.Policies, drawPolicy(t, ns, fmt.Sprintf("p%d", i)))
		}
	}
	for i := range rapid.IntRange(2, 7).Draw(t, "pods") {
		drawPod(t, w, i)
	}
	return w
}

func drawTrust(t *rapid.T, w *world, node string) {
	trust := snapshottest.Trust(node, rapid.SampledFrom(countries).Draw(t, "country"))
	switch rapid.SampledFrom([]string{"good", "good", "good", "bad", "stale", "none"}).Draw(t, "verdict") {
	case "bad":
		trust.Spec.Verdict = v1alpha1.VerdictUntrusted
	case "stale":
		trust.Spec.ValidUntil = metav1.NewMicroTime(w.At)
	case "none":
		return
	}
	w.NodeTrusts = append(w.NodeTrusts, trust)
}

func drawPolicy(t *rapid.T, ns, name string) v1alpha1.TrustPolicy {
	p := snapshottest.Frontend()
	p.Namespace, p.Name = ns, name
	p.Spec.Workloads = v1alpha1.Workloads{ServiceAccount: rapid.SampledFrom(accounts).Draw(t, "workloads")}
	if rapid.Bool().Draw(t, "selector") {
		p.Spec.Workloads.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"tier": rapid.SampledFrom([]string{"1", "2"}).Draw(t, "tier")}}
		if rapid.Bool().Draw(t, "selector only") {
			p.Spec.Workloads.ServiceAccount = ""
		}
	}
	if rapid.Bool().Draw(t, "country required") {
		p.Spec.Require.Node.Tags = map[string][]string{"country": {rapid.SampledFrom(countries).Draw(t, "required country")}}
	}
	for range rapid.IntRange(0, 2).Draw(t, "ingress") {
		rule := v1alpha1.IngressRule{From: []v1alpha1.Peer{drawPeer(t)}}
		if rapid.Bool().Draw(t, "ports") {
			rule.Ports = []int32{rapid.SampledFrom(ports).Draw(t, "port")}
		}
		if rapid.Bool().Draw(t, "http") {
			rule.HTTP = []v1alpha1.HTTPRule{{Methods: []string{"GET"}}}
		}
		p.Spec.Ingress = append(p.Spec.Ingress, rule)
	}
	if rapid.Bool().Draw(t, "egress") {
		p.Spec.Egress = []v1alpha1.EgressRule{{To: []v1alpha1.Peer{drawPeer(t)}}}
	}
	return p
}

func drawPeer(t *rapid.T) v1alpha1.Peer {
	p := v1alpha1.Peer{Namespace: rapid.SampledFrom(namespaces).Draw(t, "peer namespace"), ServiceAccount: rapid.SampledFrom(accounts).Draw(t, "peer")}
	if rapid.Bool().Draw(t, "peer tags") {
		p.Tags = map[string][]string{"country": {rapid.SampledFrom(countries).Draw(t, "peer country")}}
	}
	if rapid.Bool().Draw(t, "peer selector") {
		p.PodSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "tier", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"2"}}}}
	}
	return p
}

func drawPod(t *rapid.T, w *world, i int) {
	node := rapid.IntRange(0, len(nodeNames)-1).Draw(t, "node")
	pod := snapshottest.Pod(rapid.SampledFrom(namespaces).Draw(t, "namespace"), fmt.Sprintf("pod%d", i), rapid.SampledFrom(accounts).Draw(t, "account"), nodeNames[node], fmt.Sprintf("10.%d.0.%d", node+1, i+10))
	pod.Labels = map[string]string{"tier": rapid.SampledFrom([]string{"1", "2"}).Draw(t, "pod tier")}
	if rapid.IntRange(0, 3).Draw(t, "unsigned") == 0 {
		pod.Status.ContainerStatuses[0] = snapshottest.Status("main", "unsigned")
	}
	switch rapid.IntRange(0, 9).Draw(t, "forgery") {
	case 0:
		pod.Labels[v1alpha1.PodAttestedLabel] = v1alpha1.True
		pod.Labels[v1alpha1.PolicyLabel("p0")] = v1alpha1.True
		pod.Labels[v1alpha1.PodTagPrefix+"country"] = "DE"
	case 1:
		pod.Labels["pcns."+v1alpha1.ModeLabel] = "none"
	case 2:
		pod.Labels["pcns.projectcalico.org/name"] = "a"
	case 3:
		pod.Spec.HostNetwork = true
	}
	w.Pods = append(w.Pods, pod)
	c := pod.Status.ContainerStatuses[0]
	w.Images[snapshot.ImageKey{Image: c.Image, ImageID: c.ImageID}] = snapshot.Image{
		Manifests: []string{snapshottest.Digest(c.Name)},
		Verifiers: map[string]snapshot.Verification{"release-key": {Accepted: c.ImageID != snapshottest.Status("main", "unsigned").ImageID, Reason: "no signature"}},
	}
}

// provable says from the way that the pod was drawn, without the code under test,
// whether it could be attested at all.
func provable(w *world, p *corev1.Pod) bool {
	good := slices.ContainsFunc(w.NodeTrusts, func(t v1alpha1.NodeTrust) bool {
		return t.Name == p.Spec.NodeName && t.Spec.Verdict == v1alpha1.VerdictTrusted && t.Spec.ValidUntil.After(w.At)
	})
	enrolled := slices.ContainsFunc(w.Namespaces, func(n corev1.Namespace) bool {
		return n.Name == p.Namespace && n.Labels[v1alpha1.ModeLabel] != ""
	})
	signed := p.Status.ContainerStatuses[0].ImageID != snapshottest.Status("main", "unsigned").ImageID
	return good && enrolled && signed && !p.Spec.HostNetwork
}

func enforced(w *world, ns string) bool {
	return slices.ContainsFunc(w.Namespaces, func(n corev1.Namespace) bool {
		return n.Name == ns && n.Labels[v1alpha1.ModeLabel] == v1alpha1.ModeEnforce
	})
}

// TestInvariant08_NoUnattestedPodReachesAnEnrolledPod: once the closing operations of
// the first plan are through, at every step that follows, at L4 with Calico's semantics
// and at L7 with Istio's and SPIRE's. Destinations are pods of enforced namespaces on
// nodes that are not proved bad (a bad node's enforcement is not ours).
func TestInvariant08_NoUnattestedPodReachesAnEnrolledPod(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := draw(rt)
		check := func(phase plan.Phase) {
			if !phase.Closing() {
				noUnattested(rt, w)
			}
		}
		w.settle(rt, check)
		noUnattested(rt, w)
		change(rt, w)
		w.settle(rt, check)
		noUnattested(rt, w)
	})
}

func noUnattested(t *rapid.T, w *world) {
	d := newDataplane(w.Snapshot)
	for i := range w.Pods {
		dst := w.Pods[i]
		if dst.Spec.HostNetwork || !enforced(w, dst.Namespace) || badNode(w.Snapshot, dst.Spec.NodeName) {
			continue
		}
		for j := range w.Pods {
			src := w.Pods[j]
			if i == j || src.Spec.HostNetwork || provable(w, src) {
				continue
			}
			for _, port := range ports {
				if reaches(w, d, src, dst, port) {
					t.Fatalf("%s (labels %v, on %s) reaches %s:%d (labels %v)", snapshot.Key(src), src.Labels, src.Spec.NodeName, snapshot.Key(dst), port, dst.Labels)
				}
			}
			if ids := svids(w.Snapshot, src); len(ids) > 0 && !staleOnly(w, src) {
				t.Fatalf("%s has SVIDs %q", snapshot.Key(src), ids)
			}
		}
	}
}

// reaches: at L4 where Calico is there; where only Istio is, a request that is answered.
func reaches(w *world, d *dataplane, src, dst *corev1.Pod, port int32) bool {
	if w.Config.Calico {
		return connects(w.Snapshot, d, src, dst, uint16(port))
	}
	return !staleOnly(w, src) && calls(w.Snapshot, d, src, dst, int(port), "GET", "/")
}

// staleOnly: SPIRE goes on issuing to an agent whose verdict has merely expired until
// the agent's own SVID ends; the label is gone by then.
func staleOnly(w *world, p *corev1.Pod) bool {
	return slices.ContainsFunc(w.NodeTrusts, func(t v1alpha1.NodeTrust) bool {
		return t.Name == p.Spec.NodeName && t.Spec.Verdict == v1alpha1.VerdictTrusted && !t.Spec.ValidUntil.After(w.At)
	})
}

// change alters a settled cluster: a verdict, a policy, an image or a namespace.
func change(t *rapid.T, w *world) {
	for range rapid.IntRange(1, 3).Draw(t, "changes") {
		switch rapid.IntRange(0, 5).Draw(t, "change") {
		case 0:
			node := rapid.SampledFrom(nodeNames).Draw(t, "changed node")
			w.NodeTrusts = slices.DeleteFunc(slices.Clone(w.NodeTrusts), func(n v1alpha1.NodeTrust) bool { return n.Name == node })
			drawTrust(t, w, node)
		case 1, 2:
			if len(w.Policies) > 0 {
				i := rapid.IntRange(0, len(w.Policies)-1).Draw(t, "changed policy")
				w.Policies = slices.Clone(w.Policies)
				w.Policies[i] = drawPolicy(t, w.Policies[i].Namespace, w.Policies[i].Name)
			}
		case 3:
			if len(w.Policies) > 0 {
				w.Policies = slices.Clone(w.Policies)[1:]
			}
		case 5:
			w.Namespaces = slices.Clone(w.Namespaces)
			w.Namespaces[1] = snapshottest.Namespace("b", rapid.SampledFrom([]string{v1alpha1.ModeEnforce, v1alpha1.ModeAudit, ""}).Draw(t, "changed mode"))
		case 4:
			i := rapid.IntRange(0, len(w.Pods)-1).Draw(t, "changed pod")
			w.Pods[i].Status.ContainerStatuses[0] = snapshottest.Status("main", "unsigned")
			c := w.Pods[i].Status.ContainerStatuses[0]
			w.Images[snapshot.ImageKey{Image: c.Image, ImageID: c.ImageID}] = snapshot.Image{Manifests: []string{snapshottest.Digest("u")}}
		}
	}
}

// TestAnIncrementalPlanIsTheWholePlan: through random changes, and while what is planned is carried out operation by operation, an
// Engine and a Renderer that have seen all of it decide what new ones do.
func TestAnIncrementalPlanIsTheWholePlan(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := draw(rt)
		w.Config.MaxDeletePercent = rapid.SampledFrom([]int{0, 50}).Draw(rt, "rail")
		cache, lists, engine, renderer := snapshottest.Cache{}, snapshottest.Lists{}, trustgraph.Engine{}, plan.Renderer{}
		byNamespace := rapid.Bool().Draw(rt, "pods by namespace")
		for range rapid.IntRange(1, 4).Draw(rt, "rounds") {
			for range 3 {
				s := cache.Read(w.Snapshot)
				if byNamespace {
					s = lists.Read(s)
				}
				want := mustMake(rt, s)
				if d := cmp.Diff(strings.Split(dump(rt, want), "\n"), strings.Split(incremental(rt, &engine, &renderer, s), "\n")); d != "" {
					rt.Fatalf("-whole +incremental:\n%s", d)
				}
				w.Attested = want.Graph.Attested
				for _, o := range want.Plan.Operations[:rapid.IntRange(0, len(want.Plan.Operations)).Draw(rt, "carried out")] {
					_ = w.apply(o) // one that is stale is refused, and planned again
				}
			}
			change(rt, w)
			w.At = w.At.Add(time.Duration(rapid.IntRange(0, 400).Draw(rt, "seconds")) * time.Second)
		}
	})
}

// incremental is everything that follows from a snapshot for those who have seen others, as a pass goes.
func incremental(t *rapid.T, e *trustgraph.Engine, r *plan.Renderer, s snapshot.Snapshot) string {
	spire := s.SPIRE
	s.SPIRE = nil
	g, err := e.Build(s)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Urgent(s, g); err != nil {
		t.Fatal(err)
	}
	s.SPIRE = spire
	if g, err = e.Join(spire); err != nil {
		t.Fatal(err)
	}
	got, err := r.Decide(s, g)
	if err != nil {
		t.Fatal(err)
	}
	return dump(t, got)
}

// allowed lists every call that is possible, at L4 and at L7.
func allowed(w *world) map[string]bool {
	out := map[string]bool{}
	d := newDataplane(w.Snapshot)
	for i := range w.Pods {
		for j := range w.Pods {
			src, dst := w.Pods[i], w.Pods[j]
			if i == j || !enforced(w, dst.Namespace) || badNode(w.Snapshot, dst.Spec.NodeName) {
				continue
			}
			for _, port := range ports {
				if connects(w.Snapshot, d, src, dst, uint16(port)) {
					out[fmt.Sprintf("%s -> %s:%d", src.Name, dst.Name, port)] = true
				}
				for _, method := range []string{"GET", "POST"} {
					if calls(w.Snapshot, d, src, dst, int(port), method, "/") {
						out[fmt.Sprintf("%s -> %s:%d %s", src.Name, dst.Name, port, method)] = true
					}
				}
			}
		}
	}
	return out
}

// TestInvariant02_RandomChangesTightenBeforeTheyLoosen, operation by operation: a closing
// one makes no call possible that was not; an opening one takes none away, and before it
// nothing is possible any more that is not meant to be.
func TestInvariant02_RandomChangesTightenBeforeTheyLoosen(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := draw(rt)
		w.settle(rt, nil)
		change(rt, w)
		previous := allowed(w) // what the change itself opens, a node that is not bad any more, is not the plan's doing
		final := w.clone()
		final.settle(rt, nil)
		after := allowed(final)
		w.settle(rt, func(phase plan.Phase) {
			now := allowed(w)
			for call := range now {
				if phase.Closing() && !previous[call] {
					rt.Fatalf("an operation of phase %s makes %s possible", phase, call)
				}
				if !phase.Closing() && !after[call] {
					rt.Fatalf("in phase %s, %s is still possible", phase, call)
				}
			}
			previous = now
		})
	})
}
