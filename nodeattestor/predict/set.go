package predict

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"go.yaml.in/yaml/v3"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/reference"
)

// Set is a captured set with what the prediction changes: boot loader, kernel, initrd, command
// line, dbx and the exact values of PCRs. Firmware, other PCRs, conditions, validity and measured
// files stay. files are digests of measured files ("sha256:hex") that are allowed besides, by path.
// The set must be of the boot before: each PCR that changes and that it pins has the value there
// that the boot before leads to. notes say what the set does not pin any more, and why.
func (p Prediction) Set(captured reference.Set, name string, files map[string][]string) (set reference.Set,
	notes []string, err error) {
	var doc map[string]any
	if err := yaml.Unmarshal(captured.Marshal(), &doc); err != nil {
		return reference.Set{}, nil, fmt.Errorf("predict: %w", err)
	}
	boot, ok := doc["boot"].(map[string]any)
	if !ok || captured.Bank() != p.Bank {
		return reference.Set{}, nil, fmt.Errorf("predict: set %s is of bank %s, the prediction of %s",
			captured.Name(), captured.Bank(), p.Bank)
	}
	doc["name"] = name
	e := &editor{p: p, set: captured.Name(), ima: captured.ChecksIMA(), boot: boot}
	if err := e.pcrs(); err != nil {
		return reference.Set{}, nil, err
	}
	e.components()
	if err := allow(doc, files); err != nil {
		return reference.Set{}, nil, err
	}
	text, err := yaml.Marshal(doc)
	if err != nil {
		return reference.Set{}, nil, fmt.Errorf("predict: %w", err)
	}
	if set, err = reference.ParseSet(text); err != nil {
		return reference.Set{}, nil, fmt.Errorf("predict: what can be predicted does not suffice for a set: %w", err)
	}
	if !set.PinsKernel() && !set.AllowsUnpinnedKernel() {
		return reference.Set{}, nil,
			fmt.Errorf("predict: the set would pin nothing about the kernel, so any kernel would pass")
	}
	return set, e.notes, nil
}

// editor changes a set's boot section.
type editor struct {
	p     Prediction
	set   string
	ima   bool // whether the set looks at measured files, and so at boot_aggregate
	boot  map[string]any
	notes []string
}

func (e *editor) note(format string, args ...any) {
	e.notes = append(e.notes, fmt.Sprintf(format, args...))
}

// pcrs replaces exact values.
func (e *editor) pcrs() error {
	banks, _ := e.boot["pcrs"].(map[string]any)
	values, _ := banks[e.p.Bank.String()].(map[string]any)
	for _, pcr := range e.touched() {
		key := strconv.Itoa(pcr)
		pinned, ok := values[key]
		if !ok {
			continue
		}
		if err := e.ofTheBase(pcr, pinned); err != nil {
			return err
		}
		why, unknown := e.p.Unknown[pcr]
		if !unknown && pcr == 11 && len(e.p.base.byPCR[11]) == 0 && len(e.p.byPCR[11]) > 0 {
			why, unknown = "the boot before measured nothing there, so nothing says whether the operating system marks its boot phases in it", true
		}
		if unknown {
			delete(values, key)
			e.note("PCR %d is not pinned: %s", pcr, why)
			continue
		}
		values[key] = hex.EncodeToString(e.p.PCRs[pcr])
	}
	return nil
}

// touched are the PCRs that the changes concern.
func (e *editor) touched() []int {
	all := map[int]bool{}
	for pcr := range e.p.PCRs {
		all[pcr] = true
	}
	for pcr := range e.p.Unknown {
		all[pcr] = true
	}
	return slices.Sorted(maps.Keys(all))
}

// ofTheBase demands that a pinned value is the one that the boot before leads to.
func (e *editor) ofTheBase(pcr int, pinned any) error {
	list, ok := pinned.([]any)
	if !ok {
		list = []any{pinned}
	}
	have := e.p.base.Value(pcr)
	for _, one := range list {
		text, _ := one.(string)
		if value, err := hex.DecodeString(text); err == nil && bytes.Equal(value, have) {
			return nil
		}
	}
	return fmt.Errorf("predict: set %s pins PCR %d to %v, the log of the boot before leads to %x: the set is of another boot, "+
		"or something extends this PCR after boot, and what it will be cannot be predicted", e.set, pcr, list, have)
}

// components replaces what the facts say. A fact from a PCR that is not known does not count.
func (e *editor) components() {
	f := e.p.Facts
	if e.ima {
		f = f.AsTheKernelStarted()
	}
	unknown := func(pcrs ...int) bool {
		return slices.ContainsFunc(pcrs, func(pcr int) bool { _, ok := e.p.Unknown[pcr]; return ok })
	}
	changed := func(pcrs ...int) bool {
		return slices.ContainsFunc(pcrs, func(pcr int) bool { _, ok := e.p.PCRs[pcr]; return ok }) || unknown(pcrs...)
	}
	if changed(4) {
		e.put("bootLoader", digests(f.BootLoader...), unknown(4))
	}
	if changed(4, 8, 9, 11) {
		e.put("kernel", digests(f.Kernel), unknown(8, 9, 11) || unknown(4) && len(f.Sections) == 0)
		e.put("initrd", digests(f.Initrd), unknown(8, 9, 11, 12, 13))
		e.put("commandLine", e.commandLine(), unknown(8, 9, 11, 12))
	}
	if changed(7) {
		e.dbx(f.SecureBoot.DBX)
	}
}

// put replaces a component, or takes it away where nothing will prove it.
func (e *editor) put(key string, value []any, unknown bool) {
	_, had := e.boot[key]
	if len(value) > 0 && !unknown {
		e.boot[key] = value
		return
	}
	delete(e.boot, key)
	if had {
		e.note("%s is not pinned: nothing that can be predicted proves it", key)
	}
}

func digests(list ...eventlog.Digest) []any {
	var out []any
	for _, d := range list {
		if d != "" {
			out = append(out, string(d))
		}
	}
	return out
}

func (e *editor) commandLine() []any {
	switch c := e.p.Facts.CommandLine; {
	case e.p.CommandLine != "":
		return []any{map[string]any{"text": e.p.CommandLine}}
	case c.Digest != "":
		return []any{map[string]any{"digest": string(c.Digest)}}
	}
	return nil
}

// dbx replaces the digest of dbx where the set has one.
func (e *editor) dbx(digest eventlog.Digest) {
	all, ok := e.boot["secureBoot"].([]any)
	if !ok {
		all = []any{e.boot["secureBoot"]}
	}
	for _, one := range all {
		if s, ok := one.(map[string]any); ok && s["dbx"] != nil {
			s["dbx"] = string(digest)
		}
	}
}

// allow adds digests of measured files.
func allow(doc map[string]any, files map[string][]string) error {
	if len(files) == 0 {
		return nil
	}
	ima, ok := doc["ima"].(map[string]any)
	if !ok {
		return fmt.Errorf("predict: the set says nothing about measured files, so none can be added")
	}
	listed, ok := ima["files"].(map[string]any)
	if !ok {
		listed = map[string]any{}
		ima["files"] = listed
	}
	for file, digests := range files {
		have, _ := listed[file].([]any)
		for _, d := range digests {
			if !slices.Contains(have, any(d)) {
				have = append(have, d)
			}
		}
		listed[file] = have
	}
	return nil
}
