package node_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/test/cluster/node"
	"github.com/keelson-project/keelson/workloadattestor/runtime"
	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

func TestTheStandinAnswersAsARuntimeDoes(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "keelson-standin-") // t.TempDir is too long for a Unix socket
	if err != nil {
		t.Fatal(err)
	}
	registry, err := node.NewRegistry()
	if err != nil {
		t.Fatal(err)
	}
	g := cluster.NewGroup(dir)
	image := pushProgram(ctx, t, registry)
	rt, standin, err := node.StartStandin(g, node.StandinOptions{Name: "one", Number: 1, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := rt.Close(context.Background()); err != nil {
			t.Error(err)
		}
		standin.Close()
		for _, err := range []error{g.Close(), registry.Close(), os.RemoveAll(dir)} {
			if err != nil {
				t.Error(err)
			}
		}
	})
	pod, err := rt.Run(ctx, node.PodSpec{
		Namespace: "shop", Name: "frontend", UID: "11111111-2222-3333-4444-555555555555", Container: "main",
		Image: image.Reference(), Args: []string{"serve", ":8080"}, Mounts: []node.Mount{{From: dir, To: "/data"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	var got node.Result
	wait := time.Now().Add(10 * time.Second)
	for got.ExitCode, err = 1, nil; err == nil && got.ExitCode != 0 && time.Now().Before(wait); {
		got, err = rt.Exec(ctx, pod.ContainerID, "/test", "get", "http://"+pod.IP+":8080/")
	}
	if err != nil || !strings.Contains(got.Stdout, "hello") {
		t.Errorf("exec: got %+v, %v", got, err)
	}
	processes, err := filepath.Glob(filepath.Join(standin.ProcRoot, "*", "cgroup"))
	if err != nil || len(processes) != 1 || !strings.Contains(string(read(t, processes[0])), pod.ContainerID) {
		t.Errorf("processes under ProcRoot: %v, %v; want the one of the container", processes, err)
	}
	client, err := runtime.Dial(rt.Socket, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }() // the test has ended by then
	facts, err := client.Container(ctx, pod.ContainerID)
	if err != nil {
		t.Fatal(err)
	}
	if facts.Namespace != "shop" || facts.Privileged != workloadclaim.No || facts.HostNetwork != workloadclaim.No ||
		facts.AddedCapabilities != workloadclaim.No || !strings.HasSuffix(facts.CgroupsPath, pod.ContainerID) {
		t.Errorf("the workload attestor's view: %+v", facts)
	}
}
