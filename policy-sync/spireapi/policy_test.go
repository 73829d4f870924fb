package spireapi_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	agentapi "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundleapi "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	debugapi "github.com/spiffe/spire-api-sdk/proto/spire/api/server/debug/v1"
	entryapi "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	authorityapi "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	svidapi "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	federationapi "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/keelson-project/keelson/test/cluster"
)

const (
	policySyncID = "spiffe://keelson.test/ns/keelson-system/sa/keelson-policy-sync"
	bossID       = "spiffe://keelson.test/boss"
)

// restricted starts a server with the policy of examples/spire, for our trust domain.
func restricted(t *testing.T) server {
	t.Helper()
	policy := t.TempDir()
	for _, name := range []string{"policy.rego", "policy_data.json"} {
		content, err := os.ReadFile(filepath.Join("..", "..", "examples", "spire", name))
		must(t, err)
		must(t, os.WriteFile(filepath.Join(policy, name), []byte(strings.ReplaceAll(string(content), "example.org", domain)), 0o600))
	}
	return startWith(t, cluster.SpireServerOptions{AdminIDs: []string{policySyncID, bossID}, Policy: policy})
}

// as connects over TCP with an SVID of an ID, which the server's own socket mints.
func (s server) as(t *testing.T, id string) *grpc.ClientConn {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	uri, err := url.Parse(id)
	must(t, err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{uri}}, key)
	must(t, err)
	minted, err := svidapi.NewSVIDClient(s.raw).MintX509SVID(t.Context(), &svidapi.MintX509SVIDRequest{Csr: csr})
	must(t, err)
	svid := &x509svid.SVID{ID: spiffeid.RequireFromString(id), PrivateKey: key}
	for _, der := range minted.GetSvid().GetCertChain() {
		certificate, err := x509.ParseCertificate(der)
		must(t, err)
		svid.Certificates = append(svid.Certificates, certificate)
	}
	bundle, err := x509bundle.Load(trustDomain, s.Bundle)
	must(t, err)
	conn, err := grpc.NewClient(fmt.Sprintf("%s:%d", s.Host, s.Port), grpc.WithTransportCredentials(credentials.NewTLS(
		tlsconfig.MTLSClientConfig(svid, bundle, tlsconfig.AuthorizeID(spiffeid.RequireFromPath(trustDomain, "/spire/server"))))))
	must(t, err)
	t.Cleanup(func() { must(t, conn.Close()) })
	return conn
}

func protoID(path string) *types.SPIFFEID { return &types.SPIFFEID{TrustDomain: domain, Path: path} }

// workloadEntry is one as policy-sync makes them, changed.
func workloadEntry(change func(e *types.Entry)) []*types.Entry {
	e := &types.Entry{Id: "keelson.blue.workload.01", SpiffeId: protoID("/ns/shop/sa/frontend"),
		ParentId:  protoID("/spire/agent/keelson_tpm/" + strings.Repeat("ab", 32)),
		Selectors: []*types.Selector{{Type: "keelson", Value: "ns:shop"}, {Type: "keelson", Value: "sa:frontend"}}}
	if change != nil {
		change(e)
	}
	return []*types.Entry{e}
}

// call is one call of the server's API.
type call func(ctx context.Context, c grpc.ClientConnInterface) error

func create(change func(e *types.Entry)) call {
	return func(ctx context.Context, c grpc.ClientConnInterface) error {
		_, err := entryapi.NewEntryClient(c).BatchCreateEntry(ctx, &entryapi.BatchCreateEntryRequest{Entries: workloadEntry(change)})
		return err
	}
}

func update(change func(e *types.Entry)) call {
	return func(ctx context.Context, c grpc.ClientConnInterface) error {
		_, err := entryapi.NewEntryClient(c).BatchUpdateEntry(ctx, &entryapi.BatchUpdateEntryRequest{Entries: workloadEntry(change)})
		return err
	}
}

func remove(ids ...string) call {
	return func(ctx context.Context, c grpc.ClientConnInterface) error {
		_, err := entryapi.NewEntryClient(c).BatchDeleteEntry(ctx, &entryapi.BatchDeleteEntryRequest{Ids: ids})
		return err
	}
}

