package verify

import (
	"fmt"

	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/reference"
)

// State is what an appraisal leaves to the next one of its EK: its boot, and where it was accepted
// how far the IMA log was proven and how it was judged. That serves one Policy value, one AK and
// one boot of the TPM; with any other the whole log is read. It is never changed, and two
// appraisals may use it at once.
type State struct {
	policy *Policy
	seen   ima.Boot
	list   ima.State
	judged reference.Judged
}

// Earlier looks up the state of an EK's last accepted appraisal.
type Earlier func(nodeclaim.EKHash) (State, bool)

// Size is about how many bytes of memory the state takes.
func (s State) Size() int { return 32 + len(s.seen.AKName) + s.list.Size() + s.judged.Size() }

// state is what an accepted appraisal leaves.
func (c *Complete) state() State {
	p := c.bound.proved
	s := State{seen: p.boot()}
	if c.logs.ima == nil {
		return s
	}
	if list, ok := c.logs.ima.State(p.boot()); ok {
		s.policy, s.list, s.judged = p.policy, list, c.logs.measured.Judged()
	}
	return s
}

// Seen is the state without what serves its policy alone, so that it can be kept when the policy is
// not.
func (s State) Seen() State { return State{seen: s.seen} }

// boot names the boot of the verified quotes.
func (p *Proved) boot() ima.Boot {
	return ima.Boot{AKName: string(p.key.Name()), ResetCount: p.resets, RestartCount: p.starts}
}

// recall looks up where to go on, and the boot that was seen last. A state that another policy's
// sets judged, or of another AK, is nothing to go on from.
func (m *machine) recall(earlier Earlier) (from State, last ima.Boot) {
	if earlier == nil {
		return State{}, ima.Boot{}
	}
	s, ok := earlier(m.EK())
	if !ok {
		return State{}, ima.Boot{}
	}
	if m.policy.IMA && s.policy == m.policy && s.list.Boot().AKName == string(m.key.Name()) {
		from = s
	}
	return from, s.seen
}

// counters judges the TPM's reset counters against those that were seen last. They are the TPM's
// own word, signed with the quote. resetCount rises with each TPM Reset; restartCount with each TPM
// Restart or Resume, and is zero after a Reset. Nothing lowers them otherwise but TPM2_Clear (TPM
// 2.0 Part 1, 36.5 and 36.6, clock information; Part 3, 24.6), which nobody does to a running node
// unnoticed: it also hides how often the TPM was reset before. Why more is not judged:
// design/2026-11-26-reset-counters.md.
func (p *Proved) counters() (notes []string, refusals nodeclaim.Refusals) {
	now, last := p.boot(), p.last
	if last.AKName == "" {
		return nil, nil
	}
	if last.AKName != now.AKName {
		return []string{"the node has a new attestation key since its last attestation"}, nil
	}
	const hint = "TPM2_Clear does that, and hides resets; attest again if it was meant to be"
	switch {
	case now.ResetCount < last.ResetCount:
		refusals = append(refusals, *nodeclaim.Refuse("counters.reset", fmt.Sprintf("the TPM counts %d resets, at the last attestation with this key it had counted %d: %s", now.ResetCount, last.ResetCount, hint)))
	case now.ResetCount == last.ResetCount && now.RestartCount < last.RestartCount:
		refusals = append(refusals, *nodeclaim.Refuse("counters.restart", fmt.Sprintf("the TPM counts %d restarts, at the last attestation with this key it had counted %d: %s", now.RestartCount, last.RestartCount, hint)))
	case now.ResetCount-last.ResetCount > 1:
		notes = append(notes, fmt.Sprintf("the TPM was reset %d times since the last attestation", now.ResetCount-last.ResetCount))
	}
	return notes, refusals
}

// resume goes on from the earlier appraisal, if it is of the boot that was quoted.
func (l *logs) resume(p *Proved) bool {
	measured, ok := p.sets.Resume(p.earlier.judged)
	if !ok {
		return false
	}
	replayer, ok := ima.Resume(p.earlier.list, p.boot(), p.pcrs, p.policy.IMAOptions, measured.Add)
	if !ok {
		return false
	}
	l.measured, l.ima, l.imaOffset, l.resumed = measured, replayer.Recall(measured.Recall), p.earlier.list.Offset(), true
	return true
}
