package runtime

import (
	"strings"
	"testing"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

func FuzzInfo(f *testing.F) {
	f.Add(`{"sandboxID":"s","config":{"linux":{"security_context":{"namespace_options":{"pid":1}}}},"runtimeSpec":{"process":{"capabilities":{"bounding":["CAP_CHOWN"]}},"linux":{"cgroupsPath":"/a","namespaces":[{"type":"pid"},{"type":"network"},{"type":"ipc"}],"resources":{"devices":[{"allow":false,"access":"rwm"}]}}}}`,
		`{"runtimeSpec":{"linux":{"namespaces":[{"type":"network"},{"type":"ipc"}]}}}`)
	f.Add(`{"sandboxID":"s","privileged":false,"runtimeSpec":{"linux":{"resources":{"devices":[{"allow":true}]}}}}`, `{}`)
	f.Add(`{"sandboxID":"s","config":null,"runtimeSpec":{"linux":null,"process":{}}}`, `null`)
	for _, name := range []string{"ordinary", "privileged"} {
		f.Add(verbose(f, name+"-container")["info"], verbose(f, name+"-sandbox")["info"])
	}
	id := strings.Repeat("a", 64)
	f.Fuzz(func(t *testing.T, container, sandbox string) {
		p, err := parseContainer(id, &criv1.ContainerStatusResponse{
			Status: &criv1.ContainerStatus{
				Id: id, State: criv1.ContainerState_CONTAINER_RUNNING, Metadata: &criv1.ContainerMetadata{Name: "main"},
				Labels: map[string]string{labelNamespace: "n", labelPodName: "p", labelPodUID: "u", labelContainer: "main"},
			},
			Info: map[string]string{"info": container},
		}, false)
		if err != nil {
			return
		}
		err = p.join(&criv1.PodSandboxStatusResponse{
			Status: &criv1.PodSandboxStatus{
				Id: p.facts.SandboxID, State: criv1.PodSandboxState_SANDBOX_READY,
				Metadata: &criv1.PodSandboxMetadata{Namespace: "n", Name: "p", Uid: "u"},
			},
			Info: map[string]string{"info": sandbox},
		})
		if err != nil {
			return
		}
		if p.info.RuntimeSpec == nil && (p.facts.Privileged != workloadclaim.Unproven || p.facts.AddedCapabilities != workloadclaim.Unproven) {
			t.Fatalf("facts without a runtime spec: %+v", p.facts)
		}
		if p.facts.Privileged == workloadclaim.No && allDevices(p.info.RuntimeSpec) {
			t.Fatal("not privileged, and may use every device")
		}
	})
}
