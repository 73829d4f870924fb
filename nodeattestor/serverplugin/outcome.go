package serverplugin

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	nodeattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/nodeattestor/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keelson-project/keelson/nodeattestor/admission"
	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/trustclock"
	"github.com/keelson-project/keelson/nodeattestor/verdict"
	"github.com/keelson-project/keelson/nodeattestor/verify"
)

// believed is an appraisal in the light of what the evidence cannot show: where the server's clock
// was set, being out of date proves nothing, and a list that is too long is not the work of its
// machine's owner alone.
func believed(end verify.Appraisal, now trustclock.Reading) verify.Appraisal {
	excuse := trustclock.Excuse(end.Refusals, now)
	if excuse == nil {
		excuse = tooLong(end.Refusals)
	}
	if excuse == nil {
		return end
	}
	return end.Doubt(fmt.Errorf("%w: %s", excuse, end.Err.Error())) // end.Err is not wrapped: it is no refusal any more
}

// tooLong says why a list beyond the server's limits proves nothing against a machine; nil where
// more than that was refused. Any process that maps many files makes the kernel add as many
// entries. Such a list is not judged, so that it does not let anybody in either: the verdict that
// stands expires.
func tooLong(refusals nodeclaim.Refusals) error {
	other := func(r nodeclaim.Refusal) bool { return r.Check != "ima.limit" }
	if len(refusals) == 0 || slices.ContainsFunc(refusals, other) {
		return nil
	}
	return errors.New("any process can make the IMA list longer than this server reads; raise max_ima_entries and max_ima_log_bytes, or boot the machine anew and see which process measured so much")
}

// attributesOf are what SPIRE learns of a machine that is trusted.
func attributesOf(end verify.Appraisal, domain spiffeid.TrustDomain, pcrs []nodeclaim.Selection) (*nodeattestorv1.AgentAttributes, error) {
	selectors, err := end.Claims.Selectors(pcrs)
	if err != nil {
		return nil, err
	}
	return &nodeattestorv1.AgentAttributes{SpiffeId: agentOf(end, domain), SelectorValues: selectors, CanReattest: true}, nil
}

// agentOf is the SPIFFE ID of the machine's agent; "" while its EK is not known.
func agentOf(end verify.Appraisal, domain spiffeid.TrustDomain) string {
	if end.EK.IsZero() {
		return ""
	}
	return domain.IDString() + nodeclaim.AgentPath(end.EK)
}

// entryOf is the audit line of an appraisal.
func entryOf(end verify.Appraisal, domain spiffeid.TrustDomain, now time.Time) audit.Entry {
	e := audit.Entry{Time: now.UTC(), Outcome: audit.Outcome(end.Outcome()), Node: end.Node, EvidenceDigest: end.EvidenceDigest,
		AgentID: agentOf(end, domain), Refusals: end.Refusals, Reference: end.Claims.Reference, Notes: end.Claims.Notes}
	if !end.EK.IsZero() {
		e.EKHash = end.EK.String()
	}
	if end.Err != nil && len(end.Refusals) == 0 {
		e.Error = end.Err.Error()
	}
	return e
}

// verdictOf is the verdict on the node of an appraisal whose evidence was received at a time; it is
// stale after another.
func verdictOf(end verify.Appraisal, domain spiffeid.TrustDomain, received, until time.Time) verdict.Result {
	r := verdict.Result{Node: end.Node, EKHash: end.EK.String(), AgentID: agentOf(end, domain), EvidenceDigest: end.EvidenceDigest,
		Trusted: end.Outcome() == verify.Trusted, Reference: end.Claims.Reference, Tags: end.Claims.Tags, Refusals: end.Refusals,
		ReceivedAt: received, ValidUntil: until}
	if serial := int64(end.Claims.TagSerial); serial > 0 { //nolint:gosec // assettag.CheckSerial bounds it.
		r.TagSerial = &serial
	}
	return r
}

// statusOf is what the agent may know of an appraisal that lets nobody in.
func statusOf(end verify.Appraisal) error {
	code := codes.Unavailable
	switch {
	case len(end.Refusals) > 0:
		return status.Errorf(codes.PermissionDenied, "keelson_tpm: refused by %s; the server's audit log has the reasons", checks(end.Refusals))
	case end.Outcome() == verify.Unproved:
		code = codes.InvalidArgument
	}
	return status.Errorf(code, "keelson_tpm: %v", told(end.Err))
}

// told is what the agent may know of an error that is no refusal: what is wrong with its own
// message, and that it should try again; not which addresses and files the server has.
func told(err error) error {
	for _, plain := range []error{admission.ErrFull, admission.ErrNewer, admission.ErrClaimed, admission.ErrOften} {
		if errors.Is(err, plain) {
			return plain
		}
	}
	if errors.As(err, new(verify.Malformed)) {
		return err
	}
	return errors.New("the attestation could not be finished, try again; the server's audit log has the reason")
}

func checks(refusals nodeclaim.Refusals) string {
	names := make([]string, len(refusals))
	for i, r := range refusals {
		names[i] = r.Check
	}
	return strings.Join(names, ", ")
}
