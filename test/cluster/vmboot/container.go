package vmboot

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
)

// Where the container finds its volumes, and the host's folder that they are in.
const (
	volumes = "/var/lib/kubelet/pods/pod/volumes/"
	// DataVolume is on the host's root file system.
	DataVolume = "/data"
	// ProgramsVolume lies over the folder that has runc on the host. It is on a file system of pods' own, which has
	// PodsUUID, and so is the container's /etc/hosts.
	ProgramsVolume = "/usr/sbin"
	PodsUUID       = "8bcbe394-4f13-4144-be8e-5aa9ea2ce2f7"
)

// podsDisk makes a disk with the file system of pods' own.
func (k *Kit) podsDisk(ctx context.Context, dir string) (string, error) {
	disk, err := write(dir, "pods.img", nil)
	if err != nil {
		return "", err
	}
	const size = 16 << 20
	if err := os.Truncate(disk, size); err != nil {
		return "", fmt.Errorf("vmboot: %w", err)
	}
	_, err = tool(ctx, dir, k.system["mkfs.ext4"], "-q", "-U", PodsUUID, disk)
	return disk, err
}

// defaultCapabilities are those that containerd gives a pod that asks for none and drops none
// (containerd, pkg/oci/spec.go: defaultUnixCaps).
var defaultCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// mount is one of a container's (OCI runtime specification 1.0.2, config.md).
type mount struct {
	Destination string   `json:"destination"`
	Type        string   `json:"type"`
	Source      string   `json:"source"`
	Options     []string `json:"options"`
}

// containerConfig is the configuration of a container as kubelet and containerd make it for a pod
// that is not privileged: its own namespaces and cgroup, root with the default capabilities, no
// device but the usual ones. args are the program's.
func containerConfig(args ...string) ([]byte, error) {
	var namespaces []map[string]string
	for _, kind := range []string{"pid", "network", "ipc", "uts", "mount", "cgroup"} {
		namespaces = append(namespaces, map[string]string{"type": kind})
	}
	bind := func(at, volume string) mount {
		return mount{at, "bind", volumes + volume, []string{"rbind", "rprivate", "rw"}}
	}
	capabilities := map[string][]string{}
	for _, set := range []string{"bounding", "effective", "permitted"} {
		capabilities[set] = defaultCapabilities
	}
	config, err := json.Marshal(map[string]any{
		"ociVersion": "1.0.2",
		"process": map[string]any{
			"user": map[string]int{"uid": 0, "gid": 0}, "args": append([]string{"/pod"}, args...), "cwd": "/",
			"env": []string{"PATH=/bin"}, "capabilities": capabilities,
		},
		"root": map[string]any{"path": "rootfs"},
		"mounts": []mount{
			{"/proc", "proc", "proc", []string{"nosuid", "noexec", "nodev"}},
			{"/dev", "tmpfs", "tmpfs", []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{"/dev/shm", "tmpfs", "shm", []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
			{"/sys", "sysfs", "sysfs", []string{"nosuid", "noexec", "nodev", "ro"}},
			bind(DataVolume, "data"), bind(DataVolume+"/boot", "boot"), bind(ProgramsVolume, "programs"),
			bind("/etc/hosts", "programs/hosts"),
		},
		"linux": map[string]any{
			"namespaces": namespaces, "cgroupsPath": "/kubepods/besteffort/pod/pod",
			"resources":     map[string]any{"devices": []map[string]any{{"allow": false, "access": "rwm"}}},
			"maskedPaths":   []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"},
			"readonlyPaths": []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("vmboot: container: %w", err)
	}
	return config, nil
}
