// Package procinfo says which container a process is in, by what the kernel knows and the process cannot forge.
//
// It reads /proc/PID/cgroup and /proc/PID/stat and nothing else. /proc/PID/mountinfo shows the process's own mount
// namespace, which the process may fill with bind mounts that look like another container's cgroup; it is never
// opened. A process ID is only a number that the kernel gives out again, so a process is pinned first: by an open
// descriptor of its /proc directory (reads through it fail once the process is gone, also when the number is in use
// again), by a pidfd, and by its start time; and it is checked again after all questions were asked.
package procinfo

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Proc is a proc file system.
type Proc struct{ dir string }

// New uses the proc file system mounted at dir, normally "/proc". The process IDs it is asked for are those of that mount's
// PID namespace.
func New(dir string) Proc { return Proc{dir: dir} }

// Process is a pinned process. Close it.
type Process struct {
	pid       int32
	dir       *os.Root
	pidfd     int // -1 where dir is not this process's own /proc: a pidfd would be of another PID namespace
	startTime uint64
	cgroups   []Cgroup
}

// Pin pins the process with this ID and reads its cgroups.
func (p Proc) Pin(pid int32) (*Process, error) {
	if pid <= 0 {
		return nil, fmt.Errorf("procinfo: process ID %d is not positive", pid)
	}
	dir, err := os.OpenRoot(filepath.Join(p.dir, strconv.Itoa(int(pid))))
	if err != nil {
		return nil, fmt.Errorf("procinfo: process %d: %w", pid, err)
	}
	process := &Process{pid: pid, dir: dir, pidfd: -1}
	if err := process.pin(p.dir == "/proc"); err != nil {
		return nil, errors.Join(err, process.Close())
	}
	return process, nil
}

func (p *Process) pin(own bool) (err error) {
	if own {
		if p.pidfd, err = unix.PidfdOpen(int(p.pid), 0); err != nil {
			p.pidfd = -1
			return fmt.Errorf("procinfo: process %d: pidfd_open: %w", p.pid, err)
		}
	}
	if p.startTime, err = p.readStartTime(); err != nil {
		return err
	}
	p.cgroups, err = p.readCgroups()
	return err
}

// Membership says which container the process is in; ErrNotContainer when it is in none.
func (p *Process) Membership() (Membership, error) { return ContainerOf(p.cgroups) }

// Recheck fails unless the process still runs, is the same one and is in the same cgroups as when it was pinned. Call it when
// everything else has been asked.
func (p *Process) Recheck() error {
	if err := p.alive(); err != nil {
		return err
	}
	startTime, err := p.readStartTime()
	if err != nil {
		return err
	}
	if startTime != p.startTime {
		return fmt.Errorf("procinfo: process %d was replaced by another one with the same ID", p.pid)
	}
	cgroups, err := p.readCgroups()
	if err != nil {
		return err
	}
	if !slices.Equal(cgroups, p.cgroups) {
		return fmt.Errorf("procinfo: process %d moved to other cgroups while it was attested", p.pid)
	}
	return nil
}

// Close releases the process.
func (p *Process) Close() error {
	err := p.dir.Close()
	if p.pidfd >= 0 {
		err = errors.Join(err, unix.Close(p.pidfd))
		p.pidfd = -1
	}
	return err
}

// alive asks the pidfd, which becomes readable when its process ends (pidfd_open(2)).
func (p *Process) alive() error {
	if p.pidfd < 0 {
		return nil
	}
	fds := []unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}} //nolint:gosec // a descriptor fits
	for {
		n, err := unix.Poll(fds, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("procinfo: process %d: poll: %w", p.pid, err)
		}
		if n != 0 {
			return fmt.Errorf("procinfo: process %d has ended", p.pid)
		}
		return nil
	}
}

func (p *Process) readCgroups() ([]Cgroup, error) {
	raw, err := p.read("cgroup", maxCgroupFile)
	if err != nil {
		return nil, err
	}
	return ParseCgroup(raw)
}

func (p *Process) readStartTime() (uint64, error) {
	raw, err := p.read("stat", maxStat)
	if err != nil {
		return 0, err
	}
	s, err := parseStat(raw)
	if err != nil {
		return 0, err
	}
	if s.pid != p.pid {
		return 0, fmt.Errorf("procinfo: process %d: stat is that of process %d", p.pid, s.pid)
	}
	if s.state == "Z" || s.state == "X" || s.state == "x" {
		return 0, fmt.Errorf("procinfo: process %d has ended (state %s)", p.pid, s.state)
	}
	return s.startTime, nil
}

func (p *Process) read(name string, limit int64) (raw []byte, err error) {
	f, err := p.dir.Open(name)
	if err != nil {
		return nil, fmt.Errorf("procinfo: process %d: %w", p.pid, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	raw, err = io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("procinfo: process %d: %s: %w", p.pid, name, err)
	}
	if int64(len(raw)) > limit {
		return nil, fmt.Errorf("procinfo: process %d: %s is larger than %d bytes", p.pid, name, limit)
	}
	return raw, nil
}

const maxStat = 4096

// stat is a part of /proc/PID/stat (proc_pid_stat(5)).
type stat struct {
	pid       int32
	state     string // field 3
	startTime uint64 // field 22, clock ticks since boot
}

// parseStat reads /proc/PID/stat. The process chooses field 2, its name in parentheses, which may hold spaces and parentheses
// too; the kernel writes all the rest. So the fields are counted from the last parenthesis.
func parseStat(raw []byte) (stat, error) {
	text := string(raw)
	open, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if open < 0 || end < open {
		return stat{}, errors.New("procinfo: stat has no process name")
	}
	pid, err := strconv.ParseInt(strings.TrimSpace(text[:open]), 10, 32)
	if err != nil {
		return stat{}, fmt.Errorf("procinfo: stat: process ID: %w", err)
	}
	fields := strings.Fields(text[end+1:])
	const startTimeField = 22 - 3 // fields holds field 3 first
	if len(fields) <= startTimeField {
		return stat{}, fmt.Errorf("procinfo: stat has %d fields, want at least 22", len(fields)+2)
	}
	startTime, err := strconv.ParseUint(fields[startTimeField], 10, 64)
	if err != nil {
		return stat{}, fmt.Errorf("procinfo: stat: start time: %w", err)
	}
	return stat{pid: int32(pid), state: fields[0], startTime: startTime}, nil
}
