package fleet

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/test/cluster/machine"
	"github.com/keelson-project/keelson/test/cluster/node"
	"github.com/keelson-project/keelson/test/parts"
)

// needsRoot skips with the reason where machines cannot be made.
func needsRoot(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a whole cluster, which -short leaves out")
	}
	if err := CanRun(); err != nil {
		t.Skipf("a cluster's machines are made of namespaces: %v", err)
	}
}

func TestPodsOfTwoNodesReachEachOtherByNameAndTheClusterGoesAwayWhole(t *testing.T) {
	needsRoot(t)
	before := tables(t)
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	f, err := Start(ctx, Options{Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	closed := false
	defer func() {
		if !closed {
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		}
	}()
	names := []string{"one", "two"}
	for _, name := range names {
		if _, err := f.AddNode(ctx, machine.Options{Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	run(t, ctx, f, names)
	dial(t, ctx, f)
	closed = true
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	nothingLeft(t, f.Dir, f.Network.Bridge, before)
}

// run starts a pod on each node, and a Service for that on the second.
func run(t *testing.T, ctx context.Context, f *Fleet, nodes []string) {
	t.Helper()
	const workload = "test/e2e/workload"
	paths, err := parts.Commands(ctx, t.Output(), workload)
	if err != nil {
		t.Fatal(err)
	}
	files, err := Files(map[string]string{"/workload": paths[workload]})
	if err != nil {
		t.Fatal(err)
	}
	image, err := f.Push(ctx, "workload", node.Image{Files: files, Entrypoint: []string{"/workload"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range nodes {
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}},
			Spec: corev1.PodSpec{
				NodeSelector: map[string]string{corev1.LabelHostname: name},
				Containers:   []corev1.Container{{Name: "main", Image: image.Reference(), Args: []string{"serve", "-tcp", ":9000"}}},
			},
		}
		// The account that pods run as is made by a controller, a moment after the namespace.
		if err := until(ctx, func() error {
			_, err := f.Kubernetes.CoreV1().Pods("default").Create(ctx, pod, metav1.CreateOptions{})
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "two"},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": "two"}, Ports: []corev1.ServicePort{{Port: 9000}}},
	}
	if _, err := f.Kubernetes.CoreV1().Services("default").Create(ctx, service, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// dial calls the second pod from within the first: by way of Felix's routes, kube-proxy and CoreDNS.
func dial(t *testing.T, ctx context.Context, f *Fleet) {
	t.Helper()
	if err := until(ctx, func() error {
		pod, err := f.Kubernetes.CoreV1().Pods("default").Get(ctx, "one", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if len(pod.Status.ContainerStatuses) == 0 || pod.Status.ContainerStatuses[0].State.Running == nil {
			return errors.New("pod one does not run yet")
		}
		_, id, _ := strings.Cut(pod.Status.ContainerStatuses[0].ContainerID, "://")
		result, err := f.Node("one").Runtime.Exec(ctx, id, "/workload", "dial", "two.default.svc.cluster.local:9000")
		if err != nil {
			return err
		}
		if !strings.Contains(result.Stdout, `"ok":true`) {
			return errors.New(result.Stdout + result.Stderr)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

func until(ctx context.Context, check func() error) error {
	limit := time.Now().Add(5 * time.Minute) // for a computer that is busy with other tests
	for {
		err := check()
		if err == nil || time.Now().After(limit) {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// tables are the computer's nft tables. A node's are in its own network namespace and go with it.
func tables(t *testing.T) string {
	t.Helper()
	system, err := parts.EnsureSystem(t.Context(), t.Output(), "nft")
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), system["nft"], "list", "tables").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// nothingLeft looks for whatever a cluster makes outside of its processes' memory.
func nothingLeft(t *testing.T, dir, bridge, tablesBefore string) {
	t.Helper()
	for table := range strings.Lines(tables(t)) {
		if !strings.Contains(tablesBefore, table) {
			t.Errorf("an nft table is left: %s", table)
		}
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("folder %s is left: %v", dir, err)
	}
	if _, err := net.InterfaceByName(bridge); err == nil {
		t.Errorf("bridge %s is left", bridge)
	}
	if cgroups, err := filepath.Glob("/sys/fs/cgroup/*/" + bridge); err != nil || len(cgroups) > 0 {
		t.Errorf("cgroups are left: %v %v", cgroups, err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), dir) {
		t.Errorf("mounts below %s are left", dir)
	}
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range processes {
		if content, err := os.ReadFile(p); err == nil && strings.Contains(string(content), dir+"/") { // others have just ended
			t.Errorf("a process is left: %q", content)
		}
	}
}

// helper is set in the environment of the process that TestAKilledClusterLeavesNothing kills.
const helper = "KEELSON_FLEET_TO_BE_KILLED"

func TestAKilledClusterLeavesNothing(t *testing.T) {
	needsRoot(t)
	if os.Getenv(helper) != "" {
		toBeKilled(t)
		return
	}
	before := tables(t)
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.timeout=10m") // #nosec G204 -- this very program
	cmd.Env = append(os.Environ(), helper+"=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var dir, bridge string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if _, err := fmt.Sscanf(lines.Text(), "stands %s %s", &dir, &bridge); err == nil {
			break
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	if dir == "" {
		t.Fatal("it never stood")
	}
	if err := until(t.Context(), func() error { // the janitor is another process
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s is still there: %w", dir, err)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	nothingLeft(t, dir, bridge, before)
}

// toBeKilled makes a cluster with a node and waits for its end.
func toBeKilled(t *testing.T) {
	f, err := Start(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.AddNode(t.Context(), machine.Options{Name: "one"}); err != nil {
		t.Fatal(err)
	}
	if err := f.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	fmt.Printf("stands %s %s\n", f.Dir, f.Network.Bridge)
	select {}
}

// noted makes a folder with the note that it holds a cluster with that bridge, and with a file of somebody else's.
func noted(t *testing.T, o Owner) (dir string) {
	t.Helper()
	dir = t.TempDir()
	content, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{ownerFile: content, "somebody's": nil} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestAFolderOfOnesOwnChoiceIsCleanedAndStays(t *testing.T) {
	dir := noted(t, Owner{Bridge: machine.Prefix + "none"})
	group := cluster.NewGroup(dir)
	left, err := group.Start(cluster.Command{Name: "left", Path: "/bin/sleep", Args: []string{"600"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := Remove(dir, machine.Prefix+"none"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-left.Done():
	case <-time.After(time.Minute):
		t.Error("a process is left")
	}
	if err := group.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "somebody's")); err != nil {
		t.Errorf("somebody's file went: %v", err)
	}
	if _, err := readOwner(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder is still noted as a cluster's: %v", err)
	}
	if err := Remove(dir, machine.Prefix+"none"); err == nil {
		t.Error("a folder without a note was taken for a cluster's")
	}
}

func TestTheClustersOwnFolderGoes(t *testing.T) {
	dir := noted(t, Owner{Bridge: machine.Prefix + "none", Whole: true})
	if err := Remove(dir, machine.Prefix+"none"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is there: %v", err)
	}
}

func TestAFolderInUseIsRefused(t *testing.T) {
	dir := noted(t, Owner{PID: os.Getpid(), Started: startTime(os.Getpid()), Bridge: machine.Prefix + "none"})
	f := &Fleet{Options: Options{Dir: dir}}
	if err := f.open(t.Context()); err == nil || !strings.Contains(err.Error(), "is in use") {
		t.Errorf("got %v", err)
	}
}

func TestOnlyWhatLooksLikeOursIsRemoved(t *testing.T) {
	other := noted(t, Owner{Bridge: machine.Prefix + "other"})
	for _, c := range [][2]string{{"/", "klsn1234"}, {"/tmp/other", "klsn1234"}, {"klsn-1", "klsn1234"}, {"/tmp/klsn-1", "eth0"}, {other, "klsn1234"}} {
		if err := Remove(c[0], c[1]); err == nil {
			t.Errorf("%v was removed", c)
		}
	}
}

func TestAnOwnerThatIsGoneIsNotTakenForAnother(t *testing.T) {
	own := Owner{PID: os.Getpid(), Started: startTime(os.Getpid())}
	if !own.Alive() {
		t.Error("this process is not alive")
	}
	own.Started = "1"
	if own.Alive() {
		t.Error("a process of the same number, started at another time, was taken for the owner")
	}
	if (Owner{PID: 1 << 30}).Alive() {
		t.Error("a process that cannot be is alive")
	}
}
