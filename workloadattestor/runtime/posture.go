package runtime

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

// securityProfile is CRI's SecurityProfile with the enum's numbers.
type securityProfile struct {
	Type criv1.SecurityProfile_ProfileType `json:"profile_type"`
	Ref  string                            `json:"localhost_ref"`
}

// SELinux are the parts of a label that Kubernetes lets a pod ask for, without the level.
type SELinux struct{ User, Role, Type string }

// selinuxOptions is CRI's SELinuxOption.
type selinuxOptions struct {
	User string `json:"user"`
	Role string `json:"role"`
	Type string `json:"type"`
}

// processSpec is a part of "process" in the OCI runtime spec (config.md).
type processSpec struct {
	User *struct {
		UID uint32 `json:"uid"`
	} `json:"user"`
	NoNewPrivileges bool             `json:"noNewPrivileges"`
	AppArmorProfile string           `json:"apparmorProfile"`
	SELinuxLabel    string           `json:"selinuxLabel"`
	Capabilities    *capabilitySpecs `json:"capabilities"`
}

type capabilitySpecs struct {
	Bounding    []string `json:"bounding"`
	Effective   []string `json:"effective"`
	Inheritable []string `json:"inheritable"`
	Permitted   []string `json:"permitted"`
	Ambient     []string `json:"ambient"`
}

// seccompSpec is a part of "linux.seccomp" in the OCI runtime spec (config-linux.md).
type seccompSpec struct {
	DefaultAction string `json:"defaultAction"`
	Syscalls      []struct {
		Action string `json:"action"`
	} `json:"syscalls"`
}

// lenient are the actions that let a system call happen.
var lenient = map[string]bool{"": true, "SCMP_ACT_ALLOW": true, "SCMP_ACT_LOG": true}

// filters reports whether the profile keeps any system call from happening.
func (s *seccompSpec) filters() bool {
	if s == nil {
		return false
	}
	for _, call := range s.Syscalls {
		if !lenient[call.Action] {
			return true
		}
	}
	return !lenient[s.DefaultAction]
}

// sandboxes are the kinds of sandboxes by containerd's runtime types. Behind runc's shim are other OCI runtimes as well (crun,
// nvidia-container-runtime, …), which set up what the runtime spec says.
var sandboxes = map[string]string{
	"io.containerd.runc.v1": workloadclaim.SandboxRunc, "io.containerd.runc.v2": workloadclaim.SandboxRunc,
	"io.containerd.runtime.v1.linux": workloadclaim.SandboxRunc,
	"io.containerd.runsc.v1":         workloadclaim.SandboxGVisor,
	"io.containerd.kata.v2":          workloadclaim.SandboxKata,
}

// sandboxKind says what a runtime type is. Kata Containers install one type for each hypervisor (io.containerd.kata-qemu.v2).
func sandboxKind(runtimeType string) string {
	if strings.HasPrefix(runtimeType, "io.containerd.kata-") {
		return workloadclaim.SandboxKata
	}
	return sandboxes[runtimeType]
}

