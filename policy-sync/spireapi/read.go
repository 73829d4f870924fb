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

// pageSize and maxPages bound a listing: half a million entries. A server that goes on beyond is an error, not a partial
// reading.
const (
	pageSize = 500
	maxPages = 1000
)

// Read lists all entries and all agents. Any failure is an error; there is no partial result.
func (c *Client) Read(ctx context.Context) (*snapshot.SPIRE, error) {
	entries, err := c.readEntries(ctx)
	if err != nil {
		return nil, err
	}
	agents, err := c.readAgents(ctx)
	if err != nil {
		return nil, err
	}
	return &snapshot.SPIRE{Entries: entries, Agents: agents}, nil
}

func (c *Client) readEntries(ctx context.Context) ([]snapshot.Entry, error) {
	var out []snapshot.Entry
	err := pages(func(token string) (string, error) {
		resp, err := c.entries.ListEntries(ctx, &entryv1.ListEntriesRequest{PageSize: pageSize, PageToken: token})
		if err != nil {
			return "", err
		}
		for _, e := range resp.GetEntries() {
			out = append(out, fromEntry(e))
		}
		return resp.GetNextPageToken(), nil
	})
	if err != nil {
		return nil, fmt.Errorf("spireapi: list entries: %w", err)
	}
	return out, nil
}

func (c *Client) readAgents(ctx context.Context) ([]snapshot.Agent, error) {
	var out []snapshot.Agent
	err := pages(func(token string) (string, error) {
		resp, err := c.agents.ListAgents(ctx, &agentv1.ListAgentsRequest{PageSize: pageSize, PageToken: token})
		if err != nil {
			return "", err
		}
		for _, a := range resp.GetAgents() {
			out = append(out, fromAgent(a))
		}
		return resp.GetNextPageToken(), nil
	})
	if err != nil {
		return nil, fmt.Errorf("spireapi: list agents: %w", err)
	}
	return out, nil
}

func pages(next func(token string) (string, error)) error {
	token := ""
	for range maxPages {
		following, err := next(token)
		if err != nil {
			return err
		}
		if following == "" {
			return nil
		}
		if following == token {
			return errors.New("the server gives the same page again and again")
		}
		token = following
	}
	return fmt.Errorf("more than %d pages of %d", maxPages, pageSize)
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
