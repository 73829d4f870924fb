package runtime_test

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/keelson-project/keelson/workloadattestor/runtime"
	"github.com/keelson-project/keelson/workloadattestor/runtime/runtimetest"
	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

var (
	idA = strings.Repeat("a", 64)
	idB = strings.Repeat("b", 64)
)

func frontend() runtimetest.Pod {
	return runtimetest.Pod{
		Namespace: "shop", Name: "frontend-0", UID: "11111111-2222-3333-4444-555555555555", Container: "main",
		ContainerID: idA, SandboxID: idB,
		ImageID: "sha256:" + strings.Repeat("c", 64), ImageRef: "r.example/app@sha256:" + strings.Repeat("d", 64), Image: "r.example/app:v1",
		CgroupsPath: "/kubepods/pod1/" + idA,
	}
}

func dial(t *testing.T) (*runtimetest.Server, *runtime.Client) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "cri.sock")
	server, stop, err := runtimetest.Serve(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	client, err := runtime.Dial(socket, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	})
	return server, client
}

// defaults are the capabilities of a container that asks for nothing.
var defaults = []string{
	"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW", "SETFCAP",
	"SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
}

// with is the default capabilities and one more.
func with(capability string) []string {
	out := append(slices.Clone(defaults), capability)
	slices.Sort(out)
	return out
}

func TestContainer(t *testing.T) {
	want := runtime.Container{
		ID: idA, SandboxID: idB, Namespace: "shop", PodName: "frontend-0", PodUID: "11111111-2222-3333-4444-555555555555", Name: "main",
		ImageID: "sha256:" + strings.Repeat("c", 64), ImageRef: "r.example/app@sha256:" + strings.Repeat("d", 64), ImageName: "r.example/app:v1",
		ImageHints:  []string{"r.example/app@sha256:" + strings.Repeat("d", 64), "r.example/app:v1"},
		CgroupsPath: "/kubepods/pod1/" + idA,
		Privileged:  workloadclaim.No, HostPID: workloadclaim.No, HostNetwork: workloadclaim.No, HostIPC: workloadclaim.No,
		AddedCapabilities: workloadclaim.No, Reported: true, Sandbox: workloadclaim.SandboxRunc,
		Posture: workloadclaim.Posture{
			Capabilities: defaults, User: "0", UserNamespace: workloadclaim.No, NoNewPrivileges: workloadclaim.No,
			ReadOnlyRoot: workloadclaim.No, MaskedProc: workloadclaim.Yes,
			Seccomp: workloadclaim.Profile{Confined: workloadclaim.No}, AppArmor: workloadclaim.Profile{Confined: workloadclaim.No},
		},
		Mounts: []runtime.Mount{{Path: "/var/lib/kubelet/pods/11111111-2222-3333-4444-555555555555/containers/main/0a1b2c3d"}},
	}
	cases := map[string]struct {
		pod    func(*runtimetest.Pod)
		change func(*runtime.Container)
	}{
		"an ordinary container": {func(*runtimetest.Pod) {}, func(*runtime.Container) {}},
		"privileged": {func(p *runtimetest.Pod) { p.Privileged = true }, func(c *runtime.Container) {
			c.Privileged, c.AddedCapabilities = workloadclaim.Yes, workloadclaim.Yes
			c.Posture.Capabilities = with("SYS_ADMIN")
		}},
		"host PID":     {func(p *runtimetest.Pod) { p.HostPID = true }, func(c *runtime.Container) { c.HostPID = workloadclaim.Yes }},
		"host network": {func(p *runtimetest.Pod) { p.HostNetwork = true }, func(c *runtime.Container) { c.HostNetwork = workloadclaim.Yes }},
		"host IPC":     {func(p *runtimetest.Pod) { p.HostIPC = true }, func(c *runtime.Container) { c.HostIPC = workloadclaim.Yes }},
		"a path of the node": {func(p *runtimetest.Pod) { p.HostPaths = []string{"/run/containerd/../cri.sock"} }, func(c *runtime.Container) {
			c.Mounts = append(slices.Clone(c.Mounts), runtime.Mount{Path: "/run/cri.sock", ReadOnly: true})
		}},
		"one capability more": {func(p *runtimetest.Pod) { p.Capabilities = []string{"CAP_NET_ADMIN"} }, func(c *runtime.Container) {
			c.AddedCapabilities, c.Posture.Capabilities = workloadclaim.Yes, with("NET_ADMIN")
		}},
		"hardened": {func(p *runtimetest.Pod) { p.Hardened = true }, func(c *runtime.Container) {
			c.Posture = workloadclaim.Posture{
				Capabilities: []string{}, User: "65532", UserNamespace: workloadclaim.No, NoNewPrivileges: workloadclaim.Yes,
				ReadOnlyRoot: workloadclaim.Yes, MaskedProc: workloadclaim.Yes,
				Seccomp:  workloadclaim.Profile{Confined: workloadclaim.Yes, Type: workloadclaim.ProfileRuntimeDefault},
				AppArmor: workloadclaim.Profile{Confined: workloadclaim.No},
			}
		}},
		"a runtime handler": {func(p *runtimetest.Pod) { p.Handler = "crun" }, func(c *runtime.Container) { c.Handler = "crun" }},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			server, client := dial(t)
			p, want := frontend(), want
			tc.pod(&p)
			tc.change(&want)
			if err := server.Add(p); err != nil {
				t.Fatal(err)
			}
			server.PutImage(&criv1.Image{Id: p.ImageID, RepoDigests: []string{p.ImageRef}, RepoTags: []string{p.Image}})
			got, err := client.Container(t.Context(), idA)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
			if d := cmp.Diff([]string{"ContainerStatus", "PodSandboxStatus", "ImageStatus"}, server.Asked()); d != "" {
				t.Errorf("calls: %s", d)
			}
		})
	}
}

