package main

import (
	"bytes"
	"context"
	"crypto"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/test/cluster/node"
	"github.com/keelson-project/keelson/test/parts"
)

var (
	//go:embed server.conf
	serverConf string
	//go:embed agent.conf
	agentConf string
)

// world is the folder that everything happens in, with what runs there.
type world struct {
	dir   string
	out   io.Writer
	group *cluster.Group
	paths map[string]string // programs by their names

	serverPort, metricsPort string
	server, agent           *cluster.Process
	network                 *node.Network
	registry                *node.Registry
	runtime                 *node.Runtime

	key              crypto.Signer
	signed, unsigned node.Pushed
}

// newWorld makes an empty folder with the programs in bin, a registry and a containerd.
func newWorld(ctx context.Context, out io.Writer) (*world, error) {
	dir, err := os.MkdirTemp("", "keelson-") // short: the kernel takes 107 bytes for a socket's path
	if err != nil {
		return nil, err
	}
	w := &world{dir: dir, out: out, group: cluster.NewGroup(dir), paths: map[string]string{}}
	if err := w.prepare(ctx); err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

func (w *world) prepare(ctx context.Context) error {
	if err := node.CanRun(); err != nil {
		return err
	}
	for _, folder := range []string{"bin", "server/data", "agent/data", "agent/public", "operator"} {
		if err := os.MkdirAll(w.path(folder), 0o755); err != nil { //nolint:gosec // containers see agent/public
			return err
		}
	}
	spire, err := parts.Ensure(ctx, w.out, "spire-server", "spire-agent")
	if err != nil {
		return err
	}
	ours, err := parts.Commands(ctx, w.out, "cmd/keelson", "cmd/keelson-workloadattestor", "test/demo/workload")
	if err != nil {
		return err
	}
	for _, paths := range []map[string]string{spire, ours} {
		for name, path := range paths {
			w.paths[filepath.Base(name)] = path
			if err := os.Symlink(path, w.path("bin/"+filepath.Base(name))); err != nil {
				return err
			}
		}
	}
	for _, port := range []*string{&w.serverPort, &w.metricsPort} {
		n, err := cluster.FreePort()
		if err != nil {
			return err
		}
		*port = fmt.Sprint(n)
	}
	if w.registry, err = node.NewRegistry(); err != nil {
		return err
	}
	w.network, err = node.NewNetwork()
	return err
}

// ports puts what is free here in place of what the files name.
func (w *world) ports(conf string) string {
	return strings.NewReplacer("8081", w.serverPort, "9468", w.metricsPort, "127.0.0.1:5000", w.registry.Host,
		"/run/containerd/containerd.sock", w.path("node-1/containerd.sock")).Replace(conf)
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func (w *world) write(name, content string) error {
	return os.WriteFile(w.path(name), []byte(content), 0o600)
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
	errs = append(errs, w.group.Close())
	if w.network != nil {
		errs = append(errs, w.network.Close())
	}
	if w.registry != nil {
		errs = append(errs, w.registry.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(w.dir))...)
}

// say writes a line.
func (w *world) say(format string, args ...any) {
	_, _ = fmt.Fprintf(w.out, format+"\n", args...) // a terminal that is gone ends nothing
}

// show writes text, indented.
func (w *world) show(text string) {
	for line := range strings.Lines(text) {
		w.say("    %s", strings.TrimRight(line, "\n"))
	}
}

// do runs a command in the folder as a person would, and shows it with what it says.
func (w *world) do(ctx context.Context, program string, args ...string) (string, error) {
	w.say("  $ %s %s", program, strings.Join(args, " "))
	said, err := w.quietly(ctx, program, args...)
	w.show(said)
	return said, err
}

func (w *world) quietly(ctx context.Context, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, w.paths[program], args...) // #nosec G204 -- the programs that prepare found
	cmd.Dir = w.dir
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, strings.TrimSpace(said.String()))
	}
	return said.String(), err
}

// start starts a program that stays; its output goes to a file beside the others.
func (w *world) start(name, program string, args ...string) (*cluster.Process, error) {
	w.say("  $ %s %s &", program, strings.Join(args, " "))
	return w.group.Start(cluster.Command{Name: name, Path: w.paths[program], Args: args, Dir: w.dir})
}

// until asks every 100 ms until ok, for a minute.
func until(ctx context.Context, what string, ok func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		done, err := ok(ctx)
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%s: not so in time", what), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
