package verify

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/ak"
	"github.com/keelson-project/keelson/nodeattestor/ek"
	"github.com/keelson-project/keelson/nodeattestor/evidence"
	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/reference"
)

// machine is what Begin finds out about the sender of a payload, and what it demands of it. It is
// never changed, and all steps of one attestation share it.
type machine struct {
	policy   *Policy
	sets     reference.Sets // that may accept this machine
	identity ek.Identity
	key      ak.Key
	nonce    []byte
	token    []byte // projected service-account token, unreviewed
	// userspace is set where the node says that it has a log of user space.
	userspace bool
	// earlier is where an earlier appraisal ended, the zero State without one; last is the boot
	// that was seen last.
	earlier State
	last    ima.Boot
}

// EK identifies the trusted EK of this attestation.
func (m *machine) EK() nodeclaim.EKHash { return m.identity.Hash() }

// MachineEKs are all EKs that the inventory lists for this EK's machine; without an inventory that
// has it, the EK alone.
func (m *machine) MachineEKs() []nodeclaim.EKHash {
	if entry, listed := m.policy.Anchors.Inventory[m.EK()]; listed {
		return slices.Clone(entry.EKHashes)
	}
	return []nodeclaim.EKHash{m.EK()}
}

// listed is the node that the inventory has the EK under; "" where the policy binds by token alone,
// or it has none.
func (m *machine) listed() string {
	if m.policy.Binding == ByToken {
		return ""
	}
	return m.identity.Node()
}

// Challenge is an attestation whose payload was taken: a trusted EK and a sound AK, of which
// nothing is proved. It is answered once.
type Challenge struct {
	*machine
	message  *evidence.Challenge
	secret   []byte
	expires  time.Time
	answered bool
}

// Begin checks who the payload claims to be and makes the challenge for it. rand is the source of
// secret, seed and nonce; the nonce is drawn for this call alone. If earlier, which may be nil,
// knows the State that an accepted appraisal of this EK left, the node is asked for what its IMA
// log holds since. Whether the state fits shows once the quotes have been verified; if it does not,
// the whole log is asked for.
func Begin(p *evidence.Payload, policy *Policy, earlier Earlier, now time.Time, rand io.Reader) (*Challenge, error) {
	id, err := ek.Verify(p.EKCertificates, p.EKPublic, policy.Anchors, now)
	if err != nil {
		return nil, withNotes(err, p)
	}
	key, err := ak.Parse(p.AKPublic)
	if err != nil {
		return nil, err
	}
	if err := checkPayload(p, policy); err != nil {
		return nil, err
	}
	sets, err := setsFor(id.Hash(), policy)
	if err != nil {
		return nil, err
	}
	c := &Challenge{expires: now.Add(policy.challengeTTL()), secret: make([]byte, evidence.SecretSize),
		machine: &machine{policy: policy, sets: sets, identity: id, key: key, token: p.Token,
			userspace: p.HasUserspaceLog, nonce: make([]byte, evidence.NonceSize)}}
	c.earlier, c.last = c.recall(earlier)
	if err := c.draw(p, rand); err != nil {
		return nil, err
	}
	return c, nil
}

// draw makes the message, with a secret and a nonce that serve it alone.
func (c *Challenge) draw(p *evidence.Payload, rand io.Reader) error {
	for _, b := range [][]byte{c.secret, c.nonce} {
		if _, err := io.ReadFull(rand, b); err != nil {
			return fmt.Errorf("verify: challenge: randomness: %w", err)
		}
	}
	blob, encrypted, err := ak.Challenge(c.identity, c.key, c.secret, rand)
	if err != nil {
		return fmt.Errorf("verify: challenge: %w", err)
	}
	c.message = &evidence.Challenge{CredentialBlob: blob, EncryptedSecret: encrypted, Nonce: slices.Clone(c.nonce),
		WantIMA: c.policy.IMA, WantUserspaceLog: c.userspace, IMAOffset: c.earlier.list.Offset()}
	for _, s := range c.policy.Selections {
		c.message.Selections = append(c.message.Selections, evidence.Selection{Bank: s.Bank, PCRs: slices.Clone(s.PCRs)})
	}
	if len(c.policy.Tag.Signers) > 0 && p.HasTag {
		c.message.TagIndex = c.policy.Tag.Index
	}
	return nil
}

// Message is what to send to the node.
func (c *Challenge) Message() *evidence.Challenge { return c.message }

// withNotes adds to the refusal of a node without an EK certificate why its TPM has none that can
// be used, in the node's words.
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

// setsFor are the reference sets that may accept the machine of an EK: those of its class, where
// the inventory says so. It is asked before anything is proved, so that what the inventory lacks
// lowers no verdict. Where it has classes, an EK that it does not list has none: a machine could
// else show one that nobody listed, and choose its class.
func setsFor(id nodeclaim.EKHash, policy *Policy) (reference.Sets, error) {
	machine, listed := policy.Anchors.Inventory[id]
	if !listed && policy.Anchors.Inventory.Classed() {
		return nil, nodeclaim.Refuse("reference.class", fmt.Sprintf("EK %s is not in the inventory, which says which reference sets may accept a machine: list all EKs of each machine there", id))
	}
	return policy.References.For(machine.References), nil
}
