package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/test/cluster/node"
)

// janitorCommand is this program's other life: a second process that waits until the demo is gone, and cleans up if the demo
// could not (killed, out of memory). The kernel ends the demo's children by itself then, but not theirs, nor mounts, cgroups,
// interfaces and files.
const janitorCommand = "janitor"

// startJanitor starts it. The returned function tells it that there is nothing left to do.
func (d *demo) startJanitor() (func(), error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("demo: janitor: %w", err)
	}
	cmd := exec.Command(self, janitorCommand, d.dir, d.network.Bridge)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // neither the terminal's signals nor ours reach it
	alive, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("demo: janitor: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("demo: janitor: %w", err)
	}
	return func() {
		_, _ = io.WriteString(alive, "done") // without it, it cleans up what is clean
		_ = alive.Close()
		_ = cmd.Wait()
	}, nil
}

// janitor waits for the end of its standard input, which is the end of the demo, and cleans up unless it was told not to.
func janitor(args []string, alive io.Reader, stderr io.Writer) int {
	if len(args) != 2 || !strings.HasPrefix(filepath.Base(args[0]), "klsn-") || !strings.HasPrefix(args[1], "klsn") {
		_, _ = fmt.Fprintln(stderr, "demo: janitor is started by the demo itself")
		return 2
	}
	said, err := io.ReadAll(alive)
	if err == nil && string(said) == "done" {
		return 0
	}
	dir, bridge := args[0], args[1]
	err = errors.Join(
		cluster.Sweep(dir), cluster.Sweep(filepath.Join(dir, "k8s")),
		node.Cleanup(dir, "/"+bridge), (&node.Network{Bridge: bridge}).Close(), os.RemoveAll(dir),
	)
	if err != nil {
		_, _ = fmt.Fprintln(stderr, "demo: janitor:", err)
		return 1
	}
	return 0
}
