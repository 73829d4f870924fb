package predict

import (
	"bytes"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/grubscript"
)

// command is what GRUB measured of one that it ran, and what it then read.
type command struct {
	measured grubscript.Measured
	event    event
	before   string // what stands before the text in the log
	nul      string // what the digest covers after the text
	reads    []event
}

// grubTail is the part of a boot from the reading of GRUB's configuration on.
type grubTail struct {
	head     []event   // files that GRUB read before its first command
	commands []command // in order
	// skip8 and skip9 are how many events of PCRs 8 and 9 come before; stub is how many of PCR 9
	// at the end are of the kernel's stub.
	skip8, skip9, stub int
}

// grubRun is what GRUB does with an updated configuration.
type grubRun struct {
	tail     grubTail
	commands []event // PCR 8, all of it
	reads    []event // PCR 9, between what came before and the stub's
	lines    map[string]event
}

// tail finds where a configuration was read, and what followed.
func (b Base) tail(config []byte) (grubTail, error) {
	var t grubTail
	at, digest := map[int]int{}, hash(b.alg, config)
	for _, pcr := range b.order {
		e := b.byPCR[pcr][at[pcr]]
		at[pcr]++
		if pcr == 9 && bytes.Equal(e.digest, digest) {
			t = grubTail{skip8: at[8], skip9: at[9]} // the last time counts
			continue
		}
		if t.skip9 == 0 || pcr != 8 && pcr != 9 {
			continue
		}
		if err := t.add(b, pcr, at[pcr], e); err != nil {
			return t, err
		}
	}
	if t.skip9 == 0 {
		return t, fmt.Errorf("the boot before did not read the old one (PCR 9)")
	}
	return t, nil
}

func (t *grubTail) add(b Base, pcr, number int, e event) error {
	switch {
	case pcr == 8:
		m := eventlog.Measurement{PCR: 8, Type: e.typ, Digest: e.digest, Data: e.data}
		before, text, _, ok := m.Text(b.alg)
		if !ok {
			return fmt.Errorf("event %d of PCR 8 is no text that its digest confirms", number)
		}
		c := command{event: e, before: before}
		c.measured.Text = strings.TrimRight(text, "\x00")
		c.nul = text[len(c.measured.Text):]
		c.measured.CommandLine = strings.Contains(before, "kernel_cmdline")
		t.commands = append(t.commands, c)
	case e.typ == typeEventTag:
		t.stub++
	case t.stub > 0:
		return fmt.Errorf("event %d of PCR 9 comes after the kernel's stub has measured", number)
	case len(t.commands) == 0:
		t.head = append(t.head, e)
	default:
		last := &t.commands[len(t.commands)-1]
		last.reads = append(last.reads, e)
	}
	return nil
}

// interpret runs an updated configuration on the machine that the boot before tells of.
func (g GRUB) interpret(d *draft, r Replacement) (*grubRun, error) {
	t, err := d.base.tail(r.Old.Data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.Old.Name, err)
	}
	var measured []grubscript.Measured
	for _, c := range t.commands {
		measured = append(measured, c.measured)
	}
	world, before, err := grubscript.Learn(r.Old.Name, r.Old.Data, measured)
	if err != nil {
		return nil, err
	}
	steps, err := world.Run(r.New.Name, r.New.Data)
	if err != nil {
		return nil, err
	}
	run := &grubRun{tail: t, commands: slices.Clone(d.base.byPCR[8][:t.skip8]), reads: t.head, lines: map[string]event{}}
	known, err := g.known(t, before)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.Old.Name, err)
	}
	for _, s := range steps {
		run.commands = append(run.commands, d.base.command(t, s))
		reads, err := g.reads(d.base, known, s)
		if err != nil {
			return nil, fmt.Errorf("%s: line %d: %w", r.New.Name, s.Line, err)
		}
		run.reads = append(run.reads, reads...)
	}
	run.stubLines(d.base, before, steps)
	d.note("GRUB: its environment block, and what its commands find on the disks, are taken to be as in the boot before; no key is pressed")
	return run, nil
}

// command is the event of a step, as GRUB wrote such events before.
func (b Base) command(t grubTail, s grubscript.Step) event {
	i := slices.IndexFunc(t.commands, func(c command) bool { return c.measured.CommandLine == s.CommandLine })
	like := t.commands[i] // there is one of each: Learn explains no boot without a kernel
	what := "command " + s.Text
	if s.CommandLine {
		what = "command line " + s.Text
	}
	return event{like.event.typ, hash(b.alg, []byte(s.Text+like.nul)), []byte(like.before + s.Text + like.nul), what}
}

// stubLines says by which event of the kernel's stub that of the command line is replaced.
func (run *grubRun) stubLines(b Base, before, after []grubscript.Step) {
	last := func(steps []grubscript.Step) (text string) {
		for _, s := range steps {
			if s.CommandLine {
				text = s.Text
			}
		}
		return text
	}
	old, line := last(before), last(after)
	for _, prefix := range stubPrefixes {
		run.lines[string(hash(b.alg, wide(prefix+old)))] = b.measure(typeEventTag, wide(prefix+line),
			"command line, by the kernel's stub")
	}
}

