// Package script keeps the record of a scenario: what happened when, what was expected and came true or not, what was measured.
// It is told as it goes and written as JSON at the end.
package script

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Script is one scenario's record.
type Script struct {
	Name    string    `json:"name"`
	Proves  string    `json:"proves"`
	Started time.Time `json:"started"`
	Seconds float64   `json:"seconds"`
	OK      bool      `json:"ok"`
	Error   string    `json:"error,omitempty"`
	// Events are in the order in which they were seen.
	Events []Event `json:"events"`
	// Measures hold durations in milliseconds, by what was measured, in the order of the runs.
	Measures map[string][]float64 `json:"measuresMilliseconds,omitempty"`

	mu     sync.Mutex
	out    io.Writer
	failed int
}

// Event is something that happened or was found out.
type Event struct {
	// Seconds is since the scenario's start.
	Seconds float64 `json:"seconds"`
	What    string  `json:"what"`
	Detail  string  `json:"detail,omitempty"`
	// Expected says whether it is an expectation; then OK says whether it came true.
	Expected bool `json:"expected,omitempty"`
	OK       bool `json:"ok,omitempty"`
}

// New begins a scenario.
func New(out io.Writer, name, proves string) *Script {
	s := &Script{Name: name, Proves: proves, Started: time.Now(), out: out, Measures: map[string][]float64{}}
	s.print("\n== %s: %s", name, proves)
	return s
}

func (s *Script) print(format string, args ...any) {
	_, _ = fmt.Fprintf(s.out, format+"\n", args...) // for people; the record is what counts
}

// Say records something that happened now.
func (s *Script) Say(format string, args ...any) {
	s.add(Event{What: fmt.Sprintf(format, args...)}, time.Now())
}

// Saw records something that happened at a moment that is known better than by now.
func (s *Script) Saw(at time.Time, format string, args ...any) {
	s.add(Event{What: fmt.Sprintf(format, args...)}, at)
}

// Expect records an expectation and whether it came true; one that did not fails the scenario, which goes on.
func (s *Script) Expect(ok bool, what, format string, args ...any) bool {
	s.add(Event{What: what, Detail: short(fmt.Sprintf(format, args...)), Expected: true, OK: ok}, time.Now())
	return ok
}

func (s *Script) add(e Event, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.Seconds = at.Sub(s.Started).Seconds()
	mark := "    "
	if e.Expected {
		mark = "  ✓ "
		if !e.OK {
			mark = "  ✗ "
			s.failed++
		}
	}
	detail := ""
	if e.Detail != "" {
		detail = ": " + e.Detail
	}
	s.print("%7.2f %s%s%s", e.Seconds, mark, e.What, detail)
	s.Events = append(s.Events, e)
}

// short cuts a detail to what fits on a line or two.
func short(text string) string {
	const most = 400
	text = strings.Join(strings.Fields(text), " ")
	if r := []rune(text); len(r) > most {
		return string(r[:most]) + "…"
	}
	return text
}

// Measure records a duration.
func (s *Script) Measure(what string, d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Measures[what] = append(s.Measures[what], float64(d.Microseconds())/1000)
}

// Quantile is the smallest of the measured values that a share q of them does not exceed (nearest rank), in milliseconds.
func Quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	rank := int(q*float64(len(sorted)) + 0.999999)
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// Table prints what was measured.
func (s *Script) Table(order []string) {
	s.print("  %-64s %6s %9s %9s %9s", "milliseconds", "runs", "p50", "p99", "max")
	for _, what := range order {
		v := s.Measures[what]
		s.print("  %-64s %6d %9.0f %9.0f %9.0f", what, len(v), Quantile(v, 0.5), Quantile(v, 0.99), Quantile(v, 1))
	}
}

// mostNamed is how many expectations an error names.
const mostNamed = 5

// failures names the expectations that did not come true, since the end of a log may be all that
// is kept of it.
func (s *Script) failures() string {
	text := fmt.Sprintf("%d expectations did not come true", s.failed)
	named := 0
	for _, e := range s.Events {
		if !e.Expected || e.OK {
			continue
		}
		if named++; named > mostNamed {
			break
		}
		text += fmt.Sprintf("\n    after %.2f s: %s: %s", e.Seconds, e.What, e.Detail)
	}
	return text
}

// Close ends the scenario and writes the record into dir. The error is the scenario's: what it stopped at, or that expectations
// did not come true.
func (s *Script) Close(dir string, err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil && s.failed > 0 {
		err = errors.New(s.failures())
	}
	s.Seconds, s.OK = time.Since(s.Started).Seconds(), err == nil
	if err != nil {
		s.Error = err.Error()
		err = fmt.Errorf("%s: %w", s.Name, err)
	}
	content, writeErr := json.MarshalIndent(s, "", "  ")
	if writeErr == nil {
		writeErr = os.MkdirAll(dir, 0o755)
	}
	if writeErr == nil {
		writeErr = os.WriteFile(filepath.Join(dir, s.Name+".json"), append(content, '\n'), 0o644) // #nosec G306 -- for everybody to read
	}
	s.print("%7.2f %s", s.Seconds, map[bool]string{true: "done", false: "FAILED"}[s.OK])
	return errors.Join(err, writeErr)
}
