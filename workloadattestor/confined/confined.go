// Package confined judges a Pod's spec by the levels of a TrustPolicy's "runtime". The workload attestor and policy-sync ask
// the same function, so that identity and label follow the same rule. The spec is the pod author's wish, as the API admitted
// it; the attestor compares it with what the container runtime reports of the container that runs.
//
// The levels mean what Kubernetes' Pod Security Standards mean (https://kubernetes.io/docs/concepts/security/pod-security-standards/),
// at the newest version that k8s.io/pod-security-admission knows, whose own checks are used. Keelson differs in these places:
//
//   - A path of the node that the administrator allows may be mounted read-only at both levels.
//   - A claim counts as a path of the node at both levels if its PersistentVolume is a folder or disk of the node, and if
//     a part of it (subPath) or its device is used and its PersistentVolume is not known.
//   - Level restricted refuses containers that share their processes: shareProcessNamespace, and the target of an ephemeral
//     container. One of them could use the identity of another.
//   - Pods for Windows, and volumes of kinds that this version does not know, meet neither level.
//
// The rules need no admission controller to enforce them.
package confined

import (
	"fmt"
	"path"
	"reflect"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"

	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

// Level is one of the levels of the Pod Security Standards that ask for something.
type Level string

// The levels.
const (
	Baseline   Level = "baseline"
	Restricted Level = "restricted"
)

// Rules are what pods are judged by beside a level.
type Rules struct {
	// AllowedHostPaths are folders and files of the node that a pod may mount read-only.
	AllowedHostPaths []string
	// Claims says what PersistentVolumeClaims are. With nil, nothing is known of any.
	Claims Claims
	// PartsOnly asks Claims only about claims of which a part or the device is used. It is for a caller that learns the paths
	// of whole volumes from the container runtime.
	PartsOnly bool
}

// Judgement is what speaks against a pod. A pod meets a level if both lists are empty.
type Judgement struct {
	// Refused lists what the level does not allow.
	Refused []string
	// Unknown lists what is not known yet: claims that are not bound, or that could not be read.
	Unknown []string
}

// Met reports whether nothing speaks against the pod.
func (j Judgement) Met() bool { return len(j.Refused) == 0 && len(j.Unknown) == 0 }

// Reasons returns both lists in one.
func (j Judgement) Reasons() []string {
	return append(j.Refused[:len(j.Refused):len(j.Refused)], j.Unknown...)
}

// Judge judges all containers of a pod, init and ephemeral ones among them.
func Judge(level Level, pod *corev1.Pod, rules Rules) Judgement {
	out := Paths(pod, rules)
	var why []string
	if pod.Spec.OS != nil && pod.Spec.OS.Name != corev1.Linux {
		// The standards exempt such pods from checks, because Windows lacks what they ask for.
		why = append(why, fmt.Sprintf("the pod is for operating system %.63q: only pods for Linux can meet level %s", pod.Spec.OS.Name, level))
	}
	why = append(why, standards(level, pod)...)
	if level == Restricted {
		why = append(why, sharedProcesses(&pod.Spec)...)
	}
	out.Refused = append(why, out.Refused...)
	return out
}

// evaluator makes the standards' evaluator once.
var evaluator = sync.OnceValues(func() (policy.Evaluator, error) { return policy.NewEvaluator(policy.DefaultChecks(), nil) })

// standards runs the Pod Security Standards' own checks, except those about hostPath volumes, which Paths judges.
func standards(level Level, pod *corev1.Pod) []string {
	if level != Baseline && level != Restricted {
		return []string{fmt.Sprintf("level %.63q is not known", level)}
	}
	e, err := evaluator()
	if err != nil {
		return []string{fmt.Sprintf("the Pod Security Standards' checks cannot be used: %v", err)}
	}
	spec := pod.Spec
	spec.Volumes = nil
	for _, v := range pod.Spec.Volumes {
		if v.HostPath == nil {
			spec.Volumes = append(spec.Volumes, v)
		}
	}
	var why []string
	for _, r := range e.EvaluatePod(api.LevelVersion{Level: api.Level(level), Version: api.LatestVersion()}, &pod.ObjectMeta, &spec) {
		switch {
		case r.Allowed:
		case r.ForbiddenDetail == "":
			why = append(why, fmt.Sprintf("level %s forbids: %s", level, r.ForbiddenReason))
		default:
			why = append(why, fmt.Sprintf("level %s forbids: %s (%s)", level, r.ForbiddenReason, r.ForbiddenDetail))
		}
	}
	return why
}

// sharedProcesses finds containers that see the processes of others of their pod.
func sharedProcesses(spec *corev1.PodSpec) []string {
	var why []string
	if spec.ShareProcessNamespace != nil && *spec.ShareProcessNamespace {
		why = append(why, "the pod's containers share their processes: shareProcessNamespace is true")
	}
	for i := range spec.EphemeralContainers {
		if c := &spec.EphemeralContainers[i]; c.TargetContainerName != "" {
			why = append(why, fmt.Sprintf("ephemeral container %s shares the processes of container %s: targetContainerName is set", c.Name, c.TargetContainerName))
		}
	}
	return why
}

// Paths is the part of Judge that is about what of the node is mounted. It is the same at both levels.
func Paths(pod *corev1.Pod, rules Rules) Judgement {
	var out Judgement
	all := containers(&pod.Spec)
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		switch {
		case v.HostPath != nil:
			out.hostPath(all, v.Name, v.HostPath.Path, rules.AllowedHostPaths)
		case v.PersistentVolumeClaim != nil || v.Ephemeral != nil:
			out.claim(all, pod, v, rules)
		case reflect.ValueOf(v.VolumeSource).IsZero():
			out.refuse("volume %s is of a kind that this version of Keelson does not know", v.Name)
		}
	}
	for _, c := range all {
		for _, d := range c.devices {
			if !slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == d.Name }) {
				out.refuse("container %s uses the device of volume %s, which the pod does not have", c.name, d.Name)
			}
		}
	}
	return out
}

