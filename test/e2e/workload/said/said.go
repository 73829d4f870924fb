// Package said is what the scenarios' workload prints, as JSON, one object a line.
package said

import "time"

// Try is one attempt to reach somebody.
type Try struct {
	Target string `json:"target"`
	// Begun and Ended are wall-clock times, in nanoseconds since 1970.
	Begun int64 `json:"begun"`
	Ended int64 `json:"ended"`
	OK    bool  `json:"ok"`
	// Status is HTTP's; 0 where there was no answer.
	Status int    `json:"status,omitempty"`
	Error  string `json:"error,omitempty"`
	// Kind is how it failed; empty where it succeeded.
	Kind   Kind   `json:"kind,omitempty"`
	Answer Answer `json:"answer,omitzero"`
}

// Kind is a way of failing. A packet filter that drops looks otherwise than a name that nobody knows, a port that nobody listens
// at, or a proxy that answers that it will not.
type Kind string

// The kinds.
const (
	Timeout     Kind = "timeout"     // nobody answered at all
	Refused     Kind = "refused"     // nobody listens there
	Unreachable Kind = "unreachable" // there is no way there
	Ended       Kind = "ended"       // the connection stood, and was ended
	Unresolved  Kind = "unresolved"  // the name has no address
	TLS         Kind = "tls"         // the other end did not take the certificate
	Status      Kind = "status"      // an answer by HTTP that is not 200
	Other       Kind = "other"
)

// Answer is what the HTTP server says: who it is, and what it was asked by whom. The caller is what the proxy put into the header
// that Envoy names peers in; without a proxy there is none.
type Answer struct {
	Name   string `json:"name"`
	Method string `json:"method"`
	Path   string `json:"path"`
	Caller string `json:"caller,omitempty"`
}

// Held is what hold prints: once when the connection stands, once at its end.
type Held struct {
	Open bool `json:"open"`
	// At is when: of the last echo that came back where the connection was cut. Nanoseconds since 1970.
	At     int64  `json:"at"`
	Echoes int    `json:"echoes"`
	Error  string `json:"error,omitempty"`
}

// SVID is what `workload svid` prints.
type SVID struct {
	OK       bool      `json:"ok"`
	SPIFFEID string    `json:"spiffe_id,omitempty"`
	NotAfter time.Time `json:"not_after,omitzero"`
	Error    string    `json:"error,omitempty"`
	// Code is gRPC's for the error: PermissionDenied is the agent's no, Unavailable that no agent serves.
	Code string `json:"code,omitempty"`
}
