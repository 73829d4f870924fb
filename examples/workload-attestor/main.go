// Command workload-attestor shows the workload attestor at work: a real containerd, a registry, a real SPIRE server and agent with
// the plugin, and every step that an operator takes, with the commands.
//
//	go run ./examples/workload-attestor          # shows it, and leaves nothing behind
//	go run ./examples/workload-attestor -hold    # keeps everything running until Ctrl-C
//
// It needs root on Linux, because containers do. What else it needs beyond Go and a C compiler it builds, once. README.md explains
// the steps.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	hold := flag.Bool("hold", false, "keep everything running at the end, until Ctrl-C")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx, os.Stdout, *hold); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1) //nolint:gocritic // run has cleaned up, and stop only ends the listening for signals.
	}
}
