package procinfo

import (
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// PIDsLimit returns the most processes and threads that the container's cgroup can have (kernel, cgroup-v2.rst and
// cgroup-v1/pids.rst: pids.max), by the least limit from it up to the root of the hierarchy; 0 where there is no limit.
// cgroupRoot is where the cgroup file systems are mounted, normally "/sys/fs/cgroup". A kubelet's podPidsLimit is on the pod's
// cgroup, CRI-O's pids_limit on the container's.
//
// Only the container's own cgroup and those above it count, which a workload cannot write to, and not what it made below.
func (p *Process) PIDsLimit(cgroupRoot string) (int64, error) {
	for _, c := range p.cgroups {
		for _, dir := range c.mounts(cgroupRoot) {
			parts := strings.Split(c.Path, "/")
			last := slices.IndexFunc(parts, containerName.MatchString)
			if last < 0 {
				continue
			}
			if limit, err := leastLimit(dir, parts[:last+1]); err != nil || limit != noController {
				return max(limit, 0), err
			}
		}
	}
	return 0, fmt.Errorf("procinfo: process %d: no cgroup in %s limits processes", p.pid, cgroupRoot)
}

// mounts are the folders where a hierarchy that may count processes is mounted: cgroup v2 alone or beside v1, or v1's "pids".
func (c Cgroup) mounts(root string) []string {
	switch {
	case c.Hierarchy == 0:
		return []string{root, filepath.Join(root, "unified")}
	case slices.Contains(strings.Split(c.Controllers, ","), "pids"):
		return []string{filepath.Join(root, c.Controllers), filepath.Join(root, "pids")}
	default:
		return nil
	}
}

// noController means that the cgroup has no pids.max.
const noController = -1

// leastLimit goes from a cgroup up to the root, which has no pids.max.
func leastLimit(dir string, parts []string) (int64, error) {
	least := int64(math.MaxInt64)
	for n := len(parts); n > 1; n-- {
		limit, err := readLimit(filepath.Join(dir, path.Join(parts[:n]...), "pids.max"))
		switch {
		case os.IsNotExist(err) && n == len(parts):
			return noController, nil
		case os.IsNotExist(err): // the controller is not in use above
		case err != nil:
			return 0, fmt.Errorf("procinfo: %w", err)
		case limit > 0:
			least = min(least, limit)
		}
	}
	if least == math.MaxInt64 {
		return 0, nil
	}
	return least, nil
}

// readLimit reads one pids.max: a number, or 0 for "max".
func readLimit(file string) (limit int64, err error) {
	f, err := os.Open(file) // #nosec G304 -- below the cgroup file system, by the kernel's own path
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }() // it was only read
	raw, err := io.ReadAll(io.LimitReader(f, 64))
	if err != nil {
		return 0, err
	}
	text := strings.TrimSuffix(string(raw), "\n")
	if text == "max" {
		return 0, nil
	}
	if limit, err = strconv.ParseInt(text, 10, 64); err != nil || limit < 0 {
		return 0, fmt.Errorf("%s: %.40q is no number of processes", file, text)
	}
	return limit, nil
}
