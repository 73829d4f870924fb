package trustgraph_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

// verified is a requirement: at is verifiedByAtLeast, 0 for none.
func verified(some string, at int32, all string) v1alpha1.ImageRequirement {
	r := v1alpha1.ImageRequirement{VerifiedBy: strings.Fields(some), VerifiedByAll: strings.Fields(all)}
	if at != 0 {
		r.VerifiedByAtLeast = &at
	}
	return r
}

// TestSomeAndAllVerifiers: a accepts, c and d accept, x refuses, u could not tell, and others were not asked.
func TestSomeAndAllVerifiers(t *testing.T) {
	answers := map[string]snapshot.Verification{"a": {Accepted: true}, "c": {Accepted: true}, "d": {Accepted: true},
		"x": {Reason: "no signature"}, "y": {Reason: "no signature"}, "u": {Unknown: true, Reason: "registry is away"}}
	for name, c := range map[string]struct {
		require v1alpha1.ImageRequirement
		// refused and pending are words of the sentence; both are empty where the requirement is met.
		refused, pending string
	}{
		"one of two":                               {require: verified("x a", 0, "")},
		"one of two, said":                         {require: verified("x a", 1, "")},
		"two of three":                             {require: verified("a x c", 2, "")},
		"three of three":                           {require: verified("a c d", 3, "")},
		"two of two, of which one refuses":         {require: verified("a x", 2, ""), refused: "by fewer than 2 of the 2 verifiers of policy api: [x says: no signature]"},
		"two of three, of which two refuse":        {require: verified("a x y", 2, ""), refused: "by fewer than 2 of the 3 verifiers"},
		"two of three, of which one may yet":       {require: verified("a x u", 2, ""), pending: "u could not tell: registry is away"},
		"two of four, of which one accepts":        {require: verified("a x y u", 2, ""), pending: "u could not tell"},
		"three of four, and two refuse":            {require: verified("a x y u", 3, ""), refused: "u could not tell"},
		"all":                                      {require: verified("", 0, "a c")},
		"all, of which one refuses":                {require: verified("", 0, "a x u"), refused: "by not all verifiers of policy api"},
		"all, of which one may yet":                {require: verified("", 0, "a u"), pending: "u could not tell"},
		"all, of which one was not asked":          {require: verified("", 0, "a z"), pending: "z was not asked"},
		"all, and one of two":                      {require: verified("x c", 0, "a")},
		"all, and one of two that refuse":          {require: verified("x y", 0, "a"), refused: "by fewer than 1 of the 2 of verifiedBy"},
		"one of two, but not all":                  {require: verified("a c", 0, "x"), refused: "not all 1 verifiers of verifiedByAll"},
		"a verifier counts once":                   {require: verified("a a", 2, ""), refused: "no policy"},
		"more than there are":                      {require: verified("a", 2, ""), refused: "no policy"},
		"at least none":                            {require: verified("a", -1, ""), refused: "no policy"},
		"how many, and no verifiers":               {require: verified("", 1, "a"), refused: "no policy"},
		"a choice of eleven":                       {require: verified("a b c d e f g h i j k", 2, ""), refused: "no policy"},
		"more combinations than entries for them":  {require: digested(verified("a b c d e f g h i j", 5, ""), 2), refused: "no policy"},
		"as many combinations as may be, and less": {require: digested(verified("a c d x", 3, ""), 64)},
	} {
		t.Run(name, func(t *testing.T) {
			s := snapshottest.Demo()
			s.Policies[0].Spec.Require.Image = c.require
			image(&s, func(i *snapshot.Image) { i.Verifiers = answers })
			g := build(t, s)
			p, ok := g.Pod("payments", "api-fra-1")
			if !ok {
				t.Fatal("no such pod")
			}
			if c.refused == "no policy" {
				if len(g.Policies[0].Problems) == 0 || p.Attested {
					t.Errorf("problems %v, attested %t", g.Policies[0].Problems, p.Attested)
				}
				return
			}
			if problems := g.Policies[0].Problems; len(problems) > 0 {
				t.Fatal(problems)
			}
			why, pending := fmt.Sprint(p.Matches[0].Why), fmt.Sprint(p.Matches[0].Pending)
			if p.Attested != (c.refused == "" && c.pending == "") || !strings.Contains(why, c.refused) || !strings.Contains(pending, c.pending) ||
				(c.refused != "") != (len(p.Matches[0].Why) > 0) || (c.pending != "") != (len(p.Matches[0].Pending) > 0) {
				t.Errorf("attested %t, why %s, pending %s", p.Attested, why, pending)
			}
		})
	}
}

// digested adds digests, of which the demo's image is one.
func digested(r v1alpha1.ImageRequirement, n int) v1alpha1.ImageRequirement {
	for i := range n {
		r.Digests = append(r.Digests, snapshottest.Digest([]string{"api", fmt.Sprint(i)}[min(i, 1)]))
	}
	return r
}

// TestEachChoiceOfVerifiersIsAnAlternative: SPIRE's selectors know no "or".
func TestEachChoiceOfVerifiersIsAnAlternative(t *testing.T) {
	for name, c := range map[string]struct {
		requires []v1alpha1.ImageRequirement
		want     string
	}{
		"none":               {[]v1alpha1.ImageRequirement{{}}, "[[]]"},
		"one of two":         {[]v1alpha1.ImageRequirement{verified("b a", 0, "")}, "[[a] [b]]"},
		"two of three":       {[]v1alpha1.ImageRequirement{verified("c b a", 2, "")}, "[[a b] [a c] [b c]]"},
		"all":                {[]v1alpha1.ImageRequirement{verified("", 0, "b a b")}, "[[a b]]"},
		"all and one of two": {[]v1alpha1.ImageRequirement{verified("b c", 0, "a")}, "[[a b] [a c]]"},
		"two policies": {[]v1alpha1.ImageRequirement{verified("a b c", 2, ""), verified("", 0, "d")},
			"[[a b d] [a c d] [b c d]]"},
		"two policies with a verifier in common": {[]v1alpha1.ImageRequirement{verified("a b", 0, ""), verified("a", 0, "")}, "[[a] [a b]]"},
	} {
		t.Run(name, func(t *testing.T) {
			s := snapshottest.Demo()
			s.Policies = nil
			for i, r := range c.requires {
				p := snapshottest.API()
				p.Name, p.Spec.Require.Image = fmt.Sprint("p", i), r
				s.Policies = append(s.Policies, p)
			}
			i := slices.IndexFunc(build(t, s).Identities, func(id trustgraph.Identity) bool { return id.ServiceAccount == "api" })
			if got := fmt.Sprint(build(t, s).Identities[i].Verifiers); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

func TestEveryNamedVerifierIsAsked(t *testing.T) {
	s := snapshottest.Demo()
	s.Policies[0].Spec.Require.Image = verified("b c", 2, "a b")
	for _, q := range trustgraph.ImageQuestions(s) {
		if q.Namespace == "payments" && !slices.Equal(q.Verifiers, []string{"a", "b", "c"}) {
			t.Errorf("asks %v of %s", q.Verifiers, q.ImageID)
		}
	}
}
