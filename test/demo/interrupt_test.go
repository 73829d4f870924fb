package main

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestHoweverTheDemoEndsItLeavesNothing starts the demo, ends it at some point, and looks for what is left.
func TestHoweverTheDemoEndsItLeavesNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("runs the demo's real parts, which -short leaves out")
	}
	binary := filepath.Join(t.TempDir(), "demo")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for name, c := range map[string]struct {
		at     string // what it says just before
		signal syscall.Signal
		args   []string
	}{
		"interrupted while servers start": {"kube-apiserver serves", syscall.SIGINT, []string{"-standin"}},
		"interrupted while pods run":      {"pods run under", syscall.SIGTERM, []string{"-light"}},
		"killed while pods run":           {"pods run under", syscall.SIGKILL, []string{"-light"}},
	} {
		t.Run(name, func(t *testing.T) {
			tmp, err := os.MkdirTemp("", "k") // t.TempDir is too long for a Unix socket
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := os.RemoveAll(tmp); err != nil {
					t.Error(err)
				}
			})
			bridge := endAt(t, tmp, c.at, c.signal, append([]string{binary, "-o", filepath.Join(t.TempDir(), "demo.json")}, c.args...))
			nothingLeft(t, tmp, bridge)
		})
	}
}

// endAt runs the demo and sends it a signal once it has said a line. It returns the name of the run's bridge, which is that of
// its cgroups too.
func endAt(t *testing.T, tmp, line string, signal syscall.Signal, command []string) (bridge string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := false
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if !said && strings.Contains(lines.Text(), line) {
			said = true
			bridge = bridgeOf(t, tmp)
			if err := cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
		}
	}
	err = cmd.Wait()
	if !said {
		t.Fatalf("it never said %q: %v\n%s", line, err, stderr.String())
	}
	if err == nil {
		t.Error("it ended with success")
	}
	return bridge
}

// bridgeOf asks the janitor's command line.
func bridgeOf(t *testing.T, tmp string) string {
	t.Helper()
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range processes {
		cmdline, _ := os.ReadFile(p) // it may be gone by now
		args := strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")
		if len(args) == 4 && args[1] == janitorCommand && strings.HasPrefix(args[2], tmp) {
			return args[3]
		}
	}
	t.Fatal("no janitor runs")
	return ""
}

// nothingLeft looks for files, processes, interfaces, mounts and cgroups. The janitor of a killed demo takes a moment.
func nothingLeft(t *testing.T, tmp, bridge string) {
	t.Helper()
	var left []string
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		left = remains(t, tmp, bridge)
		if len(left) == 0 || time.Now().After(deadline) {
			break
		}
	}
	if len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
}

func remains(t *testing.T, tmp, bridge string) []string {
	t.Helper()
	var left []string
	for _, pattern := range []string{tmp + "/*", "/sys/class/net/" + bridge, "/sys/fs/cgroup/" + bridge, "/sys/fs/cgroup/*/" + bridge} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, found...)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, tmp) {
			left = append(left, "mount: "+line)
		}
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range processes {
		if p == "/proc/self" {
			continue
		}
		environ, _ := os.ReadFile(filepath.Join(p, "environ")) // another user's, or gone by now
		cmdline, _ := os.ReadFile(filepath.Join(p, "cmdline")) // as above
		if bytes.Contains(environ, []byte(tmp)) || bytes.Contains(cmdline, []byte(tmp)) {
			left = append(left, "process "+filepath.Base(p)+": "+string(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '})))
		}
	}
	return left
}
