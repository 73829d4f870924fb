package verify

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/evidence"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/quote"
)

// Proved is an attestation whose sender has shown that it holds the EK, and what its TPM's PCRs
// are. Which node it is, and whether that is this machine, is another matter.
type Proved struct {
	*machine
	quoted
	tag  *evidence.TagEvidence
	line string // the command line that the node says it has
}

// quoted is what the TPM has signed.
type quoted struct {
	pcrs   quote.PCRs
	digest string // "sha256:<hex>" over the quotes
	resets uint32
	starts uint32
}

// Prove checks the answer to the challenge: the activated secret, then the quotes. A challenge is
// answered once and in time; a second answer is refused whatever it says.
func (c *Challenge) Prove(r *evidence.Response, now time.Time) (*Proved, error) {
	if c.answered {
		return nil, nodeclaim.Refuse("challenge.used", "the challenge was answered before")
	}
	c.answered = true
	if now.After(c.expires) {
		return nil, nodeclaim.Refuse("challenge.expired", fmt.Sprintf("the answer came after %s; the TPM or the network is too slow, or it was held back", c.expires.UTC().Format(time.RFC3339)))
	}
	// TPM2_ActivateCredential (TPM 2.0 Part 3, 12.5) gives the secret only to the TPM that
	// holds the EK, and only when it holds an object with this AK's name.
	if subtle.ConstantTimeCompare(r.Secret, c.secret) != 1 {
		return nil, nodeclaim.Refuse("activation.secret", "the TPM did not give back the secret: EK and AK are not in one TPM")
	}
	q, err := c.quotes(r.Quotes)
	if err != nil {
		return nil, err
	}
	return &Proved{machine: c.machine, quoted: q, tag: r.Tag, line: r.CommandLine}, nil
}

// quotes verifies one quote for each selection of the policy, all of one boot.
func (m *machine) quotes(qs []evidence.Quote) (quoted, error) {
	var out quoted
	if len(qs) != len(m.policy.Selections) {
		return out, nodeclaim.Refuse("quote.count", fmt.Sprintf("%d quotes for the %d asked for", len(qs), len(m.policy.Selections)))
	}
	var parts []quote.PCRs
	sum := sha256.New()
	for i, sel := range m.policy.Selections {
		q, err := m.quote(qs[i], sel)
		if err != nil {
			return out, err
		}
		if i > 0 && (q.ResetCount != out.resets || q.RestartCount != out.starts) {
			return out, nodeclaim.Refuse("quote.boot", "the TPM was reset between the quotes; attest again")
		}
		out.resets, out.starts = q.ResetCount, q.RestartCount
		parts = append(parts, q.PCRs)
		sum.Write(qs[i].Attest)
	}
	pcrs, err := quote.Merge(parts...)
	if err != nil {
		return out, err
	}
	out.pcrs, out.digest = pcrs, fmt.Sprintf("sha256:%x", sum.Sum(nil))
	return out, nil
}

// quote verifies one quote over its selection, by an AK in the endorsement hierarchy.
func (m *machine) quote(q evidence.Quote, sel nodeclaim.Selection) (quote.Quoted, error) {
	if q.Bank != sel.Bank || len(q.Values) != len(sel.PCRs) {
		return quote.Quoted{}, nodeclaim.Refuse("quote.values", fmt.Sprintf("%d values of bank %s, wanted %d of bank %s", len(q.Values), q.Bank, len(sel.PCRs), sel.Bank))
	}
	values := make(map[int][]byte, len(sel.PCRs))
	for i, pcr := range sel.PCRs {
		values[pcr] = q.Values[i]
	}
	quoted, err := quote.Verify(m.key, quote.Evidence{Attest: q.Attest, Signature: q.Signature, Values: values}, m.nonce, sel)
	if err != nil {
		return quote.Quoted{}, err
	}
	if !m.key.InEndorsement(quoted.QualifiedSigner, m.identity) {
		return quote.Quoted{}, nodeclaim.Refuse("quote.hierarchy", "the AK is not in the endorsement hierarchy, so that the TPM hides its reset counters; let the agent plugin make its own AK")
	}
	return quoted, nil
}

// Token is the projected service-account token that came with the payload, for the Kubernetes API
// to review; nil where the policy binds by inventory alone. There is none before the proof: a
// stranger's token is worth no request.
func (p *Proved) Token() []byte {
	if !p.policy.Binding.UsesToken() {
		return nil
	}
	return p.token
}

// Named says which node the machine is. reviewed is the node that the Kubernetes API found in the
// token, "" where the policy binds by inventory alone. Where the inventory names one too, both must
// agree.
func (p *Proved) Named(reviewed string) (*Named, error) {
	switch {
	case p.policy.Binding.UsesToken() && reviewed == "":
		return nil, fmt.Errorf("verify: the policy binds by token (%s), and no token was reviewed that names a node", p.policy.Binding)
	case !p.policy.Binding.UsesToken() && reviewed != "":
		return nil, fmt.Errorf("verify: a token was reviewed, and the policy binds by %s alone", p.policy.Binding)
	case p.policy.Binding == ByInventoryToken && reviewed != p.identity.Node():
		return nil, nodeclaim.Refuse("node.token", fmt.Sprintf("the token is bound to node %s, the inventory has the EK under %q", reviewed, p.identity.Node()))
	}
	node := p.listed()
	if p.policy.Binding == ByToken {
		node = reviewed
	}
	return &Named{proved: p, machine: p.machine, node: node}, nil
}
