package workloadattestor_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/keelson-project/keelson/test/cluster"
)

// The agent lets both brokers in; the plugin's configuration lists the first alone.
const ztunnel, unlisted = "spiffe://keelson.test/ztunnel", "spiffe://keelson.test/unlisted"

// review answers SubjectAccessReviews: brokers may refer to all pods of namespace payments but greedy.
func (m *machine) review(w http.ResponseWriter, r *http.Request) {
	if m.noReview.Load() {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	var review authorizationv1.SubjectAccessReview
	body, err1 := io.ReadAll(r.Body)
	_, _, err2 := scheme.Codecs.UniversalDeserializer().Decode(body, nil, &review)
	if err := errors.Join(err1, err2); err != nil {
		m.t.Error(err)
	}
	a := review.Spec.ResourceAttributes
	review.Status.Allowed = strings.HasPrefix(review.Spec.User, "spiffe://keelson.test/") && a.Verb == "impersonate-via-spire" && a.Resource == "pods" &&
		a.Group == "" && a.Namespace == "payments" && a.Name != "greedy"
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(review) // the client notices
}

// pairEntries are two identities of the pod "pair": one asks for a signed image.
func (m *machine) pairEntries(parent *types.SPIFFEID) []*types.Entry {
	selectors := []*types.Selector{{Type: "keelson", Value: "pod-uid:" + uidFour}, {Type: "keelson", Value: "sa:pair-account"}, {Type: "keelson", Value: "runtime:restricted"}}
	signed := append(slices.Clone(selectors), &types.Selector{Type: "keelson", Value: "signed-by:release-key"})
	return []*types.Entry{
		{SpiffeId: &types.SPIFFEID{TrustDomain: "keelson.test", Path: "/pair"}, ParentId: parent, Selectors: selectors},
		{SpiffeId: &types.SPIFFEID{TrustDomain: "keelson.test", Path: "/pair-signed"}, ParentId: parent, Selectors: signed},
	}
}

// refer asks the agent's SPIFFE Broker API for identities of processes and pods.
func (m *machine) refer(ctx context.Context, agent *cluster.SpireAgent, signed string) {
	m.t.Helper()
	pair := m.startSandbox(ctx, 0, "pair", uidFour, false)
	m.add(ctx, pair, "main", m.signed.Config.String(), false)
	asks, stranger := m.broker(ctx, agent, ztunnel), m.broker(ctx, agent, unlisted)
	pod := func(name, uid string) *broker.KubernetesObjectReference {
		ref := &broker.KubernetesObjectReference{Type: &broker.KubernetesObjectType{Plural: "pods", Group: "core"}, Uid: uid}
		if name != "" {
			ref.Key = &broker.KubernetesObjectKey{Namespace: "payments", Name: name}
		}
		return ref
	}
	const api, bare, whole = "spiffe://keelson.test/ns/payments/sa/api-account", "spiffe://keelson.test/pair", "spiffe://keelson.test/pair-signed"
	check := func(what string, by broker.APIClient, ref proto.Message, code codes.Code, want ...string) {
		m.t.Helper()
		got, err := m.identities(ctx, by, ref)
		if status.Code(err) != code || !slices.Equal(got, want) {
			m.t.Errorf("broker, %s: got %v, %v\n%s", what, got, err, tail(m.t, agent.Log))
		}
	}
	process := &broker.WorkloadPIDReference{Pid: m.pid(ctx, 0, signed)}
	check("a process", asks, process, codes.OK, api)
	check("a pod by name", asks, pod("api", ""), codes.OK, api)
	check("a pod by UID", asks, pod("", uidOne), codes.OK, api)
	check("a pod by both", asks, pod("api", uidOne), codes.OK, api)
	check("a pod one of whose containers has not started", asks, pod("pair", ""), codes.OK)
	sidecar := m.add(ctx, pair, "sidecar", m.signed.Config.String(), false)
	check("a pod whose containers are all signed", asks, pod("pair", ""), codes.OK, bare, whole)
	m.replace(ctx, pair, sidecar, m.unsigned.Config.String())
	check("a pod with an unsigned container", asks, pod("pair", uidFour), codes.OK, bare)
	check("a pod that is not there", asks, pod("gone", ""), codes.NotFound)
	check("another UID", asks, pod("api", uidFour), codes.NotFound)
	check("a UID that is not there", asks, pod("", "11111111-2222-3333-4444-55555555555f"), codes.NotFound)
	check("a pod that it may not refer to", asks, pod("greedy", ""), codes.PermissionDenied)
	check("a broker that is not listed", stranger, pod("api", ""), codes.PermissionDenied)
	check("a process, by a broker that is not listed", stranger, process, codes.PermissionDenied)
	m.noReview.Store(true)
	check("an API that reviews nothing", asks, pod("api", ""), codes.Unavailable)
	check("a process, and an API that reviews nothing", asks, process, codes.Unavailable)
	m.noReview.Store(false)
	check("a pod again", asks, pod("api", ""), codes.OK, api)
}

// broker connects to the agent's broker socket with an identity of its own.
func (m *machine) broker(ctx context.Context, agent *cluster.SpireAgent, id string) broker.APIClient {
	m.t.Helper()
	key, err1 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	uri, err2 := url.Parse(id)
	if err := errors.Join(err1, err2); err != nil {
		m.t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{uri}}, key)
	if err != nil {
		m.t.Fatal(err)
	}
	minted, err1 := svidv1.NewSVIDClient(m.spire).MintX509SVID(ctx, &svidv1.MintX509SVIDRequest{Csr: csr, Ttl: 600})
	authorities, err2 := bundlev1.NewBundleClient(m.spire).GetBundle(ctx, &bundlev1.GetBundleRequest{})
	if err := errors.Join(err1, err2); err != nil {
		m.t.Fatal(err)
	}
	svid := &x509svid.SVID{ID: spiffeid.RequireFromString(id), PrivateKey: key}
	for _, der := range minted.GetSvid().GetCertChain() {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			m.t.Fatal(err)
		}
		svid.Certificates = append(svid.Certificates, cert)
	}
	bundle := x509bundle.New(svid.ID.TrustDomain())
	for _, a := range authorities.GetX509Authorities() {
		cert, err := x509.ParseCertificate(a.GetAsn1())
		if err != nil {
			m.t.Fatal(err)
		}
		bundle.AddX509Authority(cert)
	}
	tls := tlsconfig.MTLSClientConfig(svid, bundle, tlsconfig.AuthorizeMemberOf(svid.ID.TrustDomain()))
	conn, err := grpc.NewClient("unix:"+agent.BrokerSocket, grpc.WithTransportCredentials(credentials.NewTLS(tls)))
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { _ = conn.Close() })
	return broker.NewAPIClient(conn)
}

// identities are the first that the agent answers with, sorted.
func (m *machine) identities(ctx context.Context, by broker.APIClient, ref proto.Message) ([]string, error) {
	m.t.Helper()
	packed, err := anypb.New(ref)
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(ctx, "broker.spiffe.io", "true"), 30*time.Second)
	defer cancel()
	stream, err := by.SubscribeToX509SVID(ctx, &broker.SubscribeToX509SVIDRequest{Reference: &broker.WorkloadReference{Reference: packed}})
	if err != nil {
		return nil, err
	}
	answer, err := stream.Recv()
	var ids []string
	for _, s := range answer.GetSvids() {
		ids = append(ids, s.GetSpiffeId())
	}
	slices.Sort(ids)
	return ids, err
}
