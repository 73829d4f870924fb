package trustgraph

import (
	"encoding/json"
	"fmt"

	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// maxKept is how large a spec may be as JSON to be kept in the status, beside the policy's own: etcd takes 1.5 MiB in all.
const maxKept = 512 << 10

// inForce decides which of a policy's specs is in force. A slip of the pen must not take what runs: while the present spec has
// problems, the last one that had none stays in force, as far as this version accepts it.
func inForce(p *Policy, tp *v1alpha1.TrustPolicy) {
	p.Problems = problems(tp)
	last := tp.Status.LastAccepted
	if last != nil && last.Generation > tp.Generation {
		last = nil // not a spec that this policy had
	}
	if len(p.Problems) == 0 {
		p.Accepted = true
		p.LastAccepted = kept(p, tp, last)
		return
	}
	if last == nil {
		return
	}
	p.LastAccepted = last
	before := tp.DeepCopy()
	before.Spec = *last.Spec.DeepCopy()
	if more := problems(before); len(more) > 0 {
		p.Notes = append(p.Notes, fmt.Sprintf("generation %d was accepted before and is not any more, so no spec is in force: %s", last.Generation, joined(more)))
		return
	}
	p.Accepted, p.Spec = true, before.Spec
	p.Notes = append(p.Notes, fmt.Sprintf("generation %d is refused; generation %d, the last one that was accepted, stays in force", tp.Generation, last.Generation))
}

// kept is what the status should keep of a spec that is accepted now.
func kept(p *Policy, tp *v1alpha1.TrustPolicy, last *v1alpha1.AcceptedSpec) *v1alpha1.AcceptedSpec {
	if last != nil && last.Generation == tp.Generation && equality.Semantic.DeepEqual(last.Spec, tp.Spec) {
		return last
	}
	if raw, err := json.Marshal(tp.Spec); err != nil || len(raw) > maxKept {
		p.Notes = append(p.Notes, fmt.Sprintf("the spec has more than %d KiB, so it is not kept: an edit with a problem would put the policy out of force", maxKept>>10))
		return nil
	}
	return &v1alpha1.AcceptedSpec{Generation: tp.Generation, Spec: *tp.Spec.DeepCopy()}
}
