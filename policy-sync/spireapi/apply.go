package spireapi

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// ErrStale says that the server is not what the plan was made from any more: read and plan again.
var ErrStale = errors.New("the SPIRE server changed since it was read")

// batchSize is how many entries go into one call.
const batchSize = 100

// Apply does operations on entries and agents, in order, and returns one error (or nil) per operation. Runs of one action
// travel together. It goes on after an error: whether later operations may be tried is the caller's decision, made by what
// it passes.
func (c *Client) Apply(ctx context.Context, operations []plan.Operation) []error {
	results := make([]error, 0, len(operations))
	for len(operations) > 0 {
		n := 1
		for n < len(operations) && n < batchSize && operations[n].Action == operations[0].Action {
			n++
		}
		results = append(results, c.batch(ctx, operations[:n])...)
		operations = operations[n:]
	}
	return results
}

func (c *Client) batch(ctx context.Context, operations []plan.Operation) []error {
	switch action := operations[0].Action; action {
	case plan.CreateEntry, plan.UpdateEntry:
		return c.write(ctx, action, operations)
	case plan.DeleteEntry:
		return c.deleteEntries(ctx, operations)
	case plan.DeleteAgent:
		return each(operations, func(o plan.Operation) error { return c.deleteAgent(ctx, o.AgentID) })
	default:
		return each(operations, func(o plan.Operation) error {
			return fmt.Errorf("spireapi: %q is not an action on a SPIRE server", o.Action)
		})
	}
}

func each(operations []plan.Operation, do func(plan.Operation) error) []error {
	results := make([]error, len(operations))
	for i, o := range operations {
		results[i] = do(o)
	}
	return results
}

func (c *Client) write(ctx context.Context, action plan.Action, operations []plan.Operation) []error {
	entries := make([]*types.Entry, len(operations))
	for i, o := range operations {
		e, err := c.toEntry(o.Entry)
		if err != nil {
			// One entry that cannot be written must not hold up the others of its batch.
			rest := append(append([]plan.Operation{}, operations[:i]...), operations[i+1:]...)
			results := []error(nil)
			if len(rest) > 0 {
				results = c.write(ctx, action, rest)
			}
			return append(results[:i:i], append([]error{err}, results[i:]...)...)
		}
		entries[i] = e
	}
	statuses, err := c.send(ctx, action, entries)
	if err != nil {
		return each(operations, func(plan.Operation) error { return fmt.Errorf("spireapi: %s: %w", action, err) })
	}
	return outcomes(operations, statuses)
}

func (c *Client) send(ctx context.Context, action plan.Action, entries []*types.Entry) ([]*types.Status, error) {
	var statuses []*types.Status
	if action == plan.CreateEntry {
		resp, err := c.entries.BatchCreateEntry(ctx, &entryv1.BatchCreateEntryRequest{Entries: entries, OutputMask: &types.EntryMask{}})
		if err != nil {
			return nil, err
		}
		for i, r := range resp.GetResults() {
			statuses = append(statuses, created(entries[min(i, len(entries)-1)].GetId(), r))
		}
		return statuses, nil
	}
	// No input mask: every field is set, so that what another admin added (admin, DNS names …) goes.
	resp, err := c.entries.BatchUpdateEntry(ctx, &entryv1.BatchUpdateEntryRequest{Entries: entries, OutputMask: &types.EntryMask{}})
	if err != nil {
		return nil, err
	}
	for _, r := range resp.GetResults() {
		statuses = append(statuses, r.GetStatus())
	}
	return statuses, nil
}

// created makes the answer "already exists" an error of its own where the entry that exists is somebody else's: SPIRE holds
// one entry per SPIFFE ID, parent and selectors, so trying again would not help.
func created(id string, r *entryv1.BatchCreateEntryResponse_Result) *types.Status {
	existing := r.GetEntry().GetId()
	if r.GetStatus().GetCode() != int32(codes.AlreadyExists) || existing == id || owned(existing) {
		return r.GetStatus()
	}
	return &types.Status{Code: int32(codes.FailedPrecondition), Message: fmt.Sprintf(
		"entry %s, which is not ours, has the same SPIFFE ID, parent and selectors: delete it to let Keelson own the identity", existing)}
}

