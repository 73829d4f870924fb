package syncer

import "github.com/keelson-project/keelson/policy-sync/plan"

// fight notices that somebody undoes what is written, pass after pass: another controller, or an API server that stores an
// object otherwise than it was sent. Each write triggers the next pass, so without a pause the two would write as fast as the
// API server answers. The pause is short: it delays a revocation, too.
type fight struct {
	rounds int    // passes in a row that did something that one of the two before them had done
	over   string // one such operation
	// last and before are what the last two passes did: what is undone and done again may take two.
	last, before map[string]bool
}

// round notes what a pass did.
func (f *fight) round(changes []plan.Operation) {
	now := map[string]bool{}
	over := ""
	for _, o := range changes {
		text := o.String()
		now[text] = true
		if over == "" && (f.last[text] || f.before[text]) {
			over = text
		}
	}
	f.last, f.before, f.over = now, f.last, over
	if f.rounds++; over == "" {
		f.rounds = 0
	}
}
