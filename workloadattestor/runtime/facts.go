package runtime

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

// Labels that the kubelet puts on containers and sandboxes (kubernetes, pkg/kubelet/types/labels.go).
const (
	labelNamespace = "io.kubernetes.pod.namespace"
	labelPodName   = "io.kubernetes.pod.name"
	labelPodUID    = "io.kubernetes.pod.uid"
	labelContainer = "io.kubernetes.container.name"
)

// maxInfo bounds the verbose JSON of one container: it holds the whole runtime spec, environment included.
const maxInfo = 8 << 20

// info is the verbose information as containerd (internal/cri/server: ContainerInfo, SandboxInfo) and CRI-O
// (server: ContainerInfo) write it, as far as it is read. Pointers tell "not given" from "no".
type info struct {
	SandboxID   string   `json:"sandboxID"`
	Privileged  *bool    `json:"privileged"`  // CRI-O
	Config      *config  `json:"config"`      // containerd: the kubelet's request
	RuntimeType string   `json:"runtimeType"` // containerd
	RuntimeSpec *ociSpec `json:"runtimeSpec"`
	Snapshotter string   `json:"snapshotter"` // containerd
}

type config struct {
	Image struct {
		Image string `json:"image"`
		Asked string `json:"user_specified_image"`
	} `json:"image"`
	Linux struct {
		SecurityContext struct {
			Privileged       bool                 `json:"privileged"`
			NamespaceOptions *namespaceOptionsRaw `json:"namespace_options"`
			Seccomp          *securityProfile     `json:"seccomp"`
			AppArmor         *securityProfile     `json:"apparmor"`
			SELinux          *selinuxOptions      `json:"selinux_options"`
		} `json:"security_context"`
		Sysctls map[string]string `json:"sysctls"` // of a sandbox
	} `json:"linux"`
	PortMappings []struct { // of a sandbox
		HostPort int32 `json:"host_port"`
	} `json:"port_mappings"`
}

// namespaceOptionsRaw is CRI's NamespaceOption with the enum's numbers.
type namespaceOptionsRaw struct {
	Network criv1.NamespaceMode `json:"network"`
	Pid     criv1.NamespaceMode `json:"pid"`
	IPC     criv1.NamespaceMode `json:"ipc"`
}

// ociSpec is a part of the OCI runtime spec's config.json.
type ociSpec struct {
	Process *processSpec `json:"process"`
	Root    *struct {
		Readonly bool `json:"readonly"`
	} `json:"root"`
	Linux *struct {
		CgroupsPath string          `json:"cgroupsPath"`
		Namespaces  []namespaceSpec `json:"namespaces"`
		Resources   *struct {
			Devices []deviceRule `json:"devices"`
		} `json:"resources"`
		MaskedPaths   []string          `json:"maskedPaths"`
		ReadonlyPaths []string          `json:"readonlyPaths"`
		Seccomp       *seccompSpec      `json:"seccomp"`
		Sysctl        map[string]string `json:"sysctl"`
	} `json:"linux"`
}

type namespaceSpec struct {
	Type string `json:"type"`
	Path string `json:"path"`
}

type deviceRule struct {
	Allow  bool   `json:"allow"`
	Type   string `json:"type"`
	Major  *int64 `json:"major"`
	Minor  *int64 `json:"minor"`
	Access string `json:"access"`
}

// parseInfo reads the JSON under the key "info". No info is no error: the facts in it stay unproven.
func parseInfo(verbose map[string]string) (info, error) {
	raw := verbose["info"]
	if raw == "" {
		return info{}, nil
	}
	if len(raw) > maxInfo {
		return info{}, fmt.Errorf("runtime: verbose info of %d bytes, the limit is %d", len(raw), maxInfo)
	}
	var out info
	if err := json.Unmarshal([]byte(raw), &out); err != nil {
		return info{}, fmt.Errorf("runtime: verbose info: %w", err)
	}
	return out, nil
}

// imageID is an image ID as containerd and CRI-O write it: the digest of the image's config.
var imageID = regexp.MustCompile(`^(sha256:)?[0-9a-f]{64}$`)

