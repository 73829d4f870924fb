package verify

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/appraise"
	"github.com/keelson-project/keelson/nodeattestor/assettag"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// Known is what the shared store knows of the node; the zero value means that it was
// never seen.
type Known struct {
	EKHash    string // EK that the node is bound to, "" when it is bound to none
	TagSerial uint64 // highest asset-tag serial seen for it
	// Nodes are those that the EK is bound to, for a policy that binds by token alone: where an inventory binds, it
	// says so itself, and lists each EK once.
	Nodes []string
}

// Bind checks the proved EK against what is known of its node. The binding is
// immutable in both directions: another EK under the same name, and another node of the same EK, need an administrator's
// act. A revoked EK is refused when it is bound, as proof that its node is not to be trusted.
func (p *Pending) Bind(known Known) error {
	if !p.proved {
		return fmt.Errorf("verify: bind before the evidence was proved")
	}
	if p.policy.Binding.UsesToken() && p.node == "" {
		return fmt.Errorf("verify: bind before the token was reviewed")
	}
	if p.Node() == "" && p.policy.RequireNode {
		return nodeclaim.Refuse("node.unbound", fmt.Sprintf("EK %s belongs to no node; add it to the inventory", p.EK()))
	}
	if known.EKHash != "" && known.EKHash != p.EK().String() {
		return nodeclaim.Refuse("node.binding", fmt.Sprintf("node %s is bound to EK %s, this machine has EK %s; if the machine was replaced, delete the node's NodeTrust", p.Node(), known.EKHash, p.EK()))
	}
	if others := slices.DeleteFunc(slices.Clone(known.Nodes), func(node string) bool { return node == p.Node() }); len(others) > 0 {
		return nodeclaim.Refuse("node.elsewhere", fmt.Sprintf("EK %s is bound to node %s, the token names node %s: one machine is one node; if it was renamed, delete the NodeTrust of %[2]s", p.EK(), strings.Join(others, ", "), p.Node()))
	}
	p.known, p.bound = known, true
	return p.checkRevoked()
}

// checkRevoked refuses a machine of which any EK is revoked: whoever has the TPM can show each of them.
func (p *Pending) checkRevoked() error {
	for _, ek := range p.MachineEKs() {
		if why, revoked := p.policy.Revoked[ek]; revoked {
			return nodeclaim.Refuse("ek.revoked", fmt.Sprintf("EK %s of this machine is revoked: %s", ek, why))
		}
	}
	return nil
}

// Finish appraises the logs and the tag, and yields the claims. It goes on through boot,
// measured files and tag after a refusal, so that the refusals tell everything that is wrong;
// an IMA log that does not replay ends it at once, for nothing can be said about its files.
func (p *Pending) Finish(now time.Time) (nodeclaim.Claims, error) {
	if !p.bound {
		return nodeclaim.Claims{}, fmt.Errorf("verify: finish before the node was bound")
	}
	list, err := p.logs.finish(p.pcrs, p.policy.OSExtended)
	if err != nil {
		return nodeclaim.Claims{}, err
	}
	outcome, refusals := appraise.Logs(appraise.Input{
		PCRs: p.pcrs, EventLog: p.logs.eventLog, Userspace: p.logs.userspace, IMA: list, Measured: p.logs.measured, CommandLine: p.line, Sets: p.sets, Now: now,
		OSExtended: p.policy.OSExtended,
	})
	claims := nodeclaim.Claims{
		EK: p.EK(), EKCertified: p.identity.Certified(), Manufacturer: p.identity.Manufacturer(), Node: p.Node(),
		Reference: outcome.Reference, SecureBoot: outcome.SecureBoot, PCRs: p.pcrs.All(),
		ResetCount: p.resets, RestartCount: p.starts, IMA: outcome.IMAState, Weak: outcome.Weak,
	}
	notes, counted := p.counters()
	claims.Notes = append(notes, outcome.Notes...)
	if claims.Weak {
		claims.Notes = append(claims.Notes, "the decision rests on SHA-1, for which collisions can be made: quote another bank, and pin that in the reference sets")
	}
	refusals = append(refusals, counted...)
	tag, err := p.checkTag(now)
	refusals = append(refusals, nodeclaim.AsRefusals(err)...)
	if len(refusals) > 0 {
		return nodeclaim.Claims{}, refusals
	}
	if err != nil {
		return nodeclaim.Claims{}, err
	}
	if !tag.IsZero() {
		claims.Tags, claims.TagSerial = tag.Tags(), tag.Serial()
	}
	p.shown, p.accepted = tag, true
	return claims, nil
}

// checkTag verifies the tag that came with the response. A tag that was sent must be
// right even where none is required: a wrong one is tampering, not absence.
func (p *Pending) checkTag(now time.Time) (assettag.Tag, error) {
	if len(p.policy.Tag.Signers) == 0 {
		return assettag.Tag{}, nil
	}
	if p.tag == nil {
		if p.policy.Tag.Required {
			return assettag.Tag{}, nodeclaim.Refuse("tag.missing", "the node showed no asset tag; provision one with keelson tag provision")
		}
		return assettag.Tag{}, nil
	}
	return assettag.Verify(assettag.Evidence{Document: p.tag.Document, Attest: p.tag.Attest, Signature: p.tag.Signature},
		assettag.Expected{Key: p.key, Nonce: p.nonce, EK: p.EK(), Signers: p.policy.Tag.Signers, Now: now,
			Index: p.policy.Tag.Index, MinSerial: p.known.TagSerial, Revoked: p.policy.Tag.Revoked})
}
