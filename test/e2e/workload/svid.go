package main

import (
	"context"
	"flag"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/status"

	"github.com/keelson-project/keelson/test/e2e/workload/said"
)

// agentSocket is where the pod has the Workload API.
const agentSocket = "unix:///spire/api.sock"

func svid(ctx context.Context, args []string, out *lines) error {
	flags := flag.NewFlagSet("svid", flag.ContinueOnError)
	socket := flags.String("socket", agentSocket, "address of the Workload API")
	timeout := flags.Duration("timeout", 3*time.Second, "how long to wait")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	got, err := workloadapi.FetchX509SVID(ctx, workloadapi.WithAddr(*socket))
	if err != nil {
		return out.print(said.SVID{Error: err.Error(), Code: status.Code(err).String()})
	}
	return out.print(said.SVID{OK: true, SPIFFEID: got.ID.String(), NotAfter: got.Certificates[0].NotAfter})
}
