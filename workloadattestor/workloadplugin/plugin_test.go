package workloadplugin_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	workloadattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/workloadattestor/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/keelson-project/keelson/workloadattestor/image/imagetest"
	"github.com/keelson-project/keelson/workloadattestor/runtime/runtimetest"
)

func TestAttest(t *testing.T) {
	w := newWorld(t)
	w.configure(w.hcl())
	got, err := w.attest(42)
	if d := cmp.Diff(w.selectors(), got); err != nil || d != "" {
		t.Errorf("%v (-want +got)\n%s", err, d)
	}
	reference, err := anypb.New(&broker.WorkloadPIDReference{Pid: 42})
	if err != nil {
		t.Fatal(err)
	}
	answer, err := w.attestor.AttestReference(t.Context(), &workloadattestorv1.AttestReferenceRequest{Reference: reference})
	if d := cmp.Diff(w.selectors(), answer.GetSelectorValues()); err != nil || d != "" {
		t.Errorf("by reference: %v (-want +got)\n%s", err, d)
	}
}

// posture are the kinds of selectors that say how the node's kernel confines the container.
var posture = []string{"apparmor:", "capability:", "no-new-privileges:", "read-only-root:", "seccomp:", "user:", "user-namespace:"}

func TestThreat22_WhatIsNotProvedIsAbsent(t *testing.T) {
	cases := map[string]struct {
		change func(w *world)
		config func(hcl string) string
		absent []string
		add    []string
		reason string // in the log
	}{
		"the registry is away": {
			change: func(w *world) { w.down.Store(true) }, absent: []string{"image-", "signed-by:"}, reason: "403"},
		"no verifier's key signed": {
			change: func(w *world) { _, public, _ := imagetest.NewKey(); w.write("release.pub", string(public)) },
			absent: []string{"signed-by:"}, reason: "signed-by:release-key: none of 1 signatures"},
		"the API has no such pod": {
			change: func(w *world) { empty := ""; w.api.Store(&empty) }, absent: []string{"sa:", "runtime:", "host-path:"}, reason: "the API has no such pod"},
		"the API has another pod of that name": {
			change: func(w *world) { other := strings.Replace(apiPod, podUID, "other", 1); w.api.Store(&other) },
			absent: []string{"sa:", "runtime:", "host-path:"}, reason: "has UID other"},
		"the API has the pod on another node": {
			change: func(w *world) { other := strings.Replace(apiPod, "fra-1", "par-1", 1); w.api.Store(&other) },
			absent: []string{"sa:", "runtime:", "host-path:"}, reason: "is on node"},
		"the API answers garbage": {
			change: func(w *world) { other := "{"; w.api.Store(&other) }, absent: []string{"sa:", "runtime:", "host-path:"}, reason: "sa: pod: payments/api-0"},
		"no API is configured": {
			change: func(*world) {}, config: func(hcl string) string { return without1(hcl, "kubeconfig") }, absent: []string{"sa:", "runtime:", "host-path:"}},
		"no registry is configured": {
			change: func(*world) {}, config: func(hcl string) string { return without1(hcl, "insecure_registries") },
			absent: []string{"image-", "signed-by:"}, reason: "no source"},
		"the runtime tells no capabilities": {
			change: func(w *world) {
				info := w.pod.ContainerInfo()
				delete(info["runtimeSpec"].(map[string]any), "process")
				w.putInfo(info)
			}, absent: append([]string{"runtime:"}, posture...), reason: "does not report how the container is confined"},
		"a runtime that confines by itself": {
			change: func(w *world) {
				info := w.pod.ContainerInfo()
				info["runtimeType"] = "io.containerd.wasmtime.v1"
				w.putInfo(info)
			}, absent: append([]string{"runtime:", "sandbox:"}, posture...), reason: "does not report how the container is confined"},
		"fields of tomorrow in the pod": {
			change: func(w *world) {
				newer := strings.Replace(apiPod, `"runAsNonRoot"`, `"mayReadTheKernel":true,"runAsNonRoot"`, 1)
				w.api.Store(&newer)
			}, absent: []string{"runtime:"}, reason: `does not know what field spec.containers[0].securityContext.mayReadTheKernel allows`},
		"fields of tomorrow that the API server fills in": {
			change: func(w *world) {
				newer := strings.Replace(apiPod, `"name":"main"`, `"name":"main","resizePolitely":true`, 1)
				w.api.Store(&newer)
			}},
		"a field that is given twice": {
			change: func(w *world) {
				twice := strings.Replace(apiPod, `"serviceAccountName"`, `"nodeName":"fra-1","serviceAccountName"`, 1)
				w.api.Store(&twice)
			}, absent: []string{"sa:", "runtime:", "host-path:"}, reason: "ambiguous"},
		"root by the image, whatever the pod's spec says": {
			change: func(w *world) {
				info := w.pod.ContainerInfo()
				info["runtimeSpec"].(map[string]any)["process"].(map[string]any)["user"] = map[string]any{"uid": 0}
				w.putInfo(info)
			}, absent: []string{"runtime:restricted", "user:"}, add: []string{"user:0"}, reason: "runAsUser=0"},
		"no seccomp filter, whatever the pod's spec says": {
			change: func(w *world) {
				info := w.pod.ContainerInfo()
				delete(info["runtimeSpec"].(map[string]any)["linux"].(map[string]any), "seccomp")
				w.putInfo(info)
			}, absent: []string{"runtime:restricted", "seccomp:"}, add: []string{"seccomp:unconfined"}, reason: "seccompProfile"},
		"baseline by the pod's spec": {
			change: func(w *world) {
				lax := strings.Replace(apiPod, `"runAsNonRoot":true`, `"runAsNonRoot":false`, 1)
				w.api.Store(&lax)
			}, absent: []string{"runtime:restricted"}, reason: "runtime:restricted: level restricted forbids: runAsNonRoot"},
		"a runtime class": {
			change: func(w *world) {
				class := strings.Replace(apiPod, `"nodeName"`, `"runtimeClassName":"fast","nodeName"`, 1)
				w.api.Store(&class)
			}, add: []string{"runtime-class:fast"}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			tc.change(w)
			hcl := w.hcl()
			if tc.config != nil {
				hcl = tc.config(hcl)
			}
			w.configure(hcl)
			got, err := w.attest(42)
			want := append(without(w.selectors(), tc.absent...), tc.add...)
			slices.Sort(want)
			slices.Sort(got)
			if d := cmp.Diff(want, got); err != nil || d != "" {
				t.Errorf("%v (-want +got)\n%s", err, d)
			}
			if !strings.Contains(w.log.String(), tc.reason) {
				t.Errorf("the log has no word of %q:\n%s", tc.reason, w.log)
			}
		})
	}
}

