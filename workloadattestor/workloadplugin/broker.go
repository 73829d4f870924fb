package workloadplugin

import (
	"context"
	"fmt"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	authorizationv1client "k8s.io/client-go/kubernetes/typed/authorization/v1"

	"github.com/keelson-project/keelson/nodeattestor/pluginconf"
)

// brokerKey is the metadata key by which SPIRE's agent names the broker that asks for another workload (spire,
// pkg/agent/broker/brokercontext). The agent has authenticated it.
const brokerKey = "spire-agent-broker-caller-id"

// brokerOf is the broker that asks, "" for the agent itself. It refuses brokers that the configuration does not list: the agent
// merges what all attestors say, so what another attestor refuses to a broker does not keep these selectors from it.
func (a *attestor) brokerOf(ctx context.Context) (string, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	callers := md.Get(brokerKey)
	if len(callers) == 0 {
		return "", nil
	}
	if len(callers) != 1 || !slices.Contains(a.brokers, callers[0]) {
		return "", status.Errorf(codes.PermissionDenied, "workload attestor: broker %.300q may not refer to other workloads: list it in allowed_brokers if it may", callers)
	}
	return callers[0], nil
}

// mayRefer is which pods a broker may refer to.
func (a *attestor) mayRefer(broker string) permission {
	return func(ctx context.Context, namespace, name string) error {
		if broker == "" || a.reviews == nil {
			return nil
		}
		return a.reviews.review(ctx, broker, namespace, name)
	}
}

// reviewer asks whether a broker may refer to a pod: errRefused where it may not, another error where that is not known.
type reviewer interface {
	review(ctx context.Context, broker, namespace, pod string) error
}

// brokerVerb is what SPIRE's own attestor for Kubernetes has the API review (spire, workloadattestor/k8s:
// brokerImpersonationReviewVerb), so that one role serves both.
const brokerVerb = "impersonate-via-spire"

// accessReviews has the Kubernetes API review references.
type accessReviews struct {
	client authorizationv1client.SubjectAccessReviewInterface
}

func (r accessReviews) review(ctx context.Context, broker, namespace, pod string) error {
	ctx, cancel := context.WithTimeout(ctx, podTimeout)
	defer cancel()
	answer, err := r.client.Create(ctx, &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User:               broker,
		ResourceAttributes: &authorizationv1.ResourceAttributes{Resource: "pods", Namespace: namespace, Name: pod, Verb: brokerVerb},
	}}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("whether broker %s may refer to pod %s/%s is not known (the agent's account needs create on subjectaccessreviews): %w", broker, namespace, pod, err)
	}
	if !answer.Status.Allowed || answer.Status.Denied {
		return refused(fmt.Errorf("the Kubernetes API does not allow broker %s to %s pod %s/%s: bind user %[1]s to a role with verb %[2]s on pods if it may", broker, brokerVerb, namespace, pod))
	}
	return nil
}

// Values of broker_access_policy, which are SPIRE's own (spire, workloadattestor/k8s: experimental.broker.access_policy).
const (
	accessEnforced   = "enforced"
	accessPermissive = "permissive"
)

func (c Config) allowedBrokers(p *pluginconf.Problems) []string {
	for _, id := range c.AllowedBrokers {
		if _, err := spiffeid.FromString(id); err != nil {
			p.Add("allowed_brokers", "%v", err)
		}
	}
	return c.AllowedBrokers
}

// reviewer is who reviews references; nil where no one is to.
func (c Config) reviewer(api *apiClients, p *pluginconf.Problems) reviewer {
	switch c.BrokerAccessPolicy {
	case "", accessEnforced:
	case accessPermissive:
		return nil
	default:
		p.Add("broker_access_policy", "%.60q: want %s or %s", c.BrokerAccessPolicy, accessEnforced, accessPermissive)
		return nil
	}
	switch {
	case api != nil:
		return accessReviews{api.authorization.SubjectAccessReviews()}
	case len(c.AllowedBrokers) > 0:
		p.Add("allowed_brokers", "the Kubernetes API reviews what brokers refer to: give kubeconfig or in_cluster, or broker_access_policy = %q", accessPermissive)
	}
	return nil
}
