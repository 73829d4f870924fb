package ima

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/quote"
)

// Options say how a list is to be read. They come from the server's configuration.
type Options struct {
	// PaddedSHA1 is for kernels before 5.8: they extend every bank with the SHA-1 of an entry,
	// padded with zeros, and boot_aggregate is SHA-1 over PCRs 0 to 7 of the SHA-1 bank, which must
	// then be quoted too. Weak.
	PaddedSHA1 bool
	// Limits; the zero value means DefaultLimits.
	Limits Limits
}

// Replayer reads a measurement list and replays it to quoted PCR 10. Make one with
// NewReplayer, NewStream or Resume, write the list in chunks of any size, then Finish.
type Replayer struct {
	opt       Options
	pcrs      quote.PCRs
	visit     func([]View)
	recall    func([]View) // looks entries up in books; nil where there are none
	banks     []*running
	reader    *entryReader
	reached   bool
	err       error
	held      error                        // what is wrong with the entry after those that were read and not yet extended
	pending   []byte                       // an entry that has not wholly arrived
	total     int64                        // bytes of the list written, those before a resumed state included
	offset    int64                        // where the last entry ended, in bytes of the list
	aggregate string                       // digest of the first entry, the boot_aggregate
	doubtful  *doubt                       // whether it is of this boot
	gives     map[nodeclaim.HashAlg]string // the boot_aggregates of the quoted PCRs, as they were needed
	result    Result
}

// running is one quoted bank's PCR 10 as replayed so far.
type running struct {
	alg    nodeclaim.HashAlg
	size   int
	hash   hash.Hash
	both   []byte // the value, then the digest that extends it
	quoted []byte
}

func newRunning(alg nodeclaim.HashAlg, quoted []byte) *running {
	return &running{alg: alg, size: alg.Size(), hash: alg.New(), both: make([]byte, 2*alg.Size()), quoted: quoted}
}

func (b *running) value() []byte  { return b.both[:b.size] }
func (b *running) digest() []byte { return b.both[b.size:] }

// NewReplayer replays to PCR 10 as it stands in every bank of pcrs that has it, and keeps every
// entry.
func NewReplayer(pcrs quote.PCRs, opt Options) *Replayer {
	r := newReplayer(pcrs, opt)
	r.visit = func(views []View) {
		for i := range views {
			r.result.Entries = append(r.result.Entries, views[i].Entry())
		}
	}
	r.check()
	return r
}

// NewStream is NewReplayer for lists too long to keep: it lends the entries to visit, in order and
// some at a time, and keeps none. What visit learns is unproven until Finish has succeeded.
func NewStream(pcrs quote.PCRs, opt Options, visit func([]View)) *Replayer {
	r := newReplayer(pcrs, opt)
	r.visit = visit
	r.check()
	return r
}

// Recall has the replay call look with entries before it hashes them, some at a time and in order,
// so that it can look them up in books (Book.Find); those beyond the quoted PCR 10 may be among
// them. It returns the replayer.
func (r *Replayer) Recall(look func([]View)) *Replayer {
	r.recall = look
	return r
}

func newReplayer(pcrs quote.PCRs, opt Options) *Replayer {
	if opt.Limits == (Limits{}) {
		opt.Limits = DefaultLimits()
	}
	r := &Replayer{opt: opt, pcrs: pcrs, reader: newEntryReader()}
	r.result.Weak = true
	for _, alg := range pcrs.Banks() {
		if v, ok := pcrs.Value(alg, PCR); ok {
			r.banks = append(r.banks, newRunning(alg, v))
			r.result.Weak = r.result.Weak && (alg.Weak() || opt.PaddedSHA1)
		}
	}
	if len(r.banks) == 0 {
		r.err = refuse("unquoted", "PCR %d was not quoted, so the list proves nothing: quote it", PCR)
	}
	return r
}

// Write takes the next bytes of the list. It fails as soon as an entry cannot be right, with a
// *nodeclaim.Refusal; it then takes nothing more. Bytes after quoted PCR 10 are counted and
// dropped.
func (r *Replayer) Write(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	r.total += int64(len(p))
	if r.total > r.opt.Limits.Total {
		r.err = refuse("limit", "the list has more than the %d bytes allowed", r.opt.Limits.Total)
		return 0, r.err
	}
	rest := r.complete(p)
	for !r.reached && r.err == nil {
		n := r.read(rest)
		if len(r.reader.views) == 0 && r.held == nil {
			break
		}
		r.extend()
		rest = rest[n:]
	}
	if r.err != nil {
		return 0, r.err
	}
	if r.reached {
		r.result.Unproven = r.total - r.offset
		return len(p), nil
	}
	r.pending = append(r.pending, rest...)
	return len(p), nil
}

// complete adds to the entry that an earlier Write ended in as much of p as it lacks, and returns
// the rest of p. All others are read where they stand.
func (r *Replayer) complete(p []byte) []byte {
	had := len(r.pending)
	if had == 0 || r.reached {
		return p
	}
	const step = 512 // most entries are shorter
	for took := 0; took < len(p); {
		n := min(max(step, took), len(p)-took)
		r.pending = append(r.pending, p[took:took+n]...)
		took += n
		if n := r.read(r.pending); n > 0 || r.held != nil {
			r.extend()
			r.pending = r.pending[:0]
			return p[max(n-had, 0):]
		}
	}
	return nil
}

