package grubscript

import (
	"errors"
	"slices"
	"strconv"
	"strings"
)

// Limits of a run.
const (
	maxSteps   = 10_000
	maxLine    = 64 << 10 // bytes of a command with its variables expanded
	maxEntries = 1024
)

// Step is a command that GRUB runs and measures, or a kernel's command line that it makes of one.
type Step struct {
	// Args are the command's words. Text is what is measured: the words with spaces between.
	Args []string
	Text string
	// Line is the configuration's, from 1 on.
	Line int
	// CommandLine tells that it is a kernel's command line: its file and parameters. Function tells
	// that the configuration defines the command.
	CommandLine, Function bool
}

// Errors that end a run.
var (
	errBooted = errors.New("grubscript: a kernel was started")
	errOther  = errors.New("grubscript: something else was measured")
)

// entry is a menu entry.
type entry struct {
	title, id string
	params    []string
	submenu   bool
	body      *block
}

// named is the command by which GRUB hands an entry its title.
func (e entry) named() string {
	return strings.Join(append([]string{"setparams", e.title}, e.params...), " ")
}

// status is what a command returned: known, or to be asked for by the command's text.
type status struct {
	known bool
	value int
	text  string
	line  int
}

// machine runs a configuration.
type machine struct {
	world    World
	learning *attempt // nil where nothing is learnt
	vars     map[string]string
	exported map[string]bool
	params   []string
	code     map[string]*block
	entries  []entry
	status   status
	all      int            // how many commands ran that may set any variable
	own      map[string]int // how many that may set this one
	steps    []Step
	kernel   bool
}

func newMachine(w World, a *attempt) *machine {
	return &machine{world: w, learning: a, vars: map[string]string{}, exported: map[string]bool{},
		code: map[string]*block{}, own: map[string]int{}, status: status{known: true}}
}

// boot runs a configuration, and the entry of its menu that it chooses.
func (m *machine) boot(text string) error {
	list, err := parse(text, 1)
	if err != nil {
		return err
	}
	if err = m.run(list, 0); err == nil {
		err = m.menu(0)
	}
	if errors.Is(err, errBooted) {
		err = nil
	}
	if err == nil && !m.kernel {
		err = refuse(1, "the configuration starts no kernel")
	}
	return err
}

func (m *machine) run(list []statement, depth int) error {
	for _, s := range list {
		if err := m.statement(s, depth); err != nil {
			return err
		}
	}
	return nil
}

func (m *machine) statement(s statement, depth int) error {
	switch {
	case depth > maxDepth:
		return refuse(s.line, "more than %d blocks in one another", maxDepth)
	case s.function != "":
		m.code[s.function] = s.block
		m.status = status{known: true}
		return nil
	case s.branches == nil:
		return m.command(s, depth)
	}
	for _, b := range s.branches {
		holds := b.always
		if !b.always {
			if err := m.run(b.test, depth+1); err != nil {
				return err
			}
			var err error
			if holds, err = m.holds(); err != nil {
				return err
			}
		}
		if holds {
			return m.run(b.body, depth+1)
		}
	}
	m.status = status{known: true}
	return nil
}

// holds tells whether the last command succeeded.
func (m *machine) holds() (bool, error) {
	if m.status.known {
		return m.status.value == 0, nil
	}
	held, ok := m.world.held[m.status.text]
	if !ok && m.learning != nil {
		held, ok = m.learning.decide(m.status.text), true
		m.world.held[m.status.text] = held
	}
	if !ok {
		return false, refuse(m.status.line, "whether %q holds was not asked in the boot before", short(m.status.text))
	}
	m.status.known, m.status.value = true, 1
	if held {
		m.status.value = 0
	}
	return held, nil
}

// block runs the inside of a block's braces.
func (m *machine) block(b *block, depth int) error {
	list, err := parse(b.text[1:len(b.text)-1], b.line)
	if err != nil {
		return err
	}
	return m.run(list, depth+1)
}

// command expands, measures and runs a command.
func (m *machine) command(s statement, depth int) error {
	args, err := m.expanded(s)
	if err != nil {
		return err
	}
	if len(args) == 0 {
		return nil
	}
	body, function := m.code[args[0]]
	step := Step{Args: args, Text: strings.Join(args, " "), Line: s.line, Function: function}
	if err := m.measure(step); err != nil {
		return err
	}
	if function {
		before := m.params
		m.params = args[1:]
		err := m.block(body, depth)
		m.params = before
		return err
	}
	if s.block != nil && args[0] != "menuentry" && args[0] != "submenu" {
		return refuse(s.line, "%s with a block is not interpreted", short(args[0]))
	}
	return m.builtin(s, args)
}

// measure notes a step. While learning, it must be the one that was measured next.
func (m *machine) measure(s Step) error {
	if len(m.steps) == maxSteps || len(s.Text) > maxLine {
		return refuse(s.Line, "more than %d commands, or one of more than %d bytes", maxSteps, maxLine)
	}
	if m.learning != nil && !m.learning.expects(len(m.steps), s) {
		return errOther
	}
	m.steps = append(m.steps, s)
	return nil
}

