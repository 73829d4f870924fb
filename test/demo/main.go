// Command demo shows the chain of trust end to end, on real parts.
//
// Where it can (root on Linux) it brings up a whole cluster (package stage): three nodes with a TPM each, kubelets, Calico and
// Istio enforcing, Keelson installed with Helm. It shows which machines stand there on which proof, who may talk to whom, what
// happens to a machine that booted something else, and to one that is tampered with.
//
// The light form needs less: etcd and kube-apiserver, Calico's API server, Istio's resources, SPIRE, a TPM for each of three nodes
// with a recorded boot in it, and containers under containerd.
//
//	make demo                     # or: go run ./test/demo
//	go run ./test/demo -light     # the light form, even where the whole cluster can be had
//	go run ./test/demo -standin   # the light form without containers: workloads are plain processes
//	go run ./test/demo -keep      # leaves the logs behind
//
// In the light form, fra-1 and par-1 have booted what the reference set allows, evil-1 another kernel command line. The demo shows who attests
// (a), who then gets an identity and reaches whom (b), what policy-sync wrote (c), and what follows when a good node is
// tampered with (d). It prints as it goes, ends with a table, writes out/demo.json, and exits 0 only if everything that it
// expected came true. However it ends, it leaves no process, mount, network interface, cgroup or file of its own behind.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/keelson-project/keelson/test/cluster/fleet"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == janitorCommand {
		os.Exit(janitor(os.Args[2:], os.Stdin, os.Stderr))
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// settings are the command line.
type settings struct {
	out           string
	keep, standin bool
	light         bool
}

// play plays the form that this computer can hold, and says which and why.
func (s settings) play(ctx context.Context, out io.Writer, report *Report) (steps int, err error) {
	why := fleet.CanRun()
	switch {
	case s.standin:
		why = errors.New("-standin")
	case s.light:
		why = errors.New("-light")
	}
	if why == nil {
		say(out, "A whole cluster: three nodes of their own network, processes and TPM, with kubelets, Calico and Istio (root on Linux can; -light shows less in less time).")
		report.Form, report.Containers = "whole", "containerd"
		w := &whole{out: out, report: report}
		return len(w.steps()), w.run(ctx)
	}
	say(out, "The light form (%v): real API servers, SPIRE and TPM commands, and mutual TLS, but no kubelets and nothing that enforces on packets.", why)
	report.Form = "light"
	d := &demo{settings: s, out: out, report: report}
	return len(d.steps()), d.run(ctx)
}

func run(args []string, stdout, stderr io.Writer) int {
	var s settings
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&s.out, "o", "out/demo.json", "where the report goes")
	flags.BoolVar(&s.keep, "keep", false, "leave the run's folder, with every log, behind")
	flags.BoolVar(&s.standin, "standin", false, "run workloads as plain processes in place of containers, even where containers can be had")
	flags.BoolVar(&s.light, "light", false, "the light form: no kubelets, no enforcement on packets")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	report := &Report{Started: time.Now()}
	steps, err := s.play(ctx, stdout, report)
	report.close(err, steps)
	report.table(stdout)
	if writeErr := report.write(s.out); writeErr != nil {
		_, _ = fmt.Fprintln(stderr, writeErr)
		return 1
	}
	say(stdout, "report: %s", s.out)
	if failed := report.failures(); failed != nil {
		_, _ = fmt.Fprintf(stderr, "\n%v\n", failed)
	}
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "\n%v\n", err)
	}
	if !report.OK {
		return 1
	}
	return 0
}
