package nodeclaim

import (
	"errors"
	"strings"
)

// Refusal is one reason why evidence was not accepted. Every refusal names the
// check that failed, so that a log line, an audit entry and a test can tell two
// refusals apart without reading prose.
type Refusal struct {
	// Check is a short stable id in dotted lower case: "quote.nonce", "boot.cmdline".
	Check string `json:"check"`
	// Reason says in a person's words what was found and what was wanted.
	Reason string `json:"reason"`
}

// Refuse makes a refusal.
func Refuse(check, reason string) *Refusal { return &Refusal{Check: check, Reason: reason} }

// Error is "check: reason".
func (r *Refusal) Error() string { return r.Check + ": " + r.Reason }

// Refusals are several reasons at once, for checks that go on after a failure so
// that an operator sees every difference and not only the first.
type Refusals []Refusal

// Error joins all refusals with "; ".
func (r Refusals) Error() string {
	parts := make([]string, len(r))
	for i := range r {
		parts[i] = r[i].Error()
	}
	return strings.Join(parts, "; ")
}

// AsRefusals extracts the refusals from an error: one, several, or none when the
// error is not a refusal (and thus proves nothing about the evidence).
func AsRefusals(err error) Refusals {
	var many Refusals
	if errors.As(err, &many) {
		return many
	}
	var one *Refusal
	if errors.As(err, &one) {
		return Refusals{*one}
	}
	return nil
}
