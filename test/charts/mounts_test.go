package charts

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

// machine are the places of a node that only its agent can read for the server: its devices and logs.
func machine(path string) bool {
	for _, begin := range []string{"/dev/", "/sys/", "/run/log/", "/var/lib/keelson"} {
		if strings.HasPrefix(path, begin) {
			return true
		}
	}
	return false
}

// mounted is where a container sees the machine's places: host path to mount path, with "ro" where it cannot write.
func mounted(volumes []corev1.Volume, mounts []corev1.VolumeMount) map[string]string {
	out := map[string]string{}
	for _, v := range volumes {
		for _, m := range mounts {
			if v.HostPath == nil || m.Name != v.Name || !machine(v.HostPath.Path) {
				continue
			}
			out[v.HostPath.Path] = m.MountPath
			if m.ReadOnly {
				out[v.HostPath.Path] += " ro"
			}
		}
	}
	return out
}

// The values for the upstream chart give the agent of the node attestor the same logs and devices as the example does. Without
// systemd's log, say, nodes whose systemd measures NvPCRs would be refused.
func TestTheChartsValuesMountWhatTheExampleMounts(t *testing.T) {
	text, err := os.ReadFile("../../examples/spire/agent.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for _, o := range objects(t, string(text)) {
		if o.GetKind() != "DaemonSet" {
			continue
		}
		var d appsv1.DaemonSet
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &d); err != nil {
			t.Fatal(err)
		}
		for _, c := range d.Spec.Template.Spec.Containers {
			for host, place := range mounted(d.Spec.Template.Spec.Volumes, c.VolumeMounts) {
				want[host] = place
			}
		}
	}
	if want["/run/log/systemd"] != "/run/log/systemd ro" {
		t.Errorf("the example mounts %v, not systemd's log", want)
	}
	if text, err = os.ReadFile("../../charts/spire-values/values.yaml"); err != nil {
		t.Fatal(err)
	}
	agent, _, err := unstructured.NestedMap(parse(t, string(text)), "spire-agent")
	if err != nil {
		t.Fatal(err)
	}
	var values struct {
		ExtraVolumes      []corev1.Volume      `json:"extraVolumes"`
		ExtraVolumeMounts []corev1.VolumeMount `json:"extraVolumeMounts"`
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(agent, &values); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, mounted(values.ExtraVolumes, values.ExtraVolumeMounts)); diff != "" {
		t.Errorf("mounts (-example +chart's values):\n%s", diff)
	}
}
