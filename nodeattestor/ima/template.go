package ima

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// Limits bound what one list may cost. The node controls its size.
type Limits struct {
	Entry   int   // bytes of one entry's template data
	Entries int   // entries up to quoted PCR 10
	Total   int64 // bytes, those after quoted PCR 10 included
}

// DefaultLimits are far above a long-lived node's list (some ten thousand entries of
// about 110 bytes; an appended signature has a few hundred more).
func DefaultLimits() Limits { return Limits{Entry: 64 << 10, Entries: 1_500_000, Total: 384 << 20} }

// Layout tells what the fields of a template are: a digest and a name, always, then what it says. The zero Layout
// has no more than these two.
type Layout uint8

const (
	typedDigest Layout = 1 << iota // the digest begins with its type: "ima:sha256:" or "verity:sha256:" NUL digest (d-ngv2), else "sha256:" NUL digest (d-ng)
	extraField                     // a third field of any bytes: signature or buffer

	// Layouts is how many layouts there are.
	Layouts
)

func (l Layout) typed() bool { return l&typedDigest != 0 }
func (l Layout) extra() bool { return l&extraField != 0 }

// template says how the data of an entry are laid out.
type template struct {
	layout Layout
	fields int // exactly so many; 0 where any number may follow the name
}

// templateOf knows the templates with field lengths (Linux Documentation/security/IMA-templates.rst,
// security/integrity/ima/ima_template.c); "ima" has none and stands apart.
func templateOf(name []byte) (template, bool) {
	switch string(name) {
	case "ima-ng":
		return template{0, 2}, true
	case "ima-sig", "ima-buf":
		return template{extraField, 3}, true
	case "ima-ngv2":
		return template{typedDigest, 2}, true
	case "ima-sigv2":
		return template{typedDigest | extraField, 3}, true
	case "ima-modsig": // d-ng|n-ng|sig|d-modsig|modsig
		return template{extraField, 5}, true
	case "evm-sig": // d-ng|n-ng|evmsig|xattrnames|xattrlengths|xattrvalues|iuid|igid|imode
		return template{extraField, 9}, true
	}
	return template{}, false
}

// guess tells by its data how a template is laid out whose name is not known: one that the boot loader defined
// (ima_template_fmt, whose name is its format), or a newer kernel's. The first two fields must be a digest and a name;
// what follows is not looked at, except that it must consist of whole fields.
func guess(data []byte) template {
	var t template
	digest, rest, err := nextField(0, data)
	if err != nil {
		return t
	}
	if head, _, ok := bytes.Cut(digest, []byte{0}); ok && bytes.Count(head, []byte{':'}) == 2 {
		t.layout |= typedDigest
	}
	if _, rest, err = nextField(1, rest); err == nil && len(rest) > 0 {
		t.layout |= extraField
	}
	return t
}

const legacyTemplate = "ima"

// legacyNameSize is the fixed room that "ima" hashes for a name (IMA_EVENT_NAME_LEN_MAX + 1).
const legacyNameSize = 256

// maxTemplateName is above the longest name of a template in the kernel. A template of the boot loader's (ima_template_fmt) has
// its format for a name, fields with '|' between them, of at most maxTemplateFormat bytes (Linux MAX_TEMPLATE_NAME_LEN).
const (
	maxTemplateName   = 16
	maxTemplateFormat = 255
)

// parseFields reads a template's data into v; every field has its length before it, and they fill the data
// exactly. Everything in v is a part of data. The digest of a violation is in no digest, and how kernels write it
// differs (with an algorithm or without): it is not looked at.
func parseFields(t template, data []byte, v *View) error {
	digest, rest, err := nextField(0, data)
	if err != nil {
		return err
	}
	kind := 0
	if !v.Violation {
		var sum []byte
		if kind, sum, err = parseDigest(digest, t.layout.typed()); err != nil {
			return err
		}
		v.Unknown = zeros(sum)
	}
	name, rest, err := nextField(1, rest)
	if err != nil {
		return err
	}
	if v.Path, err = parseName(name); err != nil {
		return err
	}
	v.key = data[fieldLength+kind : len(data)-len(rest)]
	if t.layout.extra() {
		if v.Signature, rest, err = nextField(2, rest); err != nil {
			return err
		}
		v.signed = true
	}
	n := 2
	if v.signed {
		n++
	}
	for ; len(rest) > 0 && (t.fields == 0 || n < t.fields); n++ {
		if _, rest, err = nextField(n, rest); err != nil {
			return err
		}
		v.more = true
	}
	if len(rest) != 0 {
		return fmt.Errorf("%d bytes are left after its fields", len(rest))
	}
	if n < t.fields {
		return fmt.Errorf("it has %d fields, and the template %d", n, t.fields)
	}
	return nil
}

