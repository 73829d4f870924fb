package verify

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/ak"
	"github.com/keelson-project/keelson/nodeattestor/assettag"
	"github.com/keelson-project/keelson/nodeattestor/ek"
	"github.com/keelson-project/keelson/nodeattestor/evidence"
	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/quote"
	"github.com/keelson-project/keelson/nodeattestor/reference"
)

// Pending is one attestation under way. Its methods are called in order, from one
// goroutine; each challenge is answered once.
type Pending struct {
	policy   *Policy
	sets     reference.Sets // that may accept this machine
	identity ek.Identity
	key      ak.Key
	secret   []byte
	nonce    []byte
	expires  time.Time
	answered bool
	// wantUserspace is set where the node says that it has a log of user space.
	wantUserspace bool

	proved bool
	pcrs   quote.PCRs
	digest string
	resets uint32
	starts uint32
	tag    *evidence.TagEvidence
	shown  assettag.Tag // that Finish verified
	line   string       // the command line that the node says it has
	token  []byte       // projected service-account token, unreviewed
	node   string       // that a reviewed token names
	known  Known
	bound  bool
	logs   logs
	// earlier is where an earlier appraisal ended, the zero State without one; last is the boot that was seen
	// last; accepted is set when this appraisal found nothing to refuse.
	earlier  State
	last     ima.Boot
	accepted bool
}

// Begin checks who the payload claims to be and makes the challenge for it. rand is the
// source of secret, seed and nonce; the nonce is drawn for this call alone.
func Begin(p *evidence.Payload, policy *Policy, now time.Time, rand io.Reader) (*Pending, *evidence.Challenge, error) {
	return BeginAgain(p, policy, nil, now, rand)
}

// BeginAgain is Begin where the EK may have been accepted before: if earlier knows that appraisal's
// State, the node is asked for what its IMA log holds since. Whether the state fits shows once the
// quotes have been verified; if it does not, the whole log is asked for.
func BeginAgain(p *evidence.Payload, policy *Policy, earlier Earlier, now time.Time, rand io.Reader) (*Pending, *evidence.Challenge, error) {
	id, err := ek.Verify(p.EKCertificates, p.EKPublic, policy.Anchors, now)
	if err != nil {
		return nil, nil, withNotes(err, p)
	}
	key, err := ak.Parse(p.AKPublic)
	if err != nil {
		return nil, nil, err
	}
	if err := checkPayload(p, policy); err != nil {
		return nil, nil, err
	}
	sets, err := setsFor(id.Hash(), policy)
	if err != nil {
		return nil, nil, err
	}
	pending := &Pending{policy: policy, sets: sets, identity: id, key: key, token: p.Token, wantUserspace: p.HasUserspaceLog, expires: now.Add(policy.challengeTTL()),
		secret: make([]byte, evidence.SecretSize), nonce: make([]byte, evidence.NonceSize)}
	for _, b := range [][]byte{pending.secret, pending.nonce} {
		if _, err := io.ReadFull(rand, b); err != nil {
			return nil, nil, fmt.Errorf("verify: challenge: randomness: %w", err)
		}
	}
	blob, encrypted, err := ak.Challenge(id, key, pending.secret, rand)
	if err != nil {
		return nil, nil, fmt.Errorf("verify: challenge: %w", err)
	}
	c := &evidence.Challenge{CredentialBlob: blob, EncryptedSecret: encrypted, Nonce: slices.Clone(pending.nonce), WantIMA: policy.IMA, WantUserspaceLog: p.HasUserspaceLog}
	for _, s := range policy.Selections {
		c.Selections = append(c.Selections, evidence.Selection{Bank: s.Bank, PCRs: slices.Clone(s.PCRs)})
	}
	if len(policy.Tag.Signers) > 0 && p.HasTag {
		c.TagIndex = policy.Tag.Index
	}
	pending.recall(earlier)
	c.IMAOffset = pending.earlier.list.Offset()
	return pending, c, nil
}

