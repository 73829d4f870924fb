package procinfo

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Limits on /proc/PID/cgroup. The kernel writes one line per hierarchy, at most some 15, each path below PATH_MAX.
const (
	maxCgroupFile  = 64 << 10
	maxCgroupLines = 64
	maxCgroupPath  = 4096
)

// ErrNotContainer means that the kernel puts the process in no container's cgroup: it is a process of the host.
var ErrNotContainer = errors.New("process is in no container")

// PodCgroup means that the kernel puts the process below the kubelet's cgroups, and that no part of the path is a container's.
// The pod of that process gets no claims, so its operator should hear why. errors.Is(err, ErrNotContainer) is true.
type PodCgroup struct {
	// Cgroup leads to the first cgroup below the pod's, at most. What a container makes below its own does not show in it.
	Cgroup string
	// Why names the likely cause, and what to do.
	Why string
}

// Error names the cgroup and the cause.
func (e *PodCgroup) Error() string {
	return fmt.Sprintf("cgroup %s is a pod's, and no container's that Keelson knows: %s", short(e.Cgroup), e.Why)
}

// Unwrap makes a PodCgroup an ErrNotContainer.
func (e *PodCgroup) Unwrap() error { return ErrNotContainer }

// Cgroup is one line of /proc/PID/cgroup (cgroups(7)): the process's place in one hierarchy.
type Cgroup struct {
	Hierarchy   int    // 0 is cgroup v2
	Controllers string // of a v1 hierarchy, for example "pids" or "name=systemd"
	Path        string // from the root of the reader's cgroup namespace
}

// Membership is what the kernel says about the cgroups of a process.
type Membership struct {
	// Container is the container's ID, 64 lower-case hex digits.
	Container string
	// Paths are the distinct cgroup paths that end in, or lead through, that container, in the kernel's order.
	Paths []string
}

// ParseCgroup reads /proc/PID/cgroup. The kernel writes it; a process decides in it only what cgroups it could create
// and enter, whose names cannot hold a newline (kernel, cgroup_mkdir). Strict all the same: what does not parse is an
// error, never skipped.
func ParseCgroup(raw []byte) ([]Cgroup, error) {
	if len(raw) > maxCgroupFile {
		return nil, fmt.Errorf("procinfo: cgroup file is larger than %d bytes", maxCgroupFile)
	}
	if len(raw) == 0 {
		return nil, errors.New("procinfo: cgroup file is empty")
	}
	body, ok := bytes.CutSuffix(raw, []byte("\n"))
	if !ok {
		return nil, errors.New("procinfo: cgroup file ends in the middle of a line")
	}
	lines := strings.Split(string(body), "\n")
	if len(lines) > maxCgroupLines {
		return nil, fmt.Errorf("procinfo: cgroup file has %d lines, the limit is %d", len(lines), maxCgroupLines)
	}
	var out []Cgroup
	seen := map[int]bool{}
	for i, line := range lines {
		c, err := parseLine(line)
		if err != nil {
			return nil, fmt.Errorf("procinfo: cgroup file, line %d: %w", i+1, err)
		}
		if seen[c.Hierarchy] {
			return nil, fmt.Errorf("procinfo: cgroup file, line %d: hierarchy %d is given twice", i+1, c.Hierarchy)
		}
		seen[c.Hierarchy] = true
		out = append(out, c)
	}
	return out, nil
}

func parseLine(line string) (Cgroup, error) {
	number, rest, ok1 := strings.Cut(line, ":")
	controllers, where, ok2 := strings.Cut(rest, ":")
	if !ok1 || !ok2 {
		return Cgroup{}, fmt.Errorf("%s: want hierarchy:controllers:path", short(line))
	}
	hierarchy, err := strconv.Atoi(number)
	if err != nil || hierarchy < 0 || strconv.Itoa(hierarchy) != number {
		return Cgroup{}, fmt.Errorf("hierarchy %s is not a number", short(number))
	}
	if len(where) > maxCgroupPath {
		return Cgroup{}, fmt.Errorf("path of %d characters, the limit is %d", len(where), maxCgroupPath)
	}
	if !strings.HasPrefix(where, "/") {
		return Cgroup{}, fmt.Errorf("path %s does not start with /", short(where))
	}
	return Cgroup{Hierarchy: hierarchy, Controllers: controllers, Path: where}, nil
}