func TestUnknownContainersHaveNoFacts(t *testing.T) {
	server, client := dial(t)
	if err := server.Add(frontend()); err != nil {
		t.Fatal(err)
	}
	for name, id := range map[string]string{"another node's container": strings.Repeat("e", 64), "a pod sandbox": idB} {
		if got, err := client.Container(t.Context(), id); !errors.Is(err, runtime.ErrUnknown) || got.ID != "" {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
	}
}

// answers are what a test may change.
type answers struct {
	server        *runtimetest.Server
	container     *criv1.ContainerStatusResponse
	sandbox       *criv1.PodSandboxStatusResponse
	containerInfo map[string]any
	sandboxInfo   map[string]any
}

// at walks down maps.
func at(m map[string]any, path ...string) map[string]any {
	for _, key := range path {
		m, _ = m[key].(map[string]any)
	}
	return m
}

func ask(t *testing.T, pod runtimetest.Pod, change func(*answers)) (runtime.Container, error) {
	t.Helper()
	server, client := dial(t)
	container, sandbox, err := pod.Answers()
	if err != nil {
		t.Fatal(err)
	}
	a := &answers{server: server, container: container, sandbox: sandbox, containerInfo: map[string]any{}, sandboxInfo: map[string]any{}}
	for text, into := range map[string]*map[string]any{container.Info["info"]: &a.containerInfo, sandbox.Info["info"]: &a.sandboxInfo} {
		if err := json.Unmarshal([]byte(text), into); err != nil {
			t.Fatal(err)
		}
	}
	change(a)
	for answer, content := range map[*map[string]string]map[string]any{&container.Info: a.containerInfo, &sandbox.Info: a.sandboxInfo} {
		if content == nil {
			continue // the test wrote the text itself
		}
		raw, err := json.Marshal(content)
		if err != nil {
			t.Fatal(err)
		}
		*answer = map[string]string{"info": string(raw)}
	}
	server.Put(container, sandbox)
	return client.Container(t.Context(), idA)
}

func TestAnswersThatAreRefused(t *testing.T) {
	spec := func(a *answers) map[string]any { return at(a.containerInfo, "runtimeSpec", "linux") }
	sandboxSpec := func(a *answers) map[string]any { return at(a.sandboxInfo, "runtimeSpec", "linux") }
	options := func(a *answers) map[string]any {
		return at(a.containerInfo, "config", "linux", "security_context", "namespace_options")
	}
	cases := map[string]struct {
		change func(*answers)
		want   string
	}{
		"a mount from a relative path": {func(a *answers) { a.container.Status.Mounts[0].HostPath = "run/x" }, "is no absolute path"},
		"a mount from nowhere":         {func(a *answers) { a.container.Status.Mounts[0].HostPath = "" }, "is no absolute path"},
		"not running":                  {func(a *answers) { a.container.Status.State = criv1.ContainerState_CONTAINER_EXITED }, "not running"},
		"sandbox not ready":            {func(a *answers) { a.sandbox.Status.State = criv1.PodSandboxState_SANDBOX_NOTREADY }, "not ready"},
		"no namespace label":           {func(a *answers) { delete(a.container.Status.Labels, "io.kubernetes.pod.namespace") }, "no label io.kubernetes.pod.namespace"},
		"no labels at all":             {func(a *answers) { a.container.Status.Labels = nil }, "not started by a kubelet"},
		"labels of another container":  {func(a *answers) { a.container.Status.Labels["io.kubernetes.container.name"] = "x" }, `"x" in its labels`},
		"sandbox of another pod":       {func(a *answers) { a.sandbox.Status.Metadata.Name = "x" }, "its sandbox says"},
		"sandbox of another namespace": {func(a *answers) { a.sandbox.Status.Metadata.Namespace = "x" },
			"its sandbox says"},
		"sandbox of an older pod of the name": {func(a *answers) { a.sandbox.Status.Metadata.Uid = "x" }, "its sandbox says"},
		"no verbose information":              {func(a *answers) { a.container.Info, a.containerInfo = nil, nil }, "does not tell the pod sandbox"},
		"no sandbox ID":                       {func(a *answers) { delete(a.containerInfo, "sandboxID") }, "does not tell the pod sandbox"},
		"information that is no JSON": {func(a *answers) {
			a.container.Info, a.containerInfo = map[string]string{"info": "{"}, nil
		}, "verbose info"},
		"sandbox information that is no JSON": {func(a *answers) {
			a.sandbox.Info, a.sandboxInfo = map[string]string{"info": "["}, nil
		}, "verbose info"},
		"more information than allowed": {func(a *answers) {
			a.container.Info, a.containerInfo = map[string]string{"info": strings.Repeat(" ", 8<<20+1)}, nil
		}, "the limit is"},
		"unprivileged, but every device allowed": {func(a *answers) {
			spec(a)["resources"] = map[string]any{"devices": []any{map[string]any{"allow": true, "type": "a", "access": "rwm"}}}
		}, "allows every device"},
		"unprivileged, but every device allowed by number": {func(a *answers) {
			spec(a)["resources"] = map[string]any{"devices": []any{map[string]any{"allow": true, "major": -1, "minor": -1, "access": "r"}}}
		}, "allows every device"},
		"spec without a PID namespace": {func(a *answers) {
			spec(a)["namespaces"] = []any{map[string]any{"type": "network"}, map[string]any{"type": "ipc"}}
		}, "host pid namespace"},
		"request says host PID, spec does not":           {func(a *answers) { options(a)["pid"] = 2 }, "host pid namespace"},
		"sandbox says host PID, container not":           {func(a *answers) { a.sandbox.Status.Linux.Namespaces.Options.Pid = criv1.NamespaceMode_NODE }, "host pid namespace"},
		"request says host network, sandbox does not":    {func(a *answers) { options(a)["network"] = 2 }, "host network namespace"},
		"sandbox status says host network, its spec not": {func(a *answers) { a.sandbox.Status.Linux.Namespaces.Options.Network = criv1.NamespaceMode_NODE }, "host network namespace"},
		"sandbox spec without a network namespace":       {func(a *answers) { sandboxSpec(a)["namespaces"] = []any{map[string]any{"type": "ipc"}} }, "host network namespace"},
		"sandbox spec without a PID namespace": {func(a *answers) {
			sandboxSpec(a)["namespaces"] = []any{map[string]any{"type": "network"}, map[string]any{"type": "ipc"}}
		}, "host pid namespace"},
		"container with a network namespace of its own on the host's": {func(a *answers) {
			a.sandbox.Status.Linux.Namespaces.Options.Network = criv1.NamespaceMode_NODE
			options(a)["network"] = 2
			sandboxSpec(a)["namespaces"] = []any{map[string]any{"type": "pid"}, map[string]any{"type": "ipc"}}
			spec(a)["namespaces"] = []any{map[string]any{"type": "pid"}, map[string]any{"type": "ipc"}, map[string]any{"type": "network"}}
		}, "host network namespace"},
		"sandbox spec without an IPC namespace": {func(a *answers) { sandboxSpec(a)["namespaces"] = []any{map[string]any{"type": "network"}} }, "host ipc namespace"},
		"container spec without network, sandbox with it": {func(a *answers) {
			spec(a)["namespaces"] = []any{map[string]any{"type": "pid"}, map[string]any{"type": "ipc"}}
		}, "host network namespace"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := ask(t, frontend(), tc.change)
			if err == nil || !strings.Contains(err.Error(), tc.want) || got.ID != "" {
				t.Errorf("got %+v, error %v, want one with %q", got, err, tc.want)
			}
			if status.Code(err) != codes.Unknown {
				t.Errorf("a refusal carries the gRPC code %s", status.Code(err))
			}
		})
	}
}

