package trustgraph

import (
	"fmt"
	"slices"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

// judgeVerifiers says whether enough verifiers accept an image: each of verifiedByAll, and as many different ones of verifiedBy
// as the policy asks. It is refused once so many have refused it that the others could not be enough, and unknown as long as those
// that have not answered could be.
func (b *builder) judgeVerifiers(req v1alpha1.ImageRequirement, image snapshot.Image) (reasons []string, is state) {
	all, rAll := b.count(req.VerifiedByAll, image)
	some, rSome := b.count(req.VerifiedBy, image)
	reasons = sorted(slices.Concat(rAll, rSome))
	need := req.AtLeast()
	switch {
	case all.refused == 0 && all.unknown == 0 && some.accepted >= need:
		return nil, met
	case all.refused > 0 || some.accepted+some.unknown < need:
		return reasons, refused
	default:
		return reasons, unknown
	}
}

// tally counts verifiers by their answers.
type tally struct{ accepted, unknown, refused int }

// count counts the answers of verifiers, each once, and says why those that do not accept do not.
func (b *builder) count(names []string, image snapshot.Image) (t tally, reasons []string) {
	for _, name := range sorted(slices.Clone(names)) {
		v, asked := image.Verifiers[name]
		switch {
		case !asked:
			t.unknown++
			reasons = append(reasons, name+" was not asked")
		case v.Unknown:
			t.unknown++
			reasons = append(reasons, name+" could not tell: "+v.Reason)
		case !v.Accepted:
			t.refused++
			reasons = append(reasons, name+" says: "+v.Reason)
		case !v.ValidUntil.IsZero() && !b.s.At.Before(v.ValidUntil):
			t.refused++
			reasons = append(reasons, name+"'s acceptance has expired")
		default:
			t.accepted++
			b.changesAt(v.ValidUntil)
		}
	}
	return t, reasons
}

// tooFew says by whom an image is not accepted.
func tooFew(req v1alpha1.ImageRequirement) string {
	switch {
	case len(req.VerifiedByAll) == 0 && req.AtLeast() == 1:
		return "none of the verifiers"
	case len(req.VerifiedByAll) == 0:
		return fmt.Sprintf("fewer than %d of the %d verifiers", req.AtLeast(), len(req.VerifiedBy))
	case req.AtLeast() == 0:
		return "not all verifiers"
	default:
		return fmt.Sprintf("not all %d verifiers of verifiedByAll, or by fewer than %d of the %d of verifiedBy,",
			len(req.VerifiedByAll), req.AtLeast(), len(req.VerifiedBy))
	}
}

// verifierSets lists the smallest sets of verifiers that are enough for the requirement, sorted; one empty set where it asks none.
// The policy has no problems, so there are at most MaxAlternatives.
func verifierSets(req v1alpha1.ImageRequirement) [][]string {
	sets := [][]string{sorted(slices.Clone(req.VerifiedByAll))}
	if need := req.AtLeast(); need > 0 {
		sets = alternatives(sets, combinations(sorted(slices.Clone(req.VerifiedBy)), need))
	}
	return sets
}

// combinations lists the subsets of k of the names.
func combinations(names []string, k int) [][]string {
	if k == 0 {
		return [][]string{nil}
	}
	var out [][]string
	for i := 0; i+k <= len(names); i++ {
		for _, rest := range combinations(names[i+1:], k-1) {
			out = append(out, append([]string{names[i]}, rest...))
		}
	}
	return out
}

// choices counts the subsets by which verifiedBy can be met, as the schema does: verifiedBy alone may name one twice.
func choices(req v1alpha1.ImageRequirement) int {
	n, k := len(req.VerifiedBy), req.AtLeast()
	if k <= 1 || k > n || n > v1alpha1.MaxChosenVerifiers {
		return max(1, n)
	}
	out := 1
	for i := 1; i <= k; i++ {
		out = out * (n - k + i) / i
	}
	return out
}

// checkVerifiers checks the names, and that verifiedByAtLeast can be met by so many different verifiers.
func checkVerifiers(add adder, r v1alpha1.ImageRequirement) {
	check := func(where string, names []string) {
		for _, v := range names {
			if _, err := workloadclaim.NewSelector(workloadclaim.KindSignedBy, v); err != nil {
				add("require.image.%s: %.80q is no verifier's name: %v", where, v, err)
			}
		}
	}
	check("verifiedBy", r.VerifiedBy)
	check("verifiedByAll", r.VerifiedByAll)
	if r.VerifiedByAtLeast == nil {
		return
	}
	k, n := int(*r.VerifiedByAtLeast), len(r.VerifiedBy)
	if k < 1 || k > v1alpha1.MaxChosenVerifiers {
		add("require.image.verifiedByAtLeast: %d is outside 1 to %d", k, v1alpha1.MaxChosenVerifiers)
	}
	if k > n {
		add("require.image.verifiedByAtLeast: %d is more than the %d verifiers that verifiedBy names", k, n)
	}
	if n > v1alpha1.MaxChosenVerifiers || len(sorted(slices.Clone(r.VerifiedBy))) < n {
		add("require.image.verifiedBy: with verifiedByAtLeast, at most %d verifiers, each once; where all have to accept, use verifiedByAll",
			v1alpha1.MaxChosenVerifiers)
	}
}
