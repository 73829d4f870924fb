package ima

import "github.com/keelson-project/keelson/nodeattestor/nodeclaim"

// Unverified computes PCR 10 of one bank after each prefix of a list, from the list alone: first the
// reset value, then one value an entry. A quote over one of them proves the entries up to there; nothing
// else does. It ends, without an error, at the first entry that cannot be read or that exceeds
// the limits: nothing after it can be proven either.
func Unverified(list []byte, alg nodeclaim.HashAlg, opt Options) [][]byte {
	if opt.Limits == (Limits{}) {
		opt.Limits = DefaultLimits()
	}
	b := &running{alg: alg, value: make([]byte, alg.Size())}
	values := [][]byte{b.value}
	for len(values) <= opt.Limits.Entries {
		raw, n, err := cut(list, opt.Limits.Entry)
		if err != nil || n == 0 {
			return values
		}
		list = list[n:]
		b.extend(raw, opt.PaddedSHA1)
		values = append(values, b.value)
	}
	return values
}