func TestFactsThatTheRuntimeDoesNotTellStayUnproven(t *testing.T) {
	all := []string{"privileged", "pid", "network", "ipc", "capabilities"}
	cases := map[string]struct {
		change func(*answers)
		want   []string // unproven
	}{
		"no runtime spec": {func(a *answers) { delete(a.containerInfo, "runtimeSpec") }, []string{"privileged", "capabilities"}},
		"no runtime specs and no request": {func(a *answers) {
			delete(a.containerInfo, "runtimeSpec")
			delete(a.containerInfo, "config")
			a.sandboxInfo = map[string]any{}
		}, all},
		"no capabilities in the spec":                 {func(a *answers) { delete(at(a.containerInfo, "runtimeSpec", "process"), "capabilities") }, []string{"capabilities"}},
		"no request and no flag (an unknown runtime)": {func(a *answers) { delete(a.containerInfo, "config") }, []string{"privileged"}},
		"CRI-O: no request, a flag instead": {func(a *answers) {
			delete(a.containerInfo, "config")
			a.containerInfo["privileged"] = false
		}, nil},
		"an ephemeral container in another one's PID namespace": {func(a *answers) {
			at(a.containerInfo, "config", "linux", "security_context", "namespace_options")["pid"] = 3
		}, []string{"pid"}},
		"nothing but the sandbox's word on shared namespaces": {func(a *answers) {
			delete(a.containerInfo, "config")
			a.containerInfo["privileged"] = false
			a.sandboxInfo = map[string]any{}
		}, []string{"network", "ipc"}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := ask(t, frontend(), tc.change)
			if err != nil {
				t.Fatal(err)
			}
			facts := map[string]workloadclaim.Fact{
				"privileged": got.Privileged, "pid": got.HostPID, "network": got.HostNetwork, "ipc": got.HostIPC, "capabilities": got.AddedCapabilities,
			}
			var unproven []string
			for _, name := range all {
				if facts[name] == workloadclaim.Unproven {
					unproven = append(unproven, name)
				} else if facts[name] != workloadclaim.No {
					t.Errorf("%s is %s", name, facts[name])
				}
			}
			if d := cmp.Diff(tc.want, unproven); d != "" {
				t.Errorf("unproven (-want +got)\n%s", d)
			}
		})
	}
}