func (c *Client) deleteEntries(ctx context.Context, operations []plan.Operation) []error {
	ids := make([]string, len(operations))
	for i, o := range operations {
		if o.Entry == nil || !owned(o.Entry.ID) {
			// The plan never says so; this is the last line before somebody else's entry is gone.
			return each(operations, func(plan.Operation) error {
				return fmt.Errorf("spireapi: %s: refused, an entry of the batch is not ours", plan.DeleteEntry)
			})
		}
		ids[i] = o.Entry.ID
	}
	resp, err := c.entries.BatchDeleteEntry(ctx, &entryv1.BatchDeleteEntryRequest{Ids: ids})
	if err != nil {
		return each(operations, func(plan.Operation) error { return fmt.Errorf("spireapi: %s: %w", plan.DeleteEntry, err) })
	}
	var statuses []*types.Status
	for _, r := range resp.GetResults() {
		if r.GetStatus().GetCode() == int32(codes.NotFound) { // gone already: what we wanted
			statuses = append(statuses, &types.Status{})
			continue
		}
		statuses = append(statuses, r.GetStatus())
	}
	return outcomes(operations, statuses)
}

// outcomes maps the server's answers, which keep the order of the request, to errors.
func outcomes(operations []plan.Operation, statuses []*types.Status) []error {
	if len(statuses) != len(operations) {
		return each(operations, func(o plan.Operation) error {
			return fmt.Errorf("spireapi: %s: %d answers for %d entries", o.Action, len(statuses), len(operations))
		})
	}
	results := make([]error, len(operations))
	for i, s := range statuses {
		id := operations[i].Entry.ID
		switch code := s.GetCode(); code {
		case int32(codes.OK):
		case int32(codes.AlreadyExists), int32(codes.NotFound):
			results[i] = fmt.Errorf("spireapi: %s %s: %s: %w", operations[i].Action, id, s.GetMessage(), ErrStale)
		default:
			results[i] = fmt.Errorf("spireapi: %s %s: code %d: %s", operations[i].Action, id, code, s.GetMessage())
		}
	}
	return results
}

// deleteAgent evicts an agent: its SVID renews no more, and it may attest again. An agent that is gone is fine.
func (c *Client) deleteAgent(ctx context.Context, agent string) error {
	id, err := c.toID(agent)
	if err != nil {
		return fmt.Errorf("spireapi: delete agent: %w", err)
	}
	_, err = c.agents.DeleteAgent(ctx, &agentv1.DeleteAgentRequest{Id: id})
	if err != nil && status.Code(err) != codes.NotFound {
		return fmt.Errorf("spireapi: delete agent %s: %w", agent, err)
	}
	return nil
}

func owned(entryID string) bool { return strings.HasPrefix(entryID, v1alpha1.EntryIDPrefix) }

func (c *Client) toEntry(e *snapshot.Entry) (*types.Entry, error) {
	if e == nil || !owned(e.ID) {
		return nil, errors.New("spireapi: refused to write an entry that is not ours")
	}
	id, err := c.toID(e.SPIFFEID)
	if err != nil {
		return nil, fmt.Errorf("spireapi: entry %s: %w", e.ID, err)
	}
	parent, err := c.toID(e.ParentID)
	if err != nil {
		return nil, fmt.Errorf("spireapi: entry %s: parent: %w", e.ID, err)
	}
	if e.X509SVIDTTL%time.Second != 0 || e.X509SVIDTTL < 0 || e.X509SVIDTTL > 365*24*time.Hour {
		return nil, fmt.Errorf("spireapi: entry %s: X.509-SVID lifetime %s is not whole seconds within a year", e.ID, e.X509SVIDTTL)
	}
	out := &types.Entry{Id: e.ID, SpiffeId: id, ParentId: parent, Hint: e.Hint,
		X509SvidTtl: int32(e.X509SVIDTTL / time.Second)} // bounded above
	for _, s := range e.Selectors {
		out.Selectors = append(out.Selectors, &types.Selector{Type: s.Type, Value: s.Value})
	}
	return out, nil
}

// toID parses a whole SPIFFE ID of our own trust domain; nothing else is ever written.
func (c *Client) toID(text string) (*types.SPIFFEID, error) {
	id, err := spiffeid.FromString(text)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", text, err)
	}
	if !id.MemberOf(c.trustDomain) {
		return nil, fmt.Errorf("%s is not of trust domain %s", id, c.trustDomain)
	}
	return &types.SPIFFEID{TrustDomain: id.TrustDomain().Name(), Path: id.Path()}, nil
}
