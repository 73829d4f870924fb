package ima

import (
	"encoding/hex"
	"strings"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

const bootAggregate = "boot_aggregate"

// checkAggregate recomputes the list's first entry from quoted PCRs: the hash over PCRs 0 to 9 of the bank of
// its own algorithm, 0 to 7 for SHA-1 (Linux ima_calc_boot_aggregate_tfm, 5.8 and later). That the
// list is of this boot rests on it.
//
// The kernel computes it before user space begins, which may extend these PCRs since (systemd 261 does). So one that the quoted
// values do not give is kept as doubtful, and refused by Finish unless Booted explains it.
func (r *Replayer) checkAggregate(e Entry) error {
	switch {
	case e.Violation:
		return refuse("aggregate", "entry %d: boot_aggregate is a violation", e.Index)
	case e.Unknown:
		return refuse("aggregate", "entry %d: boot_aggregate is all zeros: IMA started before the TPM's driver (the kernel's log says TPM-bypass); build the driver into the kernel", e.Index)
	}
	alg, sum, ok := aggregateAlg(e.Digest)
	if !ok {
		return refuse("aggregate", "entry %d: boot_aggregate %.100q has an algorithm that no PCR bank has", e.Index, e.Digest)
	}
	want, err := aggregate(r.pcrs.Value, alg)
	if err != nil {
		return err
	}
	r.aggregate = strings.Clone(e.Digest)
	if sum != want {
		r.doubtful = &doubt{alg, sum, refuse("aggregate", "entry %d: boot_aggregate is %s, the quoted PCRs give %s: the list is of another boot, or was rewound", e.Index, sum, want)}
	}
	return nil
}

// restarted tells whether a later entry named boot_aggregate is one: what the quoted PCRs give, or what the first entry has.
// A kernel that kexec started writes such an entry. Anybody can have the kernel write another one, since a file
// of that name below a path longer than PATH_MAX is measured by its bare name (Linux ima_d_path). So what the PCRs do
// not give is a file's entry.
func (r *Replayer) restarted(v *View) bool {
	digest := v.digest()
	alg, sum, ok := aggregateAlg(digest)
	if !ok {
		return false
	}
	if digest == r.aggregate {
		return true
	}
	if r.gives == nil {
		r.gives = map[nodeclaim.HashAlg]string{}
	}
	want, known := r.gives[alg]
	if !known {
		want, _ = aggregate(r.pcrs.Value, alg) // "" where its PCRs were not quoted
		r.gives[alg] = want
	}
	return sum == want
}

// aggregateAlg takes a digest apart that is of a PCR bank's algorithm.
func aggregateAlg(digest string) (nodeclaim.HashAlg, string, bool) {
	for _, alg := range nodeclaim.HashAlgs() {
		if sum, ok := cutAlg(digest, alg); ok {
			return alg, sum, true
		}
	}
	return 0, "", false
}

// doubt is a boot_aggregate that the quoted PCRs do not give.
type doubt struct {
	alg nodeclaim.HashAlg
	sum string
	why *nodeclaim.Refusal
}

// Doubtful tells whether the list begins with a boot_aggregate that the quoted PCRs do not give, and that Booted may explain.
func (r *Replayer) Doubtful() bool { return r.err == nil && r.doubtful != nil }

// Booted tells what PCRs stood at when user space began, as something else has proven it (eventlog.Boot.Booted): what
// boot_aggregate is over.
func (r *Replayer) Booted(value func(alg nodeclaim.HashAlg, pcr int) ([]byte, bool)) {
	if r.doubtful == nil {
		return
	}
	if want, err := aggregate(value, r.doubtful.alg); err == nil && r.doubtful.sum == want {
		r.doubtful = nil
	}
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
