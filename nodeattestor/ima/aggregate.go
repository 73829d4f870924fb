package ima

import (
	"encoding/hex"
	"slices"
	"strings"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/quote"
)

const bootAggregate = "boot_aggregate"

// checkAggregate recomputes boot_aggregate from quoted PCRs: the hash over PCRs 0 to 9 of the bank of
// its own algorithm, 0 to 7 for SHA-1 (Linux ima_calc_boot_aggregate_tfm, 5.8 and later). Every
// entry of that name must have it; a kexec adds another.
func (r *Replayer) checkAggregate(e Entry) error {
	if e.Violation {
		return refuse("aggregate", "entry %d: boot_aggregate is a violation", e.Index)
	}
	for _, alg := range nodeclaim.HashAlgs() {
		sum, ok := cutAlg(e.Digest, alg)
		if !ok {
			continue
		}
		want, err := aggregate(r.pcrs, alg)
		if err != nil {
			return err
		}
		if sum != want {
			return refuse("aggregate", "entry %d: boot_aggregate is %s, the quoted PCRs give %s: the list is of another boot, or was rewound", e.Index, sum, want)
		}
		if !slices.Contains(r.aggregates, e.Digest) {
			r.aggregates = append(r.aggregates, strings.Clone(e.Digest))
		}
		return nil
	}
	return refuse("aggregate", "entry %d: boot_aggregate %.100q has an algorithm that no PCR bank has", e.Index, e.Digest)
}

func cutAlg(digest string, alg nodeclaim.HashAlg) (string, bool) {
	prefix := alg.String() + ":"
	if len(digest) > len(prefix) && digest[:len(prefix)] == prefix {
		return digest[len(prefix):], true
	}
	return "", false
}

func aggregate(pcrs quote.PCRs, alg nodeclaim.HashAlg) (string, error) {
	h, last := alg.New(), 9
	if alg == nodeclaim.SHA1 {
		last = 7
	}
	for i := range last + 1 {
		v, ok := pcrs.Value(alg, i)
		if !ok {
			return "", refuse("aggregate", "boot_aggregate is of bank %s, whose PCR %d was not quoted: quote PCRs 0 to %d of it", alg, i, last)
		}
		h.Write(v)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