// ContainerOf finds the one container that all the lines agree on. ErrNotContainer: no line names one; a *PodCgroup where the
// process is a pod's all the same. Refused:
// two containers, in one path (nested engines, or a cgroup made to look like a container's inside another one) or in
// two hierarchies; and paths that are not seen from the root.
func ContainerOf(cgroups []Cgroup) (Membership, error) {
	var m Membership
	for _, c := range cgroups {
		if err := checkRooted(c.Path); err != nil {
			return Membership{}, err
		}
		id, err := containerIn(c.Path)
		if err != nil {
			return Membership{}, err
		}
		if id == "" {
			continue
		}
		if m.Container != "" && m.Container != id {
			return Membership{}, fmt.Errorf("procinfo: cgroups name two containers, %s and %s: ambiguous, refused", m.Container, id)
		}
		m.Container = id
		if !slices.Contains(m.Paths, c.Path) {
			m.Paths = append(m.Paths, c.Path)
		}
	}
	if m.Container == "" {
		return Membership{}, noContainer(cgroups)
	}
	return m, nil
}

// noContainer tells a process of the host from one in a pod whose container has a name that is not known.
func noContainer(cgroups []Cgroup) error {
	for _, c := range cgroups {
		parts := strings.Split(c.Path, "/")
		end := slices.IndexFunc(parts, func(part string) bool { return strings.Contains(part, "kubepods") })
		if end < 0 {
			continue
		}
		// The kubelet's folders are the service class's and the pod's. The next one is the runtime's.
		for end+1 < len(parts) && !strings.Contains(parts[end], ":") && isKubelets(parts[end]) {
			end++
		}
		return &PodCgroup{Cgroup: strings.Join(parts[:end+1], "/"), Why: unnamed(parts[end])}
	}
	return ErrNotContainer
}

// podFolder matches the kubelet's own cgroups with the cgroupfs driver (kubernetes, pkg/kubelet/cm).
var podFolder = regexp.MustCompile(`^(?:burstable|besteffort|guaranteed|pod[0-9a-f-]+)$`)

func isKubelets(part string) bool {
	return strings.Contains(part, "kubepods") || podFolder.MatchString(part)
}

// unnamed says what a runtime's cgroup may be whose name is no container's.
func unnamed(name string) string {
	switch {
	case strings.Contains(name, ".slice:"):
		return "the kubelet uses the cgroup driver systemd and the OCI runtime cgroupfs; set both to systemd " +
			"(containerd: SystemdCgroup = true in the options of runtime runc)"
	case strings.HasPrefix(name, "crio-conmon-"):
		return "it is CRI-O's monitor of a container"
	case strings.HasPrefix(name, "kata_") || strings.HasPrefix(name, "kata-"):
		return "Kata Containers run a pod's containers in a virtual machine, whose processes this node's kernel does not see"
	default:
		return "it may be a pod's sandbox with the containers inside it (gVisor, Kata), or a container of another engine; " +
			"containers of containerd, CRI-O and cri-dockerd are known by their cgroup's name"
	}
}

// checkRooted refuses paths that the kernel writes relative to a cgroup namespace's root ("/../…": what is above is
// unknown, so a cgroup of the same name elsewhere could not be told apart) and those of removed cgroups.
func checkRooted(p string) error {
	if strings.Contains(p+"/", "/../") {
		return fmt.Errorf("procinfo: cgroup path %s leads out of this process's cgroup namespace: run the SPIRE agent in the host's cgroup namespace (hostPID, and privileged or cgroupns=host)", short(p))
	}
	if strings.HasSuffix(p, " (deleted)") {
		return fmt.Errorf("procinfo: cgroup %s is deleted", short(p))
	}
	if path.Clean(p) != p {
		return fmt.Errorf("procinfo: cgroup path %s is not in its shortest form", short(p))
	}
	return nil
}

