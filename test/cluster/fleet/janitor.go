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

// Remove takes away what a cluster of package fleet left that could not be closed: processes, mounts, cgroups, the bridge, and the
// folder if the cluster made it itself. dir and bridge are as they were; what is not known as ours is refused.
func Remove(dir, bridge string) error {
	whole, err := ours(dir, bridge)
	if err != nil {
		return err
	}
	errs := []error{cluster.Sweep(dir), cluster.Sweep(filepath.Join(dir, "k8s"))}
	errs = append(errs, removeCgroups(dir, bridge)...)
	errs = append(errs, machine.RemoveBridge(bridge))
	if !whole {
		return errors.Join(append(errs, disown(dir))...)
	}
	return errors.Join(append(errs, os.RemoveAll(dir))...)
}

// ours tells by the note that lies in a cluster's folder whether it is one, and whether the folder is the cluster's own as a whole; a
// folder of the name that Start gives needs no note, for its removal may have got no further than that.
func ours(dir, bridge string) (whole bool, err error) {
	refused := fmt.Errorf("fleet: %q and %q are no folder and bridge of ours", dir, bridge)
	if !filepath.IsAbs(dir) || !strings.HasPrefix(bridge, machine.Prefix) {
		return false, refused
	}
	o, err := readOwner(dir)
	switch {
	case err == nil && o.Bridge == bridge:
		return o.Whole, nil
	case errors.Is(err, os.ErrNotExist) && strings.HasPrefix(filepath.Base(dir), "klsn-"):
		return true, nil
	}
	return false, errors.Join(refused, err)
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