// addPosture adds how the container is confined, by its runtime spec and by what the kubelet asked for. Where a request and a
// spec disagree, the weaker of both is taken: a profile that was asked for and is not there does not confine.
//
// A runtime type that is known not to be runc's has no posture: what its spec says is done by another kernel, if at all. CRI-O
// reports no type.
func (p *parsed) addPosture(sandbox info) {
	f, i := &p.facts, p.info
	f.Sandbox = sandboxKind(i.RuntimeType)
	if i.RuntimeSpec == nil || i.RuntimeSpec.Linux == nil || i.RuntimeSpec.Process == nil {
		return
	}
	if i.RuntimeType != "" && f.Sandbox != workloadclaim.SandboxRunc {
		return
	}
	f.Reported = true
	spec, process, linux := i.RuntimeSpec, i.RuntimeSpec.Process, i.RuntimeSpec.Linux
	f.Posture = workloadclaim.Posture{
		Capabilities:    process.Capabilities.all(),
		UserNamespace:   workloadclaim.FactOf(slices.ContainsFunc(linux.Namespaces, func(n namespaceSpec) bool { return n.Type == "user" })),
		NoNewPrivileges: workloadclaim.FactOf(process.NoNewPrivileges),
		MaskedProc: workloadclaim.FactOf(slices.Contains(linux.MaskedPaths, "/proc/kcore") &&
			slices.Contains(linux.ReadonlyPaths, "/proc/sys")),
	}
	if process.User != nil {
		f.Posture.User = strconv.FormatUint(uint64(process.User.UID), 10)
	}
	if spec.Root != nil {
		f.Posture.ReadOnlyRoot = workloadclaim.FactOf(spec.Root.Readonly)
	}
	f.Posture.Seccomp.Confined = workloadclaim.FactOf(linux.Seccomp.filters())
	f.Posture.AppArmor.Confined = workloadclaim.FactOf(process.AppArmorProfile != "" && process.AppArmorProfile != workloadclaim.ProfileUnconfined)
	if i.Config != nil {
		asked := i.Config.Linux.SecurityContext
		requested(&f.Posture.Seccomp, asked.Seccomp)
		requested(&f.Posture.AppArmor, asked.AppArmor)
		f.AppArmorRefused = asked.AppArmor != nil && asked.AppArmor.Type == criv1.SecurityProfile_Unconfined
		if o := asked.SELinux; o != nil {
			f.SELinux = SELinux(*o)
		}
	} else {
		f.SELinux = selinuxOf(process.SELinuxLabel)
	}
	f.AppArmorRefused = f.AppArmorRefused || process.AppArmorProfile == workloadclaim.ProfileUnconfined
	f.Sysctls, f.HostPorts = sandbox.podSettings()
}

// requested adds what the kubelet asked for to a profile that is in force.
func requested(p *workloadclaim.Profile, asked *securityProfile) {
	if asked == nil || p.Confined != workloadclaim.Yes {
		return
	}
	switch asked.Type {
	case criv1.SecurityProfile_RuntimeDefault:
		p.Type = workloadclaim.ProfileRuntimeDefault
	case criv1.SecurityProfile_Localhost:
		p.Type = workloadclaim.ProfileLocalhost
		// A seccomp profile is a file below the kubelet's folder "seccomp"; an AppArmor profile has a name.
		name := asked.Ref
		if _, file, ok := strings.Cut(name, "/seccomp/"); ok {
			name = file
		}
		p.Name = strings.TrimPrefix(name, "localhost/")
	case criv1.SecurityProfile_Unconfined:
	}
}

// selinuxOf reads a label "user:role:type:level". The user and the role that a container runtime sets by itself are those of the
// system and say nothing, so only the type is taken. What is no label becomes a type that no level allows.
func selinuxOf(label string) SELinux {
	if label == "" {
		return SELinux{}
	}
	parts := strings.SplitN(label, ":", 4)
	if len(parts) < 3 || parts[2] == "" {
		return SELinux{Type: fmt.Sprintf("unreadable label %.63q", label)}
	}
	return SELinux{Type: parts[2]}
}

// all returns every capability in any set, sorted, without "CAP_"; nil if the runtime reports no sets. Without the object, what
// the process gets is up to the OCI runtime.
func (c *capabilitySpecs) all() []string {
	if c == nil {
		return nil
	}
	out := []string{}
	for _, set := range [][]string{c.Bounding, c.Effective, c.Inheritable, c.Permitted, c.Ambient} {
		for _, name := range set {
			out = append(out, strings.TrimPrefix(name, "CAP_"))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// podSettings returns the names of the sysctls that the pod's sandbox has and the ports of the node that lead to it. containerd
// shows the kubelet's request; its runtime spec has the sysctls that containerd sets by itself as well, as CRI-O's has.
func (i info) podSettings() (sysctls []string, hostPorts []int32) {
	if i.Config != nil {
		for name := range i.Config.Linux.Sysctls {
			sysctls = append(sysctls, name)
		}
		for _, m := range i.Config.PortMappings {
			if m.HostPort != 0 {
				hostPorts = append(hostPorts, m.HostPort)
			}
		}
	} else if i.RuntimeSpec != nil && i.RuntimeSpec.Linux != nil {
		for name := range i.RuntimeSpec.Linux.Sysctl {
			sysctls = append(sysctls, name)
		}
	}
	slices.Sort(sysctls)
	slices.Sort(hostPorts)
	return sysctls, hostPorts
}
