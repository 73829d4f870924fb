package workloadplugin_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	workloadattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/workloadattestor/v1"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/client-go/kubernetes/scheme"
)

const ztunnel, otherBroker = "spiffe://example.org/ztunnel", "spiffe://example.org/other"

// mayRefer is what the Kubernetes API has to allow ztunnel for the pod of newWorld.
const mayRefer = ztunnel + " impersonate-via-spire pods payments/api-0"

// review answers a SubjectAccessReview as the API server does. "away" in w.allowed makes it fail.
func (w *world) review(rw http.ResponseWriter, r *http.Request) {
	var review authorizationv1.SubjectAccessReview
	body, err1 := io.ReadAll(r.Body)
	_, _, err2 := scheme.Codecs.UniversalDeserializer().Decode(body, nil, &review) // clients speak protobuf
	if err := errors.Join(err1, err2); err != nil || r.Method != http.MethodPost {
		w.t.Error(err)
		rw.WriteHeader(http.StatusBadRequest)
		return
	}
	if _, away := w.allowed.Load("away"); away {
		rw.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	a := review.Spec.ResourceAttributes
	_, allowed := w.allowed.Load(strings.Join([]string{review.Spec.User, a.Verb, a.Group + a.Resource, a.Namespace + "/" + a.Name}, " "))
	_, denied := w.allowed.Load("denied")
	review.Status = authorizationv1.SubjectAccessReviewStatus{Allowed: allowed, Denied: denied}
	rw.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(rw).Encode(review) // the client notices
}

// refer asks for a referenced workload in the name of brokers.
func (w *world) refer(reference proto.Message, brokers ...string) ([]string, error) {
	w.t.Helper()
	packed, err := anypb.New(reference)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx := w.t.Context()
	for _, b := range brokers {
		ctx = metadata.AppendToOutgoingContext(ctx, "spire-agent-broker-caller-id", b)
	}
	answer, err := w.attestor.AttestReference(ctx, &workloadattestorv1.AttestReferenceRequest{Reference: packed})
	return answer.GetSelectorValues(), err
}

// TestBrokersThatAreNotListedAreRefused: the agent names a broker in the call's metadata, and Kubernetes reviews each pod.
func TestBrokersThatAreNotListedAreRefused(t *testing.T) {
	const listed = `allowed_brokers = ["` + ztunnel + `"]`
	pod := &broker.KubernetesObjectReference{Type: &broker.KubernetesObjectType{Plural: "pods", Group: "core"},
		Key: &broker.KubernetesObjectKey{Namespace: "payments", Name: "api-0"}}
	for name, tc := range map[string]struct {
		callers []string
		config  string
		allowed []string
		want    codes.Code
	}{
		"the agent itself":                {nil, "", nil, codes.OK},
		"a broker that is":                {[]string{ztunnel}, listed, []string{mayRefer}, codes.OK},
		"another one":                     {[]string{otherBroker}, listed, []string{mayRefer}, codes.PermissionDenied},
		"one, and none listed":            {[]string{ztunnel}, "", []string{mayRefer}, codes.PermissionDenied},
		"two at once":                     {[]string{ztunnel, otherBroker}, `allowed_brokers = ["` + ztunnel + `", "` + otherBroker + `"]`, []string{mayRefer}, codes.PermissionDenied},
		"the same one twice":              {[]string{ztunnel, ztunnel}, listed, []string{mayRefer}, codes.PermissionDenied},
		"one without a name":              {[]string{""}, "", []string{mayRefer}, codes.PermissionDenied},
		"one with no right to the pod":    {[]string{ztunnel}, listed, nil, codes.PermissionDenied},
		"a right to another pod":          {[]string{ztunnel}, listed, []string{strings.Replace(mayRefer, "api-0", "api-1", 1)}, codes.PermissionDenied},
		"a right to another namespace":    {[]string{ztunnel}, listed, []string{strings.Replace(mayRefer, "payments", "shop", 1)}, codes.PermissionDenied},
		"another verb":                    {[]string{ztunnel}, listed, []string{strings.Replace(mayRefer, "impersonate-via-spire", "get", 1)}, codes.PermissionDenied},
		"allowed and denied":              {[]string{ztunnel}, listed, []string{mayRefer, "denied"}, codes.PermissionDenied},
		"reviews that cannot be had":      {[]string{ztunnel}, listed, []string{mayRefer, "away"}, codes.Unavailable},
		"reviews that are not to be had":  {[]string{ztunnel}, listed + "\nbroker_access_policy = \"permissive\"", nil, codes.OK},
		"an unlisted one, without review": {[]string{otherBroker}, listed + "\nbroker_access_policy = \"permissive\"", nil, codes.PermissionDenied},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			for _, a := range tc.allowed {
				w.allowed.Store(a, true)
			}
			w.configure(w.hcl() + tc.config + "\n")
			for kind, reference := range map[string]proto.Message{"process": &broker.WorkloadPIDReference{Pid: 42}, "pod": pod} {
				got, err := w.refer(reference, tc.callers...)
				if status.Code(err) != tc.want || (len(got) > 0) != (tc.want == codes.OK) {
					t.Errorf("%s: got %v %v, want %v", kind, got, err, tc.want)
				}
			}
		})
	}
}

// TestAProcessInNoPodNeedsNoReview: there is nothing to review, and nothing to have.
func TestAProcessInNoPodNeedsNoReview(t *testing.T) {
	w := newWorld(t)
	w.process(7, "0::/system.slice/sshd.service\n")
	w.configure(w.hcl() + `allowed_brokers = ["` + ztunnel + `"]` + "\n")
	if got, err := w.refer(&broker.WorkloadPIDReference{Pid: 7}, ztunnel); err != nil || len(got) != 0 {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestBrokerConfigurationsThatAreRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		config func(hcl string) string
		want   string
	}{
		"no SPIFFE ID": {func(hcl string) string { return hcl + `allowed_brokers = ["ztunnel"]` }, "allowed_brokers"},
		"an unknown policy": {func(hcl string) string { return hcl + `broker_access_policy = "lax"` },
			`broker_access_policy: "lax": want enforced or permissive`},
		"nobody to review": {func(hcl string) string { return without1(hcl, "kubeconfig") + `allowed_brokers = ["` + ztunnel + `"]` },
			"allowed_brokers: the Kubernetes API reviews what brokers refer to: give kubeconfig or in_cluster"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			_, err := w.config.Configure(t.Context(), &configv1.ConfigureRequest{HclConfiguration: tc.config(w.hcl())})
			if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}
