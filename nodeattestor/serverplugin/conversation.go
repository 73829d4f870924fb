package serverplugin

import (
	"context"
	"errors"
	"fmt"

	nodeattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/nodeattestor/v1"

	"github.com/keelson-project/keelson/nodeattestor/verify"
)

// conversation is the stream with deadlines.
type conversation struct {
	stream nodeattestorv1.NodeAttestor_AttestServer
}

func (c *conversation) payload(ctx context.Context) ([]byte, error) {
	req, err := c.receive(ctx)
	if err != nil {
		return nil, err
	}
	if req.GetPayload() == nil {
		return nil, verify.Malformed{Err: errors.New("the first message holds no payload")}
	}
	return req.GetPayload(), nil
}

// ask sends a challenge and waits for its response.
func (c *conversation) ask(ctx context.Context, challenge []byte) ([]byte, error) {
	err := c.stream.Send(&nodeattestorv1.AttestResponse{Response: &nodeattestorv1.AttestResponse_Challenge{Challenge: challenge}})
	if err != nil {
		return nil, fmt.Errorf("send challenge: %w", err)
	}
	req, err := c.receive(ctx)
	if err != nil {
		return nil, err
	}
	if req.GetChallengeResponse() == nil {
		return nil, verify.Malformed{Err: errors.New("the message holds no challenge response")}
	}
	return req.GetChallengeResponse(), nil
}

// receive waits for one message, but not beyond the attempt's deadline: the goroutine
// ends when the stream does, which is when Attest returns.
func (c *conversation) receive(ctx context.Context) (*nodeattestorv1.AttestRequest, error) {
	type result struct {
		req *nodeattestorv1.AttestRequest
		err error
	}
	done := make(chan result, 1)
	go func() {
		req, err := c.stream.Recv()
		done <- result{req, err}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			return nil, fmt.Errorf("the stream ended: %w", r.err)
		}
		return r.req, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("no answer from the agent in time: %w", context.Cause(ctx))
	}
}
