package serverplugin

import (
	"context"
	"fmt"
	"io"
	"math"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
	nodeattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/nodeattestor/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/nodeattestor/evidence"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/trustclock"
	"github.com/keelson-project/keelson/nodeattestor/verdict"
	"github.com/keelson-project/keelson/nodeattestor/verify"
)

// attempt is one attestation, from payload to audit line.
type attempt struct {
	*running // as it was when the attestation began
	conversation
	sinks *Plugin // where results go, as it is when they do
	log   hclog.Logger
	clock *trustclock.Clock
	watch *stopwatch
	sizes logSizes
	rand  io.Reader

	received trustclock.Receipt // when the payload arrived, and when a verdict becomes stale
	pending  *verify.Pending    // nil until Begin accepted the payload
	release  func()             // gives back what known claimed; nil while nothing is
}

// attest runs the protocol and turns its end into a verdict and a gRPC status.
func (a *attempt) attest(ctx context.Context) error {
	defer func() {
		if a.release != nil {
			a.release()
		}
	}()
	claims, err := a.appraise(ctx)
	if err != nil {
		return a.refuse(err)
	}
	return a.accept(claims)
}

// appraise is the protocol of nodeattestor/doc.go, seen from the server.
func (a *attempt) appraise(ctx context.Context) (nodeclaim.Claims, error) {
	none := nodeclaim.Claims{}
	data, err := a.payload(ctx)
	if err != nil {
		return none, err
	}
	a.received, _ = a.clock.Date(trustclock.Receipt{}, a.validFor)
	payload, err := evidence.ParsePayload(data)
	if err != nil {
		return none, malformed{err}
	}
	begun := a.clock.Now()
	pending, challenge, err := verify.BeginAgain(payload, a.policy, a.states.Last, begun.Valid, a.rand)
	if err != nil {
		return none, err
	}
	a.pending = pending
	a.watch.lap("payload")
	response, err := a.prove(ctx, challenge, func() time.Time { return begun.Valid.Add(a.clock.Now().Elapsed - begun.Elapsed) })
	if err != nil {
		return none, err
	}
	a.watch.lap("proof")
	if err := a.review(ctx); err != nil {
		return none, err
	}
	known, err := a.known(ctx)
	if err != nil {
		return none, err
	}
	if err := pending.Bind(known); err != nil {
		return none, err
	}
	a.watch.lap("store")
	ctx, done, err := a.gate.Proved.Enter(ctx, pending.EK())
	if err != nil {
		return none, err
	}
	defer done()
	if err := a.logs(ctx, response.Chunks); err != nil {
		return none, err
	}
	a.watch.lap("logs")
	claims, err := pending.Finish(a.clock.Now().Valid)
	a.watch.lap("appraisal")
	return claims, err
}

// prove has the agent answer the challenge; now is the time by a clock that nobody sets meanwhile.
func (a *attempt) prove(ctx context.Context, challenge *evidence.Challenge, now func() time.Time) (*evidence.Response, error) {
	data, err := challenge.Marshal()
	if err != nil {
		return nil, err
	}
	answer, err := a.ask(ctx, data)
	if err != nil {
		return nil, err
	}
	response, err := evidence.ParseResponse(answer)
	if err != nil {
		return nil, malformed{err}
	}
	return response, a.pending.Prove(response, now())
}

// review has the Kubernetes API review the node's token, where the policy binds by one.
func (a *attempt) review(ctx context.Context) error {
	token := a.pending.Token()
	if token == nil || a.store == nil {
		return nil
	}
	node, err := a.store.ReviewToken(ctx, token, a.token)
	if err != nil {
		return err
	}
	return a.pending.Reviewed(node)
}

