// Package assettag makes and verifies asset tags: signed facts about a machine
// (country, region, rack) that are bound to its TPM.
//
// A tag is a [Document], signed in an envelope, whose SHA-256 is written to an NV index
// of the machine's TPM. A server believes it only when the TPM itself certifies that NV
// index under the attestation key and nonce of the same challenge ([Verify]). The
// document alone is worth nothing: anybody can copy it to another machine.
//
// What it does not stop: whoever has the TPM's owner authorisation, usually root, can
// write the digest of an older signed tag of the same machine. Only the serial, compared
// with the highest one seen for that EK, shows it; the caller keeps that number.
package assettag

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/dsse"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// Limits of a document.
const (
	MaxDocumentSize = 16 << 10 // bytes, of the payload and of the whole envelope alike
	MaxTags         = 32
	MaxEKHashes     = 16
	MaxKeyLength    = 59 // "tag." and the key together are a label name of at most 63
	MaxValueLength  = 63
)

// Document is what a tag says. Its JSON has exactly these keys, in this order and
// without white space; any other encoding is refused, so that one document has one digest.
type Document struct {
	// Tags are the facts. Keys are label names in lower case, values label values
	// (Kubernetes: letters, digits, '-', '_', '.', alphanumeric at both ends).
	Tags map[string]string `json:"tags"`
	// EKHashes are the EKs of the one machine that the tag is for.
	EKHashes []string `json:"ekHashes"`
	// Serial rises with every tag issued for the machine; it starts at 1.
	Serial uint64 `json:"serial"`
	// NotBefore and NotAfter bound the validity, both inclusive, in UTC whole seconds.
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
}

// Parse reads a document strictly. It trusts nothing.
func Parse(payload []byte) (Document, error) {
	if len(payload) > MaxDocumentSize {
		return Document{}, fmt.Errorf("assettag: document has %d bytes, more than the %d allowed", len(payload), MaxDocumentSize)
	}
	var d Document
	if err := dsse.Canonical(payload, &d); err != nil {
		return Document{}, fmt.Errorf("assettag: document: %w", err)
	}
	if err := d.Validate(); err != nil {
		return Document{}, err
	}
	return d, nil
}

// Marshal is the document's only encoding. Times are cut to whole seconds in UTC.
func (d Document) Marshal() ([]byte, error) {
	d.NotBefore = d.NotBefore.UTC().Truncate(time.Second)
	d.NotAfter = d.NotAfter.UTC().Truncate(time.Second)
	if err := d.Validate(); err != nil {
		return nil, err
	}
	out, err := json.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("assettag: document: %w", err)
	}
	if len(out) > MaxDocumentSize {
		return nil, fmt.Errorf("assettag: document has %d bytes, more than the %d allowed", len(out), MaxDocumentSize)
	}
	return out, nil
}

var (
	keySyntax   = regexp.MustCompile(`^[a-z0-9]([-a-z0-9_.]*[a-z0-9])?$`)
	valueSyntax = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$`)
)

// Validate reports every rule that the document breaks.
func (d Document) Validate() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("assettag: document: "+format, args...))
	}
	if len(d.Tags) == 0 || len(d.Tags) > MaxTags {
		bad("%d tags, wanted 1 to %d", len(d.Tags), MaxTags)
	}
	for _, k := range slices.Sorted(maps.Keys(d.Tags)) {
		if len(k) > MaxKeyLength || !keySyntax.MatchString(k) {
			bad("tag key %.80q is not a lower-case label name of at most %d characters", k, MaxKeyLength)
		}
		if v := d.Tags[k]; len(v) > MaxValueLength || !valueSyntax.MatchString(v) {
			bad("tag %.80q: value %.80q is not a label value of 1 to %d characters", k, v, MaxValueLength)
		}
	}
	if len(d.EKHashes) == 0 || len(d.EKHashes) > MaxEKHashes {
		bad("%d EK hashes, wanted 1 to %d", len(d.EKHashes), MaxEKHashes)
	}
	for i, h := range d.EKHashes {
		if _, err := nodeclaim.ParseEKHash(h); err != nil {
			bad("EK hash %d: %v", i+1, err)
		}
		if slices.Contains(d.EKHashes[:i], h) {
			bad("EK hash %.80q is listed twice", h)
		}
	}
	if d.Serial == 0 {
		bad("serial is 0; serials start at 1")
	}
	if d.NotBefore.IsZero() || !d.NotBefore.Before(d.NotAfter) {
		bad("notBefore %s is not before notAfter %s", d.NotBefore.Format(time.RFC3339), d.NotAfter.Format(time.RFC3339))
	}
	return errors.Join(errs...)
}
