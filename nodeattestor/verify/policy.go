// Package verify is the decision of node attestation: it composes the checks of ek, ak,
// quote, eventlog, ima, assettag and reference in one order, and yields claims or
// refusals. It is pure: time, randomness, roots, policy and what is known of the node
// are arguments, and it reads no file and opens no connection.
//
// # The order
//
//  1. the EK is one that the operator trusts (package ek);
//  2. the AK is a restricted signing key of a TPM (package ak);
//  3. the banks asked for exist, and the inventory leaves the machine a reference set; a credential is made for (EK, AK name) and a nonce drawn;
//  4. the activated secret is the one sent, compared in constant time: AK and EK are in one TPM;
//  5. every quote verifies over the nonce and its exact selection (package quote);
//  6. the AK stands in the endorsement hierarchy, and all quotes come from one boot.
//     From here on a refusal is proved: it is the node's own evidence that says so;
//  7. node binding: the node that the EK belongs to, and no other EK known for it; then
//     revocation, which must come after the proof so that it lowers the verdict;
//  8. event log, facts, IMA log and reference values (package appraise);
//  9. the TPM's reset counters against those seen last;
//  10. the asset tag, and its serial against the highest seen (package assettag).
//
// Each step is a type that the step before it gives, so that none can be left out: [Begin] does 1 to 3 and gives a
// [Challenge], [Challenge.Prove] does 4 to 6 and gives a [Proved], [Proved.Named] and [Named.Bind] do 7 and give a [Bound],
// [Bound.Read] collects the logs, which are [Complete] then, and [Complete.Finish] does 8 to 10 and gives an [Appraisal]. An
// attestation that fails on the way ends as an Appraisal too, by the Stop of the step that it had reached; that step decides
// whether a refusal may lower a verdict.
// Errors that are refusals (nodeclaim.AsRefusals) say that the evidence is bad; every
// other error says that the appraisal could not be made.
package verify

import (
	"crypto"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/assettag"
	"github.com/keelson-project/keelson/nodeattestor/ek"
	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/reference"
)

// Policy is what the operator demands. It is read and never written; one value may
// serve many attestations at once.
type Policy struct {
	Anchors    ek.Anchors
	Selections []nodeclaim.Selection // what to quote: one entry per bank
	References reference.Sets
	IMA        bool // demand an IMA log that replays to quoted PCR 10
	IMAOptions ima.Options
	// OSExtended are further PCRs that the nodes' operating system extends without a log. They may end elsewhere than
	// the event logs lead; no fact comes from such a PCR then (eventlog.Log.WithOSExtended).
	OSExtended []int
	Tag        TagPolicy
	// Revoked lists EKs that are trusted no more, with the operator's reason. One of them stands for all that the
	// inventory lists for its machine.
	Revoked map[nodeclaim.EKHash]string
	// RequireNode refuses an EK that belongs to no node.
	RequireNode bool
	// Binding says what names the node that an EK belongs to.
	Binding Binding
	// MaxEventLog bounds the TCG event log in bytes; 0 means DefaultMaxEventLog.
	MaxEventLog int
	// MaxRounds bounds the rounds of one attestation; 0 means DefaultMaxRounds.
	MaxRounds int
	// ChallengeTTL is how long a nonce may be answered; 0 means DefaultChallengeTTL.
	ChallengeTTL time.Duration
}

// Binding is what names the Kubernetes node that an EK belongs to.
type Binding int

// The ways to bind a node.
const (
	ByInventory      Binding = iota // the inventory lists the EK under the node
	ByToken                         // a projected service-account token, which the Kubernetes API has reviewed
	ByInventoryToken                // both, and they must name the same node
)

// ParseBinding reads "inventory", "token" or "both".
func ParseBinding(s string) (Binding, error) {
	for _, b := range []Binding{ByInventory, ByToken, ByInventoryToken} {
		if b.String() == s {
			return b, nil
		}
	}
	return ByInventory, fmt.Errorf("verify: node binding %q is unknown; use inventory, token or both", s)
}

// String is the word that ParseBinding reads.
func (b Binding) String() string { return [...]string{"inventory", "token", "both"}[b] }

// UsesToken reports whether the agent has to send a token.
func (b Binding) UsesToken() bool { return b != ByInventory }

// TagPolicy says whether a node must show an asset tag.
type TagPolicy struct {
	Required bool
	Index    uint32             // NV index that holds the tag's digest
	Signers  []crypto.PublicKey // who may issue tags; none means that no tag is asked for
	// Revoked lists tags that are believed no more, whoever signed them.
	Revoked assettag.Revocations
}

// Defaults of the bounds in Policy. The largest event logs of real machines have a few
// hundred kilobytes; 1024 rounds of full chunks carry 384 MiB of IMA log.
const (
	DefaultMaxEventLog  = 4 << 20
	DefaultMaxRounds    = 1024
	DefaultChallengeTTL = time.Minute
)

