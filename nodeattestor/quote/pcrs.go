package quote

import (
	"bytes"
	"maps"
	"slices"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// PCRs are quoted PCR values by bank. The zero value holds none. Only Verify makes
// values and only Merge joins them, so whoever holds PCRs holds proof.
type PCRs struct {
	banks map[nodeclaim.HashAlg]map[int][]byte
}

// Value is a copy of the quoted value of one PCR, and whether that PCR of that bank was
// quoted at all. There is no default bank: the same index in another bank is another PCR.
func (p PCRs) Value(bank nodeclaim.HashAlg, index int) ([]byte, bool) {
	v, ok := p.banks[bank][index]
	return bytes.Clone(v), ok
}

// Banks lists the quoted banks, ascending by TPM_ALG_ID (weakest first).
func (p PCRs) Banks() []nodeclaim.HashAlg { return slices.Sorted(maps.Keys(p.banks)) }

// Indices lists the quoted PCRs of a bank, ascending; none when it was not quoted.
func (p PCRs) Indices(bank nodeclaim.HashAlg) []int { return slices.Sorted(maps.Keys(p.banks[bank])) }

// All is a deep copy by bank and index, for claims and reports.
func (p PCRs) All() map[nodeclaim.HashAlg]map[int][]byte {
	out := make(map[nodeclaim.HashAlg]map[int][]byte, len(p.banks))
	for bank, values := range p.banks {
		out[bank] = make(map[int][]byte, len(values))
		for i, v := range values {
			out[bank][i] = bytes.Clone(v)
		}
	}
	return out
}

// Merge joins the quotes of one challenge, one for each bank. Two quotes of one bank are
// refused: they may stand for two moments, and nothing says which one counts.
func Merge(parts ...PCRs) (PCRs, error) {
	out := PCRs{banks: map[nodeclaim.HashAlg]map[int][]byte{}}
	for _, p := range parts {
		for bank, values := range p.All() {
			if _, ok := out.banks[bank]; ok {
				return PCRs{}, refuse("bank", "bank %s was quoted twice", bank)
			}
			out.banks[bank] = values
		}
	}
	return out, nil
}
