package confined_test

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/keelson-project/keelson/workloadattestor/confined"
)

func ptr[T any](v T) *T { return &v }

// pod has one container of each kind, and a volume of its own.
func pod() *corev1.Pod {
	mounts := []corev1.VolumeMount{{Name: "own", MountPath: "/own"}, {Name: "v", MountPath: "/v", ReadOnly: true}}
	return &corev1.Pod{Spec: corev1.PodSpec{
		InitContainers:      []corev1.Container{{Name: "init", VolumeMounts: slices.Clone(mounts)}},
		Containers:          []corev1.Container{{Name: "main", VolumeMounts: slices.Clone(mounts)}},
		EphemeralContainers: []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug", VolumeMounts: slices.Clone(mounts)}}},
		Volumes:             []corev1.Volume{{Name: "own", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}},
	}}
}

func volume(p *corev1.Pod, source corev1.VolumeSource) {
	p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "v", VolumeSource: source})
}

func hostPath(p *corev1.Pod, path string) {
	volume(p, corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path}})
}

func claim(p *corev1.Pod) {
	volume(p, corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}})
}

// securities are the three kinds of containers' security contexts.
func securities(p *corev1.Pod) map[string]**corev1.SecurityContext {
	return map[string]**corev1.SecurityContext{
		"init": &p.Spec.InitContainers[0].SecurityContext, "main": &p.Spec.Containers[0].SecurityContext, "debug": &p.Spec.EphemeralContainers[0].SecurityContext,
	}
}

func TestRestrictedPods(t *testing.T) {
	for name, change := range map[string]func(*corev1.Pod){
		"an ordinary one":            func(*corev1.Pod) {},
		"a claim, whole":             claim,
		"a part of a volume":         func(p *corev1.Pod) { p.Spec.Containers[0].VolumeMounts[0].SubPath = "x" },
		"an allowed path, read-only": func(p *corev1.Pod) { hostPath(p, "/run/spire/agent/public/") },
		"dropped capabilities": func(p *corev1.Pod) {
			p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}}
		},
		"privileged, that it is not": func(p *corev1.Pod) {
			p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: ptr(false)}
		},
		"an ephemeral volume, whole": func(p *corev1.Pod) { volume(p, corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}) },
		"a volume of the CSI driver": func(p *corev1.Pod) {
			volume(p, corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: "csi.spiffe.io"}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := pod()
			change(p)
			if why := confined.Unmet(p, []string{"/run/spire/agent"}); len(why) > 0 {
				t.Errorf("refused: %q", why)
			}
		})
	}
}

func TestPodsThatAreNot(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*corev1.Pod)
		want   string
		path   bool // also among Paths
	}{
		"the node's processes":       {func(p *corev1.Pod) { p.Spec.HostPID = true }, "PID namespace", false},
		"the node's IPC":             {func(p *corev1.Pod) { p.Spec.HostIPC = true }, "IPC namespace", false},
		"the node's network":         {func(p *corev1.Pod) { p.Spec.HostNetwork = true }, "network namespace", false},
		"a path that is not allowed": {func(p *corev1.Pod) { hostPath(p, "/run/spire/agent-admin") }, "volume v is /run/spire/agent-admin of the node, which is not among", true},
		"the root":                   {func(p *corev1.Pod) { hostPath(p, "/") }, "volume v is / of the node", true},
		"no path":                    {func(p *corev1.Pod) { hostPath(p, "") }, "of the node, which is not among", true},
		"an allowed path, for writing": {func(p *corev1.Pod) {
			hostPath(p, "/run/spire/agent")
			p.Spec.EphemeralContainers[0].VolumeMounts[1].ReadOnly = false
		}, "container debug mounts it for writing", true},
		"a part of a claim":       {func(p *corev1.Pod) { claim(p); p.Spec.InitContainers[0].VolumeMounts[1].SubPath = "x" }, "container init mounts a subPath of volume v", true},
		"a part by an expression": {func(p *corev1.Pod) { claim(p); p.Spec.Containers[0].VolumeMounts[1].SubPathExpr = "$(X)" }, "container main mounts a subPath of volume v", true},
		"a part of an ephemeral one": {func(p *corev1.Pod) {
			volume(p, corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}})
			p.Spec.Containers[0].VolumeMounts[1].SubPath = "x"
		}, "container main mounts a subPath", true},
		"a block device": {func(p *corev1.Pod) {
			claim(p)
			p.Spec.Containers[0].VolumeDevices = []corev1.VolumeDevice{{Name: "v", DevicePath: "/dev/x"}}
		}, "container main uses block device v", true},
		"a pod that is a Windows host process": {func(p *corev1.Pod) {
			p.Spec.SecurityContext = &corev1.PodSecurityContext{WindowsOptions: &corev1.WindowsSecurityContextOptions{HostProcess: ptr(true)}}
		}, "the pod is a Windows host process", false},
	} {
		t.Run(name, func(t *testing.T) {
			p := pod()
			tc.change(p)
			allowed := []string{"/run/spire/agent"}
			if why := confined.Unmet(p, allowed); len(why) != 1 || !strings.Contains(why[0], tc.want) {
				t.Errorf("got %q, want one with %q", why, tc.want)
			}
			if why := confined.Paths(p, allowed); (len(why) == 1) != tc.path {
				t.Errorf("paths: %q", why)
			}
		})
	}
	for kind := range securities(pod()) {
		for name, tc := range map[string]struct {
			security corev1.SecurityContext
			want     string
		}{
			"privileged":             {corev1.SecurityContext{Privileged: ptr(true)}, "container " + kind + " is privileged"},
			"a capability":           {corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN"}}}, "container " + kind + " adds capabilities [NET_ADMIN]"},
			"a Windows host process": {corev1.SecurityContext{WindowsOptions: &corev1.WindowsSecurityContextOptions{HostProcess: ptr(true)}}, "container " + kind + " is a Windows host process"},
		} {
			t.Run(kind+": "+name, func(t *testing.T) {
				p := pod()
				*securities(p)[kind] = &tc.security
				if why := confined.Unmet(p, nil); len(why) != 1 || why[0] != tc.want {
					t.Errorf("got %q, want %q", why, tc.want)
				}
			})
		}
	}
}
