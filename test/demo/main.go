// Command demo shows the chain of trust end to end, on real parts: etcd and kube-apiserver, Calico's API server, Istio's
// resources, SPIRE, a TPM for each of three nodes with a recorded boot in it, and containers under containerd.
//
//	make demo                     # or: go run ./test/demo
//	go run ./test/demo -standin   # without root: workloads are plain processes
//	go run ./test/demo -keep      # leaves the logs behind
//
// fra-1 and par-1 have booted what the reference set allows, evil-1 another kernel command line. The demo shows who attests
// (a), who then gets an identity and reaches whom (b), what policy-sync wrote (c), and what follows when a good node is
// tampered with (d). It prints as it goes, ends with a table, writes out/demo.json, and exits 0 only if everything that it
// expected came true. However it ends, it leaves no process, mount, network interface, cgroup or file of its own behind.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
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
}

func run(args []string, stdout, stderr io.Writer) int {
	var s settings
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&s.out, "o", "out/demo.json", "where the report goes")
	flags.BoolVar(&s.keep, "keep", false, "leave the run's folder, with every log, behind")
	flags.BoolVar(&s.standin, "standin", false, "run workloads as plain processes in place of containers, even where containers can be had")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	d := &demo{settings: s, out: stdout, report: Report{Started: time.Now()}}
	err := d.run(ctx)
	d.report.close(err, len(d.steps()))
	d.report.table(stdout)
	if writeErr := d.report.write(s.out); writeErr != nil {
		_, _ = fmt.Fprintln(stderr, writeErr)
		return 1
	}
	say(stdout, "report: %s", s.out)
	if failed := d.report.failures(); failed != nil {
		_, _ = fmt.Fprintf(stderr, "\n%v\n", failed)
	}
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "\n%v\n", err)
	}
	if !d.report.OK {
		return 1
	}
	return 0
}
