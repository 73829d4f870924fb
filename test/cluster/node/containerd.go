package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/test/parts"
)

// ContainerdOptions says what containerd to run.
type ContainerdOptions struct {
	// Name is the node's name, Number its place in the network, from 1.
	Name   string
	Number int
	// Dir holds all of it: root, state, sockets, logs. Short enough for a Unix socket in it.
	Dir string
	// Sockets is for the shims' sockets; its path has at most 42 bytes. Folder "s" in Dir when empty.
	Sockets  string
	Network  *Network
	Registry *Registry
	// Pause is the sandbox image.
	Pause Pushed
	// Log receives progress for people; nil is silence.
	Log io.Writer
}

// StartContainerd starts a containerd that shares nothing with another on the machine: own folders, sockets, shims, cgroups.
// It needs root, runc and the CNI plugins; where one is missing the error says what to do.
func StartContainerd(ctx context.Context, g *cluster.Group, o ContainerdOptions) (*Runtime, error) {
	if err := CanRun(); err != nil {
		return nil, fmt.Errorf("node: containerd: %w", err)
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	if o.Sockets == "" {
		o.Sockets = filepath.Join(o.Dir, "s")
	}
	system, err := parts.EnsureSystem(ctx, o.Log, "runc", "cni")
	if err != nil {
		return nil, err
	}
	paths, err := parts.Ensure(ctx, o.Log, "containerd", "containerd-shim-runc-v2")
	if err != nil {
		return nil, err
	}
	if err := o.prepare(system["runc"], filepath.Dir(system["cni"]), paths["containerd-shim-runc-v2"]); err != nil {
		return nil, err
	}
	begun := time.Now()
	p, err := g.Start(cluster.Command{
		Name: "containerd-" + o.Name, Path: paths["containerd"], Args: []string{"--config", filepath.Join(o.Dir, "config.toml")},
	})
	if err != nil {
		return nil, err
	}
	rt, err := Dial(filepath.Join(o.Dir, "containerd.sock"))
	if err != nil {
		return nil, err
	}
	rt.name, rt.dir, rt.process = o.Name, o.Dir, p
	rt.cgroup = "/" + o.Network.Bridge + "/" + o.Name
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := p.Until(ctx, rt.Ready); err != nil {
		return nil, errors.Join(err, rt.Close(context.WithoutCancel(ctx)))
	}
	_, _ = fmt.Fprintf(o.Log, "containerd of %s is ready after %.1f s\n", o.Name, time.Since(begun).Seconds())
	return rt, nil
}

func (o ContainerdOptions) prepare(runc, cni, shim string) error {
	// containerd's own limit (core/runtime/v2, shim manager): a shim's socket is this folder and a hash.
	if len(o.Sockets) > 42 {
		return fmt.Errorf("node: containerd: folder %s is %d bytes long, 42 are allowed; use a shorter one (TMPDIR)", o.Sockets, len(o.Sockets))
	}
	for _, dir := range []string{filepath.Join(o.Dir, "root"), filepath.Join(o.Dir, "state"), filepath.Join(o.Dir, "temp"), filepath.Join(o.Dir, "logs"), o.Sockets} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return fmt.Errorf("node: containerd: %w", err)
		}
	}
	if err := o.Network.writeCNI(filepath.Join(o.Dir, "cni"), filepath.Join(o.Dir, "ipam"), o.Number); err != nil {
		return err
	}
	if err := o.Registry.writeHosts(filepath.Join(o.Dir, "certs.d")); err != nil {
		return err
	}
	content := fmt.Sprintf(containerdConfig, o.Dir, o.Pause.Reference(), cni, runc, shim, o.Sockets, snapshotter(o.Dir))
	if err := os.WriteFile(filepath.Join(o.Dir, "config.toml"), []byte(content), 0o600); err != nil {
		return fmt.Errorf("node: containerd: %w", err)
	}
	return nil
}

// snapshotter is how images become root file systems: overlayfs, or plain copies where the folder is on an overlay already (in a
// container), on which the kernel stacks no other.
func snapshotter(dir string) string {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err == nil && fs.Type == unix.OVERLAYFS_SUPER_MAGIC {
		return "native"
	}
	return "overlayfs"
}

// CanRun tells whether this process may run real containers, and what it lacks when not.
func CanRun() error {
	if os.Geteuid() != 0 {
		return errors.New("not running as root")
	}
	// proc_pid_status(5): the effective capabilities as a hexadecimal mask.
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return fmt.Errorf("node: %w", err)
	}
	for line := range strings.Lines(string(status)) {
		text, ok := strings.CutPrefix(line, "CapEff:")
		if !ok {
			continue
		}
		mask, err := strconv.ParseUint(strings.TrimSpace(text), 16, 64)
		if err != nil {
			return fmt.Errorf("node: capabilities: %w", err)
		}
		if mask&(1<<unix.CAP_SYS_ADMIN) == 0 || mask&(1<<unix.CAP_NET_ADMIN) == 0 {
			return errors.New("root lacks CAP_SYS_ADMIN or CAP_NET_ADMIN here")
		}
		return nil
	}
	return errors.New("the kernel does not tell this process's capabilities")
}

// containerdConfig keeps every path under one folder (%[1]s). restrict_oom_score_adj is for machines whose root lacks
// CAP_SYS_RESOURCE; no_sync is safe because nothing outlives the run.
const containerdConfig = `version = 4
root = "%[1]s/root"
state = "%[1]s/state"
temp = "%[1]s/temp"
imports = []
[debug]
  level = "info"
[plugins."io.containerd.server.v1.grpc"]
  address = "%[1]s/containerd.sock"
[plugins."io.containerd.server.v1.ttrpc"]
  address = "%[1]s/containerd.sock.ttrpc"
[plugins."io.containerd.shim.v1.manager"]
  socket_dir = "%[6]s"
[plugins."io.containerd.internal.v1.opt"]
  path = "%[1]s/opt"
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.metadata.v1.bolt"]
  no_sync = true
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "%[7]s"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "%[2]s"
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "%[1]s/certs.d"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  enable_unprivileged_ports = false
  enable_unprivileged_icmp = false
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["%[3]s"]
    conf_dir = "%[1]s/cni"
    use_internal_loopback = true
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      runtime_path = "%[5]s"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        BinaryName = "%[4]s"
        Root = "%[1]s/runc"
        SystemdCgroup = false
`
