package spireapi

import (
	"context"
	"errors"
	"fmt"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// pageSize bounds a page of a listing.
const pageSize = 1000

// Read lists all entries and all agents. Any failure is an error; there is no partial result. The server may take its time for all of
// them: each page has Options.PageTimeout, so a reading of many entries succeeds as long as the server goes on answering, and ends
// with ctx at the latest. A server that holds more than Options.MaxRead of either is an error.
func (c *Client) Read(ctx context.Context) (*snapshot.SPIRE, error) {
	entries, err := c.readEntries(ctx)
	if err != nil {
		return nil, err
	}
	agents, err := c.readAgents(ctx)
	if err != nil {
		return nil, err
	}
	out := &snapshot.SPIRE{Entries: entries, Agents: agents}
	if c.source != nil {
		svid, err := c.source.GetX509SVID()
		if err != nil {
			return nil, fmt.Errorf("spireapi: our own SVID: %w", err)
		}
		out.OwnID = svid.ID.String()
	}
	return out, nil
}

func (c *Client) readEntries(ctx context.Context) ([]snapshot.Entry, error) {
	var out []snapshot.Entry
	seen := map[string]bool{}
	err := c.pages(ctx, func(ctx context.Context, token string) (string, int, error) {
		resp, err := c.entries.ListEntries(ctx, &entryv1.ListEntriesRequest{PageSize: pageSize, PageToken: token})
		if err != nil {
			return "", 0, err
		}
		for _, e := range resp.GetEntries() {
			if !seen[e.GetId()] { // an entry that changes while pages are read may be on two
				seen[e.GetId()] = true
				out = append(out, fromEntry(e))
			}
		}
		return resp.GetNextPageToken(), len(resp.GetEntries()), nil
	})
	if err != nil {
		return nil, fmt.Errorf("spireapi: list entries: %w", err)
	}
	return out, nil
}

func (c *Client) readAgents(ctx context.Context) ([]snapshot.Agent, error) {
	var out []snapshot.Agent
	err := c.pages(ctx, func(ctx context.Context, token string) (string, int, error) {
		resp, err := c.agents.ListAgents(ctx, &agentv1.ListAgentsRequest{PageSize: pageSize, PageToken: token})
		if err != nil {
			return "", 0, err
		}
		for _, a := range resp.GetAgents() {
			out = append(out, fromAgent(a))
		}
		return resp.GetNextPageToken(), len(resp.GetAgents()), nil
	})
	if err != nil {
		return nil, fmt.Errorf("spireapi: list agents: %w", err)
	}
	return out, nil
}

// bounded ends after atMost, or with ctx where atMost is 0.
func bounded(ctx context.Context, atMost time.Duration) (context.Context, context.CancelFunc) {
	if atMost <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, atMost)
}

// pages asks for page after page, each within its own time.
func (c *Client) pages(ctx context.Context, next func(ctx context.Context, token string) (string, int, error)) error {
	token, total := "", 0
	for {
		within, cancel := bounded(ctx, c.pageTimeout)
		following, n, err := next(within, token)
		cancel()
		if err != nil {
			return err
		}
		total += n
		switch {
		case total > c.maxRead:
			return fmt.Errorf("the server holds more than %d, the most that are read (spire.maxRead)", c.maxRead)
		case following == "":
			return nil
		case following == token || n == 0:
			return errors.New("the server gives the same page again and again")
		}
		token = following
	}
}

func fromEntry(e *types.Entry) snapshot.Entry {
	return snapshot.Entry{
		ID: e.GetId(), SPIFFEID: fromID(e.GetSpiffeId()), ParentID: fromID(e.GetParentId()),
		Selectors:   fromSelectors(e.GetSelectors()),
		X509SVIDTTL: time.Duration(e.GetX509SvidTtl()) * time.Second,
		Hint:        e.GetHint(),
		Admin:       e.GetAdmin() || e.GetDownstream(),
		Extra: e.GetAdmin() || e.GetDownstream() || e.GetStoreSvid() || len(e.GetDnsNames()) > 0 || len(e.GetFederatesWith()) > 0 ||
			e.GetExpiresAt() != 0 || e.GetJwtSvidTtl() != 0 || e.GetAdditionalAttributes() != nil,
	}
}

func fromAgent(a *types.Agent) snapshot.Agent {
	return snapshot.Agent{
		ID: fromID(a.GetId()), Type: a.GetAttestationType(), Selectors: fromSelectors(a.GetSelectors()), Banned: a.GetBanned(),
		ExpiresAt: time.Unix(a.GetX509SvidExpiresAt(), 0).UTC(),
	}
}

// fromID keeps what the server said even where it is not a valid SPIFFE ID: comparing is the reader's affair.
func fromID(id *types.SPIFFEID) string {
	if id == nil {
		return ""
	}
	return "spiffe://" + id.GetTrustDomain() + id.GetPath()
}

func fromSelectors(in []*types.Selector) []snapshot.Selector {
	out := make([]snapshot.Selector, 0, len(in))
	for _, s := range in {
		out = append(out, snapshot.Selector{Type: s.GetType(), Value: s.GetValue()})
	}
	return out
}
