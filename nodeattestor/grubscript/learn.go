package grubscript

import (
	"errors"
	"fmt"
	"maps"
)

// How many explanations of a boot are tried, and how many where one test had another outcome.
const (
	maxAttempts = 4096
	maxOthers   = 64
)

// Measured is a command or a kernel's command line that GRUB measured.
type Measured struct {
	Text        string
	CommandLine bool
}

// variable is one whose value the configuration does not say. After each command that may set any
// variable, or that sets this one, it is another.
type variable struct {
	name     string
	all, own int
}

// World is what a boot tells of its machine: values of variables, and which commands succeeded.
type World struct {
	values map[variable]string
	held   map[string]bool
}

func newWorld() World { return World{values: map[variable]string{}, held: map[string]bool{}} }

// attempt is one explanation of a boot.
type attempt struct {
	measured  []Measured
	decisions []bool // tried so far, in order
	asked     int
	forced    map[string]bool
	// furthest is how many steps were explained, and why it went no further.
	furthest int
	why      error
}

// failed notes why an explanation ended after some steps.
func (a *attempt) failed(at int, why error) {
	if at >= a.furthest {
		a.furthest, a.why = at, why
	}
}

// otherwise says that something else was measured than the configuration has.
func (a *attempt) otherwise(at, line int, instead string) {
	a.failed(at, refuse(line, "the configuration says %q, but the boot before measured %q: it is not the one that was read then, or GRUB does something with it that is not interpreted",
		short(instead), short(a.text(at))))
}

// decide says whether a command succeeded: as tried, or at first yes.
func (a *attempt) decide(text string) bool {
	if held, ok := a.forced[text]; ok {
		return held
	}
	if a.asked == len(a.decisions) {
		a.decisions = append(a.decisions, true)
	}
	a.asked++
	return a.decisions[a.asked-1]
}

// text is what was measured at a place, "" after the end.
func (a *attempt) text(at int) string {
	if at >= len(a.measured) {
		return ""
	}
	return a.measured[at].Text
}

// expects tells whether a step is the one that was measured.
func (a *attempt) expects(at int, s Step) bool {
	if at < len(a.measured) && a.measured[at] == (Measured{s.Text, s.CommandLine}) {
		return true
	}
	a.otherwise(at, s.Line, s.Text)
	return false
}

// next is the attempt after one that failed: its last "yes" becomes "no". ok is false after the
// last one.
func (a *attempt) next() (ok bool) {
	a.decisions = a.decisions[:a.asked]
	for i := len(a.decisions) - 1; i >= 0; i-- {
		if a.decisions[i] {
			a.decisions = append(a.decisions[:i], false)
			return true
		}
	}
	return false
}

// Learn explains what GRUB measured by the configuration that it read: from the first command of it to the kernel.
// steps are the configuration's, one for each that was measured.
func Learn(name string, script []byte, measured []Measured) (w World, steps []Step, err error) {
	w, steps, err = learn(string(script), measured, nil, maxAttempts)
	if err != nil {
		return World{}, nil, fmt.Errorf("%s: %w", name, err)
	}
	// What could as well have been otherwise is not known.
	for text, held := range maps.Clone(w.held) {
		_, _, err := learn(string(script), measured, map[string]bool{text: !held}, maxOthers)
		if err == nil || errors.Is(err, errMany) {
			delete(w.held, text)
		}
	}
	return w, steps, nil
}

var errMany = errors.New("too many explanations of what the boot before measured had to be tried")

func learn(script string, measured []Measured, forced map[string]bool, attempts int) (World, []Step, error) {
	a := &attempt{measured: measured, forced: forced}
	for range attempts {
		a.asked = 0
		w := newWorld()
		m := newMachine(w, a)
		err := m.boot(script)
		switch at := len(m.steps); {
		case err == nil && at == len(measured):
			return w, m.steps, nil
		case err == nil:
			a.otherwise(at, m.steps[at-1].Line, "nothing more")
		case !errors.Is(err, errOther):
			a.failed(at, err)
		}
		if !a.next() {
			return World{}, nil, a.why
		}
	}
	return World{}, nil, errMany
}

// Run tells what GRUB will do with another configuration on a machine like that. Values and tests that the boot
// before says nothing about are errors that name the line.
func (w World) Run(name string, script []byte) ([]Step, error) {
	m := newMachine(w, nil)
	if err := m.boot(string(script)); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return m.steps, nil
}