func evict(path string) call {
	return func(ctx context.Context, c grpc.ClientConnInterface) error {
		_, err := agentapi.NewAgentClient(c).DeleteAgent(ctx, &agentapi.DeleteAgentRequest{Id: protoID(path)})
		return err
	}
}

// work is what policy-sync needs.
func work() map[string]call {
	return map[string]call{
		"create an entry": create(nil),
		"update an entry": update(func(e *types.Entry) { e.X509SvidTtl = 60 }),
		"delete an entry": remove("keelson.blue.workload.01", "keelson.class.0123"),
		"evict an agent":  evict("/spire/agent/keelson_tpm/" + strings.Repeat("ab", 32)),
		"list entries": func(ctx context.Context, c grpc.ClientConnInterface) error {
			_, err := entryapi.NewEntryClient(c).ListEntries(ctx, &entryapi.ListEntriesRequest{})
			return err
		},
		"count entries": func(ctx context.Context, c grpc.ClientConnInterface) error {
			_, err := entryapi.NewEntryClient(c).CountEntries(ctx, &entryapi.CountEntriesRequest{})
			return err
		},
		"get an entry": func(ctx context.Context, c grpc.ClientConnInterface) error {
			_, err := entryapi.NewEntryClient(c).GetEntry(ctx, &entryapi.GetEntryRequest{Id: "keelson.x"})
			return err
		},
		"list agents": func(ctx context.Context, c grpc.ClientConnInterface) error {
			_, err := agentapi.NewAgentClient(c).ListAgents(ctx, &agentapi.ListAgentsRequest{})
			return err
		},
		"get an agent": func(ctx context.Context, c grpc.ClientConnInterface) error {
			_, err := agentapi.NewAgentClient(c).GetAgent(ctx, &agentapi.GetAgentRequest{Id: protoID("/spire/agent/keelson_tpm/aa")})
			return err
		},
		"get the bundle": func(ctx context.Context, c grpc.ClientConnInterface) error {
			_, err := bundleapi.NewBundleClient(c).GetBundle(ctx, &bundleapi.GetBundleRequest{})
			return err
		},
	}
}

// harm is what a thief of its identity would do.
func harm() map[string]call {
	out := map[string]call{
		"mint an X.509-SVID": func(ctx context.Context, c grpc.ClientConnInterface) error {
			_, err := svidapi.NewSVIDClient(c).MintX509SVID(ctx, &svidapi.MintX509SVIDRequest{})
			return err
		},
		"mint a JWT-SVID": func(ctx context.Context, c grpc.ClientConnInterface) error {
			_, err := svidapi.NewSVIDClient(c).MintJWTSVID(ctx, &svidapi.MintJWTSVIDRequest{})
			return err
		},
		"ban an agent": func(ctx context.Context, c grpc.ClientConnInterface) error {
			_, err := agentapi.NewAgentClient(c).BanAgent(ctx, &agentapi.BanAgentRequest{Id: protoID("/spire/agent/keelson_tpm/aa")})
			return err
		},
		"make a join token": func(ctx context.Context, c grpc.ClientConnInterface) error {
			_, err := agentapi.NewAgentClient(c).CreateJoinToken(ctx, &agentapi.CreateJoinTokenRequest{Ttl: 60})
			return err
		},
		"append to the bundle": func(ctx context.Context, c grpc.ClientConnInterface) error {
			_, err := bundleapi.NewBundleClient(c).AppendBundle(ctx, &bundleapi.AppendBundleRequest{})
			return err
		},
		"set a federated bundle": func(ctx context.Context, c grpc.ClientConnInterface) error {
			_, err := bundleapi.NewBundleClient(c).BatchSetFederatedBundle(ctx, &bundleapi.BatchSetFederatedBundleRequest{})
			return err
		},
		"federate": func(ctx context.Context, c grpc.ClientConnInterface) error {
			_, err := federationapi.NewTrustDomainClient(c).BatchCreateFederationRelationship(ctx, &federationapi.BatchCreateFederationRelationshipRequest{})
			return err
		},
		"prepare an authority": func(ctx context.Context, c grpc.ClientConnInterface) error {
			_, err := authorityapi.NewLocalAuthorityClient(c).PrepareX509Authority(ctx, &authorityapi.PrepareX509AuthorityRequest{})
			return err
		},
		"revoke an authority": func(ctx context.Context, c grpc.ClientConnInterface) error {
			_, err := authorityapi.NewLocalAuthorityClient(c).RevokeX509Authority(ctx, &authorityapi.RevokeX509AuthorityRequest{})
			return err
		},
		"delete an entry that is not policy-sync's": remove("keelson.blue.workload.01", "team.1"),
		"evict another attestor's agent":            evict("/spire/agent/join_token/x"),
	}
	for name, change := range map[string]func(e *types.Entry){
		"of another name":               func(e *types.Entry) { e.Id = "team.1" },
		"without a name":                func(e *types.Entry) { e.Id = "" },
		"that is an admin":              func(e *types.Entry) { e.Admin = true },
		"that is a downstream":          func(e *types.Entry) { e.Downstream = true },
		"with DNS names":                func(e *types.Entry) { e.DnsNames = []string{"istiod.istio-system.svc"} },
		"that is stored":                func(e *types.Entry) { e.StoreSvid = true },
		"that federates":                func(e *types.Entry) { e.FederatesWith = []string{"spiffe://elsewhere.test"} },
		"of its own identity":           func(e *types.Entry) { e.SpiffeId = protoID("/ns/keelson-system/sa/keelson-policy-sync") },
		"of another admin":              func(e *types.Entry) { e.SpiffeId = protoID("/boss") },
		"for every machine":             func(e *types.Entry) { e.ParentId = protoID("/spire/server") },
		"under an alias":                func(e *types.Entry) { e.ParentId = protoID("/keelson/control-plane") },
		"under another attestor's":      func(e *types.Entry) { e.ParentId = protoID("/spire/agent/join_token/x") },
		"of no workload's identity":     func(e *types.Entry) { e.SpiffeId = protoID("/spire/agent/keelson_tpm/aa") },
		"of an identity below an admin": func(e *types.Entry) { e.SpiffeId = protoID("/ns/a/sa/b/c") },
	} {
		out["create an entry "+name], out["update an entry "+name] = create(change), update(change)
	}
	return out
}

