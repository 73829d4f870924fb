package node

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Cleanup undoes what a runtime that was killed could not: processes in its cgroups, mounts below its folder, the cgroups.
func Cleanup(dir, cgroup string) error {
	return errors.Join(removeCgroups(cgroup), unmountBelow(dir))
}

// unmountBelow takes away every mount below dir, last made first.
func unmountBelow(dir string) error {
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("node: %w", err)
	}
	defer func() { _ = mounts.Close() }() // read only
	var below []string
	lines := bufio.NewScanner(mounts)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") { // proc_pid_mountinfo(5): mount point is the fifth
			below = append(below, fields[4])
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("node: %w", err)
	}
	var errs []error
	for _, path := range slices.Backward(below) {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("node: unmount %s: %w", path, err))
		}
	}
	return errors.Join(errs...)
}

// MakeCgroup makes a cgroup in every hierarchy, as a kubelet wants its root. A cpuset takes processes only once it has CPUs and
// memory nodes, which it gets from its parent.
func MakeCgroup(cgroup string) error {
	roots, err := hierarchies()
	if err != nil {
		return err
	}
	for _, root := range roots {
		dir := root
		for _, element := range strings.Split(strings.Trim(cgroup, "/"), "/") {
			parent := dir
			dir = filepath.Join(dir, element)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return fmt.Errorf("node: cgroup: %w", err)
			}
			for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
				if err := inherit(parent, dir, name); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// inherit copies a setting of the parent cgroup that the child has and left empty. A hierarchy other than that of cpusets has no such
// setting, and the root of version 2 has not either.
func inherit(parent, dir, name string) error {
	own, err := os.ReadFile(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("node: cgroup: %w", err)
	}
	value, err := os.ReadFile(filepath.Join(parent, name))
	if errors.Is(err, fs.ErrNotExist) || strings.TrimSpace(string(own)) != "" {
		return nil
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, name), value, 0)
	}
	if err != nil {
		return fmt.Errorf("node: cgroup: %w", err)
	}
	return nil
}

// removeCgroups kills what is left in a run's own cgroups, in whatever hierarchies the machine has, and removes them.
func removeCgroups(cgroup string) error {
	roots, err := hierarchies()
	if err != nil {
		return err
	}
	var errs []error
	for _, root := range roots {
		errs = append(errs, removeTree(filepath.Join(root, cgroup)))
		// The run's own parent goes with the last node; until then it is not empty.
		_ = os.Remove(filepath.Join(root, filepath.Dir(cgroup)))
	}
	return errors.Join(errs...)
}

func hierarchies() ([]string, error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	var roots []string
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if len(fields) > 2 && (fields[2] == "cgroup" || fields[2] == "cgroup2") {
			roots = append(roots, fields[1])
		}
	}
	return roots, nil
}

func removeTree(top string) error {
	var dirs []string
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("node: cgroup %s: %w", top, err)
	}
	for _, dir := range slices.Backward(dirs) {
		if err := removeCgroup(dir); err != nil {
			return err
		}
	}
	return nil
}

func removeCgroup(dir string) error {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return fmt.Errorf("node: cgroup %s: %w", dir, err)
		}
		killIn(dir)
	}
}

func killIn(dir string) {
	procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return // it is gone, which is what is wanted
	}
	for line := range strings.Lines(string(procs)) {
		var pid int
		if _, err := fmt.Sscan(line, &pid); err == nil {
			_ = unix.Kill(pid, unix.SIGKILL) // it may have ended by itself
		}
	}
}
