package ima

import (
	"encoding/hex"
	"slices"
	"strings"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

const bootAggregate = "boot_aggregate"

// checkAggregate recomputes boot_aggregate from quoted PCRs: the hash over PCRs 0 to 9 of the bank of
// its own algorithm, 0 to 7 for SHA-1 (Linux ima_calc_boot_aggregate_tfm, 5.8 and later). Every
// entry of that name must have it; a kexec adds another.
//
// The kernel computes it before user space begins, which may extend these PCRs since (systemd 261 does). So one that the quoted
// values do not give is kept as doubtful, and refused by Finish unless Booted explains it.
func (r *Replayer) checkAggregate(e Entry) error {
	if e.Violation {
		return refuse("aggregate", "entry %d: boot_aggregate is a violation", e.Index)
	}
	for _, alg := range nodeclaim.HashAlgs() {
		sum, ok := cutAlg(e.Digest, alg)
		if !ok {
			continue
		}
		want, err := aggregate(r.pcrs.Value, alg)
		if err != nil {
			return err
		}
		if !slices.Contains(r.aggregates, e.Digest) {
			if len(r.aggregates) == maxAggregates {
				return refuse("aggregate", "entry %d: more than the %d different boot_aggregates allowed", e.Index, maxAggregates)
			}
			r.aggregates = append(r.aggregates, strings.Clone(e.Digest))
			if sum != want {
				r.doubtful = append(r.doubtful, doubt{alg, sum, refuse("aggregate", "entry %d: boot_aggregate is %s, the quoted PCRs give %s: the list is of another boot, or was rewound", e.Index, sum, want)})
			}
		}
		return nil
	}
	return refuse("aggregate", "entry %d: boot_aggregate %.100q has an algorithm that no PCR bank has", e.Index, e.Digest)
}

// maxAggregates bounds how many different ones a list may have; each kexec could add one.
const maxAggregates = 16

// doubt is a boot_aggregate that the quoted PCRs do not give.
type doubt struct {
	alg nodeclaim.HashAlg
	sum string
	why *nodeclaim.Refusal
}

// Doubtful tells whether the list has a boot_aggregate that the quoted PCRs do not give, and that Booted may explain.
func (r *Replayer) Doubtful() bool { return r.err == nil && len(r.doubtful) > 0 }

// Booted tells what PCRs stood at when user space began, as something else has proven it (eventlog.Boot.Booted): what
// boot_aggregate is over.
func (r *Replayer) Booted(value func(alg nodeclaim.HashAlg, pcr int) ([]byte, bool)) {
	r.doubtful = slices.DeleteFunc(r.doubtful, func(d doubt) bool {
		want, err := aggregate(value, d.alg)
		return err == nil && d.sum == want
	})
}

func cutAlg(digest string, alg nodeclaim.HashAlg) (string, bool) {
	prefix := alg.String() + ":"
	if len(digest) > len(prefix) && digest[:len(prefix)] == prefix {
		return digest[len(prefix):], true
	}
	return "", false
}

func aggregate(value func(alg nodeclaim.HashAlg, pcr int) ([]byte, bool), alg nodeclaim.HashAlg) (string, error) {
	h, last := alg.New(), 9
	if alg == nodeclaim.SHA1 {
		last = 7
	}
	for i := range last + 1 {
		v, ok := value(alg, i)
		if !ok {
			return "", refuse("aggregate", "boot_aggregate is of bank %s, whose PCR %d was not quoted: quote PCRs 0 to %d of it", alg, i, last)
		}
		h.Write(v)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
