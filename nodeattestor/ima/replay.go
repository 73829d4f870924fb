package ima

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/quote"
)

// pcrIndex is where IMA measures (Linux CONFIG_IMA_MEASURE_PCR_IDX).
const pcrIndex = 10

// Options say how a list is to be read. They come from the server's configuration.
type Options struct {
	// PaddedSHA1 is for kernels before 5.8: they extend every bank with the SHA-1 of an entry,
	// padded with zeros, and boot_aggregate is SHA-1 over PCRs 0 to 7 of the SHA-1 bank, which must then be quoted too. Weak.
	PaddedSHA1 bool
	// Limits; the zero value means DefaultLimits.
	Limits Limits
}

// Replayer reads a measurement list and replays it to quoted PCR 10. Make one with
// NewReplayer, write the list in chunks of any size, then Finish.
type Replayer struct {
	opt     Options
	pcrs    quote.PCRs
	banks   []*running
	reached bool
	err     error
	pending []byte // an entry that has not wholly arrived
	total   int64
	result  Result
}

// running is one quoted bank's PCR 10 as replayed so far.
type running struct {
	alg    nodeclaim.HashAlg
	value  []byte
	quoted []byte
}

// NewReplayer replays to PCR 10 as it stands in every bank of pcrs that has it.
func NewReplayer(pcrs quote.PCRs, opt Options) *Replayer {
	if opt.Limits == (Limits{}) {
		opt.Limits = DefaultLimits()
	}
	r := &Replayer{opt: opt, pcrs: pcrs}
	r.result.Weak = true
	for _, alg := range pcrs.Banks() {
		if v, ok := pcrs.Value(alg, pcrIndex); ok {
			r.banks = append(r.banks, &running{alg, make([]byte, alg.Size()), v})
			r.result.Weak = r.result.Weak && (alg.Weak() || opt.PaddedSHA1)
		}
	}
	if len(r.banks) == 0 {
		r.err = refuse("unquoted", "PCR %d was not quoted, so the list proves nothing: quote it", pcrIndex)
	}
	r.check()
	return r
}

// Write takes the next bytes of the list. It fails as soon as an entry cannot be right, with a
// *nodeclaim.Refusal; it then takes nothing more. Bytes after quoted PCR 10 are counted and dropped.
func (r *Replayer) Write(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	r.total += int64(len(p))
	if r.total > r.opt.Limits.Total {
		r.err = refuse("limit", "the list has more than the %d bytes allowed", r.opt.Limits.Total)
		return 0, r.err
	}
	r.pending = append(r.pending, p...)
	rest := r.pending
	for !r.reached && r.err == nil {
		raw, n, err := cut(rest, r.opt.Limits.Entry)
		if err != nil {
			r.err = refuse("format", "entry %d: %v", len(r.result.Entries), err)
			break
		}
		if n == 0 {
			break
		}
		rest = rest[n:]
		r.err = r.entry(raw)
	}
	if r.err != nil {
		return 0, r.err
	}
	if r.reached {
		r.result.Unproven += int64(len(rest))
		rest = nil
	}
	r.pending = append(r.pending[:0], rest...)
	return len(p), nil
}

// Reached tells whether quoted PCR 10 has been reached, so that no more of the list is needed.
func (r *Replayer) Reached() bool { return r.reached && r.err == nil }

// entry checks and extends one entry.
func (r *Replayer) entry(raw rawEntry) error {
	i := len(r.result.Entries)
	if i >= r.opt.Limits.Entries {
		return refuse("limit", "the list has more than the %d entries allowed", r.opt.Limits.Entries)
	}
	e, err := raw.parse(i)
	if err != nil {
		return err
	}
	if i == 0 && e.Path != bootAggregate {
		return refuse("trimmed", "entry 0 is %.100q and not %s: the beginning of the list is missing (trimmed, or read from an offset)", e.Path, bootAggregate)
	}
	if e.Path == bootAggregate {
		if err := r.checkAggregate(e); err != nil {
			return err
		}
	}
	for _, b := range r.banks {
		b.extend(raw, r.opt.PaddedSHA1)
	}
	if e.Violation {
		r.result.Violations++
	}
	r.result.Entries = append(r.result.Entries, e)
	r.check()
	return nil
}

// check notes when every quoted bank stands at its quoted value, all at the same entry.
func (r *Replayer) check() {
	for _, b := range r.banks {
		if !bytes.Equal(b.value, b.quoted) {
			return
		}
	}
	r.reached = len(r.banks) > 0
}

// extend adds an entry to a bank (Linux security/integrity/ima: ima_queue.c, ima_crypto.c). A violation extends all
// ones; else the SHA-1 bank takes the recorded SHA-1, others their own hash of the template
// data, or before Linux 5.8 the SHA-1 padded with zeros.
func (b *running) extend(raw rawEntry, padded bool) {
	var d []byte
	switch {
	case raw.violation():
		d = bytes.Repeat([]byte{0xFF}, b.alg.Size())
	case padded || b.alg == nodeclaim.SHA1:
		d = make([]byte, b.alg.Size())
		copy(d, raw.sha1)
	default:
		d = raw.hash(b.alg)
	}
	h := b.alg.New()
	h.Write(b.value)
	h.Write(d)
	b.value = h.Sum(nil)
}

