package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Owner says whose a cluster is. It lies in the cluster's folder.
type Owner struct {
	// PID is the program that made the cluster, Started its start time in the kernel's ticks, so that another program with the
	// same number is not taken for it.
	PID     int
	Started string
	// Bridge is the network's.
	Bridge string
	// Whole says that the folder was made for the cluster and goes with it; one that somebody else chose (Options.Dir) stays.
	Whole bool
	// Dir is the cluster's folder; it is not in the file.
	Dir string `json:"-"`
}

const ownerFile = "owner.json"

func (f *Fleet) writeOwner() error {
	o := Owner{PID: os.Getpid(), Started: startTime(os.Getpid()), Bridge: f.Network.Bridge, Whole: f.ownDir}
	content, err := json.Marshal(o)
	if err != nil {
		return fmt.Errorf("fleet: %w", err)
	}
	if err := os.WriteFile(filepath.Join(f.Dir, ownerFile), content, 0o600); err != nil {
		return fmt.Errorf("fleet: %w", err)
	}
	return nil
}

func readOwner(dir string) (Owner, error) {
	o := Owner{Dir: dir}
	content, err := os.ReadFile(filepath.Join(dir, ownerFile))
	if err == nil {
		err = json.Unmarshal(content, &o)
	}
	return o, err
}

// disown takes the note away from a folder that stays.
func disown(dir string) error {
	if err := os.Remove(filepath.Join(dir, ownerFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("fleet: %w", err)
	}
	return nil
}

// List finds the clusters on this computer, running or left behind, by their folders: those that Start made. One in a folder of
// somebody else's choice is known to its program, and to the janitor, alone.
func List() ([]Owner, error) {
	files, err := filepath.Glob(filepath.Join(os.TempDir(), "klsn-*", ownerFile))
	if err != nil {
		return nil, fmt.Errorf("fleet: %w", err)
	}
	var owners []Owner
	for _, file := range files {
		o, err := readOwner(filepath.Dir(file))
		if errors.Is(err, os.ErrNotExist) {
			continue // it has just gone
		}
		if err != nil {
			return nil, fmt.Errorf("fleet: %s: %w", file, err)
		}
		owners = append(owners, o)
	}
	return owners, nil
}

// Alive tells whether the program that made the cluster still runs.
func (o Owner) Alive() bool { return o.Started != "" && startTime(o.PID) == o.Started }

// Down ends a cluster: it asks the program that made it to, or cleans up after one that is gone.
func (o Owner) Down(ctx context.Context) error {
	if !o.Alive() {
		return Remove(o.Dir, o.Bridge)
	}
	if err := syscall.Kill(o.PID, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("fleet: end %d: %w", o.PID, err)
	}
	for {
		if _, err := os.Stat(o.Dir); errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if !o.Alive() {
			return Remove(o.Dir, o.Bridge)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("fleet: %s is not gone yet: %w", o.Dir, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// startTime is field 22 of proc_pid_stat(5); empty when there is no such process.
func startTime(pid int) string {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(content), ") ") // the name before it may hold anything
	fields := strings.Fields(rest)
	if len(fields) < 20 || fields[0] == "Z" {
		return ""
	}
	return fields[19]
}
