package runtime

import (
	"slices"
	"strings"
	"testing"

	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

// posture reads a container's and its sandbox's verbose information.
func posture(t *testing.T, container, sandbox string) Container {
	t.Helper()
	c, err1 := parseInfo(map[string]string{"info": container})
	s, err2 := parseInfo(map[string]string{"info": sandbox})
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	p := parsed{info: c}
	p.addPosture(s)
	return p.facts
}

func TestPosture(t *testing.T) {
	const runc = `"runtimeType":"io.containerd.runc.v2",`
	spec := func(process, linux string) string {
		return `"runtimeSpec":{"process":{` + process + `},"linux":{` + linux + `}}`
	}
	request := func(text string) string { return `"config":{"linux":{"security_context":{` + text + `}}},` }
	filter := `"seccomp":{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"action":"SCMP_ACT_ALLOW"}]}`
	for name, tc := range map[string]struct {
		container, sandbox string
		ok                 func(Container) bool
	}{
		"seccomp by default": {runc + request(`"seccomp":{}`) + spec("", filter), "", func(c Container) bool {
			return c.Posture.Seccomp == workloadclaim.Profile{Confined: workloadclaim.Yes, Type: "runtime-default"}
		}},
		"seccomp of the node": {runc + request(`"seccomp":{"profile_type":2,"localhost_ref":"/var/lib/kubelet/seccomp/profiles/a.json"}`) + spec("", filter), "",
			func(c Container) bool {
				return c.Posture.Seccomp == workloadclaim.Profile{Confined: workloadclaim.Yes, Type: "localhost", Name: "profiles/a.json"}
			}},
		"seccomp asked for and not there": {runc + request(`"seccomp":{}`) + spec("", ""), "", func(c Container) bool {
			return c.Posture.Seccomp == workloadclaim.Profile{Confined: workloadclaim.No}
		}},
		"a filter that allows all": {runc + spec("", `"seccomp":{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"action":"SCMP_ACT_LOG"}]}`), "",
			func(c Container) bool { return c.Posture.Seccomp.Confined == workloadclaim.No }},
		"a filter that allows all but one": {runc + spec("", `"seccomp":{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"action":"SCMP_ACT_ERRNO"}]}`), "",
			func(c Container) bool { return c.Posture.Seccomp.Confined == workloadclaim.Yes }},
		"AppArmor by name": {runc + request(`"apparmor":{"profile_type":2,"localhost_ref":"localhost/k8s-nginx"}`) + spec(`"apparmorProfile":"k8s-nginx"`, ""), "",
			func(c Container) bool {
				return c.Posture.AppArmor == workloadclaim.Profile{Confined: workloadclaim.Yes, Type: "localhost", Name: "k8s-nginx"} && !c.AppArmorRefused
			}},
		"AppArmor refused by the request": {runc + request(`"apparmor":{"profile_type":1}`) + spec("", ""), "",
			func(c Container) bool { return c.AppArmorRefused && c.Posture.AppArmor.Confined == workloadclaim.No }},
		"AppArmor refused by the spec": {spec(`"apparmorProfile":"unconfined"`, ""), "",
			func(c Container) bool { return c.AppArmorRefused && c.Posture.AppArmor.Confined == workloadclaim.No }},
		"no AppArmor on the node": {runc + request(`"apparmor":{}`) + spec("", ""), "",
			func(c Container) bool { return !c.AppArmorRefused && c.Posture.AppArmor.Confined == workloadclaim.No }},
		"SELinux asked for": {runc + request(`"selinux_options":{"type":"spc_t","user":"u","role":"r"}`) + spec(`"selinuxLabel":"a:b:c:d"`, ""), "",
			func(c Container) bool { return c.SELinux == SELinux{User: "u", Role: "r", Type: "spc_t"} }},
		"SELinux by the runtime": {runc + request("") + spec(`"selinuxLabel":"system_u:system_r:svirt_t:s0"`, ""), "",
			func(c Container) bool { return c.SELinux == SELinux{} }},
		"SELinux where no request is shown": {spec(`"selinuxLabel":"system_u:system_r:spc_t:s0:c1,c2"`, ""), "",
			func(c Container) bool { return c.SELinux == SELinux{Type: "spc_t"} }},
		"an unreadable label": {spec(`"selinuxLabel":"x"`, ""), "",
			func(c Container) bool { return strings.Contains(c.SELinux.Type, "unreadable") }},
		"sysctls asked for": {runc + spec("", ""), `"config":{"linux":{"sysctls":{"kernel.msgmax":"1"}}},"runtimeSpec":{"linux":{"sysctl":{"net.ipv4.ping_group_range":"0 1"}}}`,
			func(c Container) bool { return slices.Equal(c.Sysctls, []string{"kernel.msgmax"}) }},
		"sysctls where no request is shown": {spec("", ""), `"runtimeSpec":{"linux":{"sysctl":{"kernel.sem":"1","kernel.msgmax":"1"}}}`,
			func(c Container) bool { return slices.Equal(c.Sysctls, []string{"kernel.msgmax", "kernel.sem"}) }},
		"host ports": {runc + spec("", ""), `"config":{"port_mappings":[{"container_port":80},{"host_port":443}]}`,
			func(c Container) bool { return slices.Equal(c.HostPorts, []int32{443}) }},
		"a user namespace": {runc + spec(`"user":{"uid":0}`, `"namespaces":[{"type":"user"}]`), "",
			func(c Container) bool { return c.Posture.UserNamespace == workloadclaim.Yes && c.Posture.User == "0" }},
		"no sets of capabilities": {runc + spec("", ""), "", func(c Container) bool { return c.Reported && c.Posture.Capabilities == nil }},
		"no capability":           {runc + spec(`"capabilities":{}`, ""), "", func(c Container) bool { return c.Posture.Capabilities != nil && len(c.Posture.Capabilities) == 0 }},
		"one capability in one set": {runc + spec(`"capabilities":{"ambient":["CAP_BPF"]}`, ""), "",
			func(c Container) bool { return slices.Equal(c.Posture.Capabilities, []string{"BPF"}) }},
		"half of the masks":    {runc + spec("", `"maskedPaths":["/proc/kcore"]`), "", func(c Container) bool { return c.Posture.MaskedProc == workloadclaim.No }},
		"no runtime spec":      {`"runtimeType":"io.containerd.runc.v2"`, "", func(c Container) bool { return !c.Reported && c.Sandbox == "runc" }},
		"CRI-O, which says no": {spec(`"user":{"uid":7}`, ""), "", func(c Container) bool { return c.Reported && c.Posture.User == "7" && c.Sandbox == "" }},
		"gVisor":               {`"runtimeType":"io.containerd.runsc.v1",` + spec(`"user":{"uid":7}`, filter), "", unreported("gvisor")},
		"Kata":                 {`"runtimeType":"io.containerd.kata.v2",` + spec(`"user":{"uid":7}`, filter), "", unreported("kata")},
		"Kata by hypervisor":   {`"runtimeType":"io.containerd.kata-qemu.v2",` + spec(`"user":{"uid":7}`, filter), "", unreported("kata")},
		"one of tomorrow":      {`"runtimeType":"io.containerd.wasm.v9",` + spec(`"user":{"uid":7}`, filter), "", unreported("")},
	} {
		t.Run(name, func(t *testing.T) {
			if got := posture(t, "{"+tc.container+"}", "{"+tc.sandbox+"}"); !tc.ok(got) {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// unreported is a container of which only its sandbox's kind is known.
func unreported(sandbox string) func(Container) bool {
	return func(c Container) bool {
		return c.Sandbox == sandbox && !c.Reported && c.Posture.User == "" && c.Posture.Capabilities == nil
	}
}

// TestPostureOfContainerd reads what containerd 2.4.2 really answered.
func TestPostureOfContainerd(t *testing.T) {
	ordinary := posture(t, verbose(t, "ordinary-container")["info"], verbose(t, "ordinary-sandbox")["info"])
	if !ordinary.Reported || ordinary.Sandbox != workloadclaim.SandboxRunc || ordinary.Posture.User != "0" || len(ordinary.Posture.Capabilities) != 14 ||
		ordinary.Posture.NoNewPrivileges != workloadclaim.No || ordinary.Posture.ReadOnlyRoot != workloadclaim.No {
		t.Errorf("ordinary: %+v", ordinary)
	}
	if privileged := posture(t, verbose(t, "privileged-container")["info"], verbose(t, "privileged-sandbox")["info"]); len(privileged.Posture.Capabilities) < 38 {
		t.Errorf("privileged: %+v", privileged.Posture)
	}
}

func TestSandboxesAreNamedAsWhatTheyAre(t *testing.T) {
	for _, tc := range []struct {
		sandbox Sandbox
		want    string
	}{
		{Sandbox{Kind: workloadclaim.SandboxGVisor, Handler: "safe"}, `gVisor runs it (runtime handler "safe")`},
		{Sandbox{Kind: workloadclaim.SandboxKata, Handler: "vm"}, `Kata Containers run it in a virtual machine (runtime handler "vm")`},
		{Sandbox{Kind: workloadclaim.SandboxRunc, Handler: "crun"}, "pause"},
		{Sandbox{}, "pause"},
		{Sandbox{Handler: "runsc"}, "gVisor (runsc)"},
	} {
		if got := tc.sandbox.Error(); !strings.Contains(got, tc.want) {
			t.Errorf("%+v: %s, want %q", tc.sandbox, got, tc.want)
		}
	}
}
