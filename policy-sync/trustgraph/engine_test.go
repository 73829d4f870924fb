package trustgraph_test

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"pgregory.net/rapid"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

// moving is a cluster that changes step by step, as a cache shows it: what has changed is another
// pointer or has another resourceVersion, and nothing is changed in place.
type moving struct {
	s       snapshot.Snapshot
	version int
}

var (
	movingNodes = []string{"fra-1", "par-1", "evil-1", "new-1"}
	movingNS    = []string{"payments", "shop", "other"}
)

func (m *moving) next() string {
	m.version++
	return strconv.Itoa(1000 + m.version)
}

// pod replaces one pod by a changed copy.
func (m *moving) pod(t *rapid.T, change func(*corev1.Pod)) {
	if len(m.s.Pods) == 0 {
		return
	}
	m.s.Pods = slices.Clone(m.s.Pods)
	i := rapid.IntRange(0, len(m.s.Pods)-1).Draw(t, "pod")
	p := m.s.Pods[i].DeepCopy()
	change(p)
	p.ResourceVersion = m.next()
	m.s.Pods[i] = p
}

func (m *moving) policy(t *rapid.T, change func(*v1alpha1.TrustPolicy)) {
	if len(m.s.Policies) == 0 {
		return
	}
	m.s.Policies = slices.Clone(m.s.Policies)
	i := rapid.IntRange(0, len(m.s.Policies)-1).Draw(t, "policy")
	p := m.s.Policies[i].DeepCopy()
	change(p)
	p.Generation++
	p.ResourceVersion = m.next()
	m.s.Policies[i] = *p
}

func (m *moving) node(t *rapid.T, change func(*corev1.Node)) {
	if len(m.s.Nodes) == 0 {
		return
	}
	m.s.Nodes = slices.Clone(m.s.Nodes)
	i := rapid.IntRange(0, len(m.s.Nodes)-1).Draw(t, "node")
	n := m.s.Nodes[i].DeepCopy()
	change(n)
	n.ResourceVersion = m.next()
	m.s.Nodes[i] = *n
}

func (m *moving) trust(t *rapid.T, change func(*v1alpha1.NodeTrust)) {
	if len(m.s.NodeTrusts) == 0 {
		return
	}
	m.s.NodeTrusts = slices.Clone(m.s.NodeTrusts)
	i := rapid.IntRange(0, len(m.s.NodeTrusts)-1).Draw(t, "trust")
	n := m.s.NodeTrusts[i].DeepCopy()
	change(n)
	n.Generation++
	m.s.NodeTrusts[i] = *n
}

func (m *moving) namespace(t *rapid.T, change func(labels map[string]string)) {
	m.s.Namespaces = slices.Clone(m.s.Namespaces)
	i := rapid.IntRange(0, len(m.s.Namespaces)-1).Draw(t, "namespace")
	n := m.s.Namespaces[i].DeepCopy()
	change(n.Labels)
	n.ResourceVersion = m.next()
	m.s.Namespaces[i] = *n
}

func (m *moving) images(change func(map[snapshot.ImageKey]snapshot.Image)) {
	m.s.Images = maps.Clone(m.s.Images)
	change(m.s.Images)
}

// address is one of few, so that pods share them, also with nodes.
func address(t *rapid.T) string {
	return fmt.Sprintf("10.%d.0.%d", rapid.IntRange(1, 4).Draw(t, "block"), rapid.IntRange(10, 13).Draw(t, "host"))
}

