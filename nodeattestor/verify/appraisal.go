package verify

import (
	"errors"

	"github.com/keelson-project/keelson/nodeattestor/assettag"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// Appraisal is how an attestation ended, at whichever step. Complete.Finish alone makes one that is
// Trusted; Stop and the steps' own Stop make the others. The zero Appraisal decides nothing.
type Appraisal struct {
	// EK, Node and EvidenceDigest say whose attestation it was, as far as that was known: the zero
	// value and "" before. EvidenceDigest is "sha256:<hex>" over the verified quotes; there is one
	// as soon as the machine has shown that it holds its EK.
	EK             nodeclaim.EKHash
	Node           string
	EvidenceDigest string
	// Bound tells that the evidence was proved to be the node's own, so that refusals lower its
	// verdict.
	Bound bool
	// Claims and Tag are what was proved, and zero unless the outcome is Trusted. Tag is zero too
	// where none was shown.
	Claims nodeclaim.Claims
	Tag    assettag.Tag
	// Refusals say what is wrong with the evidence. Err is the error that ended the attestation:
	// these refusals, or why nothing could be decided. It is nil when the outcome is Trusted.
	Refusals nodeclaim.Refusals
	Err      error
	// State is what to keep for the next appraisal of this EK, where the outcome is Trusted or
	// Untrusted: how far the IMA log was proved and how it was judged, or after a refusal the boot
	// alone.
	State State
	// Resumed tells that only what is new in the IMA log was read.
	Resumed bool

	accepted bool // nothing was refused
}

// Outcome is what an appraisal means for the machine and its node.
type Outcome string

// The outcomes.
const (
	Trusted      Outcome = "trusted"      // proved, and as the operator wants it
	Untrusted    Outcome = "untrusted"    // refused by evidence that is proved to be the node's own
	Unproved     Outcome = "unproved"     // refused or unreadable, and anybody may have sent it
	Inconclusive Outcome = "inconclusive" // not decided; a verdict that stands is left to expire
)

// Outcome is what the appraisal means.
func (a Appraisal) Outcome() Outcome {
	switch {
	case a.accepted:
		return Trusted
	case len(a.Refusals) > 0 && a.Bound:
		return Untrusted
	case len(a.Refusals) > 0, errors.As(a.Err, new(Malformed)) && !a.Bound:
		return Unproved
	}
	return Inconclusive
}

// Proved reports whether the machine has shown that it holds its EK; whose node it is is another
// matter.
func (a Appraisal) Proved() bool { return a.EvidenceDigest != "" }

// Doubt is the appraisal where something beside the evidence keeps the server from deciding by it.
func (a Appraisal) Doubt(why error) Appraisal {
	return Appraisal{EK: a.EK, Node: a.Node, EvidenceDigest: a.EvidenceDigest, Bound: a.Bound, Resumed: a.Resumed, Err: why}
}

// Malformed marks a message that could not be read or is out of place. It proves nothing about a
// machine.
type Malformed struct{ Err error }

// Error is the error's text.
func (m Malformed) Error() string { return m.Err.Error() }

// Unwrap is the error itself.
func (m Malformed) Unwrap() error { return m.Err }

// errNone stands for an error that a caller forgot to give: an attestation that stops is never
// trusted.
var errNone = errors.New("verify: the attestation was stopped, and nothing says why")

// Stop ends an attestation whose payload was not taken.
func Stop(why error) Appraisal {
	if why == nil {
		why = errNone
	}
	return Appraisal{Err: why, Refusals: nodeclaim.AsRefusals(why)}
}

// Stop ends the attestation before anything was proved.
func (c *Challenge) Stop(why error) Appraisal {
	a := Stop(why)
	a.EK, a.Node = c.EK(), c.listed()
	return a
}

// Stop ends the attestation before it was known which node it is of. The node is the one that the
// inventory has.
func (p *Proved) Stop(why error) Appraisal {
	a := Stop(why)
	a.EK, a.Node, a.EvidenceDigest = p.EK(), p.listed(), p.digest
	return a
}

// Stop ends the attestation of a machine that may be no such node.
func (n *Named) Stop(why error) Appraisal {
	a := n.proved.Stop(why)
	a.Node = n.node
	return a
}

// Stop ends the attestation of a node. Refusals are proof against it.
func (b *Bound) Stop(why error) Appraisal {
	a := b.proved.Stop(why)
	a.Node, a.Bound, a.State = b.node, true, State{seen: b.proved.boot()}
	return a
}