// containerName matches one whole path component that is a container's cgroup, as containerd, CRI-O and cri-dockerd name it:
// the bare ID, or CRI-O's crio-<ID> (cgroupfs driver; cri-o, internal/config/cgmgr), or the systemd driver's scope. Only whole
// components count, so a name that merely contains an ID is no container's. CRI-O's crio-conmon-<ID>, with or without .scope,
// is its monitor.
var containerName = regexp.MustCompile(`^(?:([0-9a-f]{64})|crio-([0-9a-f]{64})|(?:cri-containerd|crio|docker)-([0-9a-f]{64})\.scope)$`)

// containerIn returns the ID of the only container in a path, or empty. A container may have cgroups of its own
// below (systemd in a container), so it need not be the last component.
func containerIn(p string) (string, error) {
	var id string
	for _, component := range strings.Split(p, "/") {
		match := containerName.FindStringSubmatch(component)
		if match == nil {
			continue
		}
		if id != "" {
			return "", fmt.Errorf("procinfo: cgroup path %s leads through two containers: ambiguous, refused", short(p))
		}
		id = match[1] + match[2] + match[3]
	}
	return id, nil
}

// Within tells whether the kernel's path is the cgroup that the runtime made for a container, or below it.
// cgroupsPath is linux.cgroupsPath of the container's OCI runtime spec: an absolute path (cgroupfs driver), or
// "slice:prefix:name" (systemd driver). It holds every path of the membership against it: a cgroup that merely bears the
// container's name somewhere else (one that a host user made in a subtree delegated to them) is refused.
func (m Membership) Within(cgroupsPath string) error {
	want, err := kernelPath(cgroupsPath)
	if err != nil {
		return err
	}
	for _, p := range m.Paths {
		if p != want && !strings.HasPrefix(p, want+"/") {
			return fmt.Errorf("procinfo: the kernel has the process in cgroup %s, the runtime made %s for container %s: refused", short(p), short(want), m.Container)
		}
	}
	return nil
}

// kernelPath turns an OCI cgroupsPath into the path that the kernel shows (runc, libcontainer/cgroups/systemd: ExpandSlice,
// and getUnitName). A slice "a-b.slice" is at /a.slice/a-b.slice.
func kernelPath(cgroupsPath string) (string, error) {
	if strings.HasPrefix(cgroupsPath, "/") && path.Clean(cgroupsPath) == cgroupsPath && cgroupsPath != "/" {
		return cgroupsPath, nil
	}
	parts := strings.Split(cgroupsPath, ":")
	if len(parts) != 3 || parts[1] == "" || parts[2] == "" || strings.Contains(cgroupsPath, "/") {
		return "", fmt.Errorf("procinfo: runtime's cgroup path %s: want an absolute path or slice:prefix:name", short(cgroupsPath))
	}
	slice, err := expandSlice(parts[0])
	if err != nil {
		return "", err
	}
	return path.Join(slice, parts[1]+"-"+parts[2]+".scope"), nil
}

func expandSlice(slice string) (string, error) {
	const suffix = ".slice"
	if slice == "" {
		slice = "system.slice" // runc's default parent
	}
	name, ok := strings.CutSuffix(slice, suffix)
	if !ok || name == "" || strings.Trim(name, "-") != name || strings.Contains(name, "--") {
		if slice == "-.slice" {
			return "/", nil
		}
		return "", fmt.Errorf("procinfo: runtime's cgroup slice %s is malformed", short(slice))
	}
	out, prefix := "/", ""
	for _, part := range strings.Split(name, "-") {
		out = path.Join(out, prefix+part+suffix)
		prefix += part + "-"
	}
	return out, nil
}

func short(s string) string {
	const limit = 200
	if len(s) > limit {
		return fmt.Sprintf("%q…", s[:limit])
	}
	return fmt.Sprintf("%q", s)
}
