package ima

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// Limits bound what one list may cost. The node controls its size.
type Limits struct {
	Entry   int   // bytes of one entry's template data
	Entries int   // entries up to quoted PCR 10
	Total   int64 // bytes, those after quoted PCR 10 included
}

// DefaultLimits are far above a long-lived node's list (some ten thousand entries of
// about 110 bytes; an appended signature has a few hundred more).
func DefaultLimits() Limits { return Limits{Entry: 64 << 10, Entries: 500_000, Total: 128 << 20} }

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

// parseFields reads a template's data; every field has its length before it, and they fill
// the data exactly.
func parseFields(fields []field, data []byte, e *Entry) error {
	for i, f := range fields {
		if len(data) < 4 {
			return fmt.Errorf("field %d has no length", i)
		}
		n := binary.LittleEndian.Uint32(data)
		data = data[4:]
		if uint64(n) > uint64(len(data)) {
			return fmt.Errorf("field %d has %d bytes and the entry only %d left", i, n, len(data))
		}
		value := data[:n]
		data = data[n:]
		var err error
		switch f {
		case digestNG:
			e.Digest, err = parseDigest(value, 1)
		case digestNGv2:
			e.Digest, err = parseDigest(value, 2)
		case nameNG:
			e.Path, err = parseName(value)
		case extra:
			e.Signature = bytes.Clone(value)
		}
		if err != nil {
			return err
		}
	}
	if len(data) != 0 {
		return fmt.Errorf("%d bytes are left after its fields", len(data))
	}
	return nil
}

// parseDigest reads words colons NUL digest, with one word (algorithm) or two (type, algorithm).
func parseDigest(b []byte, words int) (string, error) {
	head, sum, ok := bytes.Cut(b, []byte{0})
	name, colon := strings.CutSuffix(string(head), ":")
	parts := strings.Split(name, ":")
	if !ok || !colon || len(parts) != words {
		return "", fmt.Errorf("digest field %.32q is not an algorithm, a colon, a NUL and a digest", b)
	}
	size, ok := digestSizes[parts[words-1]]
	if !ok {
		return "", fmt.Errorf("digest algorithm %.16q is unknown", parts[words-1])
	}
	if len(sum) != size {
		return "", fmt.Errorf("%s digest has %d bytes, want %d", parts[words-1], len(sum), size)
	}
	prefix := ""
	if words == 2 {
		switch parts[0] {
		case "ima":
		case "verity":
			prefix = "verity:"
		default:
			return "", fmt.Errorf("digest type %.16q is unknown", parts[0])
		}
	}
	return prefix + parts[words-1] + ":" + hex.EncodeToString(sum), nil
}

// digestSizes are the kernel's hash names that IMA accepts (Linux crypto/hash_info.c), in bytes.
var digestSizes = map[string]int{
	"md5": 16, "sha1": 20, "rmd160": 20, "sha224": 28, "sm3": 32, "sm3-256": 32, "streebog256": 32,
	"sha256": 32, "sha3-256": 32, "sha384": 48, "sha3-384": 48, "sha512": 64, "sha3-512": 64,
	"streebog512": 64, "wp256": 32, "wp384": 48, "wp512": 64,
}

func parseName(b []byte) (string, error) {
	name, ok := bytes.CutSuffix(b, []byte{0})
	if !ok || len(name) == 0 || bytes.IndexByte(name, 0) >= 0 {
		return "", fmt.Errorf("name %.64q does not end at its one NUL", b)
	}
	return string(name), nil
}

// zeroDigest tells whether a digest in text is all zero, as in violations.
func zeroDigest(d string) bool {
	return strings.Trim(d[strings.LastIndexByte(d, ':')+1:], "0") == ""
}

// templateHash is the hash that is recorded in the entry (SHA-1) or extended into a bank.
func templateHash(alg nodeclaim.HashAlg, parts ...[]byte) []byte {
	h := alg.New()
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}