// resolvedImage is the image ID that the kubelet asked for: containerd's answer to its PullImage (kubernetes,
// pkg/kubelet/images, EnsureImageExists). It is "" where the request names the image in another way.
func (i info) resolvedImage() string {
	if i.Config == nil || !imageID.MatchString(i.Config.Image.Image) {
		return ""
	}
	return i.Config.Image.Image
}

// parsed is a container before its sandbox was asked.
type parsed struct {
	facts Container
	info  info
}

// parseContainer reads an answer about a container that runs or, where ended allows it, one that has ended.
func parseContainer(id string, answer *criv1.ContainerStatusResponse, ended bool) (parsed, error) {
	s := answer.GetStatus()
	// containerd finds containers by any unambiguous prefix of their ID, so the answer's ID is compared.
	if s.GetId() != id {
		return parsed{}, fmt.Errorf("runtime: asked about container %s, got an answer about %q", id, s.GetId())
	}
	switch state := s.GetState(); {
	case state == criv1.ContainerState_CONTAINER_RUNNING:
	case state == criv1.ContainerState_CONTAINER_EXITED && ended:
	case state == criv1.ContainerState_CONTAINER_EXITED:
		return parsed{}, fmt.Errorf("runtime: container %s is not running (%s)", id, s.GetState())
	default: // created, unknown
		return parsed{}, fmt.Errorf("runtime: container %s (%s): %w", id, s.GetState(), ErrNotYet)
	}
	verbose, err := parseInfo(answer.GetInfo())
	if err != nil {
		return parsed{}, fmt.Errorf("container %s: %w", id, err)
	}
	p := parsed{info: verbose, facts: Container{
		ID:        id,
		SandboxID: verbose.SandboxID,
		Namespace: s.GetLabels()[labelNamespace],
		PodName:   s.GetLabels()[labelPodName],
		PodUID:    s.GetLabels()[labelPodUID],
		Name:      s.GetLabels()[labelContainer],
		ImageID:   s.GetImageId(),
		ImageRef:  s.GetImageRef(),
		ImageName: s.GetImage().GetImage(),

		Snapshotter: verbose.Snapshotter,
	}}
	for _, m := range s.GetMounts() {
		switch source := m.GetHostPath(); {
		case m.GetImage().GetImage() != "": // a volume that is an image; its path is the runtime's own
		case !filepath.IsAbs(source):
			return parsed{}, fmt.Errorf("runtime: container %s has a mount from %.63q, which is no absolute path", id, source)
		default:
			p.facts.Mounts = append(p.facts.Mounts, Mount{Path: filepath.Clean(source), ReadOnly: m.GetReadonly()})
		}
	}
	p.facts.ImageAsked = s.GetImage().GetUserSpecifiedImage()
	if verbose.Config != nil {
		p.facts.ImageAsked = cmp.Or(p.facts.ImageAsked, verbose.Config.Image.Asked)
	}
	var missing []string
	for _, key := range []string{labelNamespace, labelPodName, labelPodUID, labelContainer} {
		if s.GetLabels()[key] == "" {
			missing = append(missing, key)
		}
	}
	switch {
	case len(missing) > 0:
		return parsed{}, fmt.Errorf("runtime: container %s was not started by a kubelet: no label %s", id, strings.Join(missing, ", "))
	case s.GetMetadata().GetName() != p.facts.Name:
		return parsed{}, fmt.Errorf("runtime: container %s is named %q in its metadata and %q in its labels", id, s.GetMetadata().GetName(), p.facts.Name)
	case p.facts.SandboxID == "":
		return parsed{}, fmt.Errorf("runtime: the runtime does not tell the pod sandbox of container %s (no verbose info with sandboxID): this runtime is not supported", id)
	}
	return p, nil
}