// Validate reports everything that is wrong with the policy.
func (p *Policy) Validate() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf("verify: policy: "+format, args...)) }
	if len(p.Selections) == 0 {
		fail("no PCRs to quote")
	}
	banks := map[nodeclaim.HashAlg]bool{}
	for _, s := range p.Selections {
		if err := s.Validate(); err != nil {
			fail("%v", err)
		}
		if banks[s.Bank] {
			fail("bank %s is selected twice", s.Bank)
		}
		banks[s.Bank] = true
	}
	if p.Tag.Required && len(p.Tag.Signers) == 0 {
		fail("an asset tag is required, but nobody may sign one")
	}
	if len(p.Tag.Signers) > 0 {
		if err := assettag.CheckIndex(p.Tag.Index); err != nil {
			fail("%v", err)
		}
	}
	if len(p.References) == 0 {
		fail("no reference sets: every node would be refused")
	}
	for _, i := range p.OSExtended {
		if !eventlog.OSExtendable(i) {
			fail("PCR %d cannot be extended by the operating system: name PCRs 8 to 15 without 10", i)
		}
	}
	p.validateClasses(fail)
	p.validateIMA(fail)
	p.validateFacts(fail)
	return errors.Join(errs...)
}

// validateClasses refuses an inventory that leaves a machine no reference set: mostly a mistyped name, for which a good machine
// would be proved bad.
func (p *Policy) validateClasses(fail func(string, ...any)) {
	bare := map[int]ek.InventoryEntry{} // by line: a machine stands under each of its EKs
	for _, m := range p.Anchors.Inventory {
		if len(p.References.For(m.References)) == 0 && len(p.References) > 0 {
			bare[m.Line] = m
		}
	}
	for _, line := range slices.Sorted(maps.Keys(bare)) {
		fail("inventory line %d: machine %s may match reference sets %s alone, and none of that name is there", line, bare[line].Node, strings.Join(bare[line].References, ", "))
	}
}

// validateIMA refuses a policy and sets that do not agree on IMA. A list that is demanded and that no set
// judges would let any program run on a trusted node; what a set judges and nobody asks for
// would get every node refused.
func (p *Policy) validateIMA(fail func(string, ...any)) {
	quoted := slices.ContainsFunc(p.Selections, func(s nodeclaim.Selection) bool { return slices.Contains(s.PCRs, imaPCR) })
	if p.IMA && !quoted {
		fail("the IMA log is demanded, but PCR %d, which proves it, is not quoted", imaPCR)
	}
	p.validatePadded(fail)
	for _, set := range p.References {
		switch {
		case p.IMA && !set.ChecksIMA():
			fail("the IMA log is demanded, but reference set %q has no ima section to judge it by: add one, or do not demand the log", set.Name())
		case !p.IMA && set.ChecksIMA():
			fail("reference set %q has an ima section, but the IMA log is not demanded: every node would be refused", set.Name())
		}
	}
}

// validateFacts refuses sets with conditions over what no node could prove: every node would be refused.
func (p *Policy) validateFacts(fail func(string, ...any)) {
	for _, set := range p.References {
		if set.Reads("tag") && len(p.Tag.Signers) == 0 {
			fail("reference set %q has a condition over the asset tag, but nobody may sign one", set.Name())
		}
		if set.Reads("tpm") && p.Anchors.Mode == ek.Inventory {
			fail("reference set %q has a condition over the TPM's maker, but mode inventory looks at no EK certificate, which alone says it", set.Name())
		}
	}
}

// validatePadded refuses the mode for kernels before 5.8 where it could not accept anybody: their boot_aggregate is over
// PCRs 0 to 7 of the SHA-1 bank.
func (p *Policy) validatePadded(fail func(string, ...any)) {
	if !p.IMAOptions.PaddedSHA1 {
		return
	}
	if !p.IMA {
		fail("IMA lists of zero-padded SHA-1 are told to be read, but the IMA log is not demanded")
	}
	i := slices.IndexFunc(p.Selections, func(s nodeclaim.Selection) bool { return s.Bank == nodeclaim.SHA1 })
	for pcr := range 8 {
		if i < 0 || !slices.Contains(p.Selections[i].PCRs, pcr) {
			fail("IMA lists of zero-padded SHA-1 begin with a boot_aggregate over PCRs 0 to 7 of bank sha1: quote these too")
			return
		}
	}
}

// imaPCR is where the kernel measures files.
const imaPCR = 10

func (p *Policy) maxEventLog() int {
	if p.MaxEventLog > 0 {
		return p.MaxEventLog
	}
	return DefaultMaxEventLog
}

func (p *Policy) maxRounds() int {
	if p.MaxRounds > 0 {
		return p.MaxRounds
	}
	return DefaultMaxRounds
}

func (p *Policy) challengeTTL() time.Duration {
	if p.ChallengeTTL > 0 {
		return p.ChallengeTTL
	}
	return DefaultChallengeTTL
}
