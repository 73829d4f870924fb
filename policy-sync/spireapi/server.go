package spireapi

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// Server is a SPIRE server that need not be there yet. Over TCP a Client begins with our own SVID, and who can keep that from
// us (the server is away, the agent of our own node was evicted) must not keep policy-sync from starting: without it no verdict
// expires and no revocation acts. So the connection is made beside the loop: a use waits for it as long as its own time lasts, and
// the next one finds what has been achieved meanwhile; an agent that is slow to attest us is not asked anew each time. It is safe
// for use by several goroutines.
type Server struct {
	options Options
	connect func(context.Context, Options, *complaints) (*Client, error)
	life    context.Context //nolint:containedctx // the connection outlives the calls that wait for it
	end     context.CancelFunc

	mu     sync.Mutex
	dialed *dialed // nil until the first use, and after a failure
}

// dialed is a client that is being made.
type dialed struct {
	done   chan struct{} // closed when client or err is there
	client *Client
	err    error
	said   *complaints
}

// Open checks the options and connects to nothing. Close it.
func Open(o Options) (*Server, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	s := &Server{options: o, connect: dial}
	s.life, s.end = context.WithCancel(context.Background())
	return s, nil
}

// errClosed is what a use after Close gets.
var errClosed = errors.New("spireapi: closed")

// begun is the client, or the one that is being made.
func (s *Server) begun() (*dialed, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life.Err() != nil {
		return nil, errClosed
	}
	if s.dialed == nil {
		d := &dialed{done: make(chan struct{}), said: newComplaints()}
		s.dialed = d
		go s.dial(d)
	}
	return s.dialed, nil
}

func (s *Server) dial(d *dialed) {
	defer close(d.done)
	func() {
		defer s.options.Panics.Catch("connecting to the SPIRE server", func(err error) { d.client, d.err = nil, err })
		d.client, d.err = s.connect(s.life, s.options, d.said)
	}()
	if d.err != nil {
		s.mu.Lock()
		s.dialed = nil // the next use begins again
		s.mu.Unlock()
	}
}

// connected returns the client, when there is one within ctx.
func (s *Server) connected(ctx context.Context) (*Client, error) {
	d, err := s.begun()
	if err != nil {
		return nil, err
	}
	select {
	case <-d.done:
		return d.client, d.err
	case <-ctx.Done():
		if s.options.Socket != "" {
			return nil, fmt.Errorf("spireapi: %s: %w", s.options.Socket, ctx.Err())
		}
		return nil, d.said.explain(s.options.WorkloadAPI, ctx.Err())
	}
}

// Read is Client.Read.
func (s *Server) Read(ctx context.Context) (*snapshot.SPIRE, error) {
	within, cancel := bounded(ctx, s.options.PageTimeout)
	defer cancel()
	c, err := s.connected(within)
	if err != nil {
		return nil, err
	}
	return c.Read(ctx)
}

// Apply is Client.Apply.
func (s *Server) Apply(ctx context.Context, operations []plan.Operation) []error {
	c, err := s.connected(ctx)
	if err != nil {
		return each(operations, func(plan.Operation) error { return err })
	}
	return c.Apply(ctx, operations)
}

// Close ends the connection.
func (s *Server) Close() error {
	s.mu.Lock()
	s.end()
	d := s.dialed
	s.mu.Unlock()
	if d == nil {
		return nil
	}
	if <-d.done; d.client == nil {
		return nil
	}
	return d.client.Close()
}

// OwnSVID tells until when our own SVID is valid, and whether there was one yet. It begins to ask for it where nobody has, and
// waits for nothing. Over the server's socket there is none.
func (s *Server) OwnSVID() (until time.Time, had bool) {
	d, err := s.begun()
	if err != nil {
		return time.Time{}, false
	}
	select {
	case <-d.done:
	default:
		return time.Time{}, false
	}
	if d.client == nil || d.client.source == nil {
		return time.Time{}, false
	}
	svid, err := d.client.source.GetX509SVID() // the last one, whether it is over or not
	if err != nil || len(svid.Certificates) == 0 {
		return time.Time{}, false
	}
	return svid.Certificates[0].NotAfter, true
}