// withNotes adds to the refusal of a node without an EK certificate why its TPM has none that can be used, in the node's words.
func withNotes(err error, p *evidence.Payload) error {
	r := nodeclaim.AsRefusals(err)
	if len(p.EKCertificates) > 0 || len(p.EKNotes) == 0 || len(r) != 1 {
		return err
	}
	notes := make([]string, len(p.EKNotes))
	for i, note := range p.EKNotes {
		notes[i] = strings.Trim(strconv.Quote(note), `"`)
	}
	return nodeclaim.Refuse(r[0].Check, r[0].Reason+"; of the certificates that its TPM holds, the node says: "+strings.Join(notes, "; "))
}

// checkPayload refuses early what this node can never satisfy, with the reason that
// helps; nothing that it believes here is trusted later.
func checkPayload(p *evidence.Payload, policy *Policy) error {
	for _, s := range policy.Selections {
		if !slices.Contains(p.Banks, s.Bank) {
			return nodeclaim.Refuse("payload.bank", fmt.Sprintf("the TPM has no active %s bank (it has %v); activate it in the firmware's setup, or quote another bank", s.Bank, p.Banks))
		}
	}
	switch {
	case !p.HasEventLog:
		return nodeclaim.Refuse("payload.eventlog", "the node has no TCG event log; its firmware or kernel does not hand one on")
	case policy.IMA && !p.HasIMA:
		return nodeclaim.Refuse("payload.ima", "the node has no IMA log; boot it with an ima_policy")
	case policy.Binding.UsesToken() && len(p.Token) == 0:
		return nodeclaim.Refuse("payload.token", "the node sent no service-account token; mount a projected one and configure token_path")
	case policy.Tag.Required && !p.HasTag:
		return nodeclaim.Refuse("payload.tag", "the node has no asset tag; provision one with keelson tag provision")
	}
	return nil
}

// setsFor are the reference sets that may accept the machine of an EK: those of its class, where the inventory says so. It is asked before
// anything is proved, so that what the inventory lacks lowers no verdict. Where it has classes, an EK that it does not list has none: a machine
// could else show one that nobody listed, and choose its class.
func setsFor(id nodeclaim.EKHash, policy *Policy) (reference.Sets, error) {
	machine, listed := policy.Anchors.Inventory[id]
	if !listed && policy.Anchors.Inventory.Classed() {
		return nil, nodeclaim.Refuse("reference.class", fmt.Sprintf("EK %s is not in the inventory, which says which reference sets may accept a machine: list all EKs of each machine there", id))
	}
	return policy.References.For(machine.References), nil
}

// EK identifies the trusted EK of this attestation.
func (p *Pending) EK() nodeclaim.EKHash { return p.identity.Hash() }

// MachineEKs are all EKs that the inventory lists for this EK's machine; without an inventory that has it, the EK alone.
func (p *Pending) MachineEKs() []nodeclaim.EKHash {
	if machine, listed := p.policy.Anchors.Inventory[p.EK()]; listed {
		return slices.Clone(machine.EKHashes)
	}
	return []nodeclaim.EKHash{p.EK()}
}

// Node is the node that the EK belongs to: the inventory's, or where the policy binds by
// token alone that of the reviewed token. "" when it belongs to none (yet).
func (p *Pending) Node() string {
	if p.policy.Binding == ByToken {
		return p.node
	}
	return p.identity.Node()
}

// Token is the projected service-account token that came with the payload, for the
// Kubernetes API to review; nil where the policy binds by inventory alone, or before Prove:
// nobody's token is worth a request before its sender has proved an EK.
func (p *Pending) Token() []byte {
	if !p.proved || !p.policy.Binding.UsesToken() {
		return nil
	}
	return p.token
}

// Reviewed takes the node that the Kubernetes API found in the token. Where the inventory
// names one too, both must agree.
func (p *Pending) Reviewed(node string) error {
	if !p.proved || node == "" {
		return fmt.Errorf("verify: a reviewed token needs a proved EK and a node")
	}
	if p.policy.Binding == ByInventoryToken && node != p.identity.Node() {
		return nodeclaim.Refuse("node.token", fmt.Sprintf("the token is bound to node %s, the inventory has the EK under %q", node, p.identity.Node()))
	}
	p.node = node
	return nil
}

