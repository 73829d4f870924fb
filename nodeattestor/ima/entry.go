package ima

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // the list's format has it; what proves is the bank
	"encoding/binary"
	"fmt"
)

// rawEntry is one entry as it stands in the list; its slices are parts of the list.
type rawEntry struct {
	pcr      uint32
	sha1     []byte // recorded hash of the template data; all zero in a violation
	template []byte
	data     []byte // what is hashed: the template data; for "ima" digest and name, padded
}

// cut takes one entry off the list (Linux ima_measurements_show): PCR, recorded SHA-1, template
// name and data with their lengths. n is 0 when b does not hold all of it yet. Lengths are checked
// before they are waited for, so an entry cannot make us buffer more than its limit.
func cut(b []byte, limit int) (raw rawEntry, n int, err error) {
	const fixed = 4 + 20 + 4
	if len(b) < fixed {
		return raw, 0, nil
	}
	raw.pcr = binary.LittleEndian.Uint32(b)
	raw.sha1 = b[4:24]
	nameLen := binary.LittleEndian.Uint32(b[24:])
	if nameLen == 0 || nameLen > maxTemplateFormat {
		return raw, 0, fmt.Errorf("template name of %d bytes, allowed are 1 to %d", nameLen, maxTemplateFormat)
	}
	n = fixed + int(nameLen)
	if len(b) < n {
		return raw, 0, nil
	}
	raw.template = b[fixed:n]
	if nameLen > maxTemplateName && bytes.IndexByte(raw.template, '|') < 0 {
		return raw, 0, fmt.Errorf("template name of %d bytes, allowed are 1 to %d for what is no format", nameLen, maxTemplateName)
	}
	if string(raw.template) == legacyTemplate {
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

// cutLegacy takes the data of template "ima": a bare SHA-1, then length and name, which is hashed
// padded with zeros to its fixed size.
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
	raw.data = make([]byte, 20+legacyNameSize)
	copy(raw.data, b[n:n+20])
	copy(raw.data[20:], b[n+head:end])
	return raw, end, legacyName(b[n+head : end])
}

// legacyName refuses a NUL inside a name: padded, it would hash as a shorter name does.
func legacyName(name []byte) error {
	if bytes.IndexByte(name, 0) >= 0 {
		return fmt.Errorf("name %.64q has a NUL inside", name)
	}
	return nil
}

// violation tells whether the entry extends all ones: its recorded hash is all zero (Linux
// ima_add_violation). Its data are in no digest.
func (raw rawEntry) violation() bool { return [20]byte(raw.sha1) == [20]byte{} }

// entryReader reads entries into Views, a batch at a time.
type entryReader struct {
	views []View
	raws  [batch]rawEntry // of the views
	sizes [batch]int      // sizes of the entries in the list, in bytes
	keys  []byte          // of template "ima", whose list has no bytes like them
}

// batch is how many entries a visitor gets at once. Looking entries up one right after the other
// lets the processor fetch what several need from memory at the same time, and takes a third of the
// time that it takes between hashing one entry and the next.
const batch = 64

func newEntryReader() *entryReader { return &entryReader{views: make([]View, 0, batch)} }

// reset forgets what was read; the room is used again.
func (r *entryReader) reset() { r.views, r.keys = r.views[:0], r.keys[:0] }

// parse reads the entry's fields and checks them against the recorded hash. What it returns is a
// part of the list, and good until reset.
func (r *entryReader) parse(raw rawEntry, i int) (*View, error) {
	v, err := r.read(raw, i)
	if err == nil {
		err = checkRecorded(&raw, v, i)
	}
	return v, err
}

// read reads the entry's fields. That they are those of the recorded hash is still to be checked,
// but where they cannot be read.
func (r *entryReader) read(raw rawEntry, i int) (*View, error) {
	if raw.pcr != PCR {
		return nil, refuse("format", "entry %d extends PCR %d, only %d is known", i, raw.pcr, PCR)
	}
	v := r.blank(i, raw.violation())
	if err := r.fields(v, raw); err != nil {
		r.views = r.views[:len(r.views)-1]
		if changed := checkRecorded(&raw, v, i); changed != nil {
			return nil, changed
		}
		return nil, refuse("format", "entry %d: %v", i, err)
	}
	if v.Violation || v.Unknown { // nothing covers, or nothing tells, what the file holds
		v.key, v.Signature, v.signed = nil, nil, false
	}
	return v, nil
}

// checkRecorded compares the entry's data with the hash that the list has for them. That of a
// violation covers nothing.
func checkRecorded(raw *rawEntry, v *View, i int) error {
	if v.Violation {
		return nil
	}
	var sum [sha1.Size]byte
	if v.recalled != nil {
		sum = v.recalled.sha1
	} else {
		sum = sha1.Sum(raw.data) //nolint:gosec // as above.
	}
	if sum != [sha1.Size]byte(raw.sha1) {
		return refuse("entry", "entry %d was changed: its data hash to %x, recorded is %x", i, sum, raw.sha1)
	}
	return nil
}

// blank is the next View of the batch.
func (r *entryReader) blank(i int, violation bool) *View {
	n := len(r.views)
	r.views = r.views[:n+1]
	v := &r.views[n]
	v.Index, v.Violation, v.Unknown, v.Path, v.Signature, v.key = i, violation, false, nil, nil, nil
	v.signed, v.more, v.NamedOnly, v.legacy, v.layout, v.recalled = false, false, false, false, 0, nil
	return v
}

func (r *entryReader) fields(v *View, raw rawEntry) error {
	if string(raw.template) == legacyTemplate {
		sum := raw.data[:20]
		v.legacy = true
		v.Unknown = !v.Violation && zeros(sum)
		v.Path, _, _ = bytes.Cut(raw.data[20:], []byte{0})
		at := len(r.keys)
		r.keys = appendKey(r.keys, v.Path, legacyAlg, sum, false)
		v.key = r.keys[at:len(r.keys):len(r.keys)]
		return nil
	}
	t, known := templateOf(raw.template)
	if !known {
		t = guess(raw.data)
	}
	v.layout = t.layout
	if err := parseFields(t, raw.data, v); err != nil {
		if !known {
			return fmt.Errorf("template %q is unknown, and its first fields are not a digest (d-ng, d-ngv2) and a name (n-ng): %w", raw.template, err)
		}
		return fmt.Errorf("template %q: %w", raw.template, err)
	}
	return nil
}

func zeros(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
