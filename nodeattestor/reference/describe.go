package reference

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Describe says in a person's words what the set demands, a line for every component that it looks at.
// The set's text ([Set.Marshal]) has all of it.
func (s Set) Describe() []string {
	d := &differ{}
	d.add("name: %s", s.name)
	d.add("valid: %s", window(s.notBefore, s.notAfter))
	for _, c := range components {
		d.each(c.label+": ", strs(s.boot.values[c.key]))
		if c.pinsKernel && s.boot.unpinnedKernel {
			d.add("%s: any, by %s", c.label, unpinnedKernelKey)
		}
	}
	for _, bank := range slices.Sorted(maps.Keys(s.boot.pcrs)) {
		var exact []string
		for _, i := range slices.Sorted(maps.Keys(s.boot.pcrs[bank])) {
			exact = append(exact, fmt.Sprint(i))
		}
		if len(exact) > 0 {
			d.add("exact PCRs (%s): %s", bank, strings.Join(exact, ", "))
		}
	}
	d.each("condition: ", strs(s.conditions))
	if s.ima == nil {
		d.add("measured files: not looked at")
		return d.lines
	}
	d.add("measured files: %d paths allowed, violations %s", len(s.ima.files), violations(s.ima)[0])
	d.each("other files allowed: signed by key ", keyIDs(s.ima))
	d.each("required file: ", s.ima.required)
	d.each("not looked at: files under ", s.ima.ignore)
	d.each("not looked at: file ", s.ima.ignoreFiles)
	if s.ima.allowBareNames {
		d.add("not looked at: files that the kernel names without a directory")
	}
	return d.lines
}

func window(from, until time.Time) string {
	switch {
	case from.IsZero() && until.IsZero():
		return "always"
	case from.IsZero():
		return "until " + instant(until)[0]
	case until.IsZero():
		return "from " + instant(from)[0]
	}
	return "from " + instant(from)[0] + " until " + instant(until)[0]
}
