// Command e2e plays scenarios on a whole cluster: three nodes with TPMs, real pods, Calico and Istio enforcing, Keelson
// installed with Helm (package stage).
//
//	make e2e                          # or: go run ./test/e2e
//	go run ./test/e2e join image      # only these
//	go run ./test/e2e -list           # what there is
//	BOOT=vm make e2e                  # and a machine that really boots, under QEMU
//	make cluster                      # the cluster with its cast, until Ctrl-C: go run ./test/e2e -hold
//	make cluster-down                 # ends it from elsewhere, and cleans up after one that was killed
//
// Each scenario writes its timeline as out/e2e/<name>.json. Whatever happens, nothing is left running, mounted or written elsewhere.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/keelson-project/keelson/test/cluster/factory"
	"github.com/keelson-project/keelson/test/cluster/fleet"
	"github.com/keelson-project/keelson/test/e2e/faults"
	"github.com/keelson-project/keelson/test/e2e/geofence"
	"github.com/keelson-project/keelson/test/e2e/image"
	"github.com/keelson-project/keelson/test/e2e/join"
	"github.com/keelson-project/keelson/test/e2e/kubelet"
	"github.com/keelson-project/keelson/test/e2e/lifecycle"
	"github.com/keelson-project/keelson/test/e2e/privileged"
	"github.com/keelson-project/keelson/test/e2e/rollout"
	"github.com/keelson-project/keelson/test/e2e/script"
	"github.com/keelson-project/keelson/test/e2e/spoofing"
	"github.com/keelson-project/keelson/test/e2e/stage"
	"github.com/keelson-project/keelson/test/e2e/tampering"
	"github.com/keelson-project/keelson/test/e2e/tenants"
	"github.com/keelson-project/keelson/test/e2e/virtual"
	"github.com/keelson-project/keelson/test/e2e/wrongboot"
)

// scenario is a folder beside this file.
type scenario struct {
	name, proves string
	play         func(context.Context, *stage.Stage, *script.Script) error
}

func (o *options) scenarios() []scenario {
	return []scenario{
		// First what is measured, while there are three machines.
		{"tampering", tampering.Proves, tampering.Play(o.runs)},
		{"geofence", geofence.Proves, geofence.Play},
		{"rollout", rollout.Proves, rollout.Play(o.pods)},
		{"image", image.Proves, image.Play},
		{"privileged", privileged.Proves, privileged.Play},
		{"join", join.Proves, join.Play},
		{"wrongboot", wrongboot.Proves, wrongboot.Play},
		{"spoofing", spoofing.Proves, spoofing.Play},
		{"kubelet", kubelet.Proves, kubelet.Play},
		{"tenants", tenants.Proves, tenants.Play},
		{"faults", faults.Proves, faults.Play(o.faults, o.seed)},
		{onlyVM, virtual.Proves, virtual.Play},
		{last, lifecycle.Proves, lifecycle.Play},
	}
}

// onlyVM is played when it is asked for: by its name, or by BOOT=vm in the environment.
const onlyVM = "virtual"

// last takes away what all others need.
const last = "lifecycle"

