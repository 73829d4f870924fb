package ima

import (
	"bytes"
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

// field tells how one field of a template is written.
type field int

const (
	digestNG   field = iota // "sha256:" NUL digest (d-ng)
	digestNGv2              // "ima:sha256:" or "verity:sha256:" NUL digest (d-ngv2)
	nameNG                  // name with final NUL (n-ng)
	extra                   // any bytes: signature or buffer
)

// templates are the known ones (Linux Documentation/security/IMA-templates.rst). "ima" has no
// field lengths and stands apart.
var templates = map[string][]field{
	"ima-ng":    {digestNG, nameNG},
	"ima-sig":   {digestNG, nameNG, extra},
	"ima-buf":   {digestNG, nameNG, extra},
	"ima-ngv2":  {digestNGv2, nameNG},
	"ima-sigv2": {digestNGv2, nameNG, extra},
}

const legacyTemplate = "ima"

// legacyNameSize is the fixed room that "ima" hashes for a name (IMA_EVENT_NAME_LEN_MAX + 1).
const legacyNameSize = 256

// maxTemplateName is above the longest name of a known template.
const maxTemplateName = 16

// fieldValues are an entry's fields, parts of the list.
type fieldValues struct {
	verity   bool // an fs-verity digest
	alg, sum []byte
	path     []byte
	extra    []byte
	hasExtra bool
}

// parseFields reads a template's data; every field has its length before it, and they fill
// the data exactly.
func parseFields(fields []field, data []byte) (f fieldValues, err error) {
	for i, kind := range fields {
		if len(data) < 4 {
			return f, fmt.Errorf("field %d has no length", i)
		}
		n := binary.LittleEndian.Uint32(data)
		data = data[4:]
		if uint64(n) > uint64(len(data)) {
			return f, fmt.Errorf("field %d has %d bytes and the entry only %d left", i, n, len(data))
		}
		value := data[:n]
		data = data[n:]
		switch kind {
		case digestNG:
			err = f.digest(value, false)
		case digestNGv2:
			err = f.digest(value, true)
		case nameNG:
			f.path, err = parseName(value)
		case extra:
			f.extra, f.hasExtra = value, true
		}
		if err != nil {
			return f, err
		}
	}
	if len(data) != 0 {
		return f, fmt.Errorf("%d bytes are left after its fields", len(data))
	}
	return f, nil
}

// digest reads algorithm, colon, NUL, digest; with a type and a colon before them if typed.
func (f *fieldValues) digest(b []byte, typed bool) error {
	malformed := func() error {
		return fmt.Errorf("digest field %.32q is not an algorithm, a colon, a NUL and a digest", b)
	}
	head, sum, ok := bytes.Cut(b, []byte{0})
	name, colon := bytes.CutSuffix(head, []byte{':'})
	if !ok || !colon {
		return malformed()
	}
	if typed {
		kind, rest, ok := bytes.Cut(name, []byte{':'})
		if !ok {
			return malformed()
		}
		f.verity = string(kind) == "verity"
		if !f.verity && string(kind) != "ima" {
			return fmt.Errorf("digest type %.16q is unknown", kind)
		}
		name = rest
	}
	if bytes.IndexByte(name, ':') >= 0 {
		return malformed()
	}
	size, ok := digestSizes[string(name)]
	if !ok {
		return fmt.Errorf("digest algorithm %.16q is unknown", name)
	}
	if len(sum) != size {
		return fmt.Errorf("%s digest has %d bytes, want %d", name, len(sum), size)
	}
	f.alg, f.sum = name, sum
	return nil
}

// legacyAlg is the algorithm of template "ima", which does not name it.
var legacyAlg = []byte("sha1")

// digestSizes are the kernel's hash names that IMA accepts (Linux crypto/hash_info.c), in bytes.
var digestSizes = map[string]int{
	"md5": 16, "sha1": 20, "rmd160": 20, "sha224": 28, "sm3": 32, "sm3-256": 32, "streebog256": 32,
	"sha256": 32, "sha3-256": 32, "sha384": 48, "sha3-384": 48, "sha512": 64, "sha3-512": 64,
	"streebog512": 64, "wp256": 32, "wp384": 48, "wp512": 64,
}

func parseName(b []byte) ([]byte, error) {
	name, ok := bytes.CutSuffix(b, []byte{0})
	if !ok || len(name) == 0 || bytes.IndexByte(name, 0) >= 0 {
		return nil, fmt.Errorf("name %.64q does not end at its one NUL", b)
	}
	return name, nil
}
