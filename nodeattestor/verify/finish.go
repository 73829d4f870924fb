package verify

import (
	"time"

	"github.com/keelson-project/keelson/nodeattestor/appraise"
	"github.com/keelson-project/keelson/nodeattestor/assettag"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/reference"
)

// Finish appraises the logs and the tag. It goes on through boot, measured files and tag after a
// refusal, so that the refusals tell everything that is wrong; an IMA log that does not replay ends
// it at once, for nothing can be said about its files.
func (c *Complete) Finish(now time.Time) Appraisal {
	a := c.appraise(now)
	a.Resumed = c.logs.resumed
	return a
}

func (c *Complete) appraise(now time.Time) Appraisal {
	p := c.bound.proved
	list, err := c.logs.finish(p.pcrs, p.policy.OSExtended)
	if err != nil {
		return c.bound.Stop(err)
	}
	tag, tagErr := c.bound.checkTag(now) // first, since conditions of the sets read it
	in := appraise.Input{
		PCRs: p.pcrs, EventLog: c.logs.eventLog, Userspace: c.logs.userspace, IMA: list, Measured: c.logs.measured,
		CommandLine: p.line, Sets: p.sets, Now: now, OSExtended: p.policy.OSExtended,
		Maker: reference.Maker{Manufacturer: p.identity.Manufacturer(), Model: p.identity.Model(), Version: p.identity.Version()},
	}
	if !tag.IsZero() {
		in.Tag = tag.Tags()
	}
	outcome, refusals := appraise.Logs(in)
	notes, counted := p.counters()
	refusals = append(append(refusals, counted...), nodeclaim.AsRefusals(tagErr)...)
	if len(refusals) > 0 {
		return c.bound.Stop(refusals)
	}
	if tagErr != nil {
		return c.bound.Stop(tagErr)
	}
	a := Appraisal{EK: p.EK(), Node: c.bound.node, EvidenceDigest: p.digest, Bound: true, accepted: true,
		Claims: c.claims(outcome, notes), Tag: tag, State: c.state()}
	if !tag.IsZero() {
		a.Claims.Tags, a.Claims.TagSerial = tag.Tags(), tag.Serial()
	}
	return a
}

// claims are what was proved of a machine that nothing speaks against.
func (c *Complete) claims(outcome appraise.Outcome, notes []string) nodeclaim.Claims {
	p := c.bound.proved
	claims := nodeclaim.Claims{
		EK: p.EK(), EKCertified: p.identity.Certified(), Manufacturer: p.identity.Manufacturer(), Node: c.bound.node,
		Reference: outcome.Reference, SecureBoot: outcome.SecureBoot, PCRs: p.pcrs.All(),
		ResetCount: p.resets, RestartCount: p.starts, IMA: outcome.IMAState, Weak: outcome.Weak,
		Notes: append(notes, outcome.Notes...),
	}
	if claims.Weak {
		claims.Notes = append(claims.Notes, "the decision rests on SHA-1, for which collisions can be made: quote another bank, and pin that in the reference sets")
	}
	return claims
}

// checkTag verifies the tag that came with the response. A tag that was sent must be
// right even where none is required: a wrong one is tampering, not absence.
func (b *Bound) checkTag(now time.Time) (assettag.Tag, error) {
	p, policy := b.proved, b.policy.Tag
	if len(policy.Signers) == 0 {
		return assettag.Tag{}, nil
	}
	if p.tag == nil {
		if policy.Required {
			return assettag.Tag{}, nodeclaim.Refuse("tag.missing", "the node showed no asset tag; provision one with keelson tag provision")
		}
		return assettag.Tag{}, nil
	}
	return assettag.Verify(assettag.Evidence{Document: p.tag.Document, Attest: p.tag.Attest, Signature: p.tag.Signature},
		assettag.Expected{Key: p.key, Nonce: p.nonce, EK: p.EK(), Signers: policy.Signers, Now: now,
			Index: policy.Index, MinSerial: b.known.TagSerial, Revoked: policy.Revoked})
}