// options are the command line.
type options struct {
	out        string
	list, hold bool
	validates  bool
	down       bool
	runs, pods int
	faults     time.Duration
	seed       uint64
	names      []string
}

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	var o options
	flags := flag.NewFlagSet("e2e", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.out, "o", "out/e2e", "folder for the timelines")
	flags.BoolVar(&o.list, "list", false, "list the scenarios and what each proves")
	flags.BoolVar(&o.hold, "hold", false, "play nothing: bring up the cluster with its cast and keep it until Ctrl-C")
	flags.DurationVar(&o.faults, "faults", 2*time.Minute, "how long scenario faults kills")
	flags.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano()), "what scenario faults draws its victims from") // #nosec G115 -- any number will do
	flags.IntVar(&o.runs, "runs", 3, "how many times scenario tampering tampers")
	flags.IntVar(&o.pods, "pods", 12, "how many pods scenario rollout updates")
	flags.BoolVar(&o.validates, "istiod-validates", true, "have istiod's validating webhook in force, as in an ordinary mesh: what it refuses is not written, nor is anything of Istio's while it is down")
	flags.BoolVar(&o.down, "down", false, "end every such cluster on this computer, and clean up after those whose program is gone")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	o.names = flags.Args()
	chosen, err := o.choose()
	if err != nil {
		_, _ = fmt.Fprintln(stderr, err)
		return 2
	}
	if o.list {
		for _, s := range chosen {
			_, _ = fmt.Fprintf(stdout, "%-12s %s\n", s.name, s.proves)
		}
		return 0
	}
	if o.down {
		return down(stdout, stderr)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	passed, err := o.play(ctx, stdout, chosen)
	failed := len(chosen) - passed
	_, _ = fmt.Fprintf(stdout, "\n%d passed, %d failed\n", passed, failed)
	if err != nil {
		_, _ = fmt.Fprintln(stderr, err)
		return 1
	}
	return 0
}

// down ends all clusters.
func down(stdout, stderr io.Writer) int {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	owners, err := fleet.List()
	for _, owner := range owners {
		_, _ = fmt.Fprintf(stdout, "ending %s\n", owner.Dir)
		err = errors.Join(err, owner.Down(ctx))
	}
	if err != nil {
		_, _ = fmt.Fprintln(stderr, err)
		return 1
	}
	_, _ = fmt.Fprintf(stdout, "%d clusters ended\n", len(owners))
	return 0
}

func (o *options) choose() ([]scenario, error) {
	all := o.scenarios()
	if len(o.names) == 0 {
		return slices.DeleteFunc(all, func(s scenario) bool {
			return !o.list && s.name == onlyVM && os.Getenv("BOOT") != "vm"
		}), nil
	}
	var chosen []scenario
	for _, name := range o.names {
		i := slices.IndexFunc(all, func(s scenario) bool { return s.name == name })
		if i < 0 {
			return nil, fmt.Errorf("e2e: no scenario is named %q (-list tells)", name)
		}
		if len(chosen) > 0 && chosen[len(chosen)-1].name == last {
			return nil, fmt.Errorf("e2e: scenario %s uninstalls Keelson: name it last", last)
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}

// machines are the three that the cluster begins with, one that joins, and one that has booted something else.
func machines() []stage.Machine {
	return append(stage.Machines(),
		stage.Machine{Machine: factory.Machine{Name: join.Node, Country: "DE", Boot: "good"}, Later: true},
		stage.Machine{Machine: factory.Machine{Name: wrongboot.Node, Country: "DE", Boot: "cmdline"}, Later: true},
	)
}

// play plays the scenarios one after the other on one stage, and goes on after one that failed.
func (o *options) play(ctx context.Context, out io.Writer, chosen []scenario) (passed int, err error) {
	begun := time.Now()
	s, err := stage.Start(ctx, stage.Options{Log: out, Machines: machines(), IstiodValidates: o.validates})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if err := s.Cast(ctx); err != nil && !o.hold { // what went wrong is best looked at while it stands
		return 0, err
	} else if err != nil {
		_, _ = fmt.Fprintln(out, err)
	}
	_, _ = fmt.Fprintf(out, "ready to play after %.1f s\n", time.Since(begun).Seconds())
	if o.hold {
		_, _ = fmt.Fprintf(out, "export KUBECONFIG=%s; Ctrl-C ends it\n", s.Cluster.AdminKubeconfig())
		<-ctx.Done()
		return 0, nil
	}
	var errs []error
	for _, c := range chosen {
		record := script.New(out, c.name, c.proves)
		err := record.Close(o.out, c.play(ctx, s, record))
		if err == nil {
			passed++
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			return passed, errors.Join(append(errs, errors.New("e2e: interrupted"))...)
		}
	}
	return passed, errors.Join(errs...)
}
