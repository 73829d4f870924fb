// Package confined judges from a Pod's spec whether the pod stays within what a TrustPolicy's "runtime: restricted" lets it have. The
// workload attestor and policy-sync ask the same function, so that identity and label follow the same rule. The spec is the pod author's wish, as the
// API admitted it; what the container runtime was really told is the attestor's to compare.
//
// It is close to Kubernetes' own Pod Security Standards (level "baseline"), and needs nobody to enforce those.
package confined

import (
	"fmt"
	"path"

	corev1 "k8s.io/api/core/v1"

	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

// Unmet lists in words what the pod has that a restricted one may not, in any of its containers; nothing when it is restricted. Paths
// of the node that an administrator allows (each may be mounted read-only) are in allowed.
func Unmet(pod *corev1.Pod, allowed []string) []string {
	var why []string
	spec := &pod.Spec
	for _, ns := range []struct {
		name string
		set  bool
	}{{"PID", spec.HostPID}, {"IPC", spec.HostIPC}, {"network", spec.HostNetwork}} {
		if ns.set {
			why = append(why, fmt.Sprintf("the pod shares its node's %s namespace", ns.name))
		}
	}
	if w := spec.SecurityContext; w != nil && hostProcess(w.WindowsOptions) {
		why = append(why, "the pod is a Windows host process")
	}
	for _, c := range containers(spec) {
		why = append(why, c.unmet()...)
	}
	return append(why, Paths(pod, allowed)...)
}

// Paths is the part of Unmet that is about what of the node is mounted.
func Paths(pod *corev1.Pod, allowed []string) []string {
	var why []string
	all := containers(&pod.Spec)
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		switch {
		case v.HostPath != nil:
			// The API server lets no ".." into such a path.
			if p := path.Clean(v.HostPath.Path); !workloadclaim.Within(p, allowed) {
				why = append(why, fmt.Sprintf("volume %s is %s of the node, which is not among the allowed host paths", v.Name, p))
			} else if c := writes(all, v.Name); c != "" {
				// Whoever writes there makes a symbolic link to anywhere, for another pod to mount.
				why = append(why, fmt.Sprintf("volume %s is %s of the node, and container %s mounts it for writing: readOnly is missing", v.Name, p, c))
			}
		case v.PersistentVolumeClaim != nil || v.Ephemeral != nil:
			// What is mounted whole shows by its path what kind of PersistentVolume it is; a part of it does not, nor does a device.
			for _, c := range all {
				if c.mountsPart(v.Name) {
					why = append(why, fmt.Sprintf("container %s mounts a subPath of volume %s, a PersistentVolumeClaim: what that is of the node cannot be told", c.name, v.Name))
				}
			}
		}
	}
	for _, c := range all {
		for _, d := range c.devices {
			why = append(why, fmt.Sprintf("container %s uses block device %s: what that is of the node cannot be told", c.name, d.Name))
		}
	}
	return why
}

// container is what the three kinds of containers have in common.
type container struct {
	name     string
	security *corev1.SecurityContext
	mounts   []corev1.VolumeMount
	devices  []corev1.VolumeDevice
}

func containers(spec *corev1.PodSpec) []container {
	var out []container
	for i := range spec.InitContainers {
		c := &spec.InitContainers[i]
		out = append(out, container{c.Name, c.SecurityContext, c.VolumeMounts, c.VolumeDevices})
	}
	for i := range spec.Containers {
		c := &spec.Containers[i]
		out = append(out, container{c.Name, c.SecurityContext, c.VolumeMounts, c.VolumeDevices})
	}
	for i := range spec.EphemeralContainers {
		c := &spec.EphemeralContainers[i]
		out = append(out, container{c.Name, c.SecurityContext, c.VolumeMounts, c.VolumeDevices})
	}
	return out
}

func (c container) unmet() []string {
	var why []string
	sc := c.security
	if sc == nil {
		return nil
	}
	if sc.Privileged != nil && *sc.Privileged {
		why = append(why, fmt.Sprintf("container %s is privileged", c.name))
	}
	if sc.Capabilities != nil && len(sc.Capabilities.Add) > 0 {
		why = append(why, fmt.Sprintf("container %s adds capabilities %v", c.name, sc.Capabilities.Add))
	}
	if hostProcess(sc.WindowsOptions) {
		why = append(why, fmt.Sprintf("container %s is a Windows host process", c.name))
	}
	return why
}

func hostProcess(o *corev1.WindowsSecurityContextOptions) bool {
	return o != nil && o.HostProcess != nil && *o.HostProcess
}

// mountsPart tells whether the container mounts a subPath of the volume.
func (c container) mountsPart(volume string) bool {
	for _, m := range c.mounts {
		if m.Name == volume && (m.SubPath != "" || m.SubPathExpr != "") {
			return true
		}
	}
	return false
}

// writes names a container that mounts the volume other than read-only.
func writes(all []container, volume string) string {
	for _, c := range all {
		for _, m := range c.mounts {
			if m.Name == volume && !m.ReadOnly {
				return c.name
			}
		}
	}
	return ""
}
