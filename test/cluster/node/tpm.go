package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/tpmdev"
	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/test/parts"
)

// TPM is a TPM in software, served on a Unix socket that takes raw commands.
type TPM struct {
	// Socket is its path, as package tpmdev and the node attestor's configuration take it.
	Socket string
	// Kind is "swtpm" or "simulator".
	Kind string
	// Process is the program that is the TPM.
	Process *cluster.Process
	// Device is a client.
	Device *tpmdev.Device
}

// StartTPM starts a fresh TPM 2.0 in group g: swtpm, or the reference implementation's simulator where there is none. name is
// the node's, dir a folder for its state, short enough for a Unix socket in it.
func StartTPM(ctx context.Context, g *cluster.Group, log io.Writer, name, dir string) (*TPM, error) {
	if err := os.MkdirAll(filepath.Join(dir, "state"), 0o700); err != nil {
		return nil, fmt.Errorf("node: TPM of %s: %w", name, err)
	}
	t := &TPM{Socket: filepath.Join(dir, "tpm.sock"), Kind: "swtpm"}
	command, err := t.swtpm(ctx, log, name, dir)
	if err != nil {
		_, _ = fmt.Fprintf(log, "%v; using the simulator\n", err)
		if command, err = t.simulator(ctx, log, name); err != nil {
			return nil, err
		}
	}
	if t.Process, err = g.Start(command); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	err = t.Process.Until(ctx, func(context.Context) (err error) {
		t.Device, err = tpmdev.Open(t.Socket)
		return err
	})
	if err != nil {
		return nil, err
	}
	return t, nil
}

func (t *TPM) swtpm(ctx context.Context, log io.Writer, name, dir string) (cluster.Command, error) {
	system, err := parts.EnsureSystem(ctx, log, "swtpm")
	if err != nil {
		return cluster.Command{}, err
	}
	return cluster.Command{Name: "swtpm-" + name, Path: system["swtpm"], Args: []string{
		"socket", "--tpm2", "--tpmstate", "dir=" + filepath.Join(dir, "state"),
		"--server", "type=unixio,path=" + t.Socket, "--ctrl", "type=unixio,path=" + filepath.Join(dir, "ctrl.sock"),
		"--flags", "not-need-init,startup-clear",
	}}, nil
}

func (t *TPM) simulator(ctx context.Context, log io.Writer, name string) (cluster.Command, error) {
	if missing, err := parts.EnsureSystem(ctx, log, "gcc", "libssl"); err != nil {
		return cluster.Command{}, errors.Join(err, fmt.Errorf("node: the TPM simulator cannot be built (found %v)", missing))
	}
	paths, err := parts.CgoCommands(ctx, log, simulatorCommand)
	if err != nil {
		return cluster.Command{}, err
	}
	t.Kind = "simulator"
	return cluster.Command{Name: "simulator-" + name, Path: paths[simulatorCommand], Args: []string{"-socket", t.Socket}}, nil
}

// simulatorCommand serves the simulator on a socket.
const simulatorCommand = "test/tpmtest/cmd/tpmsim"

// Close ends the TPM.
func (t *TPM) Close() error {
	err := t.Device.Close()
	t.Process.Stop(2 * time.Second)
	return err
}