// join adds what needs the sandbox's answer: that both are of one pod, and the facts about privileges.
func (p *parsed) join(answer *criv1.PodSandboxStatusResponse) error {
	s, f := answer.GetStatus(), &p.facts
	if s.GetId() != f.SandboxID {
		return fmt.Errorf("runtime: asked about pod sandbox %s, got an answer about %q", f.SandboxID, s.GetId())
	}
	if s.GetState() != criv1.PodSandboxState_SANDBOX_READY {
		return fmt.Errorf("runtime: pod sandbox %s of container %s is not ready", f.SandboxID, f.ID)
	}
	m := s.GetMetadata()
	if m.GetNamespace() != f.Namespace || m.GetName() != f.PodName || m.GetUid() != f.PodUID {
		return fmt.Errorf("runtime: container %s says pod %s/%s (%s), its sandbox says %s/%s (%s)",
			f.ID, f.Namespace, f.PodName, f.PodUID, m.GetNamespace(), m.GetName(), m.GetUid())
	}
	sandbox, err := parseInfo(answer.GetInfo())
	if err != nil {
		return fmt.Errorf("pod sandbox %s: %w", f.SandboxID, err)
	}
	if spec := p.info.RuntimeSpec; spec != nil && spec.Linux != nil {
		f.CgroupsPath = spec.Linux.CgroupsPath
	}
	f.AddedCapabilities = addedCapabilities(p.info.RuntimeSpec)
	f.Handler = s.GetRuntimeHandler()
	p.addPosture(sandbox)
	var problems []error
	set := func(to *workloadclaim.Fact, fact workloadclaim.Fact, err error) {
		*to = fact
		if err != nil {
			problems = append(problems, fmt.Errorf("runtime: container %s: %w", f.ID, err))
		}
	}
	modes := s.GetLinux().GetNamespaces().GetOptions()
	fact, err := privileged(p.info)
	set(&f.Privileged, fact, err)
	fact, err = inHostNamespace("pid", p.info, sandbox, modes)
	set(&f.HostPID, fact, err)
	fact, err = inHostNamespace("network", p.info, sandbox, modes)
	set(&f.HostNetwork, fact, err)
	fact, err = inHostNamespace("ipc", p.info, sandbox, modes)
	set(&f.HostIPC, fact, err)
	return errors.Join(problems...)
}

// privileged needs the request (or CRI-O's flag) and the spec: a container that may use every device is privileged,
// whatever the request says.
func privileged(i info) (workloadclaim.Fact, error) {
	if i.RuntimeSpec == nil || i.RuntimeSpec.Linux == nil {
		return workloadclaim.Unproven, nil
	}
	var says bool
	switch {
	case i.Config != nil:
		says = i.Config.Linux.SecurityContext.Privileged
	case i.Privileged != nil:
		says = *i.Privileged
	default:
		return workloadclaim.Unproven, nil
	}
	if !says && allDevices(i.RuntimeSpec) {
		return workloadclaim.Unproven, errors.New("privileged: requested as unprivileged, but its runtime spec allows every device: refused")
	}
	return workloadclaim.FactOf(says), nil
}

// allDevices finds a rule that allows all devices. An absent type is "a", all (OCI runtime spec, config-linux.md,
// "Allowed Device list").
func allDevices(spec *ociSpec) bool {
	if spec.Linux.Resources == nil {
		return false
	}
	every := func(n *int64) bool { return n == nil || *n < 0 }
	for _, d := range spec.Linux.Resources.Devices {
		if d.Allow && (d.Type == "a" || d.Type == "") && every(d.Major) && every(d.Minor) {
			return true
		}
	}
	return false
}

