package main

import (
	"context"
	"flag"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/keelson-project/keelson/test/e2e/workload/said"
)

func svid(ctx context.Context, args []string, out *lines) error {
	flags := flag.NewFlagSet("svid", flag.ContinueOnError)
	socket := flags.String("socket", "unix:///spire/api.sock", "address of the Workload API")
	timeout := flags.Duration("timeout", 3*time.Second, "how long to wait")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	got, err := workloadapi.FetchX509SVID(ctx, workloadapi.WithAddr(*socket))
	if err != nil {
		return out.print(said.SVID{Error: err.Error()})
	}
	return out.print(said.SVID{OK: true, SPIFFEID: got.ID.String(), NotAfter: got.Certificates[0].NotAfter})
}