// expanded are a command's words, with its block as the last.
func (m *machine) expanded(s statement) ([]string, error) {
	args, unknown, err := m.words(s, "")
	if err != nil || len(unknown) == 0 {
		return args, err
	}
	if m.learning == nil {
		return nil, refuse(s.line, "the value of $%s was not seen in the boot before", unknown[0].name)
	}
	want := m.learning.text(len(m.steps))
	if strings.Join(args, " ") != want && len(unknown) == 1 {
		const mark = "\x00"
		marked, _, err := m.words(s, mark)
		if err != nil {
			return nil, err
		}
		before, after, ok := strings.Cut(strings.Join(marked, " "), mark)
		if ok && !strings.Contains(after, mark) && len(want) >= len(before)+len(after) &&
			strings.HasPrefix(want, before) && strings.HasSuffix(want, after) {
			m.world.values[unknown[0]] = want[len(before) : len(want)-len(after)]
		}
	}
	for _, v := range unknown {
		if _, ok := m.world.values[v]; !ok {
			m.world.values[v] = ""
		}
	}
	args, _, err = m.words(s, "")
	return args, err
}

// words expands a command's words (grub_script_arglist_to_argv); hole stands for unknown values.
func (m *machine) words(s statement, hole string) (args []string, unknown []variable, err error) {
	for _, w := range s.words {
		if w.glob {
			return nil, nil, refuse(s.line, "wildcards are not interpreted; quote them where they are none")
		}
		var now strings.Builder
		open := false
		for _, p := range w.parts {
			value := p.text
			if p.variable {
				var v variable
				var known bool
				if value, v, known = m.value(p.text); !known {
					value = hole
					if !slices.Contains(unknown, v) {
						unknown = append(unknown, v)
					}
				}
			}
			if !p.variable || p.quoted {
				now.WriteString(value)
				open = open || p.quoted || value != ""
				continue
			}
			for _, r := range value {
				switch {
				case !blank(r):
					now.WriteRune(r)
					open = true
				case open:
					args = append(args, now.String())
					now.Reset()
					open = false
				}
			}
		}
		if open {
			args = append(args, now.String())
		}
		if now.Len() > maxLine {
			return nil, nil, refuse(s.line, "a word of more than %d bytes", maxLine)
		}
	}
	if s.block != nil {
		args = append(args, s.block.text)
	}
	return args, unknown, nil
}

func blank(r rune) bool { return r == ' ' || r == '\t' || r == '\n' }

// value is a variable's.
func (m *machine) value(name string) (value string, v variable, known bool) {
	v = variable{name, m.all, m.own[name]}
	if i, err := strconv.Atoi(name); err == nil {
		if i > 0 && i <= len(m.params) {
			value = m.params[i-1]
		}
		return value, v, i > 0
	}
	if name == "?" {
		if m.status.known {
			return strconv.Itoa(m.status.value), v, true
		}
		v = variable{name: "? after " + m.status.text}
	} else if value, known = m.vars[name]; known {
		return value, v, true
	}
	value, known = m.world.values[v]
	return value, v, known
}

// menu runs the entry that is chosen without a key pressed.
func (m *machine) menu(depth int) error {
	chosen, v, known := m.value("default")
	if !known {
		// It is learnt from the entry that ran.
		if m.learning == nil {
			return refuse(1, "the value of $%s was not seen in the boot before", v.name)
		}
		ran := slices.IndexFunc(m.entries, func(e entry) bool { return e.named() == m.learning.text(len(m.steps)) })
		chosen = strconv.Itoa(max(ran, 0))
		m.world.values[v] = chosen
	}
	return m.choose(chosen, depth)
}

// choose runs an entry by its number, identifier or title; of a submenu by "one>other".
func (m *machine) choose(chosen string, depth int) error {
	if depth > maxDepth {
		return refuse(1, "more than %d menus in one another", maxDepth)
	}
	first, rest, _ := strings.Cut(chosen, ">")
	if chosen == "" {
		first = "0"
	}
	at, err := strconv.Atoi(first)
	if err != nil {
		at = slices.IndexFunc(m.entries, func(e entry) bool { return e.id == first || e.title == first })
	}
	if at < 0 || at >= len(m.entries) {
		return refuse(1, "the menu has no entry %q, which is the default", short(first))
	}
	e := m.entries[at]
	if e.submenu {
		m.context()
	}
	m.params = append([]string{e.title}, e.params...)
	if err := m.measure(Step{Args: append([]string{"setparams"}, m.params...), Text: e.named(), Line: e.body.line}); err != nil {
		return err
	}
	if err := m.block(e.body, depth); err != nil {
		return err
	}
	if e.submenu {
		return m.choose(rest, depth+1)
	}
	return nil
}

// context leaves only exported variables, as a submenu does, and no entries.
func (m *machine) context() {
	for name := range m.vars {
		if !m.exported[name] {
			m.vars[name] = ""
		}
	}
	m.entries = nil
}

// short is a text as it stands in an error.
func short(text string) string {
	const most = 120
	if len(text) > most {
		return text[:most] + "…"
	}
	return text
}
