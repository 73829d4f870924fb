package machine

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/test/cluster/node"
)

// two starts two machines on a network.
func two(t *testing.T) (*cluster.Group, *Network, []*Machine) {
	t.Helper()
	if err := node.CanRun(); err != nil {
		t.Skipf("machines are made of namespaces: %v", err)
	}
	dir := t.TempDir()
	g := cluster.NewGroup(dir)
	net, err := NewNetwork()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(g.Close(), net.Close()); err != nil {
			t.Error(err)
		}
	})
	program, err := Build(t.Context(), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	var machines []*Machine
	for i, name := range []string{"one", "two"} {
		m, err := Start(t.Context(), g, Options{
			Name: name, Number: i + 1, Of: 2, Dir: filepath.Join(dir, name), Network: net, Program: program,
			Files: map[string][]byte{"/etc/keelson-test": []byte(name)},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		})
		machines = append(machines, m)
	}
	return g, net, machines
}

// inside runs a shell script in a machine and returns what it printed.
func inside(t *testing.T, m *Machine, script string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), m.Program, m.command(cluster.Command{Path: "/bin/sh", Args: []string{"-c", script}}).Args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %s: %v\n%s", m.Name, script, err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestMachinesHaveFilesProcessesAndNamesOfTheirOwn(t *testing.T) {
	_, _, machines := two(t)
	for _, m := range machines {
		if got := inside(t, m, "cat /etc/keelson-test; echo; hostname; touch /run/mine /var/lib/mine; ls /run /var/lib/kubelet; echo $(ps -o pid= -p 1)"); got != m.Name+"\n"+m.Name+"\n/run:\nmine\n\n/var/lib/kubelet:\n1" {
			t.Errorf("%s shows %q", m.Name, got)
		}
		if _, err := os.Stat(m.Path("/run/mine")); err != nil {
			t.Errorf("a file of %s is not seen from outside: %v", m.Name, err)
		}
	}
	if _, err := os.Stat("/var/lib/mine"); err == nil {
		t.Error("a machine wrote to the computer's own /var/lib")
	}
}

func TestMachinesReachEachOtherAndTheComputer(t *testing.T) {
	_, net, machines := two(t)
	// The kernel answers a connection to a closed port at once, and one to nowhere not at all.
	for _, address := range []string{net.Host().String(), machines[1].Address()} {
		if got := inside(t, machines[0], "timeout 5 bash -c '</dev/tcp/"+address+"/9' 2>&1 || true"); !strings.Contains(got, "refused") {
			t.Errorf("%s: %s", address, got)
		}
	}
}

func TestAMachineEndsWithItsMaker(t *testing.T) {
	_, _, machines := two(t)
	m := machines[0]
	p, err := m.Start(cluster.Command{Name: "sleeper", Path: "/bin/sleep", Args: []string{"600"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := exec.Command("kill", "-9", "--", "-"+strconv.Itoa(m.Process.PID())).Run(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("a program outlived its machine")
	}
	for begun := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat("/proc/" + strconv.Itoa(m.PID)); err != nil {
			return
		}
		if time.Since(begun) > 10*time.Second {
			t.Fatal("the machine's first process is still there")
		}
	}
}
