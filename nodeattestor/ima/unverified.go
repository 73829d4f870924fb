package ima

import (
	"bytes"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// Unverified computes PCR 10 of one bank after each prefix of a list, from the list alone: first the
// reset value, then one value an entry. A quote over one of them proves the entries up to there; nothing
// else does. It ends, without an error, at the first entry that cannot be read or that exceeds
// the limits: nothing after it can be proven either.
func Unverified(list []byte, alg nodeclaim.HashAlg, opt Options) [][]byte {
	if opt.Limits == (Limits{}) {
		opt.Limits = DefaultLimits()
	}
	b := newRunning(alg, nil)
	values := [][]byte{bytes.Clone(b.value())}
	for len(values) <= opt.Limits.Entries {
		raw, n, err := cut(list, opt.Limits.Entry)
		if err != nil || n == 0 {
			return values
		}
		list = list[n:]
		b.extend(&raw, nil, opt.PaddedSHA1)
		values = append(values, bytes.Clone(b.value()))
	}
	return values
}

// Inspect finds the first entry of a list that no kernel can have written: unreadable, or with data that
// differ from its recorded hash. It proves nothing about a list that it passes: root can write a
// consistent one. It serves to say what is wrong with a list that a quote does not cover.
func Inspect(list []byte, opt Options) error {
	_, err := inspect(list, opt)
	return err
}

// ClaimedAggregate is the boot_aggregate that a list begins with ("sha256:hex"), unproven.
func ClaimedAggregate(list []byte, opt Options) (string, bool) {
	first, _ := inspect(list, opt)
	return first.Digest, IsBootAggregate(first)
}

// inspect reads entries and is the first of them, with the error of the first bad one.
func inspect(list []byte, opt Options) (first Entry, err error) {
	if opt.Limits == (Limits{}) {
		opt.Limits = DefaultLimits()
	}
	reader := newEntryReader()
	for i := 0; len(list) > 0; i++ {
		raw, n, err := cut(list, opt.Limits.Entry)
		if err != nil {
			return first, refuse("format", "entry %d: %v", i, err)
		}
		if n == 0 {
			return first, refuse("format", "the list ends inside entry %d: it was cut", i)
		}
		if i >= opt.Limits.Entries {
			return first, refuse("limit", "the list has more than the %d entries allowed", opt.Limits.Entries)
		}
		v, err := reader.parse(raw, i)
		if err != nil {
			return first, err
		}
		if i == 0 {
			first = v.Entry()
		}
		if i == 0 && string(v.Path) != bootAggregate {
			return first, errTrimmed(v)
		}
		reader.reset()
		list = list[n:]
	}
	return first, nil
}
