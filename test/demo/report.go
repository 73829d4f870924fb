package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Report is what out/demo.json holds.
type Report struct {
	// OK is true when every step came to its end and every expectation held.
	OK      bool      `json:"ok"`
	Started time.Time `json:"started"`
	Seconds float64   `json:"seconds"`
	// Form is "whole" or "light".
	Form string `json:"form"`
	// Containers is "containerd" or "stand-in", TPM "swtpm" or "simulator".
	Containers string  `json:"containers"`
	TPM        string  `json:"tpm,omitempty"`
	Steps      []*Step `json:"steps"`
	// Identities is who has an identity, Matrix who reached whom.
	Identities []Identity `json:"identities,omitempty"`
	Matrix     []Cell     `json:"matrix,omitempty"`
	// Timeline is what followed the tampering.
	Timeline []Moment `json:"timeline,omitempty"`
	Error    string   `json:"error,omitempty"`
}

// Step is one part of the demo.
type Step struct {
	ID      string  `json:"id"`
	Name    string  `json:"name"`
	OK      bool    `json:"ok"`
	Seconds float64 `json:"seconds"`
	Checks  []Check `json:"checks,omitempty"`
	Error   string  `json:"error,omitempty"`

	out io.Writer
}

// Check is one expectation.
type Check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"`
}

// Identity is what one workload got from the Workload API.
type Identity struct {
	Pod      string `json:"pod"`
	Node     string `json:"node"`
	Expected bool   `json:"expected"`
	SPIFFEID string `json:"spiffeID,omitempty"`
	Error    string `json:"error,omitempty"`
}

// Cell is one call.
type Cell struct {
	From     string `json:"from"`
	To       string `json:"to"`
	Expected bool   `json:"expected"`
	Reached  bool   `json:"reached"`
	// Kind and Error say why not.
	Kind  string `json:"kind,omitempty"`
	Error string `json:"error,omitempty"`
}

// Moment is something that was seen after the tampering.
type Moment struct {
	Event string `json:"event"`
	// Seconds since the tampering.
	Seconds float64 `json:"seconds"`
	Detail  string  `json:"detail,omitempty"`
}

// expect records an expectation and prints it.
func (s *Step) expect(ok bool, name, format string, args ...any) {
	c := Check{Name: name, OK: ok, Detail: fmt.Sprintf(format, args...)}
	s.Checks = append(s.Checks, c)
	mark := "ok  "
	if !ok {
		mark = "FAIL"
	}
	line := fmt.Sprintf("  %s %s", mark, name)
	if c.Detail != "" {
		line += ": " + c.Detail
	}
	say(s.out, "%s", line)
}

// show prints something that a program said, indented, with long lines cut: a reason in a table's column may be a page wide.
func (s *Step) show(text string) {
	const most = 180
	for line := range strings.Lines(strings.TrimSpace(text) + "\n") {
		r := []rune(strings.TrimRight(line, " \n"))
		if len(r) > most {
			r = append(r[:most], '…')
		}
		say(s.out, "    %s", string(r))
	}
}

func (s *Step) finish(begun time.Time, err error) {
	s.Seconds = seconds(time.Since(begun))
	s.OK = err == nil
	for _, c := range s.Checks {
		s.OK = s.OK && c.OK
	}
	if err != nil {
		s.Error = err.Error()
	}
}

func seconds(d time.Duration) float64 {
	return float64(d.Round(10*time.Millisecond)) / float64(time.Second)
}

// close settles the result: a run in which a step is missing is not ok.
func (r *Report) close(err error, steps int) {
	r.Seconds = seconds(time.Since(r.Started))
	r.OK = err == nil && len(r.Steps) == steps
	for _, s := range r.Steps {
		r.OK = r.OK && s.OK
	}
	if err != nil {
		r.Error = err.Error()
	}
}

// write writes the report as JSON, making the folder.
func (r *Report) write(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	content, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	if err := os.WriteFile(path, append(content, '\n'), 0o644); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	return nil
}

// table prints the steps.
func (r *Report) table(out io.Writer) {
	say(out, "\n%-12s %-62s %8s  %s", "step", "what", "seconds", "result")
	for _, s := range r.Steps {
		held := 0
		for _, c := range s.Checks {
			if c.OK {
				held++
			}
		}
		result := "ok"
		if !s.OK {
			result = "FAILED"
		}
		if len(s.Checks) > 0 {
			result += fmt.Sprintf(" (%d of %d)", held, len(s.Checks))
		}
		say(out, "%-12s %-62s %8.1f  %s", s.ID, s.Name, s.Seconds, result)
	}
	result := "every expectation held"
	if !r.OK {
		result = "FAILED"
		if r.Error != "" {
			first, _, _ := strings.Cut(r.Error, "\n")
			result += ": " + first
		}
	}
	say(out, "%-12s %-62s %8.1f  %s", "", "in all", r.Seconds, result)
}

// failures says which expectations did not hold.
func (r *Report) failures() error {
	var errs []error
	for _, s := range r.Steps {
		for _, c := range s.Checks {
			if !c.OK {
				errs = append(errs, fmt.Errorf("demo: step %s: %s: %s", s.ID, c.Name, c.Detail))
			}
		}
	}
	return errors.Join(errs...)
}

func say(out io.Writer, format string, args ...any) {
	_, _ = fmt.Fprintf(out, format+"\n", args...) // for people; losing it loses nothing
}
