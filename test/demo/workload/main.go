// Command workload is the program inside the demo's containers. It speaks mutual TLS with identities from the SPIFFE Workload
// API alone: no file of its image or its configuration holds a key.
//
//	workload pause                    waits to be ended (the sandbox's process)
//	workload serve [flags]            answers over mutual TLS
//	workload call [flags] URL         calls one, and prints what happened as JSON
//	workload svid [flags]             asks for an identity, and prints what it got as JSON
//
// The last two are run inside a running container, as a process of that container: SPIRE's agent attests the process that asks.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		_, _ = fmt.Fprintln(stderr, "usage: workload pause|serve|call|svid")
		return 2
	}
	var err error
	switch args[0] {
	case "pause":
		<-ctx.Done()
	case "serve":
		err = serve(ctx, args[1:], stderr)
	case "call":
		err = call(ctx, args[1:], stdout)
	case "svid":
		err = svid(ctx, args[1:], stdout)
	default:
		err = fmt.Errorf("workload: unknown command %q", args[0])
	}
	if err != nil && ctx.Err() == nil {
		_, _ = fmt.Fprintln(stderr, err)
		return 1
	}
	return 0
}

// common are the flags that every command has.
type common struct {
	set     *flag.FlagSet
	socket  string
	timeout time.Duration
}

func newCommon(name string) *common {
	c := &common{set: flag.NewFlagSet(name, flag.ContinueOnError)}
	c.set.StringVar(&c.socket, "socket", "unix:///spire/api.sock", "address of the Workload API")
	c.set.DurationVar(&c.timeout, "timeout", 5*time.Second, "how long to wait for an identity or an answer")
	return c
}

func (c *common) client() workloadapi.X509SourceOption {
	return workloadapi.WithClientOptions(workloadapi.WithAddr(c.socket))
}

// SVID is what `workload svid` prints.
type SVID struct {
	OK       bool      `json:"ok"`
	SPIFFEID string    `json:"spiffe_id,omitempty"`
	NotAfter time.Time `json:"not_after,omitzero"`
	// Kind tells refusals apart: "no-identity" (the agent attested the process and has nothing for it), "unavailable" (no
	// agent, or one that is not attested), "error".
	Kind  string `json:"kind,omitempty"`
	Error string `json:"error,omitempty"`
}

func svid(ctx context.Context, args []string, stdout io.Writer) error {
	c := newCommon("svid")
	if err := c.set.Parse(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	var result SVID
	got, err := workloadapi.FetchX509SVID(ctx, workloadapi.WithAddr(c.socket))
	if err != nil {
		result.Kind, result.Error = kind(err), err.Error()
	} else {
		result = SVID{OK: true, SPIFFEID: got.ID.String(), NotAfter: got.Certificates[0].NotAfter}
	}
	return json.NewEncoder(stdout).Encode(result)
}

// kind classifies an error of the Workload API.
func kind(err error) string {
	var wrapped interface{ GRPCStatus() *status.Status }
	switch {
	case errors.As(err, &wrapped) && wrapped.GRPCStatus().Code() == codes.PermissionDenied:
		return "no-identity"
	case errors.As(err, &wrapped) && wrapped.GRPCStatus().Code() == codes.Unavailable,
		errors.Is(err, context.DeadlineExceeded), status.Code(err) == codes.DeadlineExceeded:
		return "unavailable"
	}
	return "error"
}
