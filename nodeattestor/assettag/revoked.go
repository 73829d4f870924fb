package assettag

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// Limits of a list of revoked tags.
const (
	MaxRevocationsSize = 4 << 20 // bytes
	maxReason          = 256     // bytes
)

// Revocation ends tags of one machine.
type Revocation struct {
	Serial uint64 // the highest serial that is revoked; all below are, too
	Reason string
}

// Revocations are the tags that the operator revoked, under an EK of their machine.
type Revocations map[nodeclaim.EKHash]Revocation

// revocationEntry is an entry of the file.
type revocationEntry struct {
	EKHash string `yaml:"ekHash"`
	Serial uint64 `yaml:"serial"`
	Reason string `yaml:"reason"`
}

type revocationFile struct {
	Revoked *[]revocationEntry `yaml:"revoked"`
}

// ParseRevocations reads the operator's YAML of tags that are believed no more:
//
//	revoked:
//	- ekHash: 64 hex digits
//	  serial: 3          # tags with this serial or a lower one
//	  reason: the machine was moved
//
// Unknown and repeated keys, an EK that stands twice, serial 0, a missing reason and
// further documents are errors; the error holds all of them.
func ParseRevocations(data []byte) (Revocations, error) {
	if len(data) > MaxRevocationsSize {
		return nil, fmt.Errorf("assettag: list of revoked tags has %d bytes, more than the %d allowed", len(data), MaxRevocationsSize)
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	var file revocationFile
	if err := dec.Decode(&file); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("assettag: list of revoked tags: %w", err)
	}
	if file.Revoked == nil {
		return nil, errors.New("assettag: list of revoked tags: key revoked is missing; a list without tags is \"revoked: []\"")
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("assettag: list of revoked tags: only one YAML document is allowed")
	}
	out := Revocations{}
	var errs []error
	for i, e := range *file.Revoked {
		hash, err := e.validate()
		if _, twice := out[hash]; err == nil && twice {
			err = fmt.Errorf("EK hash %s stands twice", hash)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("assettag: list of revoked tags: entry %d: %w", i+1, err))
			continue
		}
		out[hash] = Revocation{Serial: e.Serial, Reason: strings.TrimSpace(e.Reason)}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return out, nil
}

func (e revocationEntry) validate() (nodeclaim.EKHash, error) {
	hash, err := nodeclaim.ParseEKHash(e.EKHash)
	if err != nil {
		return hash, err
	}
	if e.Serial == 0 {
		return hash, errors.New("serial is missing or 0; it is the highest one that is revoked")
	}
	if n := len(strings.TrimSpace(e.Reason)); n == 0 || n > maxReason {
		return hash, fmt.Errorf("reason must be text of 1 to %d bytes", maxReason)
	}
	return hash, nil
}

// Revoke adds a document's tag and all earlier ones of its machine.
func (r Revocations) Revoke(d Document, reason string) error {
	var errs []error
	for _, h := range d.EKHashes {
		hash, err := revocationEntry{EKHash: h, Serial: d.Serial, Reason: reason}.validate()
		if err != nil {
			errs = append(errs, fmt.Errorf("assettag: revoke: %w", err))
		} else if r[hash].Serial < d.Serial {
			r[hash] = Revocation{Serial: d.Serial, Reason: strings.TrimSpace(reason)}
		}
	}
	return errors.Join(errs...)
}

// Marshal is the list as ParseRevocations reads it, in the order of the hashes.
func (r Revocations) Marshal() ([]byte, error) {
	list := []revocationEntry{}
	for _, hash := range slices.SortedFunc(maps.Keys(r), func(a, b nodeclaim.EKHash) int { return bytes.Compare(a[:], b[:]) }) {
		list = append(list, revocationEntry{EKHash: hash.String(), Serial: r[hash].Serial, Reason: r[hash].Reason})
	}
	out, err := yaml.Marshal(revocationFile{Revoked: &list})
	if err != nil {
		return nil, fmt.Errorf("assettag: list of revoked tags: %w", err)
	}
	return out, nil
}

// check refuses a revoked tag. All EKs of its machine count, so that a node cannot escape
// by presenting another one.
func (r Revocations) check(d Document) error {
	for _, h := range d.EKHashes {
		hash, err := nodeclaim.ParseEKHash(h)
		if err != nil { // Parse has checked them
			return refuse("document", "the tag's document: %v", err)
		}
		if v, ok := r[hash]; ok && d.Serial <= v.Serial {
			return refuse("revoked", "tags of this machine up to serial %d are revoked, this one has %d: %s", v.Serial, d.Serial, v.Reason)
		}
	}
	return nil
}
