// Package appraise composes the log half of an appraisal: event log replay, facts, IMA
// result and reference values, in the order of the protocol (nodeattestor/doc.go).
//
// It is pure, so that the SPIRE server plugin and the command line decide alike. It
// reads no file, asks no clock and trusts nothing that no quote covers.
package appraise

import (
	"fmt"
	"slices"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/quote"
	"github.com/keelson-project/keelson/nodeattestor/reference"
)

// Input is what the log half of an appraisal rests on.
type Input struct {
	PCRs        quote.PCRs          // proven by quote.Verify
	EventLog    []byte              // the node's; raw TCG log
	Userspace   []byte              // the node's; systemd's log of what it measured after boot, nil without one
	CommandLine string              // the node's /proc/cmdline or "": only an offer, which a digest must confirm
	IMA         *ima.Result         // of an ima.Replayer over the same PCRs; nil when no list was replayed
	Measured    *reference.Measured // what Sets learned of a list that IMA does not hold; else nil
	Sets        reference.Sets      // the operator's
	Now         time.Time           // against the sets' validity
	OSExtended  []int               // further PCRs that the operating system extends (eventlog.Log.WithOSExtended)
	Maker       reference.Maker     // by the EK's verified certificate; zero where none vouches for it
	Tag         map[string]string   // facts of the verified asset tag; nil without one
}

// Outcome is what was proven, also when no set accepts it: a refused machine's facts are
// what its operator wants to see. Reference is "" unless a set accepted it, and only then it may
// open anything.
type Outcome struct {
	Boot      eventlog.Boot
	IMA       *ima.Result
	Reference string
	// Bank is the bank that the facts were taken from: the matching set's, else the strongest.
	Bank nodeclaim.HashAlg
	// SecureBoot and IMAState are claims; IMAState is clean only if the matching set checked every entry.
	SecureBoot nodeclaim.Tristate
	IMAState   nodeclaim.IMAState
	// Weak is set when the decision rests on SHA-1.
	Weak bool
	// Notes say in a person's words what the set that accepted the evidence does not look at.
	Notes []string
}

// Logs replays the event log against the quoted PCRs, draws the facts, and looks for a
// reference set that accepts facts, PCRs and IMA entries. Refusals mean that the node is not
// trusted; without any, Outcome.Reference names the set that accepted it.
func Logs(in Input) (Outcome, nodeclaim.Refusals) {
	out := Outcome{IMA: in.IMA}
	boot, err := eventlog.ReplayBoth(in.EventLog, in.Userspace, in.PCRs, in.OSExtended...)
	if err != nil {
		return out, refusals(err)
	}
	out.Boot = boot.ConfirmCommandLine(in.CommandLine)
	set, refused := in.Sets.Match(reference.Evidence{Boot: out.Boot, PCRs: in.PCRs, IMA: in.IMA, Measured: in.Measured, Maker: in.Maker, Tag: in.Tag}, in.Now)
	out.Reference = set.Name()
	out.Bank = set.Bank()
	if len(refused) > 0 {
		out.Bank = out.Boot.Banks()[0]
	}
	facts, _ := out.Boot.Facts(out.Bank)
	out.SecureBoot = facts.SecureBoot.State.Tristate()
	out.Weak = out.Bank.Weak() || in.IMA != nil && in.IMA.Weak
	if len(refused) == 0 && set.ChecksIMA() {
		out.IMAState = nodeclaim.IMAClean
	}
	if w := set.KernelWarning(); len(refused) == 0 && w != "" {
		out.Notes = append(out.Notes, fmt.Sprintf("reference set %s: %s", set.Name(), w))
	}
	return out, refused
}

// refusals never lets an error pass as "nothing refused".
func refusals(err error) nodeclaim.Refusals {
	if r := nodeclaim.AsRefusals(err); len(r) > 0 {
		return r
	}
	return nodeclaim.Refusals{*nodeclaim.Refuse("eventlog.replay", err.Error())}
}

// Facts are the proven facts for reports.
type Facts struct {
	eventlog.Facts
	IMA *IMAFacts `json:"ima,omitempty"`
	// Unreplayed lists the quoted PCRs of the bank that can be matched by exact value only.
	Unreplayed []int `json:"unreplayedPCRs,omitempty"`
	Weak       bool  `json:"weak,omitempty"`
}

// IMAFacts sum up an IMA list that was replayed to quoted PCR 10.
type IMAFacts struct {
	Entries    int `json:"entries"`
	Violations int `json:"violations"`
}

// Facts are the outcome's facts; nil when the event log proved nothing.
func (o Outcome) Facts() *Facts {
	f, ok := reference.Evidence{Boot: o.Boot, IMA: o.IMA}.Facts(o.Bank)
	if !ok {
		return nil
	}
	out := &Facts{Facts: f, Unreplayed: o.Boot.Unreplayed(o.Bank), Weak: o.Weak}
	if o.IMA != nil {
		out.IMA = &IMAFacts{o.IMA.Count, o.IMA.Violations}
		out.Unreplayed = slices.DeleteFunc(out.Unreplayed, func(i int) bool { return i == ima.PCR })
	}
	return out
}
