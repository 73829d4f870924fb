package runtime

import (
	"os"
	"path/filepath"
	"testing"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

// verbose reads what containerd 2.4.2 really answered, about a container or about its sandbox.
func verbose(t testing.TB, name string) map[string]string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("testdata", "containerd-2.4.2", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return map[string]string{"info": string(content)}
}

func TestRealAnswersOfContainerd(t *testing.T) {
	node, pod := criv1.NamespaceMode_NODE, criv1.NamespaceMode_POD
	cases := map[string]struct {
		options *criv1.NamespaceOption
		want    workloadclaim.Fact
	}{
		"ordinary":   {&criv1.NamespaceOption{Network: pod, Pid: criv1.NamespaceMode_CONTAINER, Ipc: pod}, workloadclaim.No},
		"privileged": {&criv1.NamespaceOption{Network: node, Pid: node, Ipc: node}, workloadclaim.Yes},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			container, err := parseInfo(verbose(t, name+"-container"))
			if err != nil {
				t.Fatal(err)
			}
			p := parsed{info: container, facts: Container{
				ID: "c", SandboxID: container.SandboxID, Namespace: "payments", PodName: "p", PodUID: "u", Name: "main",
			}}
			err = p.join(&criv1.PodSandboxStatusResponse{
				Status: &criv1.PodSandboxStatus{
					Id: container.SandboxID, State: criv1.PodSandboxState_SANDBOX_READY,
					Metadata: &criv1.PodSandboxMetadata{Namespace: "payments", Name: "p", Uid: "u"},
					Linux:    &criv1.LinuxPodSandboxStatus{Namespaces: &criv1.Namespace{Options: tc.options}},
				},
				Info: verbose(t, name+"-sandbox"),
			})
			if err != nil {
				t.Fatal(err)
			}
			f := p.facts
			for fact, got := range map[string]workloadclaim.Fact{
				"privileged": f.Privileged, "host PID": f.HostPID, "host network": f.HostNetwork, "host IPC": f.HostIPC, "added capabilities": f.AddedCapabilities,
			} {
				if got != tc.want {
					t.Errorf("%s is %s, want %s", fact, got, tc.want)
				}
			}
			if f.CgroupsPath == "" || f.SandboxID == "" {
				t.Errorf("cgroup path %q, sandbox %q", f.CgroupsPath, f.SandboxID)
			}
		})
	}
}
