package confined

import (
	"fmt"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

// Report is what a container runtime reports of one container that runs.
type Report struct {
	Container string // its name
	// Known is true when the runtime reports how the container is confined. With false, no level is proved.
	Known bool

	Privileged, HostPID, HostNetwork, HostIPC workloadclaim.Fact
	// AddedCapabilities tells whether the container has more capabilities than the runtimes give by default.
	AddedCapabilities workloadclaim.Fact

	Posture workloadclaim.Posture
	// AppArmorRefused is true when the container runs without an AppArmor profile because that was asked for.
	AppArmorRefused                       bool
	SELinuxUser, SELinuxRole, SELinuxType string
	Sysctls                               []string
	HostPorts                             []int32
}

// DefaultCapabilities are what containerd gives a container that asks for nothing (pkg/oci: defaultUnixCaps), without "CAP_".
// CRI-O's default is a part of it. NET_RAW is among them: level baseline forbids to ask for it, not to have it.
var DefaultCapabilities = []string{
	"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW", "SETFCAP",
	"SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
}

// Judge puts the report into the words of a Pod's spec and has the standards' own checks judge that. So what a level allows is
// written in one place. What Kubernetes does not report to the runtime (volumes, probes) is not judged here.
//
// What the standards let be undefined is judged only where the runtime shows that the pod has asked for it: a container without
// a seccomp profile meets level baseline, and may have asked for none.
func (r Report) Judge(level Level) Judgement {
	var out Judgement
	unknown := func(what string) {
		out.Unknown = append(out.Unknown, "the container runtime does not report "+what)
	}
	if !r.Known {
		unknown("how the container is confined by the node's kernel")
		return out
	}
	for _, f := range []struct {
		what string
		fact workloadclaim.Fact
	}{
		{"whether the container is privileged", r.Privileged}, {"its PID namespace", r.HostPID}, {"its network namespace", r.HostNetwork},
		{"its IPC namespace", r.HostIPC}, {"its capabilities", r.AddedCapabilities},
	} {
		if f.fact == workloadclaim.Unproven {
			unknown(f.what)
		}
	}
	if r.Posture.Capabilities == nil && r.AddedCapabilities != workloadclaim.Unproven {
		unknown("its capabilities")
	}
	user, err := strconv.ParseInt(r.Posture.User, 10, 64)
	if level == Restricted && err != nil {
		unknown("its user")
	}
	out.Refused = append(out.Refused, standards(level, r.pod(level, user))...)
	for i, why := range out.Refused {
		out.Refused[i] = "as the container runtime reports: " + why
	}
	return out
}

// pod is the report as a Pod.
func (r Report) pod(level Level, user int64) *corev1.Pod {
	yes := func(f workloadclaim.Fact) bool { return f == workloadclaim.Yes }
	p := r.Posture
	privileged, escalates, nonRoot := yes(r.Privileged), !yes(p.NoNewPrivileges), user != 0
	c := corev1.Container{Name: r.Container, SecurityContext: &corev1.SecurityContext{
		Privileged: &privileged, AllowPrivilegeEscalation: &escalates, RunAsNonRoot: &nonRoot, RunAsUser: &user,
		Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
	}}
	for _, name := range p.Capabilities {
		if level == Restricted || !slices.Contains(DefaultCapabilities, name) {
			c.SecurityContext.Capabilities.Add = append(c.SecurityContext.Capabilities.Add, corev1.Capability(name))
		}
	}
	if p.MaskedProc != workloadclaim.Yes {
		unmasked := corev1.UnmaskedProcMount
		c.SecurityContext.ProcMount = &unmasked
	}
	if yes(p.Seccomp.Confined) {
		c.SecurityContext.SeccompProfile = &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}
	}
	if r.AppArmorRefused {
		c.SecurityContext.AppArmorProfile = &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeUnconfined}
	}
	c.SecurityContext.SELinuxOptions = &corev1.SELinuxOptions{User: r.SELinuxUser, Role: r.SELinuxRole, Type: r.SELinuxType}
	for _, port := range r.HostPorts {
		c.Ports = append(c.Ports, corev1.ContainerPort{HostPort: port})
	}
	hostUsers := !yes(p.UserNamespace)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "reported"}, Spec: corev1.PodSpec{
		HostPID: yes(r.HostPID), HostNetwork: yes(r.HostNetwork), HostIPC: yes(r.HostIPC), HostUsers: &hostUsers,
		SecurityContext: &corev1.PodSecurityContext{}, Containers: []corev1.Container{c},
	}}
	for _, name := range r.Sysctls {
		pod.Spec.SecurityContext.Sysctls = append(pod.Spec.SecurityContext.Sysctls, corev1.Sysctl{Name: name})
	}
	return pod
}

// Meets combines judgements into a fact: No where one refuses, Unproven where something is not known.
func Meets(judgements ...Judgement) workloadclaim.Fact {
	result := workloadclaim.Yes
	for _, j := range judgements {
		switch {
		case len(j.Refused) > 0:
			return workloadclaim.No
		case len(j.Unknown) > 0:
			result = workloadclaim.Unproven
		}
	}
	return result
}

// Unknowable is the judgement of what could not be asked.
func Unknowable(format string, args ...any) Judgement {
	return Judgement{Unknown: []string{fmt.Sprintf(format, args...)}}
}