// known reads what the shared store knows of the node, and what waits to be written there;
// without a store, this server knows the tags' serials alone.
func (a *attempt) known(ctx context.Context) (verify.Known, error) {
	if a.store == nil {
		serial, err := a.serials.Raise(0, a.pending.EK().String())
		return verify.Known{TagSerial: serial}, err
	}
	if a.pending.Node() == "" {
		return verify.Known{}, nil
	}
	known := verify.Known{TagSerial: a.sinks.pendingSerial(a.pending.Node(), a.pending.EK().String())}
	b, err := a.store.Binding(ctx, a.pending.Node())
	if err != nil {
		return known, err
	}
	if b != nil {
		known.EKHash, known.TagSerial = b.EKHash, max(known.TagSerial, b.TagSerial)
	}
	if a.policy.Binding == verify.ByToken {
		known.Nodes, err = a.owners(ctx)
	}
	return known, err
}

// owners are the nodes that the machine is bound to. It claims the machine's EKs first, so that no other attestation of
// this server binds them meanwhile, and asks the queue before the store, for that is where results go.
func (a *attempt) owners(ctx context.Context) ([]string, error) {
	release, err := a.sinks.ekLock.Hold(a.pending.MachineEKs(), a.pending.Node())
	if err != nil {
		return nil, err
	}
	a.release = release
	var nodes []string
	for _, ek := range a.pending.MachineEKs() {
		waiting := a.sinks.pendingNodes(ek.String())
		stored, err := a.store.Owners(ctx, ek.String())
		if err != nil {
			return nil, err
		}
		nodes = append(append(nodes, waiting...), stored...)
	}
	slices.Sort(nodes)
	return slices.Compact(nodes), nil
}

// logs takes the chunks that came with the response, then asks for the rest.
func (a *attempt) logs(ctx context.Context, first []evidence.Chunk) error {
	defer func() { a.sizes.tell(a.watch.metrics) }()
	for i := range first {
		if err := a.add(&first[i]); err != nil {
			return err
		}
	}
	for {
		next, err := a.pending.Next()
		if err != nil || next == nil {
			return err
		}
		data, err := next.Marshal()
		if err != nil {
			return err
		}
		answer, err := a.ask(ctx, data)
		if err != nil {
			return err
		}
		chunk, err := evidence.ParseChunk(answer)
		if err != nil {
			return malformed{err}
		}
		if err := a.add(chunk); err != nil {
			return err
		}
	}
}

// add takes a chunk; one that is out of place or no frame is a malformed message.
func (a *attempt) add(c *evidence.Chunk) error {
	a.sizes.add(c)
	err := a.pending.Add(c)
	if err != nil && len(nodeclaim.AsRefusals(err)) == 0 {
		return malformed{err}
	}
	return err
}

// accept writes the audit line and queues the verdict before it lets the node in: what
// is not on record does not happen.
func (a *attempt) accept(claims nodeclaim.Claims) error {
	if !a.redate() {
		return a.refuse(fmt.Errorf("the server's clock was set meanwhile, or is wrong (it is %s ahead of the Kubernetes API's), so that its verdict would carry a wrong date; set it right", a.clock.Now().Offset))
	}
	selectors, err := claims.Selectors(a.pcrSelectors)
	if err != nil {
		return a.refuse(err)
	}
	if claims.TagSerial > math.MaxInt64 {
		return a.refuse(nodeclaim.Refuse("tag.serial", "the tag's serial is above 2^63-1"))
	}
	entry := a.entry(audit.Trusted)
	entry.Reference, entry.Notes = claims.Reference, claims.Notes
	if err := a.sinks.record(entry, a.proved()); err != nil {
		a.log.Error("attestation refused: no audit line", "error", err)
		a.watch.end(string(audit.Inconclusive))
		return status.Error(codes.Unavailable, "keelson_tpm: the server cannot write its audit log")
	}
	r := a.result()
	r.Trusted, r.Reference, r.Tags = true, claims.Reference, claims.Tags
	if serial := int64(claims.TagSerial); serial > 0 {
		r.TagSerial = &serial
	}
	if err := a.sinks.keep(r, a.pending.Tag()); err != nil {
		a.log.Error("attestation refused: verdict not kept", "error", err)
		a.note(audit.Inconclusive, fmt.Sprintf("the line before let nobody in: the verdict could not be kept: %v", err))
		a.watch.end(string(audit.Inconclusive))
		return status.Error(codes.Unavailable, "keelson_tpm: the server cannot keep the verdict")
	}
	if state, ok := a.pending.State(); ok {
		a.states.Keep(claims.EK, state)
	}
	a.watch.lap("record")
	a.watch.end(string(audit.Trusted))
	a.log.Info("node trusted", "node", claims.Node, "ek", claims.EK.String(), "reference", claims.Reference,
		"resets", claims.ResetCount, "restarts", claims.RestartCount, "resumed", a.pending.Resumed(), "notes", claims.Notes)
	return a.stream.Send(&nodeattestorv1.AttestResponse{Response: &nodeattestorv1.AttestResponse_AgentAttributes{
		AgentAttributes: &nodeattestorv1.AgentAttributes{
			SpiffeId: a.trustDomain.IDString() + claims.AgentPath(), SelectorValues: selectors, CanReattest: true,
		}}})
}

