package ima

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // the list's format has it; what proves is the bank
	"encoding/binary"
	"encoding/hex"
	"fmt"
)

// rawEntry is one entry as it stands in the list; its slices are parts of the list.
type rawEntry struct {
	pcr      uint32
	sha1     []byte // recorded hash of the template data; all zero in a violation
	template []byte
	data     []byte // what is hashed: the template data; for "ima" digest and name, padded
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
	raw.template = b[fixed:n]
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
	_, err := parseName(append(bytes.Clone(name), 0))
	return err
}

// violation tells whether the entry extends all ones: its recorded hash is all zero (Linux
// ima_add_violation). Its data are in no digest.
func (raw rawEntry) violation() bool { return [20]byte(raw.sha1) == [20]byte{} }

// entryReader reads one entry after the other with the same buffers.
type entryReader struct {
	text []byte
}

func newEntryReader() *entryReader { return &entryReader{} }

// parse reads the entry's fields and checks them against the recorded hash. The Entry keeps
// nothing of the list.
func (r *entryReader) parse(raw rawEntry, i int) (Entry, error) {
	e := Entry{Index: i, Violation: raw.violation()}
	if raw.pcr != pcrIndex {
		return e, refuse("format", "entry %d extends PCR %d, only %d is known", i, raw.pcr, pcrIndex)
	}
	if !e.Violation {
		sum := sha1.Sum(raw.data) //nolint:gosec // as above.
		if sum != [sha1.Size]byte(raw.sha1) {
			return e, refuse("entry", "entry %d was changed: its data hash to %x, recorded is %x", i, sum, raw.sha1)
		}
	}
	var f fieldValues
	var err error
	fields, known := templates[string(raw.template)]
	switch {
	case string(raw.template) == legacyTemplate:
		name, _, _ := bytes.Cut(raw.data[20:], []byte{0})
		f = fieldValues{alg: legacyAlg, sum: raw.data[:20], path: name}
	case known:
		f, err = parseFields(fields, raw.data)
	default:
		err = fmt.Errorf("template %q is unknown", raw.template)
	}
	if err != nil {
		return e, refuse("format", "entry %d: %v", i, err)
	}
	if !e.Violation && zeros(f.sum) {
		return e, refuse("entry", "entry %d (%.100q) has an all-zero digest and is no violation", i, f.path)
	}
	r.fill(&e, f)
	return e, nil
}

// fill copies the fields out of the list, both texts with one allocation. A violation's digest and
// signature are in no digest, so they are left out.
func (r *entryReader) fill(e *Entry, f fieldValues) {
	if e.Violation {
		e.Path = string(f.path)
		return
	}
	r.text = append(r.text[:0], f.path...)
	if f.verity {
		r.text = append(r.text, "verity:"...)
	}
	r.text = append(append(r.text, f.alg...), ':')
	r.text = hex.AppendEncode(r.text, f.sum)
	text := string(r.text)
	e.Path, e.Digest = text[:len(f.path)], text[len(f.path):]
	if f.hasExtra {
		e.Signature = bytes.Clone(f.extra)
	}
}

func zeros(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