// without1 drops the line that starts with key.
func without1(hcl, key string) string {
	var out []string
	for line := range strings.Lines(hcl) {
		if !strings.HasPrefix(line, key) {
			out = append(out, line)
		}
	}
	return strings.Join(out, "")
}

func (w *world) putInfo(info map[string]any) {
	w.t.Helper()
	container, sandbox, err1 := w.pod.Answers()
	raw, err2 := json.Marshal(info)
	if err := errors.Join(err1, err2); err != nil {
		w.t.Fatal(err)
	}
	container.Info["info"] = string(raw)
	w.runtime.Put(container, sandbox)
}

func TestPrivilegesAreFlagged(t *testing.T) {
	cases := map[string]struct {
		change       func(*runtimetest.Pod)
		add, missing string
	}{
		"privileged":           {func(p *runtimetest.Pod) { p.Privileged = true }, "privileged:true", "privileged:false"},
		"host PID":             {func(p *runtimetest.Pod) { p.HostPID = true }, "host-pid:true", "host-pid:false"},
		"host network":         {func(p *runtimetest.Pod) { p.HostNetwork = true }, "host-net:true", "host-net:false"},
		"host IPC":             {func(p *runtimetest.Pod) { p.HostIPC = true }, "host-ipc:true", "host-ipc:false"},
		"host path":            {func(p *runtimetest.Pod) { p.HostPaths = []string{"/run/containerd/containerd.sock"} }, "host-path:true", "host-path:false"},
		"another pod's volume": {func(p *runtimetest.Pod) { p.HostPaths = []string{"/var/lib/kubelet/pods/" + p.UID + "0/volumes/x"} }, "host-path:true", "host-path:false"},
		"capability":           {func(p *runtimetest.Pod) { p.Capabilities = []string{"CAP_BPF"} }, "privileged:false", "runtime:restricted"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			tc.change(&w.pod)
			if err := w.runtime.Add(w.pod); err != nil {
				t.Fatal(err)
			}
			w.configure(w.hcl())
			got, err := w.attest(42)
			text := " " + strings.Join(got, " ") + " "
			if err != nil || !strings.Contains(text, " "+tc.add+" ") || strings.Contains(text, " "+tc.missing+" ") || strings.Contains(text, "runtime:") {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
}

// TestPathsOfTheNode: which mounts leave a pod restricted, and what of the configuration and of the pod's spec decides it.
func TestPathsOfTheNode(t *testing.T) {
	const own = "/var/lib/kubelet/pods/" + podUID
	const claim = `"volumes":[{"name":"d","persistentVolumeClaim":{"claimName":"d"}}]`
	const allowed = `allowed_host_paths = ["/etc/x", "/run/spire/agent"]`
	cases := map[string]struct {
		mounts []string // "rw " before those that may be written
		spec   string   // of the pod, beside its node and its account
		config string
		want   string // the selector of kind host-path
	}{
		"the pod's own":                        {nil, "", "", "host-path:false"},
		"a volume of its own":                  {[]string{"rw " + own + "/volumes/kubernetes.io~csi/pvc-1/mount"}, claim, "", "host-path:false"},
		"a claim that is a folder of the node": {[]string{own + "/volumes/kubernetes.io~local-volume/pv-1"}, claim, "", "host-path:true"},
		"one that is allowed":                  {[]string{"/run/spire/agent", "/run/spire/agent/public/api.sock"}, "", allowed, "host-path:false"},
		"one that is allowed, for writing":     {[]string{"rw /run/spire/agent"}, "", allowed, "host-path:true"},
		"the neighbour of one that is allowed": {[]string{"/run/spire/agent-admin"}, "", allowed, "host-path:true"},
		"the root of the node":                 {[]string{"/"}, "", allowed, "host-path:true"},
		"the folder of all pods":               {[]string{"/var/lib/kubelet/pods"}, "", "", "host-path:true"},
		"another pod's volume":                 {[]string{own + "0/volumes/x"}, "", "", "host-path:true"},
		"another kubelet's folder":             {nil, "", `kubelet_root = "/data/kubelet"`, "host-path:true"},
		"a part of a volume of its own":        {[]string{"rw " + own + "/volume-subpaths/e/main/0"}, `"volumes":[{"name":"e","emptyDir":{}}]`, "", "host-path:false"},
		"a part of a path of the node":         {[]string{own + "/volume-subpaths/h/main/0"}, `"volumes":[{"name":"h","hostPath":{"path":"/run"}}],"containers":[{"name":"main","volumeMounts":[{"name":"h","subPath":"containerd","readOnly":true}]}]`, "", "host-path:true"},
		"a part of a claim":                    {[]string{own + "/volume-subpaths/pv-1/main/0"}, claim + `,"containers":[{"name":"main","volumeMounts":[{"name":"d","subPath":"x"}]}]`, "", ""},
		"one in another container of the pod":  {nil, `"volumes":[{"name":"h","hostPath":{"path":"/run/containerd"}}],"containers":[{"name":"main"},{"name":"other","volumeMounts":[{"name":"h"}]}]`, "", "host-path:true"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.pod.HostPaths = tc.mounts
			if err := w.runtime.Add(w.pod); err != nil {
				t.Fatal(err)
			}
			w.spec(tc.spec)
			w.configure(w.hcl() + tc.config + "\n")
			got, err := w.attest(42)
			if restricted := slices.Contains(got, "runtime:restricted"); err != nil || !strings.Contains(strings.Join(got, " ")+" ", tc.want+" ") ||
				tc.want == "" && strings.Contains(strings.Join(got, " "), "host-path:") || restricted != (tc.want == "host-path:false") {
				t.Errorf("got %v, %v; want %q", got, err, tc.want)
			}
		})
	}
	t.Run("a runtime that tells no mounts", func(t *testing.T) {
		w := newWorld(t)
		container, sandbox, err := w.pod.Answers()
		if err != nil {
			t.Fatal(err)
		}
		container.Status.Mounts = nil
		w.runtime.Put(container, sandbox)
		w.configure(w.hcl())
		got, err := w.attest(42)
		if err != nil || strings.Contains(strings.Join(got, " "), "host-path:") || slices.Contains(got, "runtime:restricted") {
			t.Errorf("got %v, %v", got, err)
		}
	})
}

// spec adds to the spec of the API's pod.
func (w *world) spec(more string) {
	if more != "" {
		base := apiPod
		if strings.Contains(more, `"containers":`) {
			base = strings.Replace(base, `,"containers":[{"name":"main","securityContext":`+hardened+`}]`, "", 1)
		}
		changed := strings.Replace(base, `"spec":{`, `"spec":{`+more+",", 1)
		w.api.Store(&changed)
	}
}

// TestOneContainerOfAPodSpeaksForAll: whoever may do more than a restricted container, in the same pod, has its network and its volumes.
func TestOneContainerOfAPodSpeaksForAll(t *testing.T) {
	for name, spec := range map[string]string{
		"privileged":        `"containers":[{"name":"main"},{"name":"other","securityContext":{"privileged":true}}]`,
		"a capability":      `"initContainers":[{"name":"other","securityContext":{"capabilities":{"add":["NET_ADMIN"]}}}],"containers":[{"name":"main"}]`,
		"a debug container": `"containers":[{"name":"main"}],"ephemeralContainers":[{"name":"other","securityContext":{"privileged":true}}]`,
		"host PID":          `"hostPID":true,"containers":[{"name":"main"}]`,
		"a block device":    `"containers":[{"name":"main"},{"name":"other","volumeDevices":[{"name":"d","devicePath":"/dev/x"}]}]`,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.spec(spec)
			w.configure(w.hcl())
			got, err := w.attest(42)
			if err != nil || slices.Contains(got, "runtime:restricted") || !slices.Contains(got, "sa:api") {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
}

func TestProcessesThatAreNotThisNodesHaveNoSelectors(t *testing.T) {
	cases := map[string]string{
		"a process of the host":        "0::/system.slice/sshd.service\n",
		"another node's container":     "0::/kubepods/pod1/" + strings.Repeat("c", 64) + "\n",
		"the pod's sandbox (pause)":    "0::/kubepods/pod1/" + idB + "\n",
		"the runtime's monitor of one": "0::/system.slice/crio-conmon-" + idA + ".scope\n",
	}
	for name, cgroup := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.configure(w.hcl())
			w.process(7, cgroup)
			if got, err := w.attest(7); err != nil || len(got) != 0 {
				t.Errorf("got %v, %v", got, err)
			}
			if !strings.Contains(w.log.String(), "workload has no claims") {
				t.Errorf("no line about it in the log:\n%s", w.log)
			}
		})
	}
}

func TestRefusalsHaveTheirCode(t *testing.T) {
	cases := map[string]struct {
		change func(w *world)
		code   codes.Code
		want   string
	}{
		"no such process":                     {func(w *world) { _ = os.RemoveAll(filepath.Join(w.dir, "proc", "42")) }, codes.PermissionDenied, "no such file"},
		"two containers":                      {func(w *world) { w.process(42, "0::/"+idA+"/"+idB+"\n") }, codes.PermissionDenied, "ambiguous"},
		"a cgroup that only bears the name":   {func(w *world) { w.process(42, "0::/user.slice/"+idA+"\n") }, codes.PermissionDenied, "the runtime made"},
		"a cgroup namespace of another root":  {func(w *world) { w.process(42, "0::/../"+idA+"\n") }, codes.PermissionDenied, "host's cgroup namespace"},
		"the runtime contradicts itself":      {func(w *world) { i := w.pod.ContainerInfo(); delete(i, "sandboxID"); w.putInfo(i) }, codes.PermissionDenied, "sandbox"},
		"the runtime is away":                 {func(w *world) { w.runtime.Fail(status.Error(codes.Unavailable, "down")) }, codes.Unavailable, "down"},
		"a container that was created":        {func(w *world) { w.state(criv1.ContainerState_CONTAINER_CREATED) }, codes.Unavailable, "not known to run yet"},
		"a container that has ended":          {func(w *world) { w.state(criv1.ContainerState_CONTAINER_EXITED) }, codes.PermissionDenied, "not running"},
		"a name that cannot be a selector":    {func(w *world) { w.pod.Namespace = "Payments"; _ = w.runtime.Add(w.pod) }, codes.PermissionDenied, "selector ns"},
		"the runtime tells no cgroup path":    {func(w *world) { w.pod.CgroupsPath = ""; _ = w.runtime.Add(w.pod) }, codes.PermissionDenied, "want an absolute path"},
		"the runtime tells of another cgroup": {func(w *world) { w.pod.CgroupsPath = "/kubepods/x/" + idA; _ = w.runtime.Add(w.pod) }, codes.PermissionDenied, "the runtime made"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.configure(w.hcl())
			tc.change(w)
			got, err := w.attest(42)
			if status.Code(err) != tc.code || !strings.Contains(err.Error(), tc.want) || got != nil {
				t.Errorf("got %v, error %v, want %s with %q", got, err, tc.code, tc.want)
			}
			if !strings.Contains(w.log.String(), "workload refused") {
				t.Errorf("no line about it in the log:\n%s", w.log)
			}
		})
	}
}