func (j *Judgement) refuse(format string, args ...any) {
	j.Refused = append(j.Refused, fmt.Sprintf(format, args...))
}

// hostPath judges a path of the node that is volume name.
func (j *Judgement) hostPath(all []container, name, given string, allowed []string) {
	// The API server lets no ".." into such a path.
	p := path.Clean(given)
	if !workloadclaim.Within(p, allowed) {
		j.refuse("volume %s is %s of the node, which is not among the allowed host paths", name, p)
		return
	}
	if c := writes(all, name); c != "" {
		// A container that writes there can make a symbolic link to anywhere, for another pod to mount.
		j.refuse("volume %s is %s of the node, and container %s mounts it for writing: readOnly is missing", name, p, c)
	}
}

// claim judges a volume that is a PersistentVolumeClaim.
func (j *Judgement) claim(all []container, pod *corev1.Pod, v *corev1.Volume, rules Rules) {
	parts := partsOf(all, v.Name)
	if rules.PartsOnly && len(parts) == 0 {
		return
	}
	volume := Volume{Kind: Opaque}
	if rules.Claims != nil {
		volume = rules.Claims.Claim(pod, v)
	}
	switch volume.Kind {
	case Elsewhere:
	case HostPath:
		j.hostPath(all, v.Name, volume.Path, rules.AllowedHostPaths)
	case Local:
		j.refuse("volume %s is a local PersistentVolume, %s of the node", v.Name, path.Clean(volume.Path))
	case NotKnown:
		j.Unknown = append(j.Unknown, fmt.Sprintf("volume %s: %s", v.Name, volume.Why))
	case Opaque:
		for _, part := range parts {
			j.refuse("%s volume %s, a PersistentVolumeClaim: which part of the node that may be is not known", part, v.Name)
		}
	}
}

// container is what the three kinds of containers have in common.
type container struct {
	name    string
	mounts  []corev1.VolumeMount
	devices []corev1.VolumeDevice
}

func containers(spec *corev1.PodSpec) []container {
	var out []container
	for i := range spec.InitContainers {
		c := &spec.InitContainers[i]
		out = append(out, container{c.Name, c.VolumeMounts, c.VolumeDevices})
	}
	for i := range spec.Containers {
		c := &spec.Containers[i]
		out = append(out, container{c.Name, c.VolumeMounts, c.VolumeDevices})
	}
	for i := range spec.EphemeralContainers {
		c := &spec.EphemeralContainers[i]
		out = append(out, container{c.Name, c.VolumeMounts, c.VolumeDevices})
	}
	return out
}

// partsOf lists, in words, who uses a part or the device of a volume. The paths that the runtime reports for these do not show
// what the volume is.
func partsOf(all []container, volume string) []string {
	var out []string
	for _, c := range all {
		for _, m := range c.mounts {
			if m.Name == volume && (m.SubPath != "" || m.SubPathExpr != "") {
				out = append(out, fmt.Sprintf("container %s mounts a subPath of", c.name))
				break
			}
		}
		for _, d := range c.devices {
			if d.Name == volume {
				out = append(out, fmt.Sprintf("container %s uses the device of", c.name))
				break
			}
		}
	}
	return out
}

// writes names a container that mounts the volume other than read-only, or uses it as a device.
func writes(all []container, volume string) string {
	for _, c := range all {
		for _, m := range c.mounts {
			if m.Name == volume && !m.ReadOnly {
				return c.name
			}
		}
		for _, d := range c.devices {
			if d.Name == volume {
				return c.name
			}
		}
	}
	return ""
}
