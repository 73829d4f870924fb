// Package stage is the whole of what an operator runs, on one computer: a cluster of package fleet, machines with TPMs of package
// factory, SPIRE as examples/spire has it, Keelson as charts/keelson has it, and Istio as package mesh has it. Scenarios (the
// folders beside this one) and the demo play on it.
//
//	s, err := stage.Start(ctx, stage.Options{Log: os.Stderr, Machines: stage.Machines()})
//	defer s.Close()
//	err = s.Apply(ctx, …)                              // what teams and operators write
//	out, err := s.Exec(ctx, "shop", "frontend-fra", "main", "/workload", "get", url)
package stage

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/keelson-project/keelson/charts/images"
	"github.com/keelson-project/keelson/test/cluster/factory"
	"github.com/keelson-project/keelson/test/cluster/fleet"
	"github.com/keelson-project/keelson/test/cluster/machine"
	"github.com/keelson-project/keelson/test/cluster/mesh"
	"github.com/keelson-project/keelson/test/parts"
)

// TrustDomain is the stage's.
const TrustDomain = "example.org"

// Times that make scenarios short. A fleet has longer ones, of the same order to each other: an agent proves itself again at
// about half of AgentTTL, a verdict outlives that with retries, and a workload's SVID is what is left after an eviction.
const (
	AgentTTL     = 20 * time.Second
	SVIDTTL      = 20 * time.Second
	VerdictValid = 60 * time.Second
)

// Options says what to put on the stage.
type Options struct {
	// Dir is where everything lives. When empty it is a fresh temporary folder that Close removes.
	Dir string
	// Log receives progress for people; nil is silence.
	Log io.Writer
	// Machines are booted and registered; those with Later set join by Join.
	Machines []Machine
	// IstiodValidates puts istiod's validating webhook in force.
	IstiodValidates bool
}

// Machine is a node to be.
type Machine struct {
	factory.Machine
	// Later says that the machine is known to the operator, but joins when a scenario says so.
	Later bool
}

// Machines are three that do as they should, in two countries.
func Machines() []Machine {
	return []Machine{
		{Machine: factory.Machine{Name: "fra-1", Country: "DE", Boot: "good"}},
		{Machine: factory.Machine{Name: "fra-2", Country: "DE", Boot: "good"}},
		{Machine: factory.Machine{Name: "par-1", Country: "FR", Boot: "good"}},
	}
}

// Stage is the running whole.
type Stage struct {
	*fleet.Fleet
	Factory  *factory.Factory
	Machines map[string]*factory.Machine

	options   Options
	release   crypto.Signer
	public    []byte
	authority *mesh.Authority
	programs  map[string]string
	parts     map[string]string

	containers sync.Map // what find found, by namespace/pod/container
}

// Start puts everything on the stage and waits until every machine that should be trusted is.
func Start(ctx context.Context, o Options) (*Stage, error) {
	if o.Log == nil {
		o.Log = io.Discard
	}
	s := &Stage{options: o, Machines: map[string]*factory.Machine{}}
	if err := s.start(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Stage) start(ctx context.Context) error {
	begun := time.Now()
	var err error
	if s.programs, err = parts.Commands(ctx, s.options.Log, append(images.Packages(), "test/e2e/workload")...); err != nil {
		return err
	}
	if s.parts, err = parts.Ensure(ctx, s.options.Log, "spire-server", "spire-agent", "spiffe-csi-driver", "pilot-discovery", "pilot-agent", "envoy", mesh.CNIPart); err != nil {
		return err
	}
	if _, err := parts.EnsureSystem(ctx, s.options.Log, "swtpm", "iptables"); err != nil {
		return err
	}
	s.Fleet, err = fleet.Start(ctx, fleet.Options{
		Dir: s.options.Dir, Log: s.options.Log,
		CNIPrograms: map[string]string{mesh.CNIPart: s.parts[mesh.CNIPart]}, CNIChained: []any{mesh.Plugin{Dir: cniDir}.Chained()},
	})
	if err != nil {
		return err
	}
	both, limited := errgroup.WithContext(ctx)
	both.Go(func() error { return s.build(limited) })
	both.Go(func() error { return s.pushImages(limited) })
	if err := both.Wait(); err != nil {
		return err
	}
	if err := s.install(ctx); err != nil {
		return err
	}
	if err := s.joinAll(ctx); err != nil {
		return err
	}
	s.say("the stage is set after %.1f s", time.Since(begun).Seconds())
	return nil
}

// build has the machines made.
func (s *Stage) build(ctx context.Context) error {
	var err error
	if s.Factory, err = factory.New(ctx, s.Group, s.options.Log, filepath.Join(s.Dir, "factory")); err != nil {
		return err
	}
	for _, m := range s.options.Machines {
		if s.Machines[m.Name], err = s.Factory.Build(ctx, m.Machine); err != nil {
			return err
		}
	}
	return nil
}

// joinAll lets the machines join, all at once, and waits for their verdicts.
func (s *Stage) joinAll(ctx context.Context) error {
	all, limited := errgroup.WithContext(ctx)
	for _, m := range s.options.Machines {
		if !m.Later {
			all.Go(func() error { return s.Join(limited, m.Name) })
		}
	}
	if err := all.Wait(); err != nil {
		return err
	}
	if err := s.Ready(ctx); err != nil {
		return err
	}
	s.say("%d nodes are ready", len(s.Nodes))
	if err := s.firstEntries(ctx); err != nil {
		return err
	}
	for _, m := range s.options.Machines {
		if m.Later || m.Boot != "good" {
			continue
		}
		if err := s.UntilTrusted(ctx, m.Name); err != nil {
			return err
		}
	}
	return nil
}

// cniDir is where Istio's CNI plugin has its files on a node.
const cniDir = "/etc/cni/istio"

// Join lets a machine join the cluster.
func (s *Stage) Join(ctx context.Context, name string) error {
	m := s.Machines[name]
	if m == nil {
		return fmt.Errorf("stage: no machine is named %s", name)
	}
	files := map[string][]byte{}
	for to, from := range map[string]string{"/var/lib/keelson/tag.json": factory.Tag, "/var/lib/keelson/cmdline": factory.CommandLine} {
		content, err := os.ReadFile(filepath.Join(m.Dir, from))
		if err != nil {
			return fmt.Errorf("stage: %s: %w", name, err)
		}
		files[to] = content
	}
	if name == s.options.Machines[0].Name {
		files[serverDisk+"/.made"] = nil // it makes the folder, as whoever gives a node a disk does
	}
	path, err := s.Cluster.KubeconfigFor("system:serviceaccount:"+mesh.Namespace+":"+mesh.CNIAccount, "system:serviceaccounts", "system:serviceaccounts:"+mesh.Namespace)
	if err != nil {
		return err
	}
	if files[cniDir+"/istio-cni-kubeconfig"], err = os.ReadFile(path); err != nil {
		return fmt.Errorf("stage: %s: %w", name, err)
	}
	_, err = s.AddNode(ctx, machine.Options{Name: name, Files: files, Binds: map[string]string{
		"/run/tpm": filepath.Join(m.Dir, "tpm"), "/sys/kernel/security": filepath.Join(m.Dir, "security"),
	}})
	return err
}

// Close ends everything and leaves nothing behind.
func (s *Stage) Close() error {
	if s.Fleet == nil {
		return nil
	}
	return s.Fleet.Close()
}

func (s *Stage) say(format string, args ...any) {
	_, _ = fmt.Fprintf(s.options.Log, format+"\n", args...) // progress for people; losing it loses nothing
}
