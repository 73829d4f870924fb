package nodeclaim_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

func claims() nodeclaim.Claims {
	return nodeclaim.Claims{
		EK: nodeclaim.EKHash{1}, Manufacturer: "id:53544D20", Node: "fra-1", Reference: "prod",
		SecureBoot: nodeclaim.True, IMA: nodeclaim.IMAClean, Tags: map[string]string{"Country": "DE", "rack": "r-1"},
		PCRs: map[nodeclaim.HashAlg]map[int][]byte{nodeclaim.SHA256: {7: {0xab}}},
	}
}

func TestSelectorsAreSortedLowerCaseAndOnlyOfProvedFacts(t *testing.T) {
	got, err := claims().Selectors([]nodeclaim.Selection{{Bank: nodeclaim.SHA256, PCRs: []int{7}}})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"ek:sha256:01" + strings.Repeat("00", 31), "ima:clean", "node:fra-1", "pcr:sha256:7:ab", "ref:prod",
		"secureboot:true", "tag:country:de", "tag:rack:r-1", "tpm:manufacturer:id:53544d20",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if !slices.IsSorted(got) {
		t.Error("not sorted")
	}
	weak, err := nodeclaim.Claims{Weak: true}.Selectors(nil)
	if err != nil || len(weak) != 2 || weak[1] != "weak:true" {
		t.Errorf("claims that rest on SHA-1 give %v, %v; want weak:true beside the EK", weak, err)
	}
	bare, err := nodeclaim.Claims{}.Selectors(nil)
	if err != nil || len(bare) != 1 {
		t.Errorf("claims that prove nothing give %v, %v; want the EK alone", bare, err)
	}
}

func TestSelectorsAreRefused(t *testing.T) {
	many := claims()
	for i := range nodeclaim.SelectorLimit {
		many.Tags[fmt.Sprintf("k%d", i)] = "v"
	}
	if _, err := many.Selectors(nil); err == nil || !strings.Contains(err.Error(), "64") {
		t.Errorf("too many selectors: %v", err)
	}
	if _, err := claims().Selectors([]nodeclaim.Selection{{Bank: nodeclaim.SHA1, PCRs: []int{7}}}); err == nil {
		t.Error("a PCR that was not quoted became a selector")
	}
}

func TestSelectionRules(t *testing.T) {
	cases := map[string]struct {
		s    nodeclaim.Selection
		want string
	}{
		"unknown bank":      {nodeclaim.Selection{Bank: 9, PCRs: []int{1}}, "bank 0x0009 is unknown"},
		"no PCR":            {nodeclaim.Selection{Bank: nodeclaim.SHA256}, "selects no PCR"},
		"an index too high": {nodeclaim.Selection{Bank: nodeclaim.SHA256, PCRs: []int{24}}, "24 is outside"},
		"a negative index":  {nodeclaim.Selection{Bank: nodeclaim.SHA256, PCRs: []int{-1}}, "-1 is outside"},
		"a repeat":          {nodeclaim.Selection{Bank: nodeclaim.SHA256, PCRs: []int{1, 1}}, "not ascending at 1"},
		"descending":        {nodeclaim.Selection{Bank: nodeclaim.SHA256, PCRs: []int{2, 1}}, "not ascending at 1"},
		"right":             {nodeclaim.Selection{Bank: nodeclaim.SHA384, PCRs: []int{0, 23}}, ""},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			err := tc.s.Validate()
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestHashAlgorithmsRoundTrip(t *testing.T) {
	for _, a := range nodeclaim.HashAlgs() {
		back, err := nodeclaim.ParseHashAlg(a.String())
		if err != nil || back != a || a.New().Size() != a.Size() || !a.Valid() {
			t.Errorf("%s does not survive a round trip: %s, %v", a, back, err)
		}
	}
	if _, err := nodeclaim.ParseHashAlg("md5"); err == nil {
		t.Error("md5 was accepted")
	}
	if a := nodeclaim.HashAlg(0x1234); a.Valid() || a.Size() != 0 || a.String() != "0x1234" {
		t.Error("an unknown algorithm passes for a known one")
	}
}

func TestEKHashHasOneSpelling(t *testing.T) {
	good := strings.Repeat("ab", 32)
	if h, err := nodeclaim.ParseEKHash(good); err != nil || h.String() != good {
		t.Errorf("%s: %v", h, err)
	}
	for _, bad := range []string{"", good[:62], good + "00", strings.ToUpper(good), strings.Repeat("zz", 32)} {
		if _, err := nodeclaim.ParseEKHash(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestRefusalsAreToldFromOtherErrors(t *testing.T) {
	one := nodeclaim.Refuse("a.b", "why")
	cases := map[string]struct {
		err  error
		want int
	}{
		"one":           {fmt.Errorf("while: %w", one), 1},
		"many":          {nodeclaim.Refusals{*one, *one}, 2},
		"another error": {errors.New("disk full"), 0},
		"none":          {nil, 0},
	}
	for name, tc := range cases {
		if got := len(nodeclaim.AsRefusals(tc.err)); got != tc.want {
			t.Errorf("%s: %d refusals, want %d", name, got, tc.want)
		}
	}
}
