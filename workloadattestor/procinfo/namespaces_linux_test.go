package procinfo_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keelson-project/keelson/workloadattestor/procinfo"
)

// forgeVariable makes this test binary play the attacker: it holds the directory to bind over.
const forgeVariable = "KEELSON_TEST_FORGE"

func TestMain(m *testing.M) {
	if forge := os.Getenv(forgeVariable); forge != "" {
		os.Exit(attack(forge))
	}
	os.Exit(m.Run())
}

// attack runs as root of its own user namespace: it binds the victim's cgroup into its own mount namespace, which makes
// /proc/PID/mountinfo name the victim, and waits.
func attack(forge string) int {
	victim, target, _ := strings.Cut(forge, ":")
	err := errors.Join(
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount(victim, target, "", unix.MS_BIND, ""),
	)
	if err != nil {
		fmt.Println("cannot:", err)
		return 1
	}
	fmt.Println("ready")
	_, _ = os.Stdin.Read(make([]byte, 1)) // until the test ends
	return 0
}

// TestThreat13_RealProcessInItsOwnNamespaces puts a process into one container's cgroup and lets it forge its
// mountinfo to name another's, in mount, user and cgroup namespaces of its own (SPIRE PR #7288).
func TestThreat13_RealProcessInItsOwnNamespaces(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes cgroups and namespaces")
	}
	root := cgroup2Mount(t)
	top := filepath.Join(root, fmt.Sprintf("keelson-test-%d", os.Getpid()))
	own, victim := filepath.Join(top, "kubepods", idA), filepath.Join(top, "kubepods", idB)
	t.Cleanup(func() {
		for _, dir := range []string{own, victim, filepath.Dir(own), top} {
			if err := os.Remove(dir); err != nil {
				t.Error(err)
			}
		}
	})
	for _, dir := range []string{own, victim} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Skipf("cannot make cgroups here: %v", err)
		}
	}
	pid := startAttacker(t, own, victim)

	mountinfo, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil || !strings.Contains(string(mountinfo), idB) {
		t.Fatalf("the attack does not work: mountinfo does not name the victim (%v)", err)
	}
	p, err := procinfo.New("/proc").Pin(int32(pid))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	m, err := p.Membership()
	if err != nil || m.Container != idA {
		t.Fatalf("got %+v, %v, want container %s", m, err, idA)
	}
	if err := m.Within(strings.TrimPrefix(own, root)); err != nil {
		t.Error(err)
	}
	if err := m.Within(strings.TrimPrefix(victim, root)); err == nil {
		t.Error("the victim's cgroup is taken for its own")
	}
	if err := p.Recheck(); err != nil {
		t.Error(err)
	}
}

func cgroup2Mount(t *testing.T) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[2] == "cgroup2" {
			return fields[1]
		}
	}
	t.Skip("no cgroup v2 hierarchy is mounted on this machine")
	return ""
}

func startAttacker(t *testing.T, own, victim string) int {
	t.Helper()
	dir, err := os.Open(own)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dir.Close() }()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), forgeVariable+"="+victim+":"+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWCGROUP,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}},
		UseCgroupFD: true,
		CgroupFD:    int(dir.Fd()),
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skipf("cannot start a process in its own namespaces and cgroup here: %v", err)
	}
	t.Cleanup(func() {
		_ = stdin.Close() // lets it end
		_ = cmd.Wait()    // its status says nothing
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || line != "ready\n" {
		t.Fatalf("attacker says %q, %v", line, err)
	}
	return cmd.Process.Pid
}
