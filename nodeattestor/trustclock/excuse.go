package trustclock

import (
	"fmt"
	"slices"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// dated are the checks that compare a validity with the time.
var dated = []string{"reference.expired", "reference.notyet", "tag.expired", "tag.notyet"}

// Excuse says why refusals prove nothing about a machine: nothing but the time speaks against it, and the clock that
// they were judged by was set. It is nil where they prove something, and where nothing was refused.
func Excuse(refusals nodeclaim.Refusals, r Reading) error {
	other := func(r nodeclaim.Refusal) bool { return !slices.Contains(dated, r.Check) }
	if len(refusals) == 0 || slices.ContainsFunc(refusals, other) || r.Step.Abs() <= MaxStep {
		return nil
	}
	return fmt.Errorf("the server's clock was set by %s while it runs, so that being out of date proves nothing; set it right and start the server again", r.Step)
}
