package serverplugin

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/hashicorp/go-hclog"
	nodeattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/nodeattestor/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keelson-project/keelson/nodeattestor/admission"
	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/nodeattestor/evidence"
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
	owed     bool               // the machine proved an EK and is owed an audit line of its own
	release  func()             // gives back what known claimed; nil while nothing is
}

// attest runs the protocol and turns its end into an audit line, a verdict and an answer.
func (a *attempt) attest(ctx context.Context) error {
	defer func() {
		if a.release != nil {
			a.release()
		}
	}()
	end := believed(a.appraise(ctx), a.clock.Now())
	a.owed = end.Proved() && a.sinks.pace.Take(end.EK, a.clock.Now().Elapsed)
	if end.Outcome() != verify.Trusted {
		return a.refuse(end)
	}
	if !a.redate() {
		return a.refuse(end.Doubt(fmt.Errorf("the server's clock was set meanwhile, or is wrong (it is %s ahead of the Kubernetes API's), so that its verdict would carry a wrong date; set it right", a.clock.Now().Offset)))
	}
	if !a.owed {
		return a.refuse(end.Doubt(admission.ErrOften))
	}
	attributes, err := attributesOf(end, a.TrustDomain, a.PCRSelectors)
	if err != nil {
		return a.refuse(end.Doubt(err))
	}
	return a.accept(end, attributes)
}

// appraise is the protocol of nodeattestor/doc.go, seen from the server.
func (a *attempt) appraise(ctx context.Context) verify.Appraisal {
	data, err := a.payload(ctx)
	if err != nil {
		return verify.Stop(err)
	}
	a.received, _ = a.clock.Date(trustclock.Receipt{}, a.ValidFor)
	payload, err := evidence.ParsePayload(data)
	if err != nil {
		return verify.Stop(verify.Malformed{Err: err})
	}
	begun := a.clock.Now()
	challenge, err := verify.Begin(payload, a.Policy, a.states.Last, begun.Valid, a.rand)
	if err != nil {
		return verify.Stop(err)
	}
	a.watch.lap("payload")
	response, err := a.challenge(ctx, challenge)
	if err != nil {
		return challenge.Stop(err)
	}
	proved, err := challenge.Prove(response, begun.Valid.Add(a.clock.Now().Elapsed-begun.Elapsed)) // by a clock that nobody sets meanwhile
	if err != nil {
		return challenge.Stop(err)
	}
	a.watch.lap("proof")
	return a.identify(ctx, proved, response.Chunks)
}

// challenge has the agent answer the challenge.
func (a *attempt) challenge(ctx context.Context, challenge *verify.Challenge) (*evidence.Response, error) {
	data, err := challenge.Message().Marshal()
	if err != nil {
		return nil, err
	}
	answer, err := a.ask(ctx, data)
	if err != nil {
		return nil, err
	}
	response, err := evidence.ParseResponse(answer)
	if err != nil {
		return nil, verify.Malformed{Err: err}
	}
	return response, nil
}

// identify finds which node a proved machine is, and goes on to its logs, of which the agent has
// sent the first chunks.
func (a *attempt) identify(ctx context.Context, proved *verify.Proved, first []evidence.Chunk) verify.Appraisal {
	reviewed, err := a.review(ctx, proved)
	if err != nil {
		return proved.Stop(err)
	}
	named, err := proved.Named(reviewed)
	if err != nil {
		return proved.Stop(err)
	}
	known, err := a.known(ctx, named)
	if err != nil {
		return named.Stop(err)
	}
	bound, err := named.Bind(known)
	if err != nil {
		return named.Stop(err)
	}
	a.watch.lap("store")
	if err := bound.Revoked(); err != nil {
		return bound.Stop(err)
	}
	return a.read(ctx, bound, first)
}

// read collects the logs and judges them.
func (a *attempt) read(ctx context.Context, bound *verify.Bound, first []evidence.Chunk) verify.Appraisal {
	ctx, done, err := a.gate.Proved.Enter(ctx, bound.EK())
	if err != nil {
		return bound.Stop(err)
	}
	defer done()
	complete, err := a.logs(ctx, bound, first)
	if err != nil {
		return bound.Stop(err)
	}
	a.watch.lap("logs")
	end := complete.Finish(a.clock.Now().Valid)
	a.watch.lap("appraisal")
	return end
}

// review has the Kubernetes API review the node's token, where the policy binds by one, and returns
// the node that the API finds in it.
func (a *attempt) review(ctx context.Context, proved *verify.Proved) (string, error) {
	token := proved.Token()
	if token == nil || a.store == nil {
		return "", nil
	}
	return a.store.ReviewToken(ctx, token, a.Token)
}

