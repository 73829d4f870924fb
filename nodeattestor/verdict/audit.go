package verdict

import (
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// Outcome is how an attestation ended.
type Outcome string

// The outcomes of an attestation, as the audit file names them.
const (
	OutcomeTrusted      Outcome = "trusted"
	OutcomeUntrusted    Outcome = "untrusted"    // proved bad: the node's own evidence says so
	OutcomeUnproved     Outcome = "unproved"     // refused before anything was proved; no verdict changes
	OutcomeInconclusive Outcome = "inconclusive" // could not be finished; the verdict is left to expire
)

// Entry is one line of the audit file.
type Entry struct {
	Time           time.Time           `json:"time"`
	Outcome        Outcome             `json:"outcome"`
	Node           string              `json:"node,omitempty"`
	EKHash         string              `json:"ekHash,omitempty"`
	AgentID        string              `json:"agentID,omitempty"`
	Reference      string              `json:"reference,omitempty"`
	Refusals       []nodeclaim.Refusal `json:"refusals,omitempty"`
	Error          string              `json:"error,omitempty"`
	EvidenceDigest string              `json:"evidenceDigest,omitempty"`
}

// Audit is an append-only file of JSON lines. Its methods may be called at once.
type Audit struct {
	mu   sync.Mutex
	file *os.File
}

// OpenAudit opens or creates the file at path, for appending, readable by its owner alone.
func OpenAudit(path string) (*Audit, error) {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("verdict: audit file: %w", err)
	}
	return &Audit{file: f}, nil
}

// Append writes one line and waits until the disk has it. An error means that the
// line may be missing: the caller must then not grant anything on its strength.
func (a *Audit) Append(e Entry) error {
	line, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("verdict: audit line: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, err := a.file.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("verdict: audit file: %w", err)
	}
	if err := a.file.Sync(); err != nil {
		return fmt.Errorf("verdict: audit file: %w", err)
	}
	return nil
}

// Close closes the file.
func (a *Audit) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.file.Close()
}
