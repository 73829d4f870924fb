package spireapi

import (
	"context"
	"errors"
	"sync"

	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// Server is a SPIRE server that need not be there yet. Over TCP a Client begins with our own SVID, and who can keep that from
// us (the server is away, the agent of our own node was evicted) must not keep policy-sync from starting: without it no verdict
// expires and no revocation acts. So each use tries to connect until one succeeds. It is safe for use by several goroutines.
type Server struct {
	options Options

	mu     sync.Mutex
	client *Client
	closed bool
}

// Open checks the options and connects to nothing. Close it.
func Open(o Options) (*Server, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	return &Server{options: o}, nil
}

// connected returns the client, made within ctx if there is none yet.
func (s *Server) connected(ctx context.Context) (*Client, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.New("spireapi: closed")
	}
	if s.client != nil {
		return s.client, nil
	}
	c, err := Dial(ctx, s.options)
	if err != nil {
		return nil, err
	}
	s.client = c
	return c, nil
}

// Read is Client.Read.
func (s *Server) Read(ctx context.Context) (*snapshot.SPIRE, error) {
	c, err := s.connected(ctx)
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
	defer s.mu.Unlock()
	s.closed = true
	if s.client == nil {
		return nil
	}
	return s.client.Close()
}
