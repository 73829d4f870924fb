package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/test/cluster/node"
	"github.com/keelson-project/keelson/test/parts"
)

const trustDomain = "keelson.demo"

// demo is one run.
type demo struct {
	settings
	out    io.Writer
	report *Report

	dir      string // everything that is written, and what the run's processes are marked with
	root     string // of the checkout
	programs map[string]string
	parts    map[string]string

	group    *cluster.Group
	cluster  *cluster.Cluster
	kube     client.Client
	spire    *cluster.SpireServer
	sync     *cluster.Process
	network  *node.Network
	registry *node.Registry
	images   images
	machines []*machine
	pods     []*pod
	janitor  func() // tells the janitor that all is done
}

type step struct {
	id, name string
	run      func(context.Context, *Step) error
}

// steps is the script.
func (d *demo) steps() []step {
	return []step{
		{"parts", "find or build what is needed", d.findParts},
		{"kubernetes", "etcd, kube-apiserver, Calico's API server, Istio's resources", d.startKubernetes},
		{"machines", "three TPMs with a recorded boot, an EK certificate, an asset tag", d.startMachines},
		{"control", "SPIRE server, policy-sync, guards, a SPIRE agent on each node", d.startControl},
		{"a", "who attests", d.showAttestation},
		{"b", "who gets an identity, and who reaches whom", d.showTraffic},
		{"c", "what policy-sync wrote", d.showPolicies},
		{"d", "a good node is tampered with", d.showTampering},
	}
}

func (d *demo) run(ctx context.Context) (err error) {
	if err := d.open(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	return d.report.play(ctx, d.out, d.steps())
}

// play goes through the steps, and stops at the first that cannot go on.
func (r *Report) play(ctx context.Context, out io.Writer, steps []step) error {
	for _, s := range steps {
		say(out, "\n== %s: %s", s.id, s.name)
		record := &Step{ID: s.id, Name: s.name, out: out}
		r.Steps = append(r.Steps, record)
		begun := time.Now()
		err := s.run(ctx, record)
		if cause := context.Cause(ctx); err != nil && cause != nil {
			err = errors.New("interrupted")
		}
		record.finish(begun, err)
		if err != nil {
			return fmt.Errorf("demo: step %s: %w", s.id, err)
		}
		say(out, "   (%.1f s)", record.Seconds)
	}
	return nil
}

// open makes the run's folder and starts the janitor, before there is anything to clean up.
func (d *demo) open() error {
	var err error
	if d.root, err = parts.ModuleRoot(); err != nil {
		return err
	}
	if d.dir, err = os.MkdirTemp("", "klsn-"); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	if d.network, err = node.NewNetwork(); err != nil {
		return errors.Join(err, os.RemoveAll(d.dir))
	}
	d.group = cluster.NewGroup(d.dir)
	d.report.Containers = "containerd"
	why := errors.New("-standin")
	if !d.standin {
		why = node.CanRun()
		d.standin = why != nil
	}
	if d.standin {
		d.report.Containers = "stand-in"
		say(d.out, "No real containers (%v): workloads run as plain processes under a stand-in runtime. All else is the same.", why)
	}
	d.janitor, err = d.startJanitor()
	return err
}

// close ends everything in the order that lets each part end well, and then makes sure.
func (d *demo) close() error {
	say(d.out, "\ncleaning up …")
	ctx := context.Background() // the run's is over
	var errs []error
	for _, m := range d.machines {
		errs = append(errs, m.close(ctx))
	}
	errs = append(errs, d.group.Close())
	if d.cluster != nil {
		errs = append(errs, d.cluster.Close())
	}
	errs = append(errs, d.network.Close())
	if d.registry != nil {
		errs = append(errs, d.registry.Close())
	}
	if d.keep {
		say(d.out, "kept: %s", d.dir)
	} else {
		errs = append(errs, os.RemoveAll(d.dir))
	}
	if d.janitor != nil {
		d.janitor()
	}
	return errors.Join(errs...)
}

func (d *demo) path(elements ...string) string {
	return filepath.Join(append([]string{d.dir}, elements...)...)
}

// ownPrograms are the folders of this project's programs that the demo uses.
var ownPrograms = []string{
	"cmd/keelson", "cmd/keelson-nodeattestor-agent", "cmd/keelson-nodeattestor-server", "cmd/keelson-workloadattestor",
	"cmd/keelson-policy-sync", "test/demo/workload",
}

func (d *demo) findParts(ctx context.Context, s *Step) error {
	names := []string{"etcd", "kube-apiserver", "kubectl", "calico-apiserver", "spire-server", "spire-agent"}
	if !d.standin {
		names = append(names, "containerd", "containerd-shim-runc-v2")
		if _, err := parts.EnsureSystem(ctx, d.out, "runc", "cni"); err != nil {
			return fmt.Errorf("%w (or run with -standin)", err)
		}
	}
	var err error
	if d.parts, err = parts.Ensure(ctx, d.out, names...); err != nil {
		return err
	}
	if d.programs, err = parts.Commands(ctx, d.out, ownPrograms...); err != nil {
		return err
	}
	s.expect(true, "programs", "%d of other projects, %d of our own", len(d.parts), len(d.programs))
	return nil
}

func (d *demo) startKubernetes(ctx context.Context, _ *Step) error {
	c, err := cluster.Start(ctx, cluster.Options{Dir: d.path("k8s"), Log: d.out, Calico: true, IstioCRDs: true})
	if err != nil {
		return err
	}
	d.cluster = c
	return d.createObjects(ctx)
}

// run runs one of our own programs to its end.
func (d *demo) keelson(ctx context.Context, args ...string) (string, error) {
	return d.program(ctx, d.programs["cmd/keelson"], args...)
}

// kubectl runs kubectl as the administrator.
func (d *demo) kubectl(ctx context.Context, args ...string) (string, error) {
	return d.program(ctx, d.parts["kubectl"], append([]string{"--kubeconfig", d.cluster.AdminKubeconfig()}, args...)...)
}

// until asks every 200 ms until check is content, and tells how long that took.
func until(ctx context.Context, limit time.Duration, what string, check func(context.Context) error) (time.Duration, error) {
	begun := time.Now()
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := check(limited)
		if err == nil {
			return time.Since(begun), nil
		}
		select {
		case <-limited.Done():
			return time.Since(begun), fmt.Errorf("not within %s: %s: %w", limit, what, err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// short cuts a reason to what fits on a line.
func short(text string) string {
	const most = 300
	text = strings.Join(strings.Fields(text), " ")
	if r := []rune(text); len(r) > most {
		return string(r[:most]) + "…"
	}
	return text
}