// read reads as many whole entries of b as a batch has room for, and returns their size. What is
// wrong with the entry after them is held back: it counts only if these do not reach quoted PCR 10.
func (r *Replayer) read(b []byte) (size int) {
	for len(r.reader.views) < batch {
		at, i := len(r.reader.views), r.result.Count+len(r.reader.views)
		raw, n, err := cut(b[size:], r.opt.Limits.Entry)
		switch {
		case err != nil:
			r.held = refuse("format", "entry %d: %v", i, err)
			return size
		case n == 0:
			return size
		case i >= r.opt.Limits.Entries:
			r.held = refuse("limit", "the list has more than the %d entries allowed", r.opt.Limits.Entries)
			return size
		}
		if _, err := r.reader.read(raw, i); err != nil {
			r.held = err
			return size
		}
		r.reader.raws[at], r.reader.sizes[at] = raw, n
		size += n
	}
	return size
}

// extend checks and extends the entries that were read, up to quoted PCR 10, and shows them to the
// visitor. Nothing that was read outlives it.
func (r *Replayer) extend() {
	views := r.reader.views
	if r.recall != nil && len(views) > 0 {
		r.recall(views)
	}
	n := 0
	for n < len(views) && !r.reached && r.err == nil {
		r.err = r.entry(&views[n], &r.reader.raws[n])
		r.offset += int64(r.reader.sizes[n])
		n++
	}
	if r.err == nil && n > 0 {
		r.visit(views[:n])
	}
	if r.err == nil && !r.reached {
		r.err = r.held
	}
	r.held = nil
	r.reader.reset()
}

// Reached tells whether quoted PCR 10 has been reached, so that no more of the list is needed.
func (r *Replayer) Reached() bool { return r.reached && r.err == nil }

// entry checks and extends one entry.
func (r *Replayer) entry(v *View, raw *rawEntry) error {
	if err := checkRecorded(raw, v, v.Index); err != nil {
		return err
	}
	if v.Index == 0 {
		if string(v.Path) != bootAggregate {
			return errTrimmed(v)
		}
		if err := r.checkAggregate(v.Entry()); err != nil {
			return err
		}
	} else if v.IsBootAggregate() {
		v.NamedOnly = !r.restarted(v)
	}
	for _, b := range r.banks {
		b.extend(raw, v.recalled, r.opt.PaddedSHA1)
	}
	if v.Violation {
		r.result.Violations++
	}
	r.result.Count++
	r.check()
	return nil
}

func errTrimmed(v *View) error {
	return refuse("trimmed", "entry 0 is %.100q and not %s: the beginning of the list is missing (trimmed, or read from an offset)", v.Path, bootAggregate)
}

// check notes when every quoted bank stands at its quoted value, all at the same entry.
func (r *Replayer) check() {
	for _, b := range r.banks {
		if !bytes.Equal(b.value(), b.quoted) {
			return
		}
	}
	r.reached = len(r.banks) > 0
}

// extend adds an entry to a bank (Linux security/integrity/ima: ima_queue.c, ima_crypto.c). A
// violation extends all ones; else the SHA-1 bank takes the recorded SHA-1, others their own hash
// of the template data, or before Linux 5.8 the SHA-1 padded with zeros. recalled is that hash
// where it is known, else nil.
func (b *running) extend(raw *rawEntry, recalled *sums, padded bool) {
	digest := b.digest()
	switch {
	case raw.violation():
		for i := range digest {
			digest[i] = 0xFF
		}
	case padded || b.alg == nodeclaim.SHA1:
		clear(digest[copy(digest, raw.sha1):])
	case recalled != nil && b.alg == nodeclaim.SHA256:
		copy(digest, recalled.sha256[:])
	default:
		b.sum(digest, raw.data)
	}
	b.sum(b.value(), b.both)
}

// sum writes the bank's hash of data to where it may stand itself. SHA-256 is what nearly every
// list is proven by, and a third faster without the state of a hash.Hash.
func (b *running) sum(to, data []byte) {
	if b.alg == nodeclaim.SHA256 {
		d := sha256.Sum256(data)
		copy(to, d[:])
		return
	}
	b.hash.Reset()
	b.hash.Write(data)
	b.hash.Sum(to[:0])
}

// Finish ends the list. It refuses one that never reached quoted PCR 10 (check "ima.pcr").
func (r *Replayer) Finish() (Result, error) {
	if r.err != nil {
		return Result{}, r.err
	}
	if r.doubtful != nil {
		r.err = r.doubtful.why
		return Result{}, r.err
	}
	if r.reached {
		r.result.Aggregated, _, _ = aggregateAlg(r.aggregate)
		return r.result, nil
	}
	n := r.result.Count
	switch {
	case len(r.pending) > 0:
		r.err = refuse("format", "the list ends inside entry %d, %d bytes after its beginning, and has not reached quoted PCR %d: it was cut", n, len(r.pending), PCR)
	case n == 0:
		r.err = refuse("pcr", "the list is empty, but PCR %d is quoted as %x: the list was dropped", PCR, r.banks[0].quoted)
	default:
		r.err = refuse("pcr", "all %d entries lead to %x, the TPM quoted %x (%s): boot_aggregate is of this boot, so entries were dropped from the end, changed or added, or the list is older than the quote",
			n, r.banks[0].value(), r.banks[0].quoted, r.banks[0].alg)
	}
	return Result{}, r.err
}

func refuse(check, f string, args ...any) *nodeclaim.Refusal {
	return nodeclaim.Refuse("ima."+check, fmt.Sprintf("IMA list: "+f, args...))
}