// Proved reports whether activation and fresh quotes have shown that the evidence is
// this EK's own, and the node is this EK's. Before that nothing may count against the
// node: a stranger's evidence, or a proved stranger's, says nothing about it.
func (p *Pending) Proved() bool { return p.bound }

// Tag is the tag that Finish has verified; the zero Tag when none was shown.
func (p *Pending) Tag() assettag.Tag { return p.shown }

// EvidenceDigest is "sha256:<hex>" over the verified quotes, "" before Prove.
func (p *Pending) EvidenceDigest() string { return p.digest }

// Prove checks the answer to the challenge: the activated secret, then the quotes. A
// challenge is answered once and in time; a second answer is refused whatever it says.
func (p *Pending) Prove(r *evidence.Response, now time.Time) error {
	if p.answered {
		return nodeclaim.Refuse("challenge.used", "the challenge was answered before")
	}
	p.answered = true
	if now.After(p.expires) {
		return nodeclaim.Refuse("challenge.expired", fmt.Sprintf("the answer came after %s; the TPM or the network is too slow, or it was held back", p.expires.UTC().Format(time.RFC3339)))
	}
	// TPM2_ActivateCredential (TPM 2.0 Part 3, 12.5) gives the secret only to the TPM that
	// holds the EK, and only when it holds an object with this AK's name.
	if subtle.ConstantTimeCompare(r.Secret, p.secret) != 1 {
		return nodeclaim.Refuse("activation.secret", "the TPM did not give back the secret: EK and AK are not in one TPM")
	}
	if err := p.quotes(r.Quotes); err != nil {
		return err
	}
	p.tag, p.line, p.proved = r.Tag, r.CommandLine, true
	p.logs = newLogs(p)
	return nil
}

func (p *Pending) quotes(qs []evidence.Quote) error {
	if len(qs) != len(p.policy.Selections) {
		return nodeclaim.Refuse("quote.count", fmt.Sprintf("%d quotes for the %d asked for", len(qs), len(p.policy.Selections)))
	}
	var parts []quote.PCRs
	sum := sha256.New()
	for i, sel := range p.policy.Selections {
		q, err := p.quote(qs[i], sel)
		if err != nil {
			return err
		}
		if i > 0 && (q.ResetCount != p.resets || q.RestartCount != p.starts) {
			return nodeclaim.Refuse("quote.boot", "the TPM was reset between the quotes; attest again")
		}
		p.resets, p.starts = q.ResetCount, q.RestartCount
		parts = append(parts, q.PCRs)
		sum.Write(qs[i].Attest)
	}
	pcrs, err := quote.Merge(parts...)
	if err != nil {
		return err
	}
	p.pcrs, p.digest = pcrs, fmt.Sprintf("sha256:%x", sum.Sum(nil))
	return nil
}

func (p *Pending) quote(q evidence.Quote, sel nodeclaim.Selection) (quote.Quoted, error) {
	if q.Bank != sel.Bank || len(q.Values) != len(sel.PCRs) {
		return quote.Quoted{}, nodeclaim.Refuse("quote.values", fmt.Sprintf("%d values of bank %s, wanted %d of bank %s", len(q.Values), q.Bank, len(sel.PCRs), sel.Bank))
	}
	values := make(map[int][]byte, len(sel.PCRs))
	for i, pcr := range sel.PCRs {
		values[pcr] = q.Values[i]
	}
	quoted, err := quote.Verify(p.key, quote.Evidence{Attest: q.Attest, Signature: q.Signature, Values: values}, p.nonce, sel)
	if err != nil {
		return quote.Quoted{}, err
	}
	if !p.key.InEndorsement(quoted.QualifiedSigner, p.identity) {
		return quote.Quoted{}, nodeclaim.Refuse("quote.hierarchy", "the AK is not in the endorsement hierarchy, so that the TPM hides its reset counters; let the agent plugin make its own AK")
	}
	return quoted, nil
}
