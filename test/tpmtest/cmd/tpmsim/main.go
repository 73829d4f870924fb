// Command tpmsim serves a fresh TPM 2.0 simulator on a Unix socket until it is
// interrupted. It is for tests and for the demo where swtpm is missing; its TPM lives
// and dies with the process.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/keelson-project/keelson/test/tpmtest/simtpm"
)

func main() {
	socket := flag.String("socket", "", "path of the Unix socket to make")
	flag.Parse()
	if *socket == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(*socket); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(socket string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	server, err := simtpm.Listen(socket)
	if err != nil {
		return err
	}
	return server.Serve(ctx)
}
