package main

import (
	"context"
	"flag"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// SVID is what `workload svid` prints.
type SVID struct {
	OK       bool      `json:"ok"`
	SPIFFEID string    `json:"spiffe_id,omitempty"`
	NotAfter time.Time `json:"not_after,omitzero"`
	Error    string    `json:"error,omitempty"`
}

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
		return out.print(SVID{Error: err.Error()})
	}
	return out.print(SVID{OK: true, SPIFFEID: got.ID.String(), NotAfter: got.Certificates[0].NotAfter})
}
