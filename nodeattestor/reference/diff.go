package reference

import (
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// Diff says in a person's words what changes from one set to another: a line for every difference, in the
// order of a boot. Names and signers are not compared. Sets without a difference accept the same
// evidence at the same times.
func Diff(from, to Set) []string {
	d := &differ{}
	d.alternatives("valid from", instant(from.notBefore), instant(to.notBefore))
	d.alternatives("valid until", instant(from.notAfter), instant(to.notAfter))
	d.alternatives("bank", []string{from.boot.bank.String()}, []string{to.boot.bank.String()})
	for i := range components {
		c := &components[i]
		c.compare(d, c, from.boot.values[c.key], to.boot.values[c.key])
	}
	if from.boot.unpinnedKernel != to.boot.unpinnedKernel {
		d.add("any kernel passes: %t -> %t", from.boot.unpinnedKernel, to.boot.unpinnedKernel)
	}
	d.pcrs(from.boot.pcrs, to.boot.pcrs)
	d.conditions(from.conditions, to.conditions)
	d.ima(from.ima, to.ima)
	return d.lines
}

type differ struct{ lines []string }

func (d *differ) add(format string, args ...any) {
	d.lines = append(d.lines, fmt.Sprintf(format, args...))
}

// alternatives compares what a component may be, order aside.
func (d *differ) alternatives(what string, from, to []string) {
	more, fewer := without(to, from), without(from, to)
	switch {
	case len(more)+len(fewer) == 0:
	case len(from) == 0:
		d.add("%s: not looked at before, now %s", what, strings.Join(to, " or "))
	case len(to) == 0:
		d.add("%s: no longer looked at, before %s", what, strings.Join(from, " or "))
	case len(from) == 1 && len(to) == 1:
		d.add("%s: %s -> %s", what, from[0], to[0])
	default:
		d.each(what+": also ", more)
		d.each(what+": no longer ", fewer)
	}
}

func (d *differ) each(start string, items []string) {
	for _, i := range items {
		d.add("%s%s", start, i)
	}
}

// without lists what is in a and not in b.
func without(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return slices.Contains(b, s) })
}

func instant(t time.Time) []string {
	if t.IsZero() {
		return nil
	}
	return []string{t.UTC().Format(time.RFC3339)}
}

func texts(list []eventlog.Digest) []string {
	out := make([]string, len(list))
	for i := range list {
		out[i] = string(list[i])
	}
	return out
}

func optional(d eventlog.Digest) []string {
	if d == "" {
		return nil
	}
	return []string{string(d)}
}

func strs[T fmt.Stringer](list []T) []string {
	out := make([]string, len(list))
	for i := range list {
		out[i] = list[i].String()
	}
	return out
}

func (d *differ) pcrs(from, to map[nodeclaim.HashAlg]map[int][][]byte) {
	for _, bank := range union(from, to) {
		for _, i := range union(from[bank], to[bank]) {
			d.alternatives(fmt.Sprintf("PCR %d (%s)", i, bank), hexes(from[bank][i]), hexes(to[bank][i]))
		}
	}
}

func hexes(values [][]byte) []string {
	out := make([]string, len(values))
	for i := range values {
		out[i] = hex.EncodeToString(values[i])
	}
	return out
}

// union has the keys of both maps, sorted.
func union[K nodeclaim.HashAlg | int | string, V any](a, b map[K]V) []K {
	keys := slices.AppendSeq(slices.Collect(maps.Keys(a)), maps.Keys(b))
	slices.Sort(keys)
	return slices.Compact(keys)
}

func (d *differ) conditions(from, to []condition) {
	more, fewer := without(strs(to), strs(from)), without(strs(from), strs(to))
	d.each("condition: also ", more)
	d.each("condition: no longer ", fewer)
}

func (d *differ) ima(from, to *imaPolicy) {
	if from == nil && to == nil {
		return
	}
	if from == nil || to == nil {
		d.add("measured files: %s", map[bool]string{true: "not looked at before, now they are", false: "no longer looked at"}[from == nil])
		return
	}
	for _, file := range union(from.files, to.files) {
		was, is := from.files[file], to.files[file]
		switch what := kind(file) + " " + printable(file); {
		case len(was) == 0 && len(is) > 0:
			d.add("%s: now allowed, %s", what, strings.Join(is, " or "))
		case len(is) == 0 && len(was) > 0:
			d.add("%s: no longer allowed, before %s", what, strings.Join(was, " or "))
		case len(is) == 0:
			d.alternatives(what, presence(from.files, file), presence(to.files, file))
		default:
			d.alternatives(what, was, is)
		}
	}
	d.each("files under it are no longer looked at: ", without(to.ignore, from.ignore))
	d.each("files under it are looked at now: ", without(from.ignore, to.ignore))
	d.each("file is no longer looked at: ", without(to.ignoreFiles, from.ignoreFiles))
	d.each("file is looked at now: ", without(from.ignoreFiles, to.ignoreFiles))
	d.each("measured file now required: ", without(to.required, from.required))
	d.each("measured file no longer required: ", without(from.required, to.required))
	d.each("signed files are now allowed, of key ", without(keyIDs(to), keyIDs(from)))
	d.each("signed files are no longer allowed, of key ", without(keyIDs(from), keyIDs(to)))
	d.alternatives("violations", violations(from), violations(to))
	d.alternatives("files that the kernel names without a directory", bareNames(from), bareNames(to))
}

// presence tells a file that is listed with no digest, so that nothing of that name is allowed, from one that is not.
func presence(files map[string][]string, file string) []string {
	if _, ok := files[file]; ok {
		return []string{"never allowed"}
	}
	return nil
}

func keyIDs(p *imaPolicy) []string {
	var out []string
	for _, k := range p.keys {
		out = append(out, k.ID())
	}
	slices.Sort(out)
	return out
}

func bareNames(p *imaPolicy) []string {
	if p.allowBareNames {
		return []string{"not looked at"}
	}
	return []string{"denied"}
}

func violations(p *imaPolicy) []string {
	if p.allowViolations {
		return []string{"allowed"}
	}
	return []string{"denied"}
}