// inHostNamespace tells whether the container is in the host's namespace of this type. The sandbox's status has what the kubelet
// asked for. These places say something about it as well, and all that do must agree with it: the kubelet's request for the
// container; the sandbox's runtime spec, and the container's, each by lacking the type (the host's) or by making a namespace of its
// own. A path in a spec leads into a namespace that the runtime made or pinned. CRI-O pins the host's too (pinns --net=host), so a
// path says neither, unless it is the first process's.
//
// Yes needs no more than the status. No needs that the sandbox has a namespace at all, or the request: the status alone proves
// nothing.
func inHostNamespace(kind string, i, sandbox info, status *criv1.NamespaceOption) (workloadclaim.Fact, error) {
	inHost := modeOf(kind, status.GetPid(), status.GetNetwork(), status.GetIpc()) == criv1.NamespaceMode_NODE
	var says []bool
	if mode, ok := i.mode(kind); ok {
		if mode == criv1.NamespaceMode_TARGET {
			return workloadclaim.Unproven, nil // an ephemeral container joins another one, which was not asked about
		}
		says = append(says, mode == criv1.NamespaceMode_NODE)
	}
	ofSandbox, ofContainer := sandbox.RuntimeSpec.namespace(kind), i.RuntimeSpec.namespace(kind)
	for _, place := range []place{ofSandbox, ofContainer} {
		switch place {
		case placeHost, placeOwn:
			says = append(says, place == placeHost)
		case placeUnknown, placeJoined:
		}
	}
	for _, s := range says {
		if s != inHost {
			return workloadclaim.Unproven, fmt.Errorf("host %s namespace: request, sandbox and runtime spec disagree: refused", kind)
		}
	}
	if !inHost && len(says) == 0 && (status == nil || ofSandbox != placeJoined) {
		return workloadclaim.Unproven, nil
	}
	return workloadclaim.FactOf(inHost), nil
}

// place is what a runtime spec says of one type of namespace.
type place uint8

const (
	placeUnknown place = iota // there is no spec
	placeHost                 // the host's
	placeOwn                  // a new one
	placeJoined               // one that exists already; which one is not said
)

// namespace reads the OCI runtime spec (config-linux.md, "Namespaces"): a type that is not listed is inherited from the runtime,
// which is in the host's.
func (s *ociSpec) namespace(kind string) place {
	if s == nil || s.Linux == nil {
		return placeUnknown
	}
	for _, n := range s.Linux.Namespaces {
		switch {
		case n.Type != kind:
		case n.Path == "":
			return placeOwn
		case hostNamespace.MatchString(n.Path):
			return placeHost
		default:
			return placeJoined
		}
	}
	return placeHost
}

// hostNamespace matches paths of the first process's namespaces, and of the runtime's own.
var hostNamespace = regexp.MustCompile(`^/proc/(?:1|self|thread-self)/ns/`)

// mode is what the kubelet asked for; not ok when the runtime does not show the request.
func (i info) mode(kind string) (criv1.NamespaceMode, bool) {
	if i.Config == nil {
		return 0, false
	}
	options := i.Config.Linux.SecurityContext.NamespaceOptions
	if options == nil {
		return criv1.NamespaceMode_POD, true // protobuf's default, which is what the runtime acts on
	}
	return modeOf(kind, options.Pid, options.Network, options.IPC), true
}

func modeOf(kind string, pid, network, ipc criv1.NamespaceMode) criv1.NamespaceMode {
	switch kind {
	case "pid":
		return pid
	case "ipc":
		return ipc
	default:
		return network
	}
}

// defaultCapabilities is what containerd gives when nothing is asked for (pkg/oci: defaultUnixCaps). CRI-O's default is
// a part of it.
var defaultCapabilities = map[string]bool{
	"CAP_CHOWN": true, "CAP_DAC_OVERRIDE": true, "CAP_FSETID": true, "CAP_FOWNER": true, "CAP_MKNOD": true,
	"CAP_NET_RAW": true, "CAP_SETGID": true, "CAP_SETUID": true, "CAP_SETFCAP": true, "CAP_SETPCAP": true,
	"CAP_NET_BIND_SERVICE": true, "CAP_SYS_CHROOT": true, "CAP_KILL": true, "CAP_AUDIT_WRITE": true,
}

func addedCapabilities(spec *ociSpec) workloadclaim.Fact {
	if spec == nil || spec.Process == nil || spec.Process.Capabilities == nil {
		return workloadclaim.Unproven // without the object, what the process gets is up to the OCI runtime
	}
	c := spec.Process.Capabilities
	for _, set := range [][]string{c.Bounding, c.Effective, c.Inheritable, c.Permitted, c.Ambient} {
		for _, name := range set {
			if !defaultCapabilities[name] {
				return workloadclaim.Yes
			}
		}
	}
	return workloadclaim.No
}