// crio changes answers to CRI-O's: it does not show the kubelet's request, and pins a sandbox's network, IPC and UTS namespaces, also
// the host's (cri-o, server/sandbox_run_linux.go and internal/config/nsmgr). Both specs have the pinned paths.
func crio(a *answers) {
	delete(a.containerInfo, "config")
	a.containerInfo["privileged"] = false
	for _, info := range []map[string]any{a.containerInfo, a.sandboxInfo} {
		linux := at(info, "runtimeSpec", "linux")
		namespaces := []any{map[string]any{"type": "mount"}}
		for kind, folder := range map[string]string{"network": "netns", "ipc": "ipcns", "uts": "utsns"} {
			namespaces = append(namespaces, map[string]any{"type": kind, "path": "/var/run/" + folder + "/5b5d2ad6-0a0c-4b4b-9d5a-0e6f8c7d9a10"})
		}
		if a.sandbox.Status.Linux.Namespaces.Options.Pid != criv1.NamespaceMode_NODE {
			namespaces = append(namespaces, map[string]any{"type": "pid"})
		}
		linux["namespaces"] = namespaces
	}
}

// TestNamespacesThatCRIOPins: a path does not say whose namespace it leads to. What the kubelet asked for does.
func TestNamespacesThatCRIOPins(t *testing.T) {
	type facts struct{ pid, network, ipc workloadclaim.Fact }
	const no, yes, unproven = workloadclaim.No, workloadclaim.Yes, workloadclaim.Unproven
	spec := func(info map[string]any) map[string]any { return at(info, "runtimeSpec", "linux") }
	cases := map[string]struct {
		pod    func(*runtimetest.Pod)
		change func(*answers)
		want   facts
		refuse string
	}{
		"an ordinary pod":    {want: facts{no, no, no}},
		"the host's network": {pod: func(p *runtimetest.Pod) { p.HostNetwork = true }, want: facts{no, yes, no}},
		"the host's IPC":     {pod: func(p *runtimetest.Pod) { p.HostIPC = true }, want: facts{no, no, yes}},
		"the host's PIDs":    {pod: func(p *runtimetest.Pod) { p.HostPID = true }, want: facts{yes, no, no}},
		"all of the host's":  {pod: func(p *runtimetest.Pod) { p.HostPID, p.HostNetwork, p.HostIPC = true, true, true }, want: facts{yes, yes, yes}},
		"no status":          {change: func(a *answers) { a.sandbox.Status.Linux = nil }, want: facts{no, unproven, unproven}},
		"no sandbox's spec":  {change: func(a *answers) { a.sandboxInfo = map[string]any{} }, want: facts{no, unproven, unproven}},
		"the host's network, no sandbox's spec": {pod: func(p *runtimetest.Pod) { p.HostNetwork = true },
			change: func(a *answers) { a.sandboxInfo = map[string]any{} }, want: facts{no, yes, unproven}},
		"the host's network in the spec alone": {change: func(a *answers) {
			spec(a.sandboxInfo)["namespaces"] = []any{map[string]any{"type": "ipc"}, map[string]any{"type": "pid"}}
		},
			refuse: "host network namespace"},
		"a path to the first process's": {change: func(a *answers) {
			spec(a.containerInfo)["namespaces"] = []any{map[string]any{"type": "network", "path": "/proc/1/ns/net"}, map[string]any{"type": "pid"}}
		}, refuse: "host network namespace"},
		"a network of its own on the host's": {pod: func(p *runtimetest.Pod) { p.HostNetwork = true }, change: func(a *answers) {
			spec(a.containerInfo)["namespaces"] = []any{map[string]any{"type": "network"}, map[string]any{"type": "pid"}}
		}, refuse: "host network namespace"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			pod := frontend()
			if tc.pod != nil {
				tc.pod(&pod)
			}
			got, err := ask(t, pod, func(a *answers) {
				crio(a)
				if tc.change != nil {
					tc.change(a)
				}
			})
			if tc.refuse != "" {
				if err == nil || !strings.Contains(err.Error(), tc.refuse) {
					t.Errorf("got %v", err)
				}
				return
			}
			if d := (facts{got.HostPID, got.HostNetwork, got.HostIPC}); err != nil || d != tc.want {
				t.Errorf("got %+v, %v; want %+v", d, err, tc.want)
			}
		})
	}
}

