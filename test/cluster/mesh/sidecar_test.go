package mesh_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson-project/keelson/test/cluster/mesh"
)

func template() *corev1.PodTemplateSpec {
	return &corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "api"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "x"}}},
	}
}

func TestNothingThatASidecarAddsIsMoreThanRestricted(t *testing.T) {
	pod := template()
	sidecar := mesh.Sidecar{TrustDomain: trustDomain, Image: "registry.test/proxy", Socket: "api.sock"}
	if err := sidecar.Inject(pod); err != nil {
		t.Fatal(err)
	}
	added := append(slices.Clone(pod.Spec.InitContainers), pod.Spec.Containers[1:]...)
	if len(added) != 2 {
		t.Fatalf("%d containers were added, want 2", len(added))
	}
	for _, c := range added {
		sc := c.SecurityContext
		switch {
		case sc.Privileged != nil && *sc.Privileged, *sc.AllowPrivilegeEscalation, !*sc.RunAsNonRoot, !*sc.ReadOnlyRootFilesystem:
			t.Errorf("container %s is not restricted: %v", c.Name, sc)
		case len(sc.Capabilities.Add) > 0, !slices.Equal(sc.Capabilities.Drop, []corev1.Capability{"ALL"}):
			t.Errorf("container %s has capabilities: %v", c.Name, sc.Capabilities)
		}
	}
	for _, v := range pod.Spec.Volumes {
		if v.HostPath != nil {
			t.Errorf("volume %s is a folder of the node", v.Name)
		}
	}
	if pod.Spec.HostNetwork || pod.Spec.HostPID || pod.Spec.HostIPC {
		t.Error("the pod shares namespaces with its node")
	}
}

func TestConnectionsUnderOldRulesLiveASecondUnlessSaidOtherwise(t *testing.T) {
	for drain, want := range map[time.Duration]string{0: `"drainDuration":"1s"`, 5 * time.Second: `"drainDuration":"5s"`} {
		pod := template()
		sidecar := mesh.Sidecar{TrustDomain: trustDomain, Image: "registry.test/proxy", Socket: "api.sock", Drain: drain}
		if err := sidecar.Inject(pod); err != nil {
			t.Fatal(err)
		}
		env := pod.Spec.Containers[1].Env
		i := slices.IndexFunc(env, func(v corev1.EnvVar) bool { return v.Name == "PROXY_CONFIG" })
		if i < 0 || !strings.Contains(env[i].Value, want) {
			t.Errorf("drain %s: %v, want %s", drain, env, want)
		}
	}
}

func TestEveryMountOfTheSidecarHasItsVolume(t *testing.T) {
	pod := template()
	sidecar := mesh.Sidecar{TrustDomain: trustDomain, Image: "registry.test/proxy", Socket: "api.sock"}
	if err := sidecar.Inject(pod); err != nil {
		t.Fatal(err)
	}
	for _, m := range pod.Spec.Containers[1].VolumeMounts {
		if !slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name }) {
			t.Errorf("no volume %s", m.Name)
		}
		if m.Name == "workload-socket" && !m.ReadOnly {
			t.Error("pilot-agent may remove SPIRE's socket")
		}
	}
}

func TestSidecarRefusals(t *testing.T) {
	good := mesh.Sidecar{TrustDomain: trustDomain, Image: "registry.test/proxy", Socket: "api.sock"}
	cases := map[string]struct {
		sidecar func(*mesh.Sidecar)
		pod     func(*corev1.PodTemplateSpec)
		want    string
	}{
		"no trust domain":           {sidecar: func(s *mesh.Sidecar) { s.TrustDomain = "" }, want: "trust domain"},
		"no image":                  {sidecar: func(s *mesh.Sidecar) { s.Image = "" }, want: "image"},
		"no socket":                 {sidecar: func(s *mesh.Sidecar) { s.Socket = "" }, want: "name of SPIRE's socket"},
		"a path in place of a name": {sidecar: func(s *mesh.Sidecar) { s.Socket = "/run/spire/api.sock" }, want: "without a folder"},
		"Istio's default socket name, with which it falls back to its own certificates": {
			sidecar: func(s *mesh.Sidecar) { s.Socket = "socket" }, want: "another name",
		},
		"a pod that has a proxy": {
			pod:  func(p *corev1.PodTemplateSpec) { p.Spec.Containers[0].Name = "istio-proxy" },
			want: "already",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			sidecar, pod := good, template()
			if c.sidecar != nil {
				c.sidecar(&sidecar)
			}
			if c.pod != nil {
				c.pod(pod)
			}
			if err := sidecar.Inject(pod); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error about %q", err, c.want)
			}
		})
	}
}
