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
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

// judged is what the graph says of payments/api on fra-1.
func judged(t *testing.T, s snapshot.Snapshot) trustgraph.Pod {
	t.Helper()
	g, err := trustgraph.Build(s)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(g.Pods(), func(p *trustgraph.Pod) bool { return p.Name == "api-fra-1" })
	return *g.Pods()[i]
}

// TestLevels: which level each pod of the demo meets.
func TestLevels(t *testing.T) {
	for name, tc := range map[string]struct {
		change               func(*corev1.Pod)
		baseline, restricted bool
	}{
		"hardened":          {func(*corev1.Pod) {}, true, true},
		"nothing said":      {func(p *corev1.Pod) { p.Spec.Containers[0].SecurityContext = nil }, true, false},
		"shared processes":  {func(p *corev1.Pod) { p.Spec.ShareProcessNamespace = ptr(true) }, true, false},
		"an init container": {func(p *corev1.Pod) { p.Spec.InitContainers = []corev1.Container{{Name: "i"}} }, true, false},
		"privileged":        {func(p *corev1.Pod) { p.Spec.Containers[0].SecurityContext.Privileged = ptr(true) }, false, false},
		"an unsafe sysctl": {func(p *corev1.Pod) {
			p.Spec.SecurityContext = &corev1.PodSecurityContext{Sysctls: []corev1.Sysctl{{Name: "kernel.sem"}}}
		}, false, false},
		"a port of the node": {func(p *corev1.Pod) { p.Spec.Containers[0].Ports = []corev1.ContainerPort{{HostPort: 80}} }, false, false},
		"NET_BIND_SERVICE": {func(p *corev1.Pod) {
			p.Spec.Containers[0].SecurityContext.Capabilities.Add = []corev1.Capability{"NET_BIND_SERVICE"}
		}, true, true},
		"another user's root": {func(p *corev1.Pod) {
			p.Spec.HostUsers = ptr(false)
			p.Spec.Containers[0].SecurityContext.RunAsUser = ptr(int64(0))
		}, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			for level, want := range map[v1alpha1.RuntimeRequirement]bool{
				"": true, v1alpha1.RuntimeAny: true, v1alpha1.RuntimeBaseline: tc.baseline, v1alpha1.RuntimeRestricted: tc.restricted,
			} {
				s := snapshottest.Demo()
				s.Policies[0].Spec.Require.Runtime = level
				tc.change(s.Pods[apiFra])
				for _, c := range s.Pods[apiFra].Spec.InitContainers {
					s.Pods[apiFra].Status.InitContainerStatuses = append(s.Pods[apiFra].Status.InitContainerStatuses, snapshottest.Status(c.Name, "api"))
				}
				if got := judged(t, s); got.Attested != want {
					t.Errorf("%q: attested %v, want %v: %q", level, got.Attested, want, got.Why)
				}
			}
		})
	}
}

func TestALevelThatNoVersionHasIsRefused(t *testing.T) {
	s := snapshottest.Demo()
	s.Policies[0].Spec.Require.Runtime = "hardened"
	if got := judged(t, s); got.Attested {
		t.Error("the pod is attested")
	}
}

// TestAClaimThatIsAFolderOfTheNode: policy-sync knows it by the claim's PersistentVolume.
func TestAClaimThatIsAFolderOfTheNode(t *testing.T) {
	for name, tc := range map[string]struct {
		source   corev1.PersistentVolumeSource
		change   func(*snapshot.Volumes)
		attested bool
		why      string
	}{
		"a storage system's":    {corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "d"}}, nil, true, ""},
		"a folder":              {corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/var/lib/kubelet"}}, nil, false, "volume data is /var/lib/kubelet of the node"},
		"a disk":                {corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: "/mnt/d"}}, nil, false, "local PersistentVolume"},
		"a claim without one":   {corev1.PersistentVolumeSource{}, func(v *snapshot.Volumes) { v.PersistentVolumes = nil }, false, "PersistentVolume pv of claim data does not exist"},
		"no claim":              {corev1.PersistentVolumeSource{}, func(v *snapshot.Volumes) { v.Claims = nil }, false, "claim data does not exist yet"},
		"an unbound claim":      {corev1.PersistentVolumeSource{}, func(v *snapshot.Volumes) { v.Claims[0].Spec.VolumeName = "" }, false, "is not bound"},
		"another's volume":      {corev1.PersistentVolumeSource{}, func(v *snapshot.Volumes) { v.PersistentVolumes[0].Spec.ClaimRef.UID = "x" }, false, "is not bound to claim data"},
		"another namespace's":   {corev1.PersistentVolumeSource{}, func(v *snapshot.Volumes) { v.Claims[0].Namespace = "shop" }, false, "does not exist yet"},
		"a claim, nothing read": {corev1.PersistentVolumeSource{}, func(v *snapshot.Volumes) { *v = snapshot.Volumes{} }, false, "does not exist yet"},
	} {
		for _, level := range []v1alpha1.RuntimeRequirement{v1alpha1.RuntimeBaseline, v1alpha1.RuntimeRestricted} {
			t.Run(name+", "+string(level), func(t *testing.T) {
				s := snapshottest.Demo()
				s.Policies[0].Spec.Require.Runtime = level
				s.Pods[apiFra].Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
					PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}}
				s.Volumes = &snapshot.Volumes{
					Claims: []*corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Namespace: "payments", Name: "data", UID: "c"},
						Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv"}}},
					PersistentVolumes: []*corev1.PersistentVolume{{ObjectMeta: metav1.ObjectMeta{Name: "pv"}, Spec: corev1.PersistentVolumeSpec{
						PersistentVolumeSource: tc.source, ClaimRef: &corev1.ObjectReference{Namespace: "payments", Name: "data", UID: "c"}}}},
				}
				if tc.change != nil {
					tc.change(s.Volumes)
				}
				for i := range s.Volumes.Claims {
					snapshot.TrimVolume(s.Volumes.Claims[i])
				}
				for i := range s.Volumes.PersistentVolumes {
					snapshot.TrimVolume(s.Volumes.PersistentVolumes[i])
				}
				if got := judged(t, s); got.Attested != tc.attested || !strings.Contains(strings.Join(got.Why, " "), tc.why) {
					t.Errorf("attested %v, %q; want %v, %q", got.Attested, got.Why, tc.attested, tc.why)
				}
			})
		}
	}
}

func TestTheStricterLevelOfSeveralPoliciesCounts(t *testing.T) {
	s := snapshottest.Demo()
	second := snapshottest.API()
	second.Name, second.UID = "api-too", "second"
	second.Spec.Require.Runtime, s.Policies[0].Spec.Require.Runtime = v1alpha1.RuntimeRestricted, v1alpha1.RuntimeBaseline
	s.Policies = append(s.Policies, second)
	g, err := trustgraph.Build(s)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(g.Identities, func(id trustgraph.Identity) bool { return id.ServiceAccount == "api" })
	if id := g.Identities[i]; !id.Restricted || !id.Baseline {
		t.Errorf("restricted %v, baseline %v", id.Restricted, id.Baseline)
	}
	s.Pods[apiFra].Spec.Containers[0].SecurityContext = nil
	if judged(t, s).Attested {
		t.Error("a pod that meets only one of its policies' levels is attested")
	}
}
