package mesh_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keelson-project/keelson/test/cluster/mesh"
	"github.com/keelson-project/keelson/test/cluster/node"
	"github.com/keelson-project/keelson/test/parts"
)

// inside tells the second process from the first.
const inside = "KEELSON_TEST_MESH_INSIDE"

// TestMain runs the tests a second time in a network and mount namespace of their own, where root can have them: the bridge,
// addresses and mounts of the pods are then seen by no one else, and go with the process however it ends. What the tests need
// from elsewhere is fetched before, because there is no way out of there.
func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() || node.CanRun() != nil || os.Getenv(inside) != "" {
		os.Exit(run(m))
	}
	if err := fetch(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	runtime.LockOSThread() // the kernel ties the parent-death signal to the thread that forks
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGTERM}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(m *testing.M) int {
	if os.Getenv(inside) == "" {
		return m.Run()
	}
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		fmt.Fprintf(os.Stderr, "private mounts: %v\n", err)
		return 1
	}
	return m.Run()
}

func fetch() error {
	ctx, stop := deadline()
	defer stop()
	if _, err := parts.EnsureSystem(ctx, os.Stderr, "ip", "iptables"); err != nil {
		return err
	}
	if _, err := parts.Commands(ctx, os.Stderr, "test/cluster/mesh/echo"); err != nil {
		return err
	}
	_, err := parts.Ensure(ctx, os.Stderr, "etcd", "kube-apiserver", "spire-server", "spire-agent", "pilot-discovery", "pilot-agent", "envoy", mesh.CNIPart)
	return err
}
