package node_test

import (
	"context"
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

func TestTwoNodesRunPodsThatReachEachOtherAndLeaveNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("needs a real containerd, which -short leaves out")
	}
	if err := node.CanRun(); err != nil {
		t.Skip("containerd cannot run real containers: ", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "keelson-node-") // t.TempDir is too long for a Unix socket
	if err != nil {
		t.Fatal(err)
	}
	g := cluster.NewGroup(dir)
	network, err := node.NewNetwork()
	if err != nil {
		t.Fatal(err)
	}
	registry, err := node.NewRegistry()
	if err != nil {
		t.Fatal(err)
	}
	image := pushProgram(ctx, t, registry)
	var runtimes []*node.Runtime
	t.Cleanup(func() { ends(t, dir, g, network, registry, runtimes) })

	var pods []*node.Pod
	for i, name := range []string{"one", "two"} {
		rt, err := node.StartContainerd(ctx, g, node.ContainerdOptions{
			Name: name, Number: i + 1, Dir: filepath.Join(dir, name), Network: network, Registry: registry, Pause: image,
			Log: t.Output(),
		})
		if err != nil {
			t.Fatal(err)
		}
		runtimes = append(runtimes, rt)
		pod, err := rt.Run(ctx, node.PodSpec{
			Namespace: "shop", Name: "frontend", UID: "11111111-2222-3333-4444-55555555555" + strconv.Itoa(i), Container: "main",
			Image: image.Reference(), Args: []string{"serve"},
		})
		if err != nil {
			t.Fatal(err)
		}
		pods = append(pods, pod)
		if !strings.Contains(pod.ImageID, "sha256:") {
			t.Errorf("image ID %q is no digest", pod.ImageID)
		}
	}
	got, err := runtimes[0].Exec(ctx, pods[0].ContainerID, "/test", "get", "http://"+pods[1].IP+":8080/")
	if err != nil || got.ExitCode != 0 || !strings.Contains(got.Stdout, "hello") {
		t.Errorf("from %s to %s: got %+v, %v", pods[0].IP, pods[1].IP, got, err)
	}
}

// pushProgram makes an image of a small static program.
func pushProgram(ctx context.Context, t *testing.T, registry *node.Registry) node.Pushed {
	t.Helper()
	src, bin := filepath.Join(t.TempDir(), "main.go"), filepath.Join(t.TempDir(), "test")
	if err := os.WriteFile(src, []byte(program), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-o", bin, src)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	content, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	image, err := registry.Push(ctx, "keelson/test", node.Image{
		Files: map[string][]byte{"/test": content}, Entrypoint: []string{"/test"}, Cmd: []string{"pause"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func ends(t *testing.T, dir string, g *cluster.Group, network *node.Network, registry *node.Registry, runtimes []*node.Runtime) {
	for _, rt := range runtimes {
		if err := rt.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}
	for _, err := range []error{g.Close(), network.Close(), registry.Close(), os.RemoveAll(dir)} {
		if err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat("/sys/class/net/" + network.Bridge); err == nil {
		t.Errorf("bridge %s is left", network.Bridge)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), dir) {
		t.Errorf("mounts are left below %s", dir)
	}
	left, err := filepath.Glob("/sys/fs/cgroup/*/" + network.Bridge)
	if err != nil || len(left) > 0 {
		t.Errorf("cgroups are left: %v, %v", left, err)
	}
}

const program = `package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

func main() {
	switch os.Args[1] {
	case "pause":
		time.Sleep(time.Hour) // an empty select would be a deadlock to the Go runtime
	case "serve":
		fmt.Println(http.ListenAndServe(append(os.Args[2:], ":8080")[0], http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintln(w, "hello")
		})))
		os.Exit(1)
	}
	resp, err := http.Get(os.Args[2])
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	_, _ = io.Copy(os.Stdout, resp.Body)
}
`