// known reads what the shared store knows of the node, and what waits to be written there;
// without a store, this server knows the tags' serials alone.
func (a *attempt) known(ctx context.Context, m *verify.Named) (verify.Known, error) {
	if a.store == nil {
		serial, err := a.serials.Raise(0, m.EK().String())
		return verify.Known{TagSerial: serial}, err
	}
	if m.Node() == "" {
		return verify.Known{}, nil
	}
	known := verify.Known{TagSerial: a.sinks.pendingSerial(m.Node(), m.EK().String())}
	b, err := a.store.Binding(ctx, m.Node())
	if err != nil {
		return known, err
	}
	if b != nil {
		known.EKHash, known.TagSerial = b.EKHash, max(known.TagSerial, b.TagSerial)
	}
	if a.Policy.Binding == verify.ByToken {
		known.Nodes, err = a.owners(ctx, m)
	}
	return known, err
}

// owners are the nodes that the machine is bound to. It claims the machine's EKs first, so that no
// other attestation of this server binds them meanwhile, and asks the queue before the store, for
// that is where results go.
func (a *attempt) owners(ctx context.Context, m *verify.Named) ([]string, error) {
	release, err := a.sinks.ekLock.Hold(m.MachineEKs(), m.Node())
	if err != nil {
		return nil, err
	}
	a.release = release
	var nodes []string
	for _, ek := range m.MachineEKs() {
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
func (a *attempt) logs(ctx context.Context, bound *verify.Bound, first []evidence.Chunk) (*verify.Complete, error) {
	defer func() { a.sizes.tell(a.watch.metrics) }()
	for i := range first {
		a.sizes.add(&first[i])
	}
	return bound.Read(first, func(next *evidence.Continue) (*evidence.Chunk, error) {
		data, err := next.Marshal()
		if err != nil {
			return nil, err
		}
		answer, err := a.ask(ctx, data)
		if err != nil {
			return nil, err
		}
		chunk, err := evidence.ParseChunk(answer)
		if err != nil {
			return nil, verify.Malformed{Err: err}
		}
		a.sizes.add(chunk)
		return chunk, nil
	})
}

// accept writes the audit line and queues the verdict before it lets the node in: what
// is not on record does not happen.
func (a *attempt) accept(end verify.Appraisal, attributes *nodeattestorv1.AgentAttributes) error {
	if err := a.sinks.record(a.entry(end), a.owed); err != nil {
		a.log.Error("attestation refused: no audit line", "error", err)
		a.watch.end(string(audit.Inconclusive))
		return status.Error(codes.Unavailable, "keelson_tpm: the server cannot write its audit log")
	}
	if err := a.sinks.keep(a.verdict(end), end.Tag); err != nil {
		a.log.Error("attestation refused: verdict not kept", "error", err)
		a.note(end.Doubt(fmt.Errorf("the line before let nobody in: the verdict could not be kept: %w", err)))
		a.watch.end(string(audit.Inconclusive))
		return status.Error(codes.Unavailable, "keelson_tpm: the server cannot keep the verdict")
	}
	a.states.Keep(end.EK, end.State)
	a.watch.lap("record")
	a.watch.end(string(audit.Trusted))
	claims := end.Claims
	a.log.Info("node trusted", "node", claims.Node, "ek", claims.EK.String(), "reference", claims.Reference,
		"resets", claims.ResetCount, "restarts", claims.RestartCount, "resumed", end.Resumed, "notes", claims.Notes)
	return a.stream.Send(&nodeattestorv1.AttestResponse{Response: &nodeattestorv1.AttestResponse_AgentAttributes{AgentAttributes: attributes}})
}

// refuse records the end of an attestation that let nobody in, and says in the gRPC
// status what the agent may know.
func (a *attempt) refuse(end verify.Appraisal) error {
	entry := a.entry(end)
	a.note(end)
	if end.Outcome() == verify.Untrusted {
		a.redate()
		a.states.Keep(end.EK, end.State) // the next one reads the whole IMA log and names all that is wrong
		if err := a.sinks.submit(a.verdict(end)); err != nil {
			a.log.Error("verdict not safe: it is lost if the server ends before it is written", "node", end.Node, "error", err)
		}
	}
	a.watch.end(string(end.Outcome()))
	for _, r := range end.Refusals {
		a.watch.metrics.refusals.Inc(r.Check)
	}
	a.log.Warn("node refused", "outcome", string(end.Outcome()), "node", entry.Node, "ek", entry.EKHash, "error", end.Err)
	return statusOf(end)
}

// note records an end that lets nobody in; the log is what is left when that fails too.
func (a *attempt) note(end verify.Appraisal) {
	if err := a.sinks.record(a.entry(end), a.owed); err != nil {
		a.log.Error("audit line lost", "error", err)
	}
}

func (a *attempt) entry(end verify.Appraisal) audit.Entry {
	return entryOf(end, a.TrustDomain, a.clock.Now().Wall)
}

func (a *attempt) verdict(end verify.Appraisal) verdict.Result {
	return verdictOf(end, a.TrustDomain, a.received.At, a.received.ValidUntil)
}

// redate dates the receipt anew where the Kubernetes API, heard since, shows that the clock was
// wrong, and reports whether it was right. A machine that is proved bad is so at the right date; a
// trusted one is attested again soon.
func (a *attempt) redate() bool {
	var right bool
	a.received, right = a.clock.Date(a.received, a.ValidFor)
	return right
}
