// Package snapshottest makes snapshots for tests: one small cluster, the one that the
// project's demo shows, whole and healthy apart from one node that is proved bad.
package snapshottest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// Now is the time of every snapshot of this package.
var Now = time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)

// TrustDomain of the demo.
const TrustDomain = "demo.example"

// Demo is three nodes (fra-1 in DE and par-1 in FR trusted, evil-1 proved bad), the
// enforced namespaces payments and shop with a pod of each policy on every node, and
// namespace other, which is not enrolled. Nothing is written yet: no label, no object.
func Demo() snapshot.Snapshot {
	s := snapshot.Snapshot{
		At: Now,
		Config: snapshot.Config{
			TrustDomain: TrustDomain, X509SVIDTTL: time.Minute, Calico: true, Istio: true, Taint: true, MaxDeletePercent: 50,
		},
		Nodes:      []corev1.Node{Node("fra-1", "10.1.0.0/24"), Node("par-1", "10.2.0.0/24"), Node("evil-1", "10.3.0.0/24")},
		NodeTrusts: []v1alpha1.NodeTrust{Trust("fra-1", "DE"), Trust("par-1", "FR"), Trust("evil-1", "DE")},
		Namespaces: []corev1.Namespace{Namespace("payments", v1alpha1.ModeEnforce), Namespace("shop", v1alpha1.ModeEnforce), Namespace("other", "")},
		Policies:   []v1alpha1.TrustPolicy{API(), Frontend()},
		SPIRE:      &snapshot.SPIRE{},
		Images:     map[snapshot.ImageKey]snapshot.Image{},
	}
	evil := &s.NodeTrusts[2].Spec
	evil.Verdict, evil.Reference = v1alpha1.VerdictUntrusted, ""
	evil.Reasons = []v1alpha1.Reason{{Check: "boot.cmdline", Reason: "kernel command line is \"quiet debug\", reference set prod has \"quiet\""}}
	for i, node := range []string{"fra-1", "par-1", "evil-1"} {
		s.Pods = append(s.Pods,
			Pod("payments", "api-"+node, "api", node, fmt.Sprintf("10.%d.0.10", i+1)),
			Pod("shop", "frontend-"+node, "frontend", node, fmt.Sprintf("10.%d.0.11", i+1)),
			Pod("other", "stranger-"+node, "default", node, fmt.Sprintf("10.%d.0.12", i+1)))
		s.SPIRE.Agents = append(s.SPIRE.Agents, snapshot.Agent{ID: AgentID(node), Type: "keelson_tpm", ExpiresAt: Now.Add(time.Minute)})
	}
	Verify(&s)
	return s
}

// EK is the EK hash of a node, made from its name.
func EK(node string) string {
	sum := sha256.Sum256([]byte(node))
	return hex.EncodeToString(sum[:])
}

// AgentID is the SPIFFE ID of a node's agent.
func AgentID(node string) string {
	return "spiffe://" + TrustDomain + "/spire/agent/keelson_tpm/" + EK(node)
}

// UID is the UID of an object, made from its kind and name.
func UID(kind, name string) types.UID {
	sum := sha256.Sum256([]byte(kind + " " + name))
	return types.UID(hex.EncodeToString(sum[:4]))
}

func meta(kind, namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: namespace, Name: name, UID: UID(kind, namespace+"/"+name), ResourceVersion: "7",
		CreationTimestamp: metav1.NewTime(Now.Add(-time.Hour)),
	}
}

// Node is a node with the taint that admission puts on a new one.
func Node(name, podCIDR string) corev1.Node {
	return corev1.Node{
		ObjectMeta: meta("Node", "", name),
		Spec:       corev1.NodeSpec{PodCIDR: podCIDR, PodCIDRs: []string{podCIDR}, Taints: []corev1.Taint{{Key: v1alpha1.UntrustedTaint, Effect: corev1.TaintEffectNoSchedule}}},
	}
}

// Trust is a trusted verdict, one minute old, for the node that Node makes.
func Trust(node, country string) v1alpha1.NodeTrust {
	return v1alpha1.NodeTrust{
		ObjectMeta: meta("NodeTrust", "", node),
		Spec: v1alpha1.NodeTrustSpec{
			Verdict: v1alpha1.VerdictTrusted, Reference: "prod", Tags: map[string]string{"country": country},
			NodeUID: string(UID("Node", "/"+node)), EKHash: EK(node), AgentID: AgentID(node),
			AttestedAt: metav1.NewMicroTime(Now.Add(-time.Minute)), ValidUntil: metav1.NewMicroTime(Now.Add(time.Minute)),
		},
	}
}