// apply puts the run into PCRs 8 and 9, once files are replaced in the latter.
func (run *grubRun) apply(d *draft) {
	all := d.byPCR[9]
	d.set(8, run.commands)
	d.set(9, slices.Concat(all[:run.tail.skip9], run.reads, all[len(all)-run.tail.stub:]))
}

// reading is what is known of the files that commands read.
type reading struct {
	byText map[string][]event
	twice  map[string]bool // the same command read other files
	byPath map[string]event
}

// fileCommands load the files that their words name.
var fileCommands = []string{"linux", "linuxefi", "initrd", "initrdefi"}

// paths are the files that a command names.
func paths(s grubscript.Step) (names []string, ok bool) {
	if s.CommandLine || s.Function || !slices.Contains(fileCommands, s.Args[0]) {
		return nil, false
	}
	names = s.Args[1:]
	if s.Args[0] == "linux" || s.Args[0] == "linuxefi" {
		names = names[:1]
	}
	return names, true
}

// known gathers what the boot before read. GRUB must have measured each file that it loaded, once.
func (g GRUB) known(t grubTail, steps []grubscript.Step) (reading, error) {
	k := reading{map[string][]event{}, map[string]bool{}, map[string]event{}}
	for i, s := range steps {
		reads := t.commands[i].reads
		if s.CommandLine { // what follows it belongs to the command before
			continue
		}
		if i+1 < len(steps) && steps[i+1].CommandLine {
			reads = slices.Concat(reads, t.commands[i+1].reads)
		}
		if names, ok := paths(s); ok {
			if len(names) != len(reads) {
				return k, fmt.Errorf("line %d: %q names %d files, and the boot before read %d", s.Line, s.Text, len(names), len(reads))
			}
			for j, name := range names {
				k.byPath[name] = reads[j]
			}
			continue
		}
		if had, ok := k.byText[s.Text]; ok && !slices.EqualFunc(had, reads, sameDigest) {
			k.twice[s.Text] = true
		}
		k.byText[s.Text] = reads
	}
	return k, nil
}

func sameDigest(a, b event) bool { return bytes.Equal(a.digest, b.digest) }

// silent are commands that read no file.
var silent = []string{"set", "unset", "export", "setparams", "menuentry", "submenu", "true", "false", "echo", "[", "test", "boot",
	"terminal_input", "terminal_output", "serial", "clear", "sleep"}

// reads are the files that a step reads.
func (g GRUB) reads(b Base, k reading, s grubscript.Step) ([]event, error) {
	if names, ok := paths(s); ok {
		var out []event
		for _, name := range names {
			e, err := g.read(b, k, name)
			if err != nil {
				return nil, err
			}
			out = append(out, e)
		}
		return out, nil
	}
	if reads, ok := k.byText[s.Text]; ok && !k.twice[s.Text] {
		return g.renewed(b, reads), nil
	}
	byID := s.Args[0] == "search" && !slices.ContainsFunc(s.Args, func(a string) bool { return a == "-f" || strings.HasPrefix(a, "--file") })
	if s.CommandLine || s.Function || byID || slices.Contains(silent, s.Args[0]) || len(s.Args) == 1 && strings.Contains(s.Args[0], "=") {
		return nil, nil
	}
	return nil, fmt.Errorf("which files %q reads is not known: the boot before did not run it", s.Text)
}

// read is the event of a file by its path: one that is given by its name, or one that was there before.
func (g GRUB) read(b Base, k reading, name string) (event, error) {
	base := path.Base(name)
	var found []File
	for _, r := range g.Files {
		same := func(f File) bool { return bytes.Equal(f.Data, r.New.Data) }
		if filepath.Base(r.New.Name) == base && !slices.ContainsFunc(found, same) {
			found = append(found, r.New)
		}
	}
	switch old, was := k.byPath[name]; {
	case len(found) == 1:
		return b.measure(typeIPL, found[0].Data, "file "+found[0].Name), nil
	case len(found) > 1:
		return event{}, fmt.Errorf("several of the new files are named %s", base)
	case was:
		return g.renewed(b, []event{old})[0], nil
	}
	return event{}, fmt.Errorf("file %s was not loaded in the boot before: give it as the new one of a file that is replaced, by a name that ends in %s",
		name, base)
}

// renewed puts new files in the place of old ones.
func (g GRUB) renewed(b Base, reads []event) []event {
	out := slices.Clone(reads)
	for i, e := range out {
		for _, r := range g.Files {
			if bytes.Equal(hash(b.alg, r.Old.Data), e.digest) {
				out[i] = b.measure(typeIPL, r.New.Data, "file "+r.New.Name)
			}
		}
	}
	return out
}