// volumes are one claim and its volume.
func volumes(namespace, claim string, folder bool) *snapshot.Volumes {
	pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv"}, Spec: corev1.PersistentVolumeSpec{
		ClaimRef: &corev1.ObjectReference{Namespace: namespace, Name: claim}}}
	pv.Spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: "d"}
	if folder {
		pv.Spec.CSI, pv.Spec.HostPath = nil, &corev1.HostPathVolumeSource{Path: "/etc"}
	}
	return &snapshot.Volumes{PersistentVolumes: []*corev1.PersistentVolume{pv}, Claims: []*corev1.PersistentVolumeClaim{
		{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: claim}, Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv"}}}}
}

// steps are what may happen, by name.
var steps = map[string]func(*moving, *rapid.T){
	"a pod comes": func(m *moving, t *rapid.T) {
		ns := rapid.SampledFrom(movingNS).Draw(t, "namespace")
		account := map[string]string{"payments": "api", "shop": "frontend", "other": "default"}[ns]
		p := snapshottest.Pod(ns, "p-"+m.next(), account, rapid.SampledFrom(movingNodes).Draw(t, "node"), address(t))
		m.s.Pods = append(slices.Clone(m.s.Pods), p)
	},
	"a pod goes": func(m *moving, t *rapid.T) {
		if len(m.s.Pods) > 0 {
			i := rapid.IntRange(0, len(m.s.Pods)-1).Draw(t, "pod")
			m.s.Pods = slices.Delete(slices.Clone(m.s.Pods), i, i+1)
		}
	},
	"a pod gets its labels": func(m *moving, t *rapid.T) {
		m.pod(t, func(p *corev1.Pod) {
			p.Labels[v1alpha1.PodAttestedLabel] = v1alpha1.True
			p.Labels[v1alpha1.PolicyLabel(p.Spec.ServiceAccountName)] = v1alpha1.True
		})
	},
	"a pod moves to another address": func(m *moving, t *rapid.T) {
		m.pod(t, func(p *corev1.Pod) { p.Status.PodIP, p.Status.PodIPs = address(t), nil })
	},
	"a pod is bound": func(m *moving, t *rapid.T) {
		m.pod(t, func(p *corev1.Pod) { p.Spec.NodeName = rapid.SampledFrom(movingNodes).Draw(t, "to") })
	},
	"a pod ends": func(m *moving, t *rapid.T) { m.pod(t, func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }) },
	"a pod is deleted": func(m *moving, t *rapid.T) {
		m.pod(t, func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: m.s.At} })
	},
	"a pod uses its node's network": func(m *moving, t *rapid.T) {
		m.pod(t, func(p *corev1.Pod) { p.Spec.HostNetwork = !p.Spec.HostNetwork })
	},
	"a pod runs another image": func(m *moving, t *rapid.T) {
		m.pod(t, func(p *corev1.Pod) {
			p.Status.ContainerStatuses[0].ImageID = "registry.example/x@" + snapshottest.Digest(rapid.SampledFrom([]string{"api", "frontend", "unknown"}).Draw(t, "image"))
		})
	},
	"a pod mounts a claim": func(m *moving, t *rapid.T) {
		m.pod(t, func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "claim")}}}}
		})
	},
	"a container is less confined": func(m *moving, t *rapid.T) {
		m.pod(t, func(p *corev1.Pod) { p.Spec.Containers[0].SecurityContext = nil })
	},
	"a claim is bound to a volume, a folder of the node or not": func(m *moving, t *rapid.T) {
		m.s.Volumes = volumes(rapid.SampledFrom(movingNS).Draw(t, "namespace"), rapid.SampledFrom([]string{"a", "b"}).Draw(t, "claim"),
			rapid.Bool().Draw(t, "a folder"))
	},
	"claims are not read": func(m *moving, _ *rapid.T) { m.s.Volumes = nil },
	"a policy asks for another level": func(m *moving, t *rapid.T) {
		m.policy(t, func(p *v1alpha1.TrustPolicy) {
			p.Spec.Require.Runtime = rapid.SampledFrom([]v1alpha1.RuntimeRequirement{"", "any", "baseline", "restricted", "other"}).Draw(t, "level")
		})
	},
	"a pod's status lags": func(m *moving, t *rapid.T) {
		m.pod(t, func(p *corev1.Pod) { p.Generation, p.Status.ObservedGeneration = 3, 2 })
	},
	"a pod goes into ambient mode": func(m *moving, t *rapid.T) {
		m.pod(t, func(p *corev1.Pod) { p.Labels["istio.io/dataplane-mode"] = "ambient" })
	},
	"a pod has a proxy": func(m *moving, t *rapid.T) {
		m.pod(t, func(p *corev1.Pod) {
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "istio-proxy"})
		})
	},
	"a pod takes another account": func(m *moving, t *rapid.T) {
		m.pod(t, func(p *corev1.Pod) {
			p.Spec.ServiceAccountName = rapid.SampledFrom([]string{"api", "frontend", "default"}).Draw(t, "account")
		})
	},
	"a verdict changes": func(m *moving, t *rapid.T) {
		verdict := rapid.SampledFrom([]v1alpha1.Verdict{v1alpha1.VerdictTrusted, v1alpha1.VerdictTrusted, v1alpha1.VerdictUntrusted}).Draw(t, "verdict")
		m.trust(t, func(n *v1alpha1.NodeTrust) {
			n.Spec.Verdict, n.Spec.Reference = verdict, "prod"
			n.Spec.AttestedAt, n.Spec.ValidUntil = metav1.NewMicroTime(m.s.At), metav1.NewMicroTime(m.s.At.Add(time.Duration(rapid.IntRange(1, 600).Draw(t, "valid"))*time.Second))
		})
	},
	"a tag changes": func(m *moving, t *rapid.T) {
		m.trust(t, func(n *v1alpha1.NodeTrust) {
			n.Spec.Tags = map[string]string{"country": rapid.SampledFrom([]string{"DE", "FR", "CH"}).Draw(t, "country")}
		})
	},
	"a NodeTrust goes": func(m *moving, t *rapid.T) {
		if len(m.s.NodeTrusts) > 0 {
			i := rapid.IntRange(0, len(m.s.NodeTrusts)-1).Draw(t, "trust")
			m.s.NodeTrusts = slices.Delete(slices.Clone(m.s.NodeTrusts), i, i+1)
		}
	},
	"a node comes": func(m *moving, _ *rapid.T) {
		if !slices.ContainsFunc(m.s.Nodes, func(n corev1.Node) bool { return n.Name == "new-1" }) {
			m.s.Nodes = append(slices.Clone(m.s.Nodes), snapshottest.Node("new-1", "10.4.0.0/24"))
			m.s.NodeTrusts = append(slices.DeleteFunc(slices.Clone(m.s.NodeTrusts), func(n v1alpha1.NodeTrust) bool { return n.Name == "new-1" }), snapshottest.Trust("new-1", "DE"))
		}
	},
	"a node goes": func(m *moving, t *rapid.T) {
		if len(m.s.Nodes) > 1 {
			i := rapid.IntRange(0, len(m.s.Nodes)-1).Draw(t, "node")
			m.s.Nodes = slices.Delete(slices.Clone(m.s.Nodes), i, i+1)
		}
	},
	"a node has another block": func(m *moving, t *rapid.T) {
		m.node(t, func(n *corev1.Node) {
			block := rapid.SampledFrom([]string{"", "10.1.0.0/24", "10.2.0.0/24", "10.3.0.0/24", "10.4.0.0/24"}).Draw(t, "cidr")
			if n.Spec.PodCIDR, n.Spec.PodCIDRs = block, nil; block != "" {
				n.Spec.PodCIDRs = []string{block}
			}
		})
	},
	"a node has an address": func(m *moving, t *rapid.T) {
		m.node(t, func(n *corev1.Node) {
			n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address(t)}}
		})
	},
	"Calico hands out blocks": func(m *moving, t *rapid.T) {
		m.s.Blocks = map[string][]netip.Prefix{}
		for _, name := range movingNodes {
			if rapid.Bool().Draw(t, "has one") {
				m.s.Blocks[name] = []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/26", rapid.IntRange(1, 4).Draw(t, "block")))}
			}
		}
	},
	"no block is Calico's": func(m *moving, _ *rapid.T) { m.s.Blocks, m.s.Pools = nil, nil },
	"pools change": func(m *moving, t *rapid.T) {
		m.s.Pools = []netip.Prefix{netip.MustParsePrefix(rapid.SampledFrom([]string{"10.0.0.0/8", "10.1.0.0/16"}).Draw(t, "pool"))}
	},
	"a policy changes": func(m *moving, t *rapid.T) {
		m.policy(t, func(p *v1alpha1.TrustPolicy) {
			switch rapid.IntRange(0, 5).Draw(t, "what") {
			case 0:
				p.Spec.Require.Node.Tags = map[string][]string{"country": {rapid.SampledFrom([]string{"DE", "FR"}).Draw(t, "wanted")}}
			case 1:
				p.Spec.Require.Image.VerifiedBy = nil
			case 2:
				p.Spec.Workloads = v1alpha1.Workloads{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": rapid.SampledFrom([]string{"api", "frontend"}).Draw(t, "app")}}}
			case 3:
				p.Spec.Workloads.ServiceAccount = ""
				p.Spec.Workloads.Selector = nil // refused
			case 4:
				p.Spec.Ingress = append(p.Spec.Ingress, v1alpha1.IngressRule{From: []v1alpha1.Peer{{Namespace: "shop", ServiceAccount: "default"}}})
			case 5:
				p.Status.LastAccepted = &v1alpha1.AcceptedSpec{Generation: p.Generation, Spec: snapshottest.API().Spec}
			}
		})
	},
	"a policy comes": func(m *moving, t *rapid.T) {
		p := snapshottest.API()
		p.Namespace, p.Name = rapid.SampledFrom(movingNS).Draw(t, "namespace"), "p"+m.next()
		p.UID, p.ResourceVersion = snapshottest.UID("TrustPolicy", p.Name), m.next()
		p.Spec.Workloads.ServiceAccount = rapid.SampledFrom([]string{"api", "frontend", "default"}).Draw(t, "account")
		m.s.Policies = append(slices.Clone(m.s.Policies), p)
	},
	"a policy goes": func(m *moving, t *rapid.T) {
		if len(m.s.Policies) > 0 {
			i := rapid.IntRange(0, len(m.s.Policies)-1).Draw(t, "policy")
			m.s.Policies = slices.Delete(slices.Clone(m.s.Policies), i, i+1)
		}
	},
	"a namespace changes its mode": func(m *moving, t *rapid.T) {
		mode := rapid.SampledFrom([]string{v1alpha1.ModeEnforce, v1alpha1.ModeEnforce, v1alpha1.ModeAudit, "what", ""}).Draw(t, "mode")
		m.namespace(t, func(labels map[string]string) {
			if labels[v1alpha1.ModeLabel] = mode; mode == "" {
				delete(labels, v1alpha1.ModeLabel)
			}
		})
	},
	"a namespace changes its labels": func(m *moving, t *rapid.T) {
		m.namespace(t, func(labels map[string]string) {
			labels[rapid.SampledFrom([]string{"istio.io/use-waypoint", "istio.io/dataplane-mode"}).Draw(t, "label")] = rapid.SampledFrom([]string{"ambient", "none"}).Draw(t, "value")
		})
	},
	"nothing is known of images": func(m *moving, _ *rapid.T) { m.s.Images = nil },
	"everything is known of images": func(m *moving, _ *rapid.T) {
		m.images(func(of map[snapshot.ImageKey]snapshot.Image) {
			if of == nil {
				m.s.Images = map[snapshot.ImageKey]snapshot.Image{}
			}
		})
		snapshottest.Verify(&m.s)
	},
	"an image is refused": func(m *moving, t *rapid.T) {
		m.images(func(of map[snapshot.ImageKey]snapshot.Image) {
			for key, image := range of {
				if key.Image == rapid.SampledFrom([]string{"registry.example/api:1", "registry.example/frontend:1"}).Draw(t, "image") {
					image.Verifiers = map[string]snapshot.Verification{"release-key": {Reason: "no signature", Unknown: rapid.Bool().Draw(t, "unknown")}}
					of[key] = image
				}
			}
		})
	},
	"an acceptance ends soon": func(m *moving, t *rapid.T) {
		m.images(func(of map[snapshot.ImageKey]snapshot.Image) {
			for key, image := range of {
				image.Verifiers = map[string]snapshot.Verification{"release-key": {Accepted: true, ValidUntil: m.s.At.Add(time.Duration(rapid.IntRange(1, 90).Draw(t, "seconds")) * time.Second)}}
				of[key] = image
			}
		})
	},
	"seconds pass": func(m *moving, t *rapid.T) {
		m.s.At = m.s.At.Add(time.Duration(rapid.IntRange(1, 150).Draw(t, "seconds")) * time.Second)
	},
	"hours pass": func(m *moving, t *rapid.T) {
		m.s.At = m.s.At.Add(time.Duration(rapid.IntRange(1, 3).Draw(t, "hours")) * time.Hour)
	},
	"the clock goes back": func(m *moving, t *rapid.T) {
		m.s.At = m.s.At.Add(-time.Duration(rapid.IntRange(1, 100).Draw(t, "seconds")) * time.Second)
	},
	"the memory is lost": func(m *moving, t *rapid.T) {
		m.s.Attested, m.s.InheritUntil = nil, m.s.At.Add(time.Duration(rapid.IntRange(0, 60).Draw(t, "until"))*time.Second)
	},
	"nothing is inherited": func(m *moving, _ *rapid.T) { m.s.InheritUntil = time.Time{} },
	"somebody's object comes": func(m *moving, t *rapid.T) {
		kind := rapid.SampledFrom([]string{"EnvoyFilter", "PeerAuthentication", "WasmPlugin", "GlobalNetworkSet"}).Draw(t, "kind")
		o := istioObject("x/v1", kind, rapid.SampledFrom([]string{"payments", "shop", "istio-system"}).Draw(t, "namespace"), map[string]any{"phase": "AUTHN"})
		o.SetName("o" + m.next())
		m.s.Objects = append(slices.Clone(m.s.Objects), o)
	},
	"the mesh is configured": func(m *moving, t *rapid.T) {
		m.s.Objects = slices.DeleteFunc(slices.Clone(m.s.Objects), func(o *unstructured.Unstructured) bool { return o.GetKind() == "ConfigMap" })
		if rapid.Bool().Draw(t, "there") {
			m.s.Objects = append(m.s.Objects, mesh("trustDomain: "+snapshottest.TrustDomain))
		}
	},
	"objects go":               func(m *moving, _ *rapid.T) { m.s.Objects = nil },
	"the SPIRE server is away": func(m *moving, _ *rapid.T) { m.s.SPIRE = nil },
	"the SPIRE server answers": func(m *moving, t *rapid.T) {
		m.s.SPIRE = &snapshot.SPIRE{Entries: []snapshot.Entry{{ID: "x", SPIFFEID: trustgraph.SPIFFEID(snapshottest.TrustDomain, rapid.SampledFrom(movingNS).Draw(t, "namespace"), "api"), ParentID: snapshottest.AgentID("fra-1")}},
			Agents: []snapshot.Agent{{ID: snapshottest.AgentID("evil-1")}}}
	},
	"the operator changes their mind": func(m *moving, t *rapid.T) {
		m.s.Config.MaxHold = time.Duration(rapid.IntRange(0, 2).Draw(t, "hold")) * time.Minute
		m.s.Config.RefuseSharedServiceAccounts = rapid.Bool().Draw(t, "shared")
	},
	"nothing happens": func(*moving, *rapid.T) {},
}

