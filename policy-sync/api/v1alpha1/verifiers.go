package v1alpha1

import "slices"

// Verifiers are the names of every verifier that the requirement asks, sorted, each once.
func (r ImageRequirement) Verifiers() []string {
	out := slices.Concat(r.VerifiedBy, r.VerifiedByAll)
	slices.Sort(out)
	return slices.Compact(out)
}

// AtLeast is how many of VerifiedBy have to accept the image; 0 where VerifiedBy names none.
func (r ImageRequirement) AtLeast() int {
	switch {
	case len(r.VerifiedBy) == 0:
		return 0
	case r.VerifiedByAtLeast == nil:
		return 1
	default:
		return int(*r.VerifiedByAtLeast)
	}
}
