package workloadplugin_test

import (
	"testing"

	"github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	workloadattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/workloadattestor/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

// TestBrokersThatAreNotListedAreRefused: the agent names a broker in the call's metadata.
func TestBrokersThatAreNotListedAreRefused(t *testing.T) {
	const ztunnel, other = "spiffe://example.org/ztunnel", "spiffe://example.org/other"
	for name, tc := range map[string]struct {
		callers []string
		config  string
		want    codes.Code
	}{
		"the agent itself":     {nil, "", codes.OK},
		"a broker that is":     {[]string{ztunnel}, `allowed_brokers = ["` + ztunnel + `"]`, codes.OK},
		"another one":          {[]string{other}, `allowed_brokers = ["` + ztunnel + `"]`, codes.PermissionDenied},
		"one, and none listed": {[]string{ztunnel}, "", codes.PermissionDenied},
		"two at once":          {[]string{ztunnel, other}, `allowed_brokers = ["` + ztunnel + `", "` + other + `"]`, codes.PermissionDenied},
		"one without a name":   {[]string{""}, "", codes.PermissionDenied},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.configure(w.hcl() + tc.config + "\n")
			reference, err := anypb.New(&broker.WorkloadPIDReference{Pid: 42})
			if err != nil {
				t.Fatal(err)
			}
			ctx := t.Context()
			for _, c := range tc.callers {
				ctx = metadata.AppendToOutgoingContext(ctx, "spire-agent-broker-caller-id", c)
			}
			answer, err := w.attestor.AttestReference(ctx, &workloadattestorv1.AttestReferenceRequest{Reference: reference})
			if status.Code(err) != tc.want || (len(answer.GetSelectorValues()) > 0) != (tc.want == codes.OK) {
				t.Errorf("got %v, %v; want %s", answer.GetSelectorValues(), err, tc.want)
			}
		})
	}
}