// TestAnIncrementalGraphIsTheWholeGraph: after any sequence of changes an engine's graph is the one that is worked out anew from
// the same snapshot, with all that it says.
func TestAnIncrementalGraphIsTheWholeGraph(t *testing.T) {
	names := slices.Sorted(maps.Keys(steps))
	rapid.Check(t, func(rt *rapid.T) {
		m := &moving{s: snapshottest.Demo()}
		engine := &trustgraph.Engine{}
		read := func(s snapshot.Snapshot) snapshot.Snapshot { return s }
		if lists := (snapshottest.Lists{}); rapid.Bool().Draw(rt, "pods by namespace") {
			read = lists.Read
		}
		var done []string
		for range rapid.IntRange(1, 25).Draw(rt, "steps") {
			for range rapid.IntRange(1, 2).Draw(rt, "at once") {
				name := rapid.SampledFrom(names).Draw(rt, "step")
				done = append(done, name)
				steps[name](m, rt)
			}
			got, err := engine.Build(read(m.s))
			if err != nil {
				rt.Fatal(err)
			}
			want, err := trustgraph.Build(m.s)
			if err != nil {
				rt.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				rt.Fatalf("after %q:\n%s", done, firstDifference(want, got))
			}
			if got, want := engine.Questions(), trustgraph.ImageQuestions(m.s); !slices.EqualFunc(got, want, func(x, y snapshot.ImageQuestion) bool { return reflect.DeepEqual(x, y) }) {
				rt.Fatalf("after %q, the questions are:\n%s", done, cmp.Diff(want, got))
			}
			m.s.Attested = got.Attested
		}
	})
}

// firstDifference names the first field of the graphs that differs.
func firstDifference(want, got trustgraph.Graph) string {
	all := cmp.Exporter(func(reflect.Type) bool { return true })
	x, y := reflect.ValueOf(want), reflect.ValueOf(got)
	for i := range x.NumField() {
		if d := cmp.Diff(x.Field(i).Interface(), y.Field(i).Interface(), all); d != "" {
			return x.Type().Field(i).Name + ": " + d
		}
	}
	return "a difference that is no difference of any field"
}
