package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/test/cluster/machine/spec"
	"github.com/keelson-project/keelson/test/cluster/node"
	"github.com/keelson-project/keelson/test/parts"
)

// program is the folder of the program that a machine's first process runs.
const program = "test/cluster/machine/cmd/machine"

// Options says what machine to make.
type Options struct {
	// Name is its host name, Number its place in the network, from 1 to Of, how many machines there may be.
	Name       string
	Number, Of int
	// Dir holds the machine's own files.
	Dir     string
	Network *Network
	// Program is what Build built.
	Program string
	// Files are put in place before the machine starts, by their absolute path in it: under /etc, /opt, /var or /run.
	Files map[string][]byte
	// Binds are further files or folders of the computer that the machine sees elsewhere, by the place where it sees them.
	Binds map[string]string
}

// Machine is a running machine.
type Machine struct {
	Options
	// PID is the first process, as the computer sees it.
	PID int
	// Process ends when the machine does.
	Process *cluster.Process
	// Cgroup is the machine's folder in every cgroup hierarchy.
	Cgroup string

	group *cluster.Group
}

// overlaid are the folders in which a machine writes its own files over the computer's; bound are those that are its own alone.
var (
	overlaid = []string{"/etc", "/opt", "/var"}
	bound    = []string{"/run", "/var/lib/containerd", "/var/lib/kubelet"}
)

// Build builds the program that machines run first, and returns its path for Options.
func Build(ctx context.Context, log io.Writer) (string, error) {
	paths, err := parts.Commands(ctx, log, program)
	return paths[program], err
}

// Start makes a machine. Its programs are in group g.
func Start(ctx context.Context, g *cluster.Group, o Options) (*Machine, error) {
	m := &Machine{Options: o, group: g, Cgroup: "/" + o.Network.Bridge + "/" + o.Name}
	if err := m.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("machine: %s: %w", o.Name, err), m.Close())
	}
	return m, nil
}

func (m *Machine) start(ctx context.Context) error {
	s, err := m.prepare()
	if err != nil {
		return err
	}
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if m.Process, err = m.group.Start(cluster.Command{Name: "machine-" + m.Name, Path: m.Program, Args: []string{"init", string(text)}}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	err = m.Process.Until(ctx, func(context.Context) error {
		_, err := os.Stat(s.Ready)
		return err
	})
	if err != nil {
		return err
	}
	if m.PID, err = child(m.Process.PID()); err != nil {
		return err
	}
	return m.Network.connect(m.Number, m.PID, m.Of)
}

// prepare makes the machine's files.
func (m *Machine) prepare() (spec.Spec, error) {
	s := spec.Spec{Name: m.Name, Ready: filepath.Join(m.Dir, "ready"), Sysctls: []spec.Sysctl{
		{Path: "net/ipv4/ip_forward", Value: "1"},
		{Path: "net/ipv4/conf/all/rp_filter", Value: "0"}, // Felix sets the pods' own
		{Path: "net/ipv6/conf/all/disable_ipv6", Value: "1"},
		{Path: "net/ipv6/conf/default/disable_ipv6", Value: "1"},
	}}
	for _, path := range overlaid {
		o := spec.Overlay{Path: path, Upper: m.Path(path), Work: filepath.Join(m.Dir, "work", path)}
		if err := errors.Join(os.MkdirAll(o.Upper, 0o755), os.MkdirAll(o.Work, 0o755)); err != nil {
			return s, err
		}
		s.Overlays = append(s.Overlays, o)
	}
	for _, path := range bound {
		from := m.Path(path)
		if err := os.MkdirAll(from, 0o755); err != nil {
			return s, err
		}
		if rest, ok := strings.CutPrefix(path, "/var/"); ok { // the place to mount it on is in the overlay
			from = filepath.Join(m.Dir, "own", rest)
			if err := os.MkdirAll(from, 0o755); err != nil {
				return s, err
			}
		}
		s.Binds = append(s.Binds, spec.Bind{From: from, To: path})
	}
	for to, from := range m.Binds {
		if err := m.place(to, from); err != nil {
			return s, err
		}
		s.Binds = append(s.Binds, spec.Bind{From: from, To: to})
	}
	if err := m.Write("/etc/hostname", []byte(m.Name+"\n")); err != nil {
		return s, err
	}
	for path, content := range m.Files {
		if err := m.Write(path, content); err != nil {
			return s, err
		}
	}
	return s, nil
}

// place makes what a bind is mounted on, where the machine's own files have to have it.
func (m *Machine) place(to, from string) error {
	if _, err := os.Stat(to); err == nil {
		return nil
	}
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return os.MkdirAll(m.Path(to), 0o755)
	}
	return m.Write(to, nil)
}

// Path is where the computer sees a file of the machine's own.
func (m *Machine) Path(path string) string { return filepath.Join(m.Dir, "files", path) }

// Write writes a file of the machine. After the start this is for new files under /run alone: an overlay does not promise to
// show what is changed below it.
func (m *Machine) Write(path string, content []byte) error {
	to := m.Path(path)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return fmt.Errorf("machine: %s: %w", m.Name, err)
	}
	if err := os.WriteFile(to, content, 0o644); err != nil {
		return fmt.Errorf("machine: %s: %w", m.Name, err)
	}
	return nil
}

// Address is the machine's address on the bridge.
func (m *Machine) Address() string { return m.Network.Machine(m.Number).String() }

// Start starts a program in the machine. Its files are opened by the paths that the machine sees.
func (m *Machine) Start(c cluster.Command) (*cluster.Process, error) {
	return m.group.Start(m.command(c))
}

func (m *Machine) command(c cluster.Command) cluster.Command {
	c.Args = append([]string{"exec", fmt.Sprint(m.PID), c.Path}, c.Args...)
	c.Path = m.Program
	return c
}

// Run runs a program in the machine to its end.
func (m *Machine) Run(ctx context.Context, path string, args ...string) error {
	c := m.command(cluster.Command{Path: path, Args: args})
	if out, err := exec.CommandContext(ctx, c.Path, c.Args...).CombinedOutput(); err != nil { // #nosec G204 -- a test's own program
		return fmt.Errorf("machine: %s: %s: %w: %s", m.Name, path, err, out)
	}
	return nil
}

// Close ends the machine and removes its cgroups. Its files are left to whoever made Dir.
func (m *Machine) Close() error {
	if m.Process != nil {
		m.Process.Stop(5 * time.Second)
	}
	return node.Cleanup(m.Dir, m.Cgroup)
}

// child is the only child of a process.
func child(pid int) (int, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return 0, err
	}
	for _, task := range tasks {
		content, err := os.ReadFile(task)
		if err != nil {
			return 0, err
		}
		var found int
		if n, _ := fmt.Sscan(string(content), &found); n == 1 { // a thread without children has an empty file
			return found, nil
		}
	}
	return 0, fmt.Errorf("process %d has no child", pid)
}

// handleOf speaks to the kernel about the network of a process.
func handleOf(pid int) (*netlink.Handle, error) {
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return nil, err
	}
	defer func() { _ = ns.Close() }() // the handle has a socket in it by then
	return netlink.NewHandleAt(ns)
}
