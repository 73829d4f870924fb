// Package verdict carries proved results of node attestation from the SPIRE server to
// the Kubernetes API, as NodeTrust objects that policy-sync acts on.
//
// It judges nothing. What reaches Submit was proved by the node's own EK, AK and a
// fresh quote; evidence that proved nothing goes to the audit log alone (package audit),
// so that a stranger's failing attempts can never lower a node's verdict.
package verdict

import (
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson-project/keelson/nodeattestor/assettag"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// Result is one proved result about one node.
type Result struct {
	Node           string              `json:"node"`
	EKHash         string              `json:"ekHash"`
	AgentID        string              `json:"agentID"`
	Trusted        bool                `json:"trusted"`
	Reference      string              `json:"reference,omitempty"`
	Tags           map[string]string   `json:"tags,omitempty"`
	TagSerial      *int64              `json:"tagSerial,omitempty"`
	Refusals       []nodeclaim.Refusal `json:"refusals,omitempty"`
	EvidenceDigest string              `json:"evidenceDigest,omitempty"`
	ReceivedAt     time.Time           `json:"receivedAt"` // the server's clock when the evidence arrived
	ValidUntil     time.Time           `json:"validUntil"`
}

// supersedes reports whether r stands over a result received at t with the given
// trust: the later one stands, and of two at the same instant the untrusted one.
func (r Result) supersedes(t time.Time, trusted bool) bool {
	mine, other := r.ReceivedAt.Truncate(time.Microsecond), t.Truncate(time.Microsecond)
	if mine.Equal(other) {
		return !r.Trusted || trusted
	}
	return mine.After(other)
}

// above is the result as it may be written over a standing spec, where order of receipt alone
// would open a door:
//
//   - a standing receipt that lies in this server's future was written by a clock that runs ahead.
//     Until that moment every other server's untrusted verdict would count for nothing, so it is
//     written as of that moment, where ties go to untrusted;
//   - a trusted result with an older tag than one that was seen meanwhile (by another server, or
//     while the store could not be written) is not trusted: an older tag was put back.
func (r Result) above(standing *v1alpha1.NodeTrustSpec, now time.Time) Result {
	if at := standing.AttestedAt.Time; !r.Trusted && at.After(now) && at.After(r.ReceivedAt) {
		r.ValidUntil = at.Add(r.ValidUntil.Sub(r.ReceivedAt))
		r.ReceivedAt = at
	}
	return r.notBelow(standing.TagSerial)
}

// notBelow is the result in the light of a tag serial that was seen for the machine: a trusted
// one with an older tag is not trusted, and the highest serial stays with it.
func (r Result) notBelow(seen *int64) Result {
	if seen == nil || r.TagSerial != nil && *r.TagSerial >= *seen {
		return r
	}
	if r.Trusted && r.TagSerial != nil {
		r.Refusals = nodeclaim.AsRefusals(assettag.CheckSerial(uint64(*r.TagSerial), uint64(*seen))) //nolint:gosec // a negative serial is refused as too high.
		r.Trusted, r.Reference, r.Tags = false, "", nil
	}
	r.TagSerial = seen
	return r
}

// Limits of what one NodeTrust holds; they repeat the CRD's so that a long reason is
// cut here and not refused there, which would lose an untrusted verdict.
const (
	maxReasons     = 64
	maxReasonChars = 1024
	maxCheckChars  = 64
)

// bounded is the result with at most n reasons of so many characters: what a machine can be made to say is
// long, and it waits in memory and in a file.
func (r Result) bounded(n, chars int) Result {
	var short []nodeclaim.Refusal
	for _, ref := range r.Refusals[:min(len(r.Refusals), n)] {
		ref.Check, ref.Reason = cut(ref.Check, maxCheckChars), cut(ref.Reason, chars)
		short = append(short, ref)
	}
	r.Refusals = short
	return r
}

// spec is the result as a NodeTrust spec.
func (r Result) spec(nodeUID string) v1alpha1.NodeTrustSpec {
	s := v1alpha1.NodeTrustSpec{
		Verdict:        v1alpha1.VerdictUntrusted,
		Reference:      r.Reference,
		Tags:           r.Tags,
		TagSerial:      r.TagSerial,
		NodeUID:        nodeUID,
		EKHash:         r.EKHash,
		AgentID:        r.AgentID,
		AttestedAt:     metav1.NewMicroTime(r.ReceivedAt.Truncate(time.Microsecond).UTC()),
		ValidUntil:     metav1.NewMicroTime(r.ValidUntil.Truncate(time.Microsecond).UTC()),
		EvidenceDigest: r.EvidenceDigest,
	}
	if r.Trusted {
		s.Verdict = v1alpha1.VerdictTrusted
	}
	for _, ref := range r.bounded(maxReasons, maxReasonChars).Refusals {
		s.Reasons = append(s.Reasons, v1alpha1.Reason{Check: ref.Check, Reason: ref.Reason})
	}
	return s
}

// cut shortens s to at most n characters, and says so in the last one.
func cut(s string, n int) string {
	runes := []rune(s)
	if len(runes) <= n {
		return s
	}
	return string(append(slices.Clone(runes[:n-1]), '…'))
}