// Namespace is a namespace; mode is empty for one that is not enrolled.
func Namespace(name, mode string) corev1.Namespace {
	ns := corev1.Namespace{ObjectMeta: meta("Namespace", "", name)}
	ns.Labels = map[string]string{"kubernetes.io/metadata.name": name}
	if mode != "" {
		ns.Labels[v1alpha1.ModeLabel] = mode
	}
	return ns
}

// Digest is an image's manifest digest, made from its name.
func Digest(image string) string {
	sum := sha256.Sum256([]byte(image))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Pod is a running pod with one container, whose image is named by its service account.
func Pod(namespace, name, account, node, ip string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: meta("Pod", namespace, name)}
	p.Labels = map[string]string{"app": account}
	p.Spec = corev1.PodSpec{NodeName: node, ServiceAccountName: account, Containers: []corev1.Container{
		{Name: "main", Image: "registry.example/" + account + ":1", SecurityContext: Hardened()}}}
	p.Status = corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}},
		ContainerStatuses: []corev1.ContainerStatus{Status("main", account)},
	}
	return p
}

// Hardened is what Pod Security level "restricted" asks of a container.
func Hardened() *corev1.SecurityContext {
	no, yes := false, true
	return &corev1.SecurityContext{
		AllowPrivilegeEscalation: &no, RunAsNonRoot: &yes, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
}

// Status is what a kubelet reports of a container that runs an image.
func Status(container, image string) corev1.ContainerStatus {
	return corev1.ContainerStatus{Name: container, Image: "registry.example/" + image + ":1", ImageID: "registry.example/" + image + "@" + Digest(image)}
}

// Verify makes every image of the snapshot's pods known and accepted by release-key.
func Verify(s *snapshot.Snapshot) {
	for i := range s.Pods {
		for _, c := range snapshot.ContainerStatuses(s.Pods[i]) {
			key := snapshot.ImageKey{Image: c.Image, ImageID: c.ImageID}
			if _, ok := s.Images[key]; ok || c.ImageID == "" {
				continue
			}
			s.Images[key] = snapshot.Image{
				Manifests: []string{c.ImageID[len(c.ImageID)-len("sha256:")-64:]},
				Verifiers: map[string]snapshot.Verification{"release-key": {Accepted: true, ValidUntil: Now.Add(time.Hour)}},
			}
		}
	}
}

// WithoutHTTP takes the HTTP rules of all policies away: no pod here has a proxy, so nothing would enforce them.
func WithoutHTTP(s *snapshot.Snapshot) {
	for i := range s.Policies {
		for j := range s.Policies[i].Spec.Ingress {
			s.Policies[i].Spec.Ingress[j].HTTP = nil
		}
	}
}

// API is the policy of design.md: payments/api, called by shop/frontend.
func API() v1alpha1.TrustPolicy {
	return v1alpha1.TrustPolicy{
		ObjectMeta: meta("TrustPolicy", "payments", "api"),
		Spec: v1alpha1.TrustPolicySpec{
			Workloads: v1alpha1.Workloads{ServiceAccount: "api"},
			Require: v1alpha1.Requirements{
				Node:    v1alpha1.NodeRequirement{References: []string{"prod"}, Tags: map[string][]string{"country": {"DE"}}},
				Image:   v1alpha1.ImageRequirement{VerifiedBy: []string{"release-key"}},
				Runtime: v1alpha1.RuntimeRestricted,
			},
			Ingress: []v1alpha1.IngressRule{{
				From:  []v1alpha1.Peer{{Namespace: "shop", ServiceAccount: "frontend", Tags: map[string][]string{"country": {"DE", "FR"}}}},
				Ports: []int32{8443}, HTTP: []v1alpha1.HTTPRule{{Methods: []string{"POST"}, Paths: []string{"/charge"}}},
			}},
		},
	}
}

// Frontend is the policy of the caller, which nobody may call.
func Frontend() v1alpha1.TrustPolicy {
	return v1alpha1.TrustPolicy{
		ObjectMeta: meta("TrustPolicy", "shop", "frontend"),
		Spec: v1alpha1.TrustPolicySpec{
			Workloads: v1alpha1.Workloads{ServiceAccount: "frontend"},
			Require:   v1alpha1.Requirements{Image: v1alpha1.ImageRequirement{VerifiedBy: []string{"release-key"}}},
		},
	}
}
