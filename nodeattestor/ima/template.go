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

// layoutOf knows the templates with field lengths (Linux Documentation/security/IMA-templates.rst);
// "ima" has none and stands apart.
func layoutOf(template []byte) (Layout, bool) {
	switch string(template) {
	case "ima-ng":
		return 0, true
	case "ima-sig", "ima-buf":
		return extraField, true
	case "ima-ngv2":
		return typedDigest, true
	case "ima-sigv2":
		return typedDigest | extraField, true
	}
	return 0, false
}

const legacyTemplate = "ima"

// legacyNameSize is the fixed room that "ima" hashes for a name (IMA_EVENT_NAME_LEN_MAX + 1).
const legacyNameSize = 256

// maxTemplateName is above the longest name of a known template.
const maxTemplateName = 16

// parseFields reads a template's data into v; every field has its length before it, and they fill the data
// exactly. Everything in v is a part of data.
func parseFields(l Layout, data []byte, v *View) error {
	digest, rest, err := nextField(0, data)
	if err != nil {
		return err
	}
	kind, sum, err := parseDigest(digest, l.typed())
	if err != nil {
		return err
	}
	if !v.Violation && zeros(sum) {
		return errZeros
	}
	name, rest, err := nextField(1, rest)
	if err != nil {
		return err
	}
	if v.Path, err = parseName(name); err != nil {
		return err
	}
	v.key = data[fieldLength+kind : len(data)-len(rest)]
	if l.extra() {
		if v.Signature, rest, err = nextField(2, rest); err != nil {
			return err
		}
		v.signed = true
	}
	if len(rest) != 0 {
		return fmt.Errorf("%d bytes are left after its fields", len(rest))
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
	size := digestSize(name)
	if size == 0 {
		return 0, nil, fmt.Errorf("digest algorithm %.16q is unknown", name)
	}
	if len(sum) != size {
		return 0, nil, fmt.Errorf("%s digest has %d bytes, want %d", name, len(sum), size)
	}
	return kind, sum, nil
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
	case "md5":
		return 16
	case "sha1", "rmd160":
		return 20
	case "sha224":
		return 28
	case "sha256", "sha3-256", "sm3", "sm3-256", "streebog256", "wp256":
		return 32
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