// TestContainersThatAreNotYetKnownToRun: their processes may ask before the runtime has recorded the start.
func TestContainersThatAreNotYetKnownToRun(t *testing.T) {
	for state, notYet := range map[criv1.ContainerState]bool{
		criv1.ContainerState_CONTAINER_CREATED: true, criv1.ContainerState_CONTAINER_UNKNOWN: true, criv1.ContainerState_CONTAINER_EXITED: false,
	} {
		_, err := ask(t, frontend(), func(a *answers) { a.container.Status.State = state })
		if err == nil || errors.Is(err, runtime.ErrNotYet) != notYet {
			t.Errorf("%s: %v", state, err)
		}
	}
}

func TestSandboxIsNamed(t *testing.T) {
	for handler, want := range map[string]string{"": "pause", "runsc": "gVisor"} {
		server, client := dial(t)
		container, sandbox, err := frontend().Answers()
		if err != nil {
			t.Fatal(err)
		}
		sandbox.Status.RuntimeHandler = handler
		server.Put(container, sandbox)
		_, err = client.Container(t.Context(), idB)
		if !errors.Is(err, runtime.ErrUnknown) || !strings.Contains(err.Error(), "shop/frontend-0") || !strings.Contains(err.Error(), want) {
			t.Errorf("handler %q: %v", handler, err)
		}
	}
}

