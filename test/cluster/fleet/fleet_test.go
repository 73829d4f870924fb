package fleet

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/keelson-project/keelson/test/cluster/machine"
)

// TestACluster is for now a way to look at a cluster by hand.
func TestACluster(t *testing.T) {
	if err := CanRun(); err != nil {
		t.Skip(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	begun := time.Now()
	f, err := Start(ctx, Options{Log: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		begun := time.Now()
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		fmt.Println("closed after", time.Since(begun))
	}()
	fmt.Println("started after", time.Since(begun), f.Dir, f.Cluster.AdminKubeconfig())
	for _, name := range []string{"fra-1", "par-1"} {
		if _, err := f.AddNode(ctx, machine.Options{Name: name}); err != nil {
			t.Error(err)
		}
	}
	err = f.Ready(ctx)
	fmt.Println("ready after", time.Since(begun), err)
	for os.Getenv("HOLD") != "" {
		if _, err := os.Stat(os.Getenv("HOLD")); err != nil {
			break
		}
		time.Sleep(time.Second)
	}
}