// state puts the container into a state.
func (w *world) state(state criv1.ContainerState) {
	w.t.Helper()
	container, sandbox, err := w.pod.Answers()
	if err != nil {
		w.t.Fatal(err)
	}
	container.Status.State = state
	w.runtime.Put(container, sandbox)
}

// TestPodWithoutClaimsSaysWhyOnce: at level info, so that its operator hears it, and not for each of its calls.
func TestPodWithoutClaimsSaysWhyOnce(t *testing.T) {
	w := newWorld(t)
	w.configure(w.hcl())
	cgroups := map[int32]string{
		7:  "/system.slice/containerd.service/kubepods-pod1.slice:cri-containerd:" + idA,
		8:  "/system.slice/containerd.service/kubepods-pod1.slice:cri-containerd:" + idA,
		9:  "/kubepods/pod1/" + idB, // the sandbox
		10: "/kubepods/pod1/" + strings.Repeat("c", 64),
		11: "/system.slice/sshd.service",
	}
	for range 3 {
		for pid, cgroup := range cgroups {
			w.process(int(pid), "0::"+cgroup+"\n")
			if got, err := w.attest(pid); err != nil || len(got) != 0 {
				t.Fatalf("%s: %v, %v", cgroup, got, err)
			}
		}
	}
	var told []string
	for line := range strings.Lines(w.log.String()) {
		if strings.Contains(line, `"@level":"info"`) && strings.Contains(line, "workload has no claims") {
			told = append(told, line)
		}
	}
	if len(told) != 3 {
		t.Errorf("got %d lines, want one for each container:\n%s", len(told), strings.Join(told, ""))
	}
	for _, want := range []string{"SystemdCgroup = true", "sandbox of pod payments/api-0", "unknown to this node's runtime"} {
		if !strings.Contains(strings.Join(told, ""), want) {
			t.Errorf("no line says %q:\n%s", want, strings.Join(told, ""))
		}
	}
}