// TestVolumesThatAreImages are no paths of the node, wherever the runtime keeps them; what only looks like one is.
func TestVolumesThatAreImages(t *testing.T) {
	for name, tc := range map[string]struct {
		image *criv1.ImageSpec
		want  int
	}{
		"an image":           {&criv1.ImageSpec{Image: "r.example/data:v1"}, 1},
		"an image's absence": {&criv1.ImageSpec{}, 2},
		"none":               {nil, 2},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ask(t, frontend(), func(a *answers) {
				a.container.Status.Mounts = append(a.container.Status.Mounts, &criv1.Mount{HostPath: "/var/lib/containerd/x", Image: tc.image})
			})
			if err != nil || len(got.Mounts) != tc.want {
				t.Errorf("got %+v, %v; want %d mounts", got.Mounts, err, tc.want)
			}
		})
	}
}

func TestAnswerAboutAnotherContainerRefused(t *testing.T) {
	server, client := dial(t)
	if err := server.Add(frontend()); err != nil {
		t.Fatal(err)
	}
	// containerd, and this server, find containers by a prefix of their ID.
	if _, err := client.Container(t.Context(), idA[:12]); err == nil || !strings.Contains(err.Error(), "got an answer about") {
		t.Errorf("got %v", err)
	}
}

func TestThreat22_RuntimeThatFailsYieldsAnErrorWithItsCode(t *testing.T) {
	server, client := dial(t)
	if err := server.Add(frontend()); err != nil {
		t.Fatal(err)
	}
	server.Fail(status.Error(codes.Internal, "boom"))
	if _, err := client.Container(t.Context(), idA); status.Code(err) != codes.Internal {
		t.Errorf("got %v", err)
	}
	nobody, err := runtime.Dial(filepath.Join(t.TempDir(), "none.sock"), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nobody.Close() }()
	if _, err := nobody.Container(t.Context(), idA); status.Code(err) != codes.Unavailable && status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("no runtime: got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := client.Container(ctx, idA); status.Code(err) != codes.Canceled {
		t.Errorf("cancelled: got %v", err)
	}
}

func TestImageHintsAreOnlyHints(t *testing.T) {
	server, client := dial(t)
	p := frontend()
	if err := server.Add(p); err != nil {
		t.Fatal(err)
	}
	got, err := client.Container(t.Context(), idA) // the runtime knows no such image
	if err != nil || got.ImageHints != nil || got.HintsError != nil {
		t.Errorf("got %+v, %v", got, err)
	}
}

// TestTheRunningConfigIsTakenWhereverARuntimeHasIt: containerd before 2.3 leaves image_id empty, and its image_ref names an index.
func TestTheRunningConfigIsTakenWhereverARuntimeHasIt(t *testing.T) {
	c, d := strings.Repeat("c", 64), strings.Repeat("d", 64)
	cases := map[string]struct {
		id, resolved, status string
		want                 string
		problem              bool
	}{
		"image_id alone":                       {id: "sha256:" + c, want: "sha256:" + c},
		"the image that the kubelet asked for": {resolved: "sha256:" + c, want: "sha256:" + c},
		"ImageStatus":                          {status: "sha256:" + c, want: "sha256:" + c},
		"all three":                            {id: "sha256:" + c, resolved: "sha256:" + c, status: "sha256:" + c, want: "sha256:" + c},
		"CRI-O's spelling":                     {id: c, status: "sha256:" + c, want: c},
		"none":                                 {},
		"a name is no ID":                      {resolved: "r.example/app:v1"},
		"the kubelet's and image_id differ":    {id: "sha256:" + c, resolved: "sha256:" + d, want: "sha256:" + c, problem: true},
		"ImageStatus and the kubelet's differ": {resolved: "sha256:" + c, status: "sha256:" + d, want: "sha256:" + c, problem: true},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			pod := frontend()
			pod.ImageID = tc.id
			got, err := ask(t, pod, func(a *answers) {
				for _, key := range []string{tc.id, tc.resolved, pod.ImageRef} {
					a.server.PutImageAs(key, &criv1.Image{Id: tc.status, RepoTags: []string{pod.Image}})
				}
				at(a.containerInfo, "config")["image"] = map[string]any{"image": tc.resolved}
			})
			if err != nil {
				t.Fatal(err)
			}
			if got.ImageID != tc.want || (got.ImageProblem != nil) != tc.problem {
				t.Errorf("got %q, %v", got.ImageID, got.ImageProblem)
			}
			if d := cmp.Diff([]string{pod.Image}, got.ImageHints); d != "" {
				t.Errorf("hints: %s", d)
			}
		})
	}
}
