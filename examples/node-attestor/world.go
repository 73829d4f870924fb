package main

import (
	"context"
	_ "embed"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/keelson-project/keelson/examples/walkthrough"
	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/test/cluster/node"
	"github.com/keelson-project/keelson/test/parts"
	"github.com/keelson-project/keelson/test/tpmtest"
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
	boots string // the folder of the recorded boots

	server   *cluster.Process
	machines []*machine
}

// machine is a node with its TPM.
type machine struct {
	name, boot string
	tpm        *node.TPM
	agent      *cluster.Process
}

// newWorld makes an empty folder with the programs in bin.
func newWorld(ctx context.Context, out io.Writer) (*world, error) {
	root, err := parts.ModuleRoot()
	if err != nil {
		return nil, err
	}
	folder, err := walkthrough.New(out)
	if err != nil {
		return nil, err
	}
	w := &world{Folder: folder, boots: filepath.Join(root, "test", "vectors", "measured-boots")}
	if err := w.prepare(ctx); err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

func (w *world) prepare(ctx context.Context) error {
	for _, folder := range []string{"server/data", "operator/references"} {
		if err := os.MkdirAll(w.Path(folder), 0o700); err != nil {
			return err
		}
	}
	if err := w.Programs(ctx, "cmd/keelson", "cmd/keelson-nodeattestor-server", "cmd/keelson-nodeattestor-agent"); err != nil {
		return err
	}
	return w.Write("server.conf", w.ports(serverConf))
}

// ports puts free ports in place of those in the files, which something else may use here.
func (w *world) ports(conf string) string {
	return strings.NewReplacer("8081", w.ServerPort, "9468", w.MetricsPort).Replace(conf)
}

// close ends everything and removes the folder.
func (w *world) close() error {
	var errs []error
	for _, m := range w.machines {
		errs = append(errs, m.tpm.Close())
	}
	return errors.Join(append(errs, w.Close())...)
}

// boot makes a machine whose TPM the maker certified, and that booted a recorded boot.
func (w *world) boot(ctx context.Context, maker *tpmtest.CA, m *machine) error {
	tpm, err := node.StartTPM(ctx, w.Group, w.Out, m.name, w.Path(m.name))
	if err != nil {
		return err
	}
	m.tpm = tpm
	w.machines = append(w.machines, m)
	if err := tpmtest.Manufacture(ctx, tpm.Socket, maker); err != nil {
		return err
	}
	logs := map[string][]byte{}
	for _, name := range []string{"binary_bios_measurements", "binary_runtime_measurements", "cmdline.txt"} {
		if logs[name], err = os.ReadFile(filepath.Join(w.boots, m.boot, name)); err != nil {
			return err
		}
		if err := w.Write(m.name+"/"+name, string(logs[name])); err != nil {
			return err
		}
	}
	if err := node.Boot(ctx, tpm.Device, logs["binary_bios_measurements"], logs["binary_runtime_measurements"]); err != nil {
		return err
	}
	return w.Write(m.name+"/agent.conf", strings.ReplaceAll(w.ports(agentConf), "node-1", m.name))
}
