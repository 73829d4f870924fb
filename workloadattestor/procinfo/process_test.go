package procinfo_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/keelson-project/keelson/workloadattestor/procinfo"
)

func open(testCase string) procinfo.Proc {
	return procinfo.New(filepath.Join("testdata", testCase, "proc"))
}

func TestThreat13_MountinfoIsNeverRead(t *testing.T) {
	cases := map[string]struct {
		dir  string
		want string // container; empty: none
	}{
		"mountinfo names a victim, the kernel names the container": {"mountinfo-names-a-victim", idA},
		"mountinfo names a victim, the kernel names no container":  {"mountinfo-names-a-victim-and-cgroup-none", ""},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			mountinfo, err := os.ReadFile(filepath.Join("testdata", tc.dir, "proc", "42", "mountinfo"))
			if err != nil || !strings.Contains(string(mountinfo), idB) {
				t.Fatalf("test data does not name the victim: %v", err)
			}
			p, err := open(tc.dir).Pin(42)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = p.Close() }()
			m, err := p.Membership()
			if m.Container != tc.want || (tc.want == "") != errors.Is(err, procinfo.ErrNotContainer) {
				t.Errorf("got %+v, %v", m, err)
			}
			if err := p.Recheck(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestPinRefuses(t *testing.T) {
	cases := map[string]struct {
		dir  string
		pid  int32
		want string
	}{
		"a process that is not there":                {"zombie", 43, "no such file"},
		"process ID 0":                               {"zombie", 0, "not positive"},
		"a negative process ID":                      {"zombie", -1, "not positive"},
		"a zombie":                                   {"zombie", 42, "has ended"},
		"the stat of another process":                {"stat-of-another-process", 42, "that of process 43"},
		"a cut stat":                                 {"stat-cut", 42, "want at least 22"},
		"a stat without the name's parentheses":      {"stat-without-name", 42, "no process name"},
		"a start time that is no number":             {"start-time-no-number", 42, "start time"},
		"a process without cgroups (kernel without)": {"no-cgroup-file", 42, "no such file"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			p, err := open(tc.dir).Pin(tc.pid)
			if err == nil || !strings.Contains(err.Error(), tc.want) || p != nil {
				t.Errorf("got %v, error %v, want one with %q", p, err, tc.want)
			}
		})
	}
}

// copyCase makes a writable copy, so that a test can play the kernel.
func copyCase(t *testing.T, testCase string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("testdata", testCase))); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "proc")
}

func TestThreat14_ProcessChangedWhileItWasAttested(t *testing.T) {
	const stat = "42 (app) S 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 %s 1 1\n"
	cases := map[string]struct {
		file, content string
		want          string
	}{
		"the same ID, another start time": {"stat", strings.Replace(stat, "%s", "4712", 1), "replaced by another one"},
		"it is a zombie now":              {"stat", strings.Replace(strings.Replace(stat, " S ", " Z ", 1), "%s", "4711", 1), "has ended"},
		"it moved to another container":   {"cgroup", "0::/kubepods/" + idB + "\n", "moved to other cgroups"},
		"its cgroup was deleted":          {"cgroup", "0::/kubepods/" + idA + " (deleted)\n", "moved to other cgroups"},
		"its cgroup cannot be read":       {"cgroup", "", "empty"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			dir := copyCase(t, "mountinfo-names-a-victim")
			p, err := procinfo.New(dir).Pin(42)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = p.Close() }()
			if err := p.Recheck(); err != nil {
				t.Fatalf("unchanged: %v", err)
			}
			if err := os.WriteFile(filepath.Join(dir, "42", tc.file), []byte(tc.content), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := p.Recheck(); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
}

func TestNameThatLooksLikeStatFieldsDoesNotMoveThem(t *testing.T) {
	dir := copyCase(t, "name-like-stat-fields")
	p, err := procinfo.New(dir).Pin(42)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	path := filepath.Join(dir, "42", "stat")
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(content), " 4711 ", " 4712 ", 1) // the real field 22
	if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.Recheck(); err == nil {
		t.Error("the start time was read from the process's name")
	}
}

func TestThreat14_ProcessThatEndsIsNoticed(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := procinfo.New("/proc").Pin(int32(cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	if err := p.Recheck(); err != nil {
		t.Fatalf("while it runs: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	if err := p.Recheck(); err == nil || !strings.Contains(err.Error(), "has ended") {
		t.Errorf("got %v", err)
	}
	if _, err := procinfo.New("/proc").Pin(int32(cmd.Process.Pid)); err == nil {
		t.Error("a process that is gone can be pinned")
	}
}

func TestOwnProcessCanBePinned(t *testing.T) {
	p, err := procinfo.New("/proc").Pin(int32(os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Recheck(); err != nil {
		t.Error(err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

func TestDirectoryThatIsNoProc(t *testing.T) {
	if _, err := procinfo.New(t.TempDir()).Pin(1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if _, err := procinfo.New("/proc").Pin(int32(maxPID(t))); err == nil {
		t.Error("the highest process ID is in use?")
	}
}

func maxPID(t *testing.T) int {
	t.Helper()
	raw, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}
