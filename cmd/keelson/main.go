// Command keelson is for people who run Keelson: it shows TPMs and event logs, collects and verifies
// evidence, captures reference values, issues and provisions asset tags, and explains what policy-sync does.
//
// It exits 0 when what was asked holds, 1 when evidence is refused, and 2 for wrong use or input
// that cannot be read.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit codes.
const (
	exitAccepted = 0
	exitRefused  = 1
	exitWrong    = 2
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run is main without the process: what was asked goes to out, errors to errs.
func run(args []string, out, errs io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errs)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitAccepted
	}
	code := exitWrong
	if refused := (*refusedError)(nil); errors.As(err, &refused) {
		code = exitRefused
	}
	if _, err := fmt.Fprintln(errs, "keelson:", err); err != nil {
		return exitWrong // nobody reads what was found
	}
	return code
}

// newRoot has every command; a file adds its own in a function of the form func(*cobra.Command).
func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "keelson",
		Short:         "Tie a workload's right to talk to proof of its machine and image",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	for _, add := range []func(*cobra.Command){
		addReference,
		addEvidence,
		addEventlog,
		addTPM,
		addTag,
		addAudit,
		addPlan,
		addExplain,
		addImage,
		addPlugins,
	} {
		add(root)
	}
	return root
}

// refusedError says that what was given was read and judged, and refused: exit 1.
type refusedError struct{ err error }

func refused(err error) error { return &refusedError{err} }

func (e *refusedError) Error() string { return e.err.Error() }

func (e *refusedError) Unwrap() error { return e.err }

// group is a command that only has commands; asked for nothing or for an unknown one, it is wrong use.
func group(use, short string) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return fmt.Errorf("%s needs a command; see %s --help", c.CommandPath(), c.CommandPath())
	}}
}
