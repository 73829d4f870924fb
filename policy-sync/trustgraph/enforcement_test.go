package trustgraph_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
)

// proxied gives every pod a proxy whose socket comes from a volume.
func proxied(s *snapshot.Snapshot, source corev1.VolumeSource) {
	for i := range s.Pods {
		p := s.Pods[i]
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "istio-proxy", SecurityContext: snapshottest.Hardened(),
			VolumeMounts: []corev1.VolumeMount{{Name: "workload-socket", MountPath: "/var/run/secrets/workload-spiffe-uds"}}})
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "workload-socket", VolumeSource: source})
	}
}

var (
	spireSocket  = corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: "csi.spiffe.io"}}
	istiodSocket = corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}
)

func istioObject(group, kind, namespace string, spec map[string]any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{"apiVersion": group, "kind": kind,
		"metadata": map[string]any{"name": "theirs", "namespace": namespace}, "spec": spec}}
}

func mesh(text string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{"name": "istio", "namespace": "istio-system"}, "data": map[string]any{"mesh": text}}}
}

// TestWhatDefeatsAPromiseIsNamed: for payments/api, which has an HTTP rule.
func TestWhatDefeatsAPromiseIsNamed(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	for name, c := range map[string]struct {
		change  func(s *snapshot.Snapshot)
		blocker string // a part of payments/api's blockers; empty when there is none
		note    string // a part of its notes
		report  string
	}{
		"nothing": {change: func(s *snapshot.Snapshot) { proxied(s, spireSocket) }},
		"a native sidecar reads HTTP as well": {change: func(s *snapshot.Snapshot) {
			for i := range s.Pods {
				s.Pods[i].Spec.InitContainers = []corev1.Container{{Name: "istio-proxy", RestartPolicy: &always, SecurityContext: snapshottest.Hardened()}}
			}
		}},
		"a pod without a proxy": {change: func(s *snapshot.Snapshot) {
			proxied(s, spireSocket)
			s.Pods[0].Spec.Containers = s.Pods[0].Spec.Containers[:1]
		}, blocker: "pod api-fra-1 has no Istio proxy"},
		"an init container of the proxy's name that ends": {change: func(s *snapshot.Snapshot) {
			proxied(s, spireSocket)
			s.Pods[0].Spec.Containers = s.Pods[0].Spec.Containers[:1]
			s.Pods[0].Spec.InitContainers = []corev1.Container{{Name: "istio-proxy", SecurityContext: snapshottest.Hardened()}}
		}, blocker: "pod api-fra-1 has no Istio proxy"},
		"no proxy anywhere, under istiod": {change: func(s *snapshot.Snapshot) { s.Objects = append(s.Objects, mesh("trustDomain: demo.example")) }, blocker: "api-par-1 have no Istio proxy"},
		"no sign of Istio but its API":    {blocker: "api-par-1 have no Istio proxy"},
		"no sign of Istio, in audit mode": {change: func(s *snapshot.Snapshot) {
			s.Namespaces[0].Labels[v1alpha1.ModeLabel] = v1alpha1.ModeAudit
		}, note: "api-par-1 have no Istio proxy"},
		"no Istio at all": {change: func(s *snapshot.Snapshot) { s.Config.Istio = false }, blocker: "ingress[0].http needs Istio, which is not used"},
		"a pod without a proxy and a policy without HTTP": {change: func(s *snapshot.Snapshot) {
			s.Policies[0].Spec.Ingress[0].HTTP = nil
			s.Objects = append(s.Objects, mesh("trustDomain: demo.example"))
		}},
		"the same without Calico": {change: func(s *snapshot.Snapshot) {
			s.Config.Calico, s.Policies[0].Spec.Ingress[0].HTTP = false, nil
			s.Objects = append(s.Objects, mesh("trustDomain: demo.example"))
		}, blocker: "nothing enforces the policy there"},
		"istiod's own CA":      {change: func(s *snapshot.Snapshot) { proxied(s, istiodSocket) }, blocker: "istiod's own CA"},
		"another trust domain": {change: func(s *snapshot.Snapshot) { proxied(s, spireSocket); s.Objects = append(s.Objects, mesh("{}")) }, blocker: `has trustDomain "cluster.local"`},
		"an alias": {change: func(s *snapshot.Snapshot) {
			proxied(s, spireSocket)
			s.Objects = append(s.Objects, mesh("trustDomain: demo.example\ntrustDomainAliases: [demo.example, old.example]"))
		}, blocker: "trustDomainAliases old.example"},
		"other authorities": {change: func(s *snapshot.Snapshot) {
			proxied(s, spireSocket)
			s.Objects = append(s.Objects, mesh("trustDomain: demo.example\ncaCertificates: [{pem: x}]"))
		}, blocker: "has caCertificates"},
		"a mesh configuration that is no YAML": {change: func(s *snapshot.Snapshot) { proxied(s, spireSocket); s.Objects = append(s.Objects, mesh("a: [")) }, blocker: "is not readable"},
		"a huge one": {change: func(s *snapshot.Snapshot) {
			proxied(s, spireSocket)
			s.Objects = append(s.Objects, mesh(strings.Repeat("#", 300<<10)))
		}, blocker: "is not read"},
		"a right one, elsewhere a wrong one": {change: func(s *snapshot.Snapshot) {
			proxied(s, spireSocket)
			wrong := mesh("{}")
			wrong.SetNamespace("payments")
			s.Objects = append(s.Objects, mesh("trustDomain: demo.example\ntrustDomainAliases: [demo.example]"), wrong)
		}},
		"a WasmPlugin before authorization": {change: func(s *snapshot.Snapshot) {
			proxied(s, spireSocket)
			s.Objects = append(s.Objects, istioObject("extensions.istio.io/v1alpha1", "WasmPlugin", "payments", map[string]any{"phase": "AUTHN"}))
		}, blocker: "WasmPlugin payments/theirs runs before a request is judged", report: "WasmPlugin payments/theirs runs"},
		"one after it": {change: func(s *snapshot.Snapshot) {
			proxied(s, spireSocket)
			s.Objects = append(s.Objects, istioObject("extensions.istio.io/v1alpha1", "WasmPlugin", "payments", map[string]any{"phase": "STATS"}))
		}, report: "WasmPlugin payments/theirs runs"},
		"one for other pods": {change: func(s *snapshot.Snapshot) {
			proxied(s, spireSocket)
			s.Objects = append(s.Objects, istioObject("extensions.istio.io/v1alpha1", "WasmPlugin", "payments", map[string]any{"phase": "AUTHN", "selector": map[string]any{"matchLabels": map[string]any{"app": "other"}}}))
		}, report: "WasmPlugin payments/theirs runs"},
		"an EnvoyFilter of the root namespace": {change: func(s *snapshot.Snapshot) {
			proxied(s, spireSocket)
			s.Objects = append(s.Objects, istioObject("networking.istio.io/v1alpha3", "EnvoyFilter", "istio-system", map[string]any{}))
		}, blocker: "EnvoyFilter istio-system/theirs can change a request", report: "EnvoyFilter istio-system/theirs"},
		"an EnvoyFilter of a namespace that is not enrolled": {change: func(s *snapshot.Snapshot) {
			proxied(s, spireSocket)
			s.Objects = append(s.Objects, istioObject("networking.istio.io/v1alpha3", "EnvoyFilter", "other", map[string]any{}))
		}},
		"a Sidecar that is not captured": {change: func(s *snapshot.Snapshot) {
			proxied(s, spireSocket)
			s.Objects = append(s.Objects, istioObject("networking.istio.io/v1alpha3", "Sidecar", "payments", map[string]any{"ingress": []any{map[string]any{"captureMode": "NONE"}}}))
		}, blocker: "Sidecar payments/theirs has inbound listeners"},
		"a Sidecar for the way out": {change: func(s *snapshot.Snapshot) {
			proxied(s, spireSocket)
			s.Objects = append(s.Objects, istioObject("networking.istio.io/v1alpha3", "Sidecar", "payments", map[string]any{"egress": []any{}}))
		}},
		"a RequestAuthentication": {change: func(s *snapshot.Snapshot) {
			proxied(s, spireSocket)
			s.Objects = append(s.Objects, istioObject("security.istio.io/v1", "RequestAuthentication", "payments", map[string]any{}))
		}, report: "RequestAuthentication payments/theirs can refuse"},
		"a pod that opts out by its label": {change: func(s *snapshot.Snapshot) {
			proxied(s, spireSocket)
			s.Pods[0].Labels["sidecar.istio.io/inject"] = "false"
		}, report: "payments/api-fra-1 has label sidecar.istio.io/inject=false"},
		"a namespace's waypoint": {change: func(s *snapshot.Snapshot) {
			proxied(s, spireSocket)
			s.Namespaces[0].Labels["istio.io/use-waypoint"] = "waypoint"
		}, note: "namespace payments: traffic goes through a waypoint"},
		"a peer without a TrustPolicy": {change: func(s *snapshot.Snapshot) {
			proxied(s, spireSocket)
			s.Policies = s.Policies[:1]
		}, note: "no TrustPolicy is for service account frontend of shop"},
		"a peer that no pod is": {change: func(s *snapshot.Snapshot) {
			proxied(s, spireSocket)
			s.Policies[0].Spec.Ingress[0].From = append(s.Policies[0].Spec.Ingress[0].From, v1alpha1.Peer{Namespace: "shop", ServiceAccount: "frontnd"})
		}, note: "no pod runs as service account frontnd of shop"},
		"workloads that no pod is": {change: func(s *snapshot.Snapshot) {
			s.Policies[0].Spec.Workloads.ServiceAccount = "wbe"
		}, note: "the policy selects no pod: none in payments runs as service account wbe"},
	} {
		t.Run(name, func(t *testing.T) {
			s := snapshottest.Demo()
			if c.change != nil {
				c.change(&s)
			}
			g := build(t, s)
			p, _ := g.Policy("payments", "api")
			blockers := strings.Join(p.Blockers, "; ")
			if c.blocker == "" && strings.Contains(blockers, "ingress.http") || !strings.Contains(blockers, c.blocker) {
				t.Errorf("blockers %q, want %q", blockers, c.blocker)
			}
			if c.blocker == "" && strings.Contains(blockers, "mesh configuration") {
				t.Errorf("blockers %q", blockers)
			}
			if notes := strings.Join(p.Notes, "; "); !strings.Contains(notes, c.note) {
				t.Errorf("notes %q, want %q", notes, c.note)
			}
			if reports := strings.Join(g.Reports, "; "); !strings.Contains(reports, c.report) {
				t.Errorf("reports %q, want %q", reports, c.report)
			}
		})
	}
}
