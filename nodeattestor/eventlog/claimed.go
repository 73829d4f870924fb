package eventlog

import (
	"slices"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// Claimed is what one bank of a log says about a boot, with no quote to prove any of it.
// It is for people: nothing may be decided by it.
type Claimed struct {
	// Facts are the ones that Replay would prove if a quote covered exactly PCRs, without those of WithOSExtended.
	Facts Facts
	// PCRs are the values that the log's events lead to, of PCRs 0 to 23.
	PCRs   map[int][]byte
	Events []Entry
	// Problems are what Replay would refuse the log for in any case.
	Problems nodeclaim.Refusals
}

// Claimed reads one bank of the log as if it were true. The node, or whoever made the
// file, controls all of it; what a digest in the log confirms is only as true as that digest.
func (l Log) Claimed(alg nodeclaim.HashAlg) (Claimed, error) {
	values, err := l.Unverified(alg)
	if err != nil {
		return Claimed{}, err
	}
	var all []int
	for i := range nodeclaim.MaxPCR + 1 {
		if !slices.Contains(l.osExtended, i) {
			all = append(all, i)
		}
	}
	m := newMeasured(l, alg, all, nil)
	m.unreplayed = l.osExtended
	c := Claimed{PCRs: values, Events: m.entries()}
	c.Facts, c.Problems = m.facts()
	return c, nil
}