// refuse records the end of an attestation that let nobody in, and says in the gRPC
// status what the agent may know.
func (a *attempt) refuse(err error) error {
	end := judge(err, a.pending != nil && a.pending.Proved(), a.clock.Now())
	entry := a.entry(end.outcome)
	entry.Refusals = end.refusals
	if len(end.refusals) == 0 {
		entry.Error = end.err.Error()
	}
	if auditErr := a.sinks.record(entry, a.proved()); auditErr != nil {
		a.log.Error("audit line lost", "error", auditErr)
	}
	if end.outcome == audit.Untrusted {
		a.redate()
		a.states.Keep(a.pending.EK(), a.pending.Seen()) // the next one reads the whole IMA log and names all that is wrong
		r := a.result()
		r.Refusals = end.refusals
		if err := a.sinks.submit(r); err != nil {
			a.log.Error("verdict not safe: it is lost if the server ends before it is written", "node", r.Node, "error", err)
		}
	}
	a.watch.end(string(end.outcome))
	for _, r := range end.refusals {
		a.watch.metrics.refusals.Inc(r.Check)
	}
	a.log.Warn("node refused", "outcome", string(end.outcome), "node", entry.Node, "ek", entry.EKHash, "error", end.err)
	if len(end.refusals) > 0 {
		return status.Errorf(end.code, "keelson_tpm: refused by %s; the server's audit log has the reasons", checks(end.refusals))
	}
	return status.Errorf(end.code, "keelson_tpm: %v", told(end.err))
}

func (a *attempt) entry(outcome audit.Outcome) audit.Entry {
	e := audit.Entry{Time: a.clock.Now().Wall.UTC(), Outcome: outcome}
	if a.pending != nil {
		e.EKHash, e.Node, e.EvidenceDigest = a.pending.EK().String(), a.pending.Node(), a.pending.EvidenceDigest()
		e.AgentID = a.agentID()
	}
	return e
}

// note records something beside the attestation's own line; the log is what is left when that fails too.
func (a *attempt) note(outcome audit.Outcome, text string) {
	e := a.entry(outcome)
	e.Error = text
	if err := a.sinks.record(e, a.proved()); err != nil {
		a.log.Error("audit line lost", "error", err)
	}
}

// proved reports whether the machine has shown that it holds its EK; whose node it is is another matter.
func (a *attempt) proved() bool { return a.pending != nil && a.pending.EvidenceDigest() != "" }

func (a *attempt) agentID() string {
	return a.trustDomain.IDString() + nodeclaim.AgentPath(a.pending.EK())
}

// redate dates the receipt anew where the Kubernetes API, heard since, shows that the clock was wrong, and reports whether it was
// right. A machine that is proved bad is so at the right date; a trusted one is attested again soon.
func (a *attempt) redate() bool {
	var right bool
	a.received, right = a.clock.Date(a.received, a.validFor)
	return right
}

func (a *attempt) result() verdict.Result {
	return verdict.Result{
		Node: a.pending.Node(), EKHash: a.pending.EK().String(), AgentID: a.agentID(),
		EvidenceDigest: a.pending.EvidenceDigest(), ReceivedAt: a.received.At, ValidUntil: a.received.ValidUntil,
	}
}
