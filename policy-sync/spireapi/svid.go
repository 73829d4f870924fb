package spireapi

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/logger"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// askAgain is how long after a failure the Workload API is asked again. The library's own default goes up to half a minute, in
// which nothing opens.
const askAgain = 2 * time.Second

// complaints keeps what the Workload API's client has said last, which is why there is no SVID yet: NewX509Source itself says no
// more than that the time is over.
type complaints struct {
	logger.Logger // silent

	mu   sync.Mutex
	last string
}

func newComplaints() *complaints { return &complaints{Logger: logger.Null} }

// Errorf is where the client says why a watch failed.
func (c *complaints) Errorf(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = fmt.Sprintf(format, args...)
}

func (c *complaints) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

// explain adds to an error why there is no SVID yet.
func (c *complaints) explain(address string, err error) error {
	if why := c.String(); why != "" {
		return fmt.Errorf("spireapi: our own SVID from %s: %w; the last that the client of the Workload API said: %s", address, err, why)
	}
	return fmt.Errorf("spireapi: our own SVID from %s: %w; the agent has not answered", address, err)
}

// steady asks again at a steady pace.
type steady struct{}

func (steady) NewBackoff() workloadapi.Backoff { return steady{} }
func (steady) Next() time.Duration             { return askAgain }
func (steady) Reset()                          {}

// ownSVID waits for our own SVID until ctx ends.
func ownSVID(ctx context.Context, address string, c *complaints) (*workloadapi.X509Source, error) {
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(
		workloadapi.WithAddr(address), workloadapi.WithLogger(c), workloadapi.WithBackoffStrategy(steady{})))
	if err != nil {
		return nil, c.explain(address, err)
	}
	return source, nil
}
