// Package spireapi reads a SPIRE server's entries and agents and writes what a plan says, over the server's own API.
//
// It reaches the server over its admin socket (Unix, where the server runs beside policy-sync) or over TCP, with an SVID
// from the Workload API whose SPIFFE ID the server lists in admin_ids; there both ends prove themselves with X.509-SVIDs of
// the trust domain. It evicts agents and never bans them: a banned agent could not attest again once its machine is healed.
//
// Who controls the content: other admins of the SPIRE server write entries too, and agents' selectors come from node
// attestors; nothing here believes either, it only carries them to the pure part.
package spireapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/keelson-project/keelson/policy-sync/panics"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// Options say where the SPIRE server is. Exactly one of Socket and Address is set.
type Options struct {
	TrustDomain spiffeid.TrustDomain
	// Socket is the path of the server's admin socket (its configuration's socket_path).
	Socket string
	// Address is "host:port" of the server's TCP API; it needs WorkloadAPI.
	Address string
	// WorkloadAPI is the address of the SPIRE agent's Workload API ("unix:///…"), from which our own SVID comes.
	WorkloadAPI string
	// PageTimeout bounds each page of a reading, and how long a reading waits for the connection; 0 leaves both to the caller's context.
	PageTimeout time.Duration
	// MaxRead bounds how many entries, and how many agents, a reading takes; 0 means snapshot.DefaultMaxRead.
	MaxRead int
	// Panics notes what panicked; nil logs it.
	Panics *panics.Recorder
}

func (o Options) validate() error {
	switch {
	case o.TrustDomain.IsZero():
		return errors.New("spireapi: no trust domain")
	case (o.Socket == "") == (o.Address == ""):
		return errors.New("spireapi: give either the server's socket or its address")
	case o.Socket != "":
		return nil
	case o.WorkloadAPI == "":
		return errors.New("spireapi: a server address needs the Workload API, from which our own SVID comes")
	}
	if _, _, err := net.SplitHostPort(o.Address); err != nil {
		return fmt.Errorf("spireapi: server address: %w", err)
	}
	if err := workloadapi.ValidateAddress(o.WorkloadAPI); err != nil {
		return fmt.Errorf("spireapi: Workload API: %w", err)
	}
	return nil
}

// Client talks to one SPIRE server. It is safe for use by several goroutines.
type Client struct {
	trustDomain spiffeid.TrustDomain
	conn        *grpc.ClientConn
	entries     entryv1.EntryClient
	agents      agentv1.AgentClient
	source      *workloadapi.X509Source // nil over the socket
	pageTimeout time.Duration
	maxRead     int
}

// maxMessage bounds one answer of the server. A page of entries or agents stays far below (see pageSize).
const maxMessage = 32 << 20

// Dial makes a client. It connects lazily over the socket; over TCP it first waits for our own SVID.
func Dial(ctx context.Context, o Options) (*Client, error) { return dial(ctx, o, newComplaints()) }

func dial(ctx context.Context, o Options, said *complaints) (*Client, error) {
	c := &Client{trustDomain: o.TrustDomain, pageTimeout: o.PageTimeout, maxRead: cmp.Or(o.MaxRead, snapshot.DefaultMaxRead)}
	target, creds, err := c.endpoint(ctx, o, said)
	if err != nil {
		return nil, err
	}
	options := []grpc.DialOption{grpc.WithTransportCredentials(creds), patient(), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage))}
	if o.Socket == "" {
		options = append(options, overTCP())
	}
	c.conn, err = grpc.NewClient(target, options...)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("spireapi: %s: %w", target, err), c.closeSource())
	}
	c.entries, c.agents = entryv1.NewEntryClient(c.conn), agentv1.NewAgentClient(c.conn)
	return c, nil
}

func (c *Client) endpoint(ctx context.Context, o Options, said *complaints) (string, credentials.TransportCredentials, error) {
	if err := o.validate(); err != nil {
		return "", nil, err
	}
	if o.Socket != "" {
		// The socket's own permissions authenticate us; the server checks the peer's credentials.
		return "unix://" + o.Socket, insecure.NewCredentials(), nil
	}
	source, err := ownSVID(ctx, o.WorkloadAPI, said)
	if err != nil {
		return "", nil, err
	}
	c.source = source
	server, err := spiffeid.FromPath(o.TrustDomain, "/spire/server")
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("spireapi: %w", err), c.closeSource())
	}
	return "dns:///" + o.Address, credentials.NewTLS(tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(server))), nil
}

// Close ends the connection.
func (c *Client) Close() error { return errors.Join(c.conn.Close(), c.closeSource()) }

func (c *Client) closeSource() error {
	if c.source == nil {
		return nil
	}
	return c.source.Close()
}
