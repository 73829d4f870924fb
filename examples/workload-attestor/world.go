package main

import (
	"context"
	"crypto"
	_ "embed"
	"errors"
	"io"
	"os"
	"strings"
	"time"

	"github.com/keelson-project/keelson/examples/walkthrough"
	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/test/cluster/node"
)

var (
	//go:embed server.conf
	serverConf string
	//go:embed agent.conf
	agentConf string
)

// world is the folder that everything happens in, with what runs there.
type world struct {
	*walkthrough.Folder
	server, agent *cluster.Process
	network       *node.Network
	registry      *node.Registry
	runtime       *node.Runtime

	key              crypto.Signer
	signed, unsigned node.Pushed
}

// newWorld makes an empty folder with the programs in bin, a registry and a containerd.
func newWorld(ctx context.Context, out io.Writer) (*world, error) {
	folder, err := walkthrough.New(out)
	if err != nil {
		return nil, err
	}
	w := &world{Folder: folder}
	if err := w.prepare(ctx); err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

func (w *world) prepare(ctx context.Context) error {
	if err := node.CanRun(); err != nil {
		return err
	}
	for _, folder := range []string{"server/data", "agent/data", "agent/public", "operator"} {
		if err := os.MkdirAll(w.Path(folder), 0o755); err != nil { //nolint:gosec // containers see agent/public
			return err
		}
	}
	if err := w.Programs(ctx, "cmd/keelson", "cmd/keelson-workloadattestor", "test/demo/workload"); err != nil {
		return err
	}
	var err error
	if w.registry, err = node.NewRegistry(); err != nil {
		return err
	}
	w.network, err = node.NewNetwork()
	return err
}

// ports puts what is free here in place of what the files name.
func (w *world) ports(conf string) string {
	return strings.NewReplacer("8081", w.ServerPort, "9468", w.MetricsPort, "127.0.0.1:5000", w.registry.Host,
		"/run/containerd/containerd.sock", w.Path("node-1/containerd.sock")).Replace(conf)
}

// close ends everything and removes the folder.
func (w *world) close() error {
	var errs []error
	if w.agent != nil {
		w.agent.Stop(10 * time.Second)
	}
	if w.runtime != nil {
		errs = append(errs, w.runtime.Close(context.Background()))
	}
	errs = append(errs, w.Group.Close())
	if w.network != nil {
		errs = append(errs, w.network.Close())
	}
	if w.registry != nil {
		errs = append(errs, w.registry.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(w.Dir))...)
}
