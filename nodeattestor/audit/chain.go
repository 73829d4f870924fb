// Package audit keeps the record of every attestation: JSON lines, each of which holds
// its number and the SHA-256 of the line before it, so that a changed, removed or
// reordered line is found by whoever reads the file later (Verify). Whoever can write
// the file can also rewrite all of it, and a missing end looks like an earlier day:
// against both, note the head (the hash of the last line) elsewhere now and then, and
// give it to VerifyLog. Old files may be pruned; the chain itself says so.
package audit

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// Outcome is how an attestation ended.
type Outcome string

// The outcomes of an attestation.
const (
	Trusted      Outcome = "trusted"
	Untrusted    Outcome = "untrusted"    // proved bad: the node's own evidence says so
	Unproved     Outcome = "unproved"     // refused before anything was proved; no verdict changes
	Inconclusive Outcome = "inconclusive" // could not be finished; the verdict is left to expire
	Recovered    Outcome = "recovered"    // no attestation: an unfinished line was removed after a crash
	Pruned       Outcome = "pruned"       // no attestation: the oldest rotated file was removed, as configured
	Omitted      Outcome = "omitted"      // no attestation: the server ended, and no line since the flood had told of it
)

// Entry is one record. Seq and Prev are set by Append.
type Entry struct {
	Seq            uint64              `json:"seq"`  // from 1, without gaps
	Prev           string              `json:"prev"` // SHA-256 of the line before, lower hex; zeros in line 1
	Time           time.Time           `json:"time"`
	Outcome        Outcome             `json:"outcome"`
	Node           string              `json:"node,omitempty"`
	EKHash         string              `json:"ekHash,omitempty"`
	AgentID        string              `json:"agentID,omitempty"`
	Reference      string              `json:"reference,omitempty"`
	Refusals       []nodeclaim.Refusal `json:"refusals,omitempty"`
	Error          string              `json:"error,omitempty"`
	EvidenceDigest string              `json:"evidenceDigest,omitempty"`
	// Omitted is how many attempts that proved nothing ended since the line before without a line of their own: strangers who
	// make many may not fill the disk.
	Omitted uint64 `json:"omitted,omitempty"`
	// Pruned is the last line that was removed: the rest of the log goes on from it.
	Pruned *Head    `json:"pruned,omitempty"`
	Notes  []string `json:"notes,omitempty"` // what was not refused and is to be known
}

// MaxLine bounds one line in bytes. Append shortens what an agent controls (reasons,
// errors) to stay below it; Verify refuses longer ones.
const MaxLine = 256 << 10

const (
	maxRefusals = 64
	maxText     = 1 << 10 // bytes of one reason or error
)

// Head is where a chain stands.
type Head struct {
	Seq  uint64 `json:"seq"`  // number of the last line, 0 before the first
	Hash string `json:"hash"` // its SHA-256 in lower hex
}

// genesis is the hash before the first line.
var genesis = hex.EncodeToString(make([]byte, sha256.Size))

// Start is the head of an empty chain.
func Start() Head { return Head{Hash: genesis} }

// next makes the entry's line, with its line feed, and the head after it.
func (h Head) next(e Entry) ([]byte, Head, error) {
	e.Seq, e.Prev = h.Seq+1, h.Hash
	e.Error = cut(e.Error)
	e.Notes = append([]string(nil), e.Notes[:min(len(e.Notes), maxRefusals)]...)
	for i := range e.Notes {
		e.Notes[i] = cut(e.Notes[i])
	}
	e.Refusals = append([]nodeclaim.Refusal(nil), e.Refusals[:min(len(e.Refusals), maxRefusals)]...)
	for i := range e.Refusals {
		e.Refusals[i].Reason = cut(e.Refusals[i].Reason)
	}
	line, err := json.Marshal(e)
	if err == nil && len(line) >= MaxLine {
		// JSON writes some characters as six, and the agent chose them: the names of the checks stay.
		for i := range e.Refusals {
			e.Refusals[i].Reason = "too long for this log with the other reasons"
		}
		line, err = json.Marshal(e)
	}
	if err != nil {
		return nil, h, fmt.Errorf("audit: line %d: %w", e.Seq, err)
	}
	if len(line) >= MaxLine {
		return nil, h, fmt.Errorf("audit: line %d: %d bytes, more than the limit of %d", e.Seq, len(line), MaxLine)
	}
	return append(line, '\n'), Head{Seq: e.Seq, Hash: hashOf(line)}, nil
}

func hashOf(line []byte) string {
	sum := sha256.Sum256(line)
	return hex.EncodeToString(sum[:])
}

// cut shortens text to maxText bytes, at a character's end.
func cut(s string) string {
	if len(s) <= maxText {
		return s
	}
	n := maxText
	for n > 0 && s[n]&0xC0 == 0x80 {
		n--
	}
	return s[:n] + "…"
}

// Broken says where a chain does not hold.
type Broken struct {
	Line   int    // of the input, from 1
	Reason string // in a person's words
}

// Error names line and reason.
func (b *Broken) Error() string { return fmt.Sprintf("audit: line %d: %s", b.Line, b.Reason) }

// Verify reads a chain that goes on from a head (Start for the first file) and returns
// the head after it. The first line that was changed, removed, added or moved is a
// *Broken; so is an unfinished line at the end. The files of a rotation are verified one
// after the other, each from the head of the one before: see VerifyLog.
func Verify(r io.Reader, from Head) (Head, error) { return walk(r, from, func(Entry, Head) {}) }

// walk is Verify, and shows each entry with the head after it.
func walk(r io.Reader, from Head, visit func(Entry, Head)) (head Head, err error) {
	in := bufio.NewReaderSize(r, MaxLine)
	head = from
	for n := 1; ; n++ {
		line, err := readLine(in, n)
		if err != nil || line == nil {
			return head, err
		}
		var e Entry
		if e, head, err = head.follow(line, n); err != nil {
			return head, err
		}
		visit(e, head)
	}
}

// readLine reads the n-th line without its line feed; nil is the end of the file.
func readLine(in *bufio.Reader, n int) ([]byte, error) {
	line, err := in.ReadSlice('\n')
	switch {
	case errors.Is(err, io.EOF) && len(line) == 0:
		return nil, nil
	case errors.Is(err, io.EOF):
		return nil, &Broken{n, "the file ends inside this line: it was cut, or a write was interrupted"}
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, &Broken{n, fmt.Sprintf("longer than %d bytes", MaxLine)}
	case err != nil:
		return nil, fmt.Errorf("audit: line %d: %w", n, err)
	}
	return line[:len(line)-1], nil
}

// follow is the entry of a line that must follow from h, and the head after it.
func (h Head) follow(line []byte, n int) (Entry, Head, error) {
	var e Entry
	if err := json.Unmarshal(line, &e); err != nil {
		return e, h, &Broken{n, fmt.Sprintf("is not an audit entry: %v", err)}
	}
	if e.Seq != h.Seq+1 {
		return e, h, &Broken{n, fmt.Sprintf("has number %d, wanted %d: lines were removed, added or moved before it", e.Seq, h.Seq+1)}
	}
	if e.Prev != h.Hash {
		return e, h, &Broken{n, fmt.Sprintf("does not follow from the line before (number %d), which was changed", h.Seq)}
	}
	return e, Head{Seq: e.Seq, Hash: hashOf(line)}, nil
}
