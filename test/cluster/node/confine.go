package node

import (
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Confine is what a kubelet asks of the runtime for a container that meets Pod Security level "restricted", or for a
// privileged one. The paths are those of Kubernetes' procMount Default (kubernetes, pkg/securitycontext).
func Confine(privileged bool, namespaces *cri.NamespaceOption) *cri.LinuxContainerSecurityContext {
	if privileged {
		return &cri.LinuxContainerSecurityContext{Privileged: true, NamespaceOptions: namespaces}
	}
	return &cri.LinuxContainerSecurityContext{
		NamespaceOptions: namespaces,
		RunAsUser:        &cri.Int64Value{Value: 65532}, NoNewPrivs: true, ReadonlyRootfs: true,
		Capabilities: &cri.Capability{DropCapabilities: []string{"ALL"}},
		Seccomp:      &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
		MaskedPaths: []string{
			"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
			"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
		},
		ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
	}
}