// denied reports whether the server's policy keeps a caller from a call. What else the server says of the request is no matter here.
func denied(t *testing.T, c grpc.ClientConnInterface, do call) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := do(ctx, c)
	if code := status.Code(err); code == codes.Unavailable || code == codes.DeadlineExceeded {
		t.Fatalf("no answer: %v", err)
	}
	return status.Code(err) == codes.PermissionDenied
}

// TestOurOwnIdentityIsKeptToEntriesAndAgents: by the real server, with the policy that examples/spire and charts/spire-values ship.
// For everybody else, and over the server's socket, the policy is SPIRE's own.
func TestOurOwnIdentityIsKeptToEntriesAndAgents(t *testing.T) {
	s := restricted(t)
	own, boss, stranger := s.as(t, policySyncID), s.as(t, bossID), s.as(t, "spiffe://keelson.test/ns/elsewhere/sa/stranger")
	localOnly := func(ctx context.Context, c grpc.ClientConnInterface) error {
		_, err := debugapi.NewDebugClient(c).GetInfo(ctx, &debugapi.GetInfoRequest{})
		return err
	}
	for name, do := range work() {
		if denied(t, own, do) {
			t.Errorf("policy-sync may not %s", name)
		}
		if denied(t, boss, do) {
			t.Errorf("another admin may not %s", name)
		}
		if got, want := denied(t, stranger, do), name != "get the bundle"; got != want {
			t.Errorf("%s: a workload is denied: %t, want %t", name, got, want)
		}
	}
	for name, do := range harm() {
		if !denied(t, own, do) {
			t.Errorf("policy-sync may %s", name)
		}
		if denied(t, boss, do) || denied(t, s.raw, do) {
			t.Errorf("another admin, or the server's socket, may not %s", name)
		}
		if !denied(t, stranger, do) {
			t.Errorf("a workload may %s", name)
		}
	}
	if denied(t, s.raw, localOnly) || localOnly(t.Context(), boss) == nil { // over TCP the server has no such service
		t.Error("what only the server's socket may is not as it was")
	}
	if _, err := s.attest(t); err != nil { // over the socket, but AttestAgent is for all
		t.Errorf("an agent does not attest: %v", err)
	}
}
