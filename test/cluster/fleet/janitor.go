package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/test/cluster/machine"
	"github.com/keelson-project/keelson/test/cluster/node"
	"github.com/keelson-project/keelson/test/parts"
)

// janitorProgram is the folder of a program that waits for this one's end and calls Remove if this one could not clean up.
const janitorProgram = "test/cluster/fleet/cmd/janitor"

// janitor is that program, running.
type janitor struct {
	cmd   *exec.Cmd
	alive io.WriteCloser
}

// startJanitor starts it before there is anything to clean up. It learns of this program's end by the end of its standard input.
func startJanitor(ctx context.Context, log io.Writer, dir, bridge string) (*janitor, error) {
	paths, err := parts.Commands(ctx, log, janitorProgram)
	if err != nil {
		return nil, err
	}
	j := &janitor{cmd: exec.Command(paths[janitorProgram], dir, bridge)}
	j.cmd.Stderr = os.Stderr
	j.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // neither the terminal's signals nor ours reach it
	if j.alive, err = j.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("fleet: janitor: %w", err)
	}
	if err := j.cmd.Start(); err != nil {
		return nil, fmt.Errorf("fleet: janitor: %w", err)
	}
	return j, nil
}

// dismiss tells it that all is clean.
func (j *janitor) dismiss() error {
	_, err := io.WriteString(j.alive, Done)
	if err := errors.Join(err, j.alive.Close(), j.cmd.Wait()); err != nil {
		return fmt.Errorf("fleet: janitor: %w", err)
	}
	return nil
}

// Done is what the janitor is told when nothing is left to do.
const Done = "done"

// Remove takes away what a cluster of package fleet left that could not be closed: processes, mounts, cgroups, the bridge, the
// folder. dir and bridge are as they were; what does not look like ours is refused.
func Remove(dir, bridge string) error {
	if !filepath.IsAbs(dir) || !strings.HasPrefix(filepath.Base(dir), "klsn") || !strings.HasPrefix(bridge, machine.Prefix) {
		return fmt.Errorf("fleet: %q and %q are no folder and bridge of ours", dir, bridge)
	}
	errs := []error{cluster.Sweep(dir), cluster.Sweep(filepath.Join(dir, "k8s"))}
	errs = append(errs, removeCgroups(dir, bridge)...)
	return errors.Join(append(errs, machine.RemoveBridge(bridge), os.RemoveAll(dir))...)
}

// removeCgroups removes each node's cgroups; a node is whatever folder of the run is named like one.
func removeCgroups(dir, bridge string) []error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		if e.IsDir() {
			errs = append(errs, node.Cleanup(filepath.Join(dir, e.Name()), "/"+bridge+"/"+e.Name()))
		}
	}
	return errs
}