// fieldLength is the size of a field's length, little-endian.
const fieldLength = 4

func nextField(i int, data []byte) (value, rest []byte, err error) {
	if len(data) < fieldLength {
		return nil, nil, fmt.Errorf("field %d has no length", i)
	}
	n := binary.LittleEndian.Uint32(data)
	data = data[fieldLength:]
	if uint64(n) > uint64(len(data)) {
		return nil, nil, fmt.Errorf("field %d has %d bytes and the entry only %d left", i, n, len(data))
	}
	return data[:n], data[n:], nil
}

// imaType is how a typed digest of a whole file begins; one that is not typed is the same without.
const imaType = "ima:"

// parseDigest reads algorithm, colon, NUL, digest; with a type and a colon before them if typed. kind is
// how many bytes name the type of a whole file's digest, which a digest that is not typed lacks.
func parseDigest(b []byte, typed bool) (kind int, sum []byte, err error) {
	if !typed && len(b) == len(plainSHA256)+sha256.Size && string(b[:len(plainSHA256)]) == plainSHA256 {
		return 0, b[len(plainSHA256):], nil // nearly every one
	}
	nul := bytes.IndexByte(b, 0)
	if nul < 1 || b[nul-1] != ':' {
		return 0, nil, errDigest(b)
	}
	name := b[:nul-1]
	sum = b[nul+1:]
	if typed {
		t, rest, ok := bytes.Cut(name, []byte{':'})
		switch {
		case !ok:
			return 0, nil, errDigest(b)
		case string(t) == "verity":
		case string(t) == "ima":
			kind = len(imaType)
		default:
			return 0, nil, fmt.Errorf("digest type %.16q is unknown", t)
		}
		name = rest
	}
	if bytes.IndexByte(name, ':') >= 0 {
		return 0, nil, errDigest(b)
	}
	switch size := digestSize(name); {
	case size == 0 && !plausible(name, sum):
		return 0, nil, fmt.Errorf("digest algorithm %.16q is unknown", name)
	case size != 0 && len(sum) != size:
		return 0, nil, fmt.Errorf("%s digest has %d bytes, want %d", name, len(sum), size)
	}
	return kind, sum, nil
}

// plausible tells whether the kernel may know a hash by this name that this package does not. The entry is then a file's whose
// digest no set has; it must not spoil the list.
func plausible(name, sum []byte) bool {
	const shortest, longest, longestName = 16, 64, 24
	if len(name) == 0 || len(name) > longestName || len(sum) < shortest || len(sum) > longest {
		return false
	}
	for _, c := range name {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

const plainSHA256 = "sha256:\x00"

func errDigest(b []byte) error {
	return fmt.Errorf("digest field %.32q is not an algorithm, a colon, a NUL and a digest", b)
}

// legacyAlg is the algorithm of template "ima", which does not name it.
var legacyAlg = []byte("sha1")

// digestSize is how many bytes a digest has, by the kernel's hash names that IMA accepts (Linux
// crypto/hash_info.c); 0 for any other name.
func digestSize(alg []byte) int {
	switch string(alg) {
	case "md4", "md5", "rmd128", "tgr128":
		return 16
	case "sha1", "rmd160", "tgr160":
		return 20
	case "tgr192":
		return 24
	case "sha224":
		return 28
	case "sha256", "sha3-256", "sm3", "sm3-256", "streebog256", "wp256", "rmd256":
		return 32
	case "rmd320":
		return 40
	case "sha384", "sha3-384", "wp384":
		return 48
	case "sha512", "sha3-512", "streebog512", "wp512":
		return 64
	}
	return 0
}

func parseName(b []byte) ([]byte, error) {
	n := len(b) - 1
	if n < 1 || bytes.IndexByte(b, 0) != n {
		return nil, fmt.Errorf("name %.64q does not end at its one NUL", b)
	}
	return b[:n], nil
}
