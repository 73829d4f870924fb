// Command machine is what package machine runs: the first process of a machine, and the door into it.
//
//	machine init SPEC             makes the namespaces and mounts that SPEC (JSON) asks for, says "ready", and reaps
//	machine exec PID PROGRAM …    runs a program in the namespaces of process PID
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/keelson-project/keelson/test/cluster/machine/spec"
)

func main() {
	var err error
	switch {
	case len(os.Args) == 3 && os.Args[1] == "init":
		err = outer(os.Args[2])
	case len(os.Args) == 3 && os.Args[1] == "inner":
		err = inner(os.Args[2])
	case len(os.Args) > 3 && os.Args[1] == "exec":
		err = enter(os.Args[2], os.Args[3:])
	case len(os.Args) > 2 && os.Args[1] == "become":
		err = become(os.Args[2:])
	default:
		err = errors.New("usage: machine init SPEC | machine exec PID PROGRAM …")
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "machine:", err)
		os.Exit(1)
	}
}

// outer starts the machine's first process in namespaces of its own and waits for it. With this process the machine ends: the
// kernel kills a PID namespace's first process when its parent dies, and with that process everything in the namespace.
func outer(text string) error {
	cmd := exec.Command("/proc/self/exe", "inner", text)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	return supervise(cmd)
}

// supervise runs a program and hands it the signals that end us.
func supervise(cmd *exec.Cmd) error {
	runtime.LockOSThread() // the parent-death signal is tied to the thread that forks
	defer runtime.UnlockOSThread()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s) // it may have ended
		}
	}()
	return cmd.Wait()
}

// inner is the machine's first process.
func inner(text string) error {
	var s spec.Spec
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return fmt.Errorf("spec: %w", err)
	}
	if err := unix.Sethostname([]byte(s.Name)); err != nil {
		return fmt.Errorf("hostname: %w", err)
	}
	if err := mounts(s); err != nil {
		return err
	}
	if err := loopback(); err != nil {
		return err
	}
	for _, setting := range s.Sysctls {
		if err := os.WriteFile(filepath.Join("/proc/sys", setting.Path), []byte(setting.Value), 0o644); err != nil {
			return fmt.Errorf("sysctl: %w", err)
		}
	}
	// SIGTERM has no default effect on the first process of a PID namespace: it is taken here.
	ending := make(chan os.Signal, 1)
	signal.Notify(ending, syscall.SIGTERM, syscall.SIGINT)
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	if err := os.WriteFile(s.Ready, []byte("ready\n"), 0o600); err != nil {
		return err
	}
	for {
		select {
		case <-ending:
			return nil
		case <-children:
			for { // whatever lost its parent is ours to reap
				pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
				if pid <= 0 || err != nil {
					break
				}
			}
		}
	}
}

// mounts gives the machine files of its own. Nothing of it reaches the host: the tree is made a slave first. Then it is shared
// again, among the machine's own processes, as a kubelet wants it.
func mounts(s spec.Spec) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	for _, o := range s.Overlays {
		options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", o.Path, o.Upper, o.Work)
		if err := unix.Mount("overlay", o.Path, "overlay", 0, options); err != nil {
			return fmt.Errorf("mount overlay on %s: %w", o.Path, err)
		}
	}
	for _, b := range s.Binds {
		if err := unix.Mount(b.From, b.To, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("mount %s on %s: %w", b.From, b.To, err)
		}
	}
	return nil
}

func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	defer func() { _ = unix.Close(fd) }() // nothing was written to it
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	return nil
}

// enter runs a program in another process's namespaces. The mount namespace comes last: the others' files are under our own
// /proc.
func enter(target string, program []string) error {
	pid, err := strconv.Atoi(target)
	if err != nil {
		return fmt.Errorf("process ID: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	runtime.LockOSThread() // namespaces are a thread's; this one is never given back
	// A thread that shares its working directory with others may not change its mount namespace (setns(2)).
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	var fds []int
	for _, name := range []string{"ipc", "uts", "net", "pid", "mnt"} {
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("namespace %s of %d: %w", name, pid, err)
		}
		fds = append(fds, fd)
	}
	for _, fd := range fds {
		if err := unix.Setns(fd, 0); err != nil {
			return fmt.Errorf("enter a namespace of %d: %w", pid, err)
		}
	}
	return supervise(exec.Command(self, append([]string{"become"}, program...)...))
}

// become turns this process into a program that dies with its parent. Package syscall's Pdeathsig cannot do that in a PID
// namespace other than the parent's: it takes a parent that it cannot see for one that has died.
func become(program []string) error {
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(syscall.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("prctl: %w", err)
	}
	path, err := exec.LookPath(program[0])
	if err != nil {
		return err
	}
	return fmt.Errorf("%s: %w", path, unix.Exec(path, program, os.Environ()))
}