// Finish ends the list. It refuses one that never reached quoted PCR 10 (check "ima.pcr").
func (r *Replayer) Finish() (Result, error) {
	if r.err != nil {
		return Result{}, r.err
	}
	if r.reached {
		return r.result, nil
	}
	n := len(r.result.Entries)
	switch {
	case len(r.pending) > 0:
		r.err = refuse("format", "the list ends inside entry %d, %d bytes after its beginning, and has not reached quoted PCR %d: it was cut", n, len(r.pending), pcrIndex)
	case n == 0:
		r.err = refuse("pcr", "the list is empty, but PCR %d is quoted as %x: the list was dropped", pcrIndex, r.banks[0].quoted)
	default:
		r.err = refuse("pcr", "all %d entries lead to %x, the TPM quoted %x (%s): boot_aggregate is of this boot, so entries were dropped from the end, changed or added, or the list is older than the quote",
			n, r.banks[0].value, r.banks[0].quoted, r.banks[0].alg)
	}
	return Result{}, r.err
}

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

// rawEntry is one entry as it stands in the list.
type rawEntry struct {
	pcr      uint32
	sha1     []byte // recorded hash of the template data; all zero in a violation
	template string
	data     []byte // template data without lengths of its own; for "ima" digest and name
}

// cut takes one entry off the list (Linux ima_measurements_show): PCR, recorded SHA-1, template name and data with
// their lengths. n is 0 when b does not hold all of it yet. Lengths are checked before they
// are waited for, so an entry cannot make us buffer more than its limit.
func cut(b []byte, limit int) (raw rawEntry, n int, err error) {
	const fixed = 4 + 20 + 4
	if len(b) < fixed {
		return raw, 0, nil
	}
	raw.pcr = binary.LittleEndian.Uint32(b)
	raw.sha1 = b[4:24]
	nameLen := binary.LittleEndian.Uint32(b[24:])
	if nameLen == 0 || nameLen > maxTemplateName {
		return raw, 0, fmt.Errorf("template name of %d bytes, allowed are 1 to %d", nameLen, maxTemplateName)
	}
	n = fixed + int(nameLen)
	if len(b) < n {
		return raw, 0, nil
	}
	raw.template = string(b[fixed:n])
	if raw.template == legacyTemplate {
		return cutLegacy(b, raw, n)
	}
	if len(b) < n+4 {
		return raw, 0, nil
	}
	size := binary.LittleEndian.Uint32(b[n:])
	n += 4
	if int64(size) > int64(limit) {
		return raw, 0, fmt.Errorf("%d bytes of template data, more than the %d allowed", size, limit)
	}
	if len(b) < n+int(size) {
		return raw, 0, nil
	}
	raw.data = b[n : n+int(size)]
	return raw, n + int(size), nil
}

// cutLegacy takes the data of template "ima": a bare SHA-1, then length and name.
func cutLegacy(b []byte, raw rawEntry, n int) (rawEntry, int, error) {
	const head = 20 + 4
	if len(b) < n+head {
		return raw, 0, nil
	}
	size := binary.LittleEndian.Uint32(b[n+20:])
	if size == 0 || size >= legacyNameSize {
		return raw, 0, fmt.Errorf("file name of %d bytes in template %q, allowed are 1 to %d", size, legacyTemplate, legacyNameSize-1)
	}
	end := n + head + int(size)
	if len(b) < end {
		return raw, 0, nil
	}
	raw.data = append(append(make([]byte, 0, 20+legacyNameSize), b[n:n+20]...), b[n+head:end]...)
	return raw, end, nil
}

// violation tells whether the entry extends all ones: its recorded hash is all zero (Linux
// ima_add_violation). Its data are in no digest.
func (raw rawEntry) violation() bool { return bytes.Count(raw.sha1, []byte{0}) == len(raw.sha1) }

// hash is the hash over the template data: for "ima" the name padded with zeros to its fixed size.
func (raw rawEntry) hash(alg nodeclaim.HashAlg) []byte {
	if raw.template != legacyTemplate {
		return templateHash(alg, raw.data)
	}
	return templateHash(alg, raw.data, make([]byte, 20+legacyNameSize-len(raw.data)))
}

// parse reads the entry's fields and checks them against the recorded hash.
func (raw rawEntry) parse(i int) (Entry, error) {
	e := Entry{Index: i, Violation: raw.violation()}
	if raw.pcr != pcrIndex {
		return e, refuse("format", "entry %d extends PCR %d, only %d is known", i, raw.pcr, pcrIndex)
	}
	if !e.Violation && !bytes.Equal(raw.hash(nodeclaim.SHA1), raw.sha1) {
		return e, refuse("entry", "entry %d was changed: its data hash to %x, recorded is %x", i, raw.hash(nodeclaim.SHA1), raw.sha1)
	}
	var err error
	fields, known := templates[raw.template]
	switch {
	case raw.template == legacyTemplate:
		e.Digest = "sha1:" + hex.EncodeToString(raw.data[:20])
		e.Path, err = parseName(append(bytes.Clone(raw.data[20:]), 0))
	case known:
		err = parseFields(fields, raw.data, &e)
	default:
		err = fmt.Errorf("template %q is unknown", raw.template)
	}
	if err != nil {
		return e, refuse("format", "entry %d: %v", i, err)
	}
	if e.Violation {
		e.Digest, e.Signature = "", nil
	} else if zeroDigest(e.Digest) {
		return e, refuse("entry", "entry %d (%.100q) has an all-zero digest and is no violation", i, e.Path)
	}
	return e, nil
}

func refuse(check, f string, args ...any) *nodeclaim.Refusal {
	return nodeclaim.Refuse("ima."+check, fmt.Sprintf("IMA list: "+f, args...))
}
