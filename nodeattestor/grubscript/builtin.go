package grubscript

import (
	"slices"
	"strconv"
	"strings"
)

// quiet are commands that set no variable and start nothing. What they return is not known.
var quiet = []string{
	"insmod", "echo", "export", "terminal_input", "terminal_output", "serial", "save_env", "clear", "background_image",
	"background_color", "loadfont", "play", "fwsetup", "initrd", "initrdefi", "gptsync", "sleep", "keymap", "acpi", "devicetree",
	"cutmem", "badram", "loopback", "cryptomount",
}

// searches are commands that look for a file system. They set one variable.
var searches = []string{"search", "search.fs_uuid", "search.fs_label", "search.file"}

// setting are commands that may set any variable.
var setting = []string{"load_env", "probe", "regexp", "read", "smbios", "increment", "decrement"}

// builtin runs a command that is no function. Where it is not interpreted, that is an error.
func (m *machine) builtin(s statement, args []string) error {
	name := args[0]
	ok := status{known: true}
	switch {
	case name == "set" && len(args) == 2:
		key, value, assigns := strings.Cut(args[1], "=")
		if !assigns || !assignable(key) {
			return refuse(s.line, "set %s is not interpreted", short(args[1]))
		}
		m.vars[key], m.status = value, ok
	case name == "unset":
		for _, key := range args[1:] {
			m.vars[key] = ""
		}
		m.status = ok
	case name == "export":
		for _, key := range args[1:] {
			m.exported[key] = true
		}
		m.status = ok
	case name == "setparams":
		m.params, m.status = args[1:], ok
	case name == "true" || name == "false":
		m.status = status{known: true}
		if name == "false" {
			m.status.value = 1
		}
	case name == "[" || name == "test":
		return m.test(s, args)
	case name == "menuentry" || name == "submenu":
		return m.entry(s, args)
	case name == "linux" || name == "linuxefi":
		return m.linux(s, args)
	case name == "boot" && m.kernel:
		return errBooted
	case slices.Contains(searches, name):
		m.found(args)
		m.status = status{text: strings.Join(args, " "), line: s.line}
	case slices.Contains(setting, name):
		m.havoc()
		m.status = status{text: strings.Join(args, " "), line: s.line}
	case slices.Contains(quiet, name):
		m.status = status{text: strings.Join(args, " "), line: s.line}
	case len(args) == 1 && strings.Contains(name, "="):
		key, value, _ := strings.Cut(name, "=")
		if !assignable(key) {
			return refuse(s.line, "%q is not interpreted", short(name))
		}
		m.vars[key], m.status = value, ok
	default:
		return refuse(s.line, "the command %q is not interpreted", short(name))
	}
	return nil
}

// assignable tells whether a name is a variable's that a configuration may set.
func assignable(name string) bool { return validName(name) && letter(name[0]) }

// havoc forgets all variables: a command ran that may have set any.
func (m *machine) havoc() {
	m.vars = map[string]string{}
	m.all++
}

// found forgets the variable that a search sets (grub-core/commands/search_wrap.c: --set, "root" where it
// has no name; grub-core/commands/search.c: the second word of search.fs_uuid and its like).
func (m *machine) found(args []string) {
	name := ""
	for i, a := range args {
		switch after, named := strings.CutPrefix(a, "--set="); {
		case named:
			name = after
		case a == "--set" || a == "-s":
			name = "root"
		case i == 2 && args[0] != "search":
			name = a
		}
	}
	delete(m.vars, name)
	m.own[name]++
}

// linux loads a kernel and makes its command line (grub-core/lib/cmdline.c).
func (m *machine) linux(s statement, args []string) error {
	if len(args) < 2 {
		return refuse(s.line, "%s names no kernel", args[0])
	}
	for _, a := range args[1:] {
		if strings.ContainsAny(a, " \\'\"") {
			return refuse(s.line, "how GRUB writes %q into the command line is not interpreted: it has a space, quote or backslash", short(a))
		}
	}
	m.kernel = true
	m.status = status{text: strings.Join(args, " "), line: s.line}
	return m.measure(Step{Args: args[1:], Text: strings.Join(args[1:], " "), Line: s.line, CommandLine: true})
}

// entry notes a menu entry (grub-core/commands/menuentry.c).
func (m *machine) entry(s statement, args []string) error {
	if s.block == nil || len(m.entries) == maxEntries {
		return refuse(s.line, "a menu entry without a block, or more than %d", maxEntries)
	}
	e := entry{body: s.block, submenu: args[0] == "submenu"}
	var free []string
	for i := 1; i < len(args)-1; i++ {
		switch a := args[i]; {
		case a == "--unrestricted":
		case a == "--id" || a == "--class" || a == "--users" || a == "--hotkey":
			i++
			if i == len(args)-1 {
				return refuse(s.line, "%s has no value", a)
			}
			if a == "--id" {
				e.id = args[i]
			}
		case strings.HasPrefix(a, "--id="):
			e.id = strings.TrimPrefix(a, "--id=")
		case strings.HasPrefix(a, "--class="), strings.HasPrefix(a, "--users="), strings.HasPrefix(a, "--hotkey="):
		case strings.HasPrefix(a, "-"):
			return refuse(s.line, "menu entry: %q is not interpreted", short(a))
		default:
			free = append(free, a)
		}
	}
	if len(free) == 0 {
		return refuse(s.line, "a menu entry has no title")
	}
	e.title, e.params = free[0], free[1:]
	if e.id == "" {
		e.id = e.title
	}
	m.entries = append(m.entries, e)
	m.status = status{known: true}
	return nil
}

// test judges texts and numbers. What asks for files is known from the boot before.
func (m *machine) test(s statement, args []string) error {
	m.status = status{text: strings.Join(args, " "), line: s.line}
	words := args[1:]
	if args[0] == "[" {
		if len(words) == 0 || words[len(words)-1] != "]" {
			return refuse(s.line, "\"[\" without \"]\"")
		}
		words = words[:len(words)-1]
	}
	if result, ok := compare(words); ok {
		m.status.known = true
		if !result {
			m.status.value = 1
		}
	}
	return nil
}

// compare judges one comparison (grub-core/commands/test.c); ok is false for anything else.
func compare(w []string) (result, ok bool) {
	switch {
	case len(w) > 0 && w[0] == "!":
		result, ok = compare(w[1:])
		return !result, ok
	case len(w) == 0:
		return false, true
	case len(w) == 1:
		return w[0] != "", true
	case len(w) == 2 && w[0] == "-n":
		return w[1] != "", true
	case len(w) == 2 && w[0] == "-z":
		return w[1] == "", true
	case len(w) != 3:
		return false, false
	}
	switch w[1] {
	case "=", "==":
		return w[0] == w[2], true
	case "!=":
		return w[0] != w[2], true
	}
	a, errA := strconv.ParseInt(w[0], 10, 32)
	b, errB := strconv.ParseInt(w[2], 10, 32)
	if errA != nil || errB != nil {
		return false, false
	}
	switch w[1] {
	case "-eq":
		return a == b, true
	case "-ne":
		return a != b, true
	case "-lt":
		return a < b, true
	case "-le":
		return a <= b, true
	case "-gt":
		return a > b, true
	case "-ge":
		return a >= b, true
	}
	return false, false
}
