package verify

import (
	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/reference"
)

// State is what an accepted appraisal leaves to the next one of its EK: how far the IMA log was proven, and
// how it was judged. It serves one Policy value, one AK and one boot of the TPM; with any other the whole
// log is read. It is never changed, and two appraisals may use it at once.
type State struct {
	policy *Policy
	list   ima.State
	judged reference.Judged
}

// Earlier looks up the state of an EK's last accepted appraisal.
type Earlier func(nodeclaim.EKHash) (State, bool)

// Size is about how many bytes of memory the state takes.
func (s State) Size() int { return 8 + s.list.Size() + s.judged.Size() }

// State is what to keep for the next appraisal of this EK; false before Finish has accepted this one, or if it
// replayed no IMA log.
func (p *Pending) State() (State, bool) {
	if !p.accepted || p.logs.ima == nil {
		return State{}, false
	}
	list, ok := p.logs.ima.State(p.boot())
	return State{policy: p.policy, list: list, judged: p.logs.measured.Judged()}, ok
}

// Resumed tells whether only what is new in the IMA log was read.
func (p *Pending) Resumed() bool { return p.logs.resumed }

// boot names the boot of the verified quotes.
func (p *Pending) boot() ima.Boot {
	return ima.Boot{AKName: string(p.key.Name()), ResetCount: p.resets, RestartCount: p.starts}
}

// recall looks up where to go on. A state that another policy's sets judged, or of another AK, is none.
func (p *Pending) recall(earlier Earlier) {
	if earlier == nil || !p.policy.IMA {
		return
	}
	s, ok := earlier(p.EK())
	if ok && s.policy == p.policy && s.list.Boot().AKName == string(p.key.Name()) {
		p.earlier = s
	}
}

// resume goes on from the earlier appraisal, if it is of the boot that was quoted.
func (l *logs) resume(p *Pending) bool {
	measured, ok := p.policy.References.Resume(p.earlier.judged)
	if !ok {
		return false
	}
	replayer, ok := ima.Resume(p.earlier.list, p.boot(), p.pcrs, p.policy.IMAOptions, measured.Add)
	if !ok {
		return false
	}
	l.measured, l.ima, l.imaOffset, l.resumed = measured, replayer, p.earlier.list.Offset(), true
	return true
}
