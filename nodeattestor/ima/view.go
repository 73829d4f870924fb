package ima

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // kernels write such digests.
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"strings"
)

// View is one entry of a list, lent to a visitor: its slices are parts of the list, not to be
// written to, and good until the visitor returns. [View.Entry] is a copy to keep.
type View struct {
	Index     int    // position in the list, from 0; 0 is boot_aggregate
	Violation bool   // the file was changed while it was measured; no digest covers Path, and there is nothing else
	Unknown   bool   // see Entry
	NamedOnly bool   // see Entry
	Path      []byte // see Entry
	Signature []byte // see Entry

	key    []byte
	signed bool // the template has a field after the name
	more   bool // and others after that
	legacy bool // template "ima", which has no field lengths
	layout Layout
	// recalled is what the template data hash to, where a Book knows them; nil where not.
	recalled *sums
}

// Key stands for path and digest together, so that one look-up tells whether an allow-list has
// them: it is what [Key] makes of both. nil in a violation, and where the content is unknown.
func (v *View) Key() []byte { return v.key }

// IsBootAggregate is [IsBootAggregate] of the entry.
func (v *View) IsBootAggregate() bool {
	return !v.Violation && !v.Unknown && !v.NamedOnly && string(v.Path) == bootAggregate
}

// Digest is the entry's digest: by which algorithm (the kernel's name of it), and whether of the
// whole file or, if verity, the file's fs-verity digest. There is none (nil) where there is no Key.
func (v *View) Digest() (alg, sum []byte, verity bool) {
	if v.key == nil {
		return nil, nil, false
	}
	head, rest, _ := bytes.Cut(v.key, []byte{0})
	alg, verity = bytes.CutPrefix(head[:len(head)-1], []byte(verityType))
	return alg, rest[:len(rest)-fieldLength-len(v.Path)-1], verity
}

// Buffer reports whether the entry is of a buffer of the kernel, whose content stands in the entry
// itself (template ima-buf, d-ng|n-ng|buf; Linux process_buffer_measurement): the digest is over
// that content. The template's name is in no digest and is not looked at; a file that holds its own
// signature does not exist unless somebody who may write security.ima made it so.
func (v *View) Buffer() bool {
	alg, sum, verity := v.Digest()
	if alg == nil || verity || v.more || len(v.Signature) == 0 {
		return false
	}
	return bytes.Equal(sum, contentHash(string(alg), v.Signature))
}

// contentHash is a hash by the kernel's name of it, nil for one that nothing here computes.
func contentHash(alg string, data []byte) []byte {
	var h hash.Hash
	switch alg {
	case "sha1":
		h = sha1.New() //nolint:gosec // it is compared with what the list says, and proves nothing by itself.
	case "sha256":
		h = sha256.New()
	case "sha384":
		h = sha512.New384()
	case "sha512":
		h = sha512.New()
	default:
		return nil
	}
	h.Write(data)
	return h.Sum(nil)
}

// Entry is a copy of the entry that may be kept.
func (v *View) Entry() Entry {
	e := Entry{Index: v.Index, Violation: v.Violation, Unknown: v.Unknown, Path: string(v.Path), Digest: v.digest(), NamedOnly: v.NamedOnly}
	if v.signed {
		e.Signature = bytes.Clone(v.Signature)
	}
	return e
}

// digest is the digest's text, "" where there is none.
func (v *View) digest() string {
	alg, sum, verity := v.Digest()
	if alg == nil {
		return ""
	}
	text := make([]byte, 0, len(verityType)+len(alg)+1+2*len(sum))
	if verity {
		text = append(text, verityType...)
	}
	text = append(append(text, alg...), ':')
	return string(hex.AppendEncode(text, sum))
}

// View is the entry as a visitor sees it. A digest that IMA cannot have written has no key, so that
// no allow-list has it.
func (e Entry) View() View {
	v := View{Index: e.Index, Violation: e.Violation, Unknown: e.Unknown, Path: []byte(e.Path), NamedOnly: e.NamedOnly}
	if e.Violation || e.Unknown {
		return v
	}
	v.Signature, v.signed = e.Signature, e.Signature != nil
	if alg, sum, verity, ok := cutDigest(e.Digest); ok {
		v.key = appendKey(nil, v.Path, []byte(alg), sum, verity)
	}
	return v
}

// Key stands for a path and a digest ("sha256:hex", "verity:sha256:hex") together; false where IMA
// cannot have written such a digest. Its form is that of the two fields in template ima-ng:
// "sha256:" NUL digest, the name's length (little-endian, 4 bytes), name NUL. So most lists have it
// in one piece, and nothing need be built to look an entry up. The digest's length follows from its
// algorithm, so no two pairs have the same key.
func Key(path, digest string) (string, bool) {
	alg, sum, verity, ok := cutDigest(digest)
	if !ok {
		return "", false
	}
	return string(appendKey(nil, []byte(path), []byte(alg), sum, verity)), true
}

// verityType begins a digest that the kernel took from fs-verity.
const verityType = "verity:"

func appendKey(to, path, alg, sum []byte, verity bool) []byte {
	if verity {
		to = append(to, verityType...)
	}
	to = append(append(to, alg...), ':', 0)
	to = append(to, sum...)
	to = binary.LittleEndian.AppendUint32(to, uint32(len(path)+1)) //nolint:gosec // a path is far below 4 GiB.
	return append(append(to, path...), 0)
}

// cutDigest takes a digest's text apart; false for what IMA cannot have written, and for zeros,
// which say that the content is unknown.
func cutDigest(digest string) (alg string, sum []byte, verity, ok bool) {
	rest, verity := strings.CutPrefix(digest, verityType)
	alg, text, ok := strings.Cut(rest, ":")
	if !ok {
		return "", nil, false, false
	}
	sum, err := hex.DecodeString(text)
	if err != nil || len(sum) == 0 || len(sum) != digestSize([]byte(alg)) || zeros(sum) {
		return "", nil, false, false
	}
	return alg, sum, verity, true
}