// TestRegistryCredentialsAreReadAgain: what changes takes effect without a new configuration, and what is broken is reported.
func TestRegistryCredentialsAreReadAgain(t *testing.T) {
	w := newWorld(t)
	path := w.write("auth.json", `{"auths":{"r.example":{"auth":"dTpw"}}}`)
	w.configure(w.hcl() + fmt.Sprintf("registry_auth_path = %q\ncache_ttl = \"1ns\"\n", path))
	for content, want := range map[string]string{`{"auths":{"r.example":{}}}`: "the last good content stays in force", `{"auths":{"r.example":{"auth":"dTpx"}}}`: "were read again"} {
		w.write("auth.json", content)
		if got, err := w.attest(42); err != nil || !slices.Contains(got, "signed-by:release-key") {
			t.Fatalf("got %v, %v", got, err)
		}
		if !strings.Contains(w.log.String(), want) {
			t.Errorf("the log has no %q:\n%s", want, w.log)
		}
	}
}

func TestReferencesThatAreRefused(t *testing.T) {
	w := newWorld(t)
	w.configure(w.hcl())
	other, err := anypb.New(&emptypb.Empty{})
	if err != nil {
		t.Fatal(err)
	}
	pid, err := anypb.New(&broker.WorkloadPIDReference{Pid: 42})
	if err != nil {
		t.Fatal(err)
	}
	pid.Value = []byte{0xff}
	for name, reference := range map[string]*anypb.Any{"another type": other, "none": nil, "garbage": pid} {
		if _, err := w.attestor.AttestReference(t.Context(), &workloadattestorv1.AttestReferenceRequest{Reference: reference}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestNotConfigured(t *testing.T) {
	w := newWorld(t)
	if _, err := w.attest(42); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("got %v", err)
	}
}

func TestThreat14_ProcessThatMovesWhileItIsAttestedIsRefused(t *testing.T) {
	w := newWorld(t)
	w.configure(w.hcl())
	answer := apiPod
	moved := false
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		if !moved { // the last question before the answer: meanwhile another process takes the ID
			moved = true
			w.write("proc/42/stat", "42 (app) S 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 9999 1 1\n")
		}
		rw.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(rw, answer)
	}))
	defer server.Close()
	w.write("kubeconfig", fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","clusters":[{"name":"c","cluster":{"server":%q}}],"contexts":[{"name":"c","context":{"cluster":"c","user":""}}]}`, server.URL))
	w.configure(w.hcl())
	if got, err := w.attest(42); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "replaced by another") {
		t.Errorf("got %v, %v", got, err)
	}
}
