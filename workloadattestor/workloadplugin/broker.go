package workloadplugin

import (
	"context"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// brokerKey is the metadata key by which SPIRE's agent names the broker that asks for another workload (spire,
// pkg/agent/broker/brokercontext). The agent has authenticated it.
const brokerKey = "spire-agent-broker-caller-id"

// mayRefer refuses brokers that the configuration does not list. The agent merges what all attestors say, so what another
// attestor refuses to a broker does not keep these selectors from it.
func (p *Plugin) mayRefer(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	callers := md.Get(brokerKey)
	if len(callers) == 0 {
		return nil // the agent itself asks
	}
	a := p.acquire()
	if a == nil {
		return status.Error(codes.FailedPrecondition, "workload attestor: not configured")
	}
	defer p.release(a)
	if len(callers) != 1 || !slices.Contains(a.brokers, callers[0]) {
		return status.Errorf(codes.PermissionDenied, "workload attestor: broker %.300q may not refer to other workloads: list it in allowed_brokers if it may", callers)
	}
	return nil
}
