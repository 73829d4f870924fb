package reference

import (
	"fmt"
	"slices"

	"github.com/google/cel-go/cel"
	"go.yaml.in/yaml/v3"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// component is one thing that a set may say of a measured boot. ParseSet, Marshal, Check, Capture, Diff, Merge and
// Describe loop over the table of them (components), and know none by name: another component is another entry there.
type component struct {
	key     string // in a set's file
	one     string // before one value of it in a sentence: "boot loader image"
	label   string // before all of it in a line: "boot loader"
	ofClass string // what machines of one class agree whether to look at: "the boot loader"
	late    string // among what runs after the boot loader: "command line"; "" for what runs before
	// pinsKernel says that a value of it pins the kernel.
	pinsKernel bool
	// apart says that its difference explains no other component's and is explained by none.
	apart bool

	check string // identifier of the check that refuses a difference; shapes may have further ones
	pcrs  []int  // whose difference a difference of the component explains

	shape
	// proven reads the component from facts, as a captured set pins it; nil where the evidence does not prove it.
	proven func(eventlog.Facts) value
	// facts are what conditions may read of it.
	facts []bootFact
	// before is another reading that sets of an earlier time have; nil where there was none.
	before func(eventlog.Facts) value
	// hint says more of a difference, for a person; nil or "" where there is nothing to say.
	hint func(*checker, []value) string
	// absent is what is not proven, and measured what would measure it. What GRUB and a unified kernel image do
	// follows for what runs late.
	absent, measured string
	// demands says what a set lacks that has, or lacks, the component; nil where it rests on nothing.
	demands func(boot) []string
	// class is what is the same in all machines of one class, and classIs its name; nil where nothing need be.
	class   func(value) string
	classIs string
}

// bootFact is one thing that conditions may read of a measured boot, false where it is not proven.
type bootFact struct {
	name string
	kind *cel.Type
	of   func(eventlog.Facts) (any, bool)
}

// reads tells whether a condition reads a fact of the component.
func (c component) reads(needs []string) bool {
	return slices.ContainsFunc(c.facts, func(f bootFact) bool { return slices.Contains(needs, f.name) })
}

// shape is the form of a component's values: how they are written, compared and checked.
type shape interface {
	// read reads all alternatives of a component from a set's file.
	read(p *parser, n *yaml.Node, key string) []value
	// write writes them, of which there is at least one.
	write(to *yaml.Node, key string, all []value)
	// compare says what changes from one set to another.
	compare(d *differ, c *component, from, to []value)
	// judge refuses what is none of the alternatives, of which there is at least one.
	judge(c *checker, of *component, want []value)
}

// value is one alternative of a component. Its String is for a person, and no two values of a component have the same.
type value interface {
	fmt.Stringer
	node() *yaml.Node
	// foreign says which digests are not of a bank.
	foreign(bank nodeclaim.HashAlg) []string
}

// values are what a set pins of each component, by its key: any of them will do. A component without is not looked at.
type values map[string][]value

// checkOrder has the components in the order in which they are checked: what ran last explains the PCRs of what ran before.
func checkOrder() []*component {
	var apart, out []*component
	for i := range slices.Backward(components) {
		if c := &components[i]; c.apart {
			apart = append(apart, c)
		} else {
			out = append(out, c)
		}
	}
	return append(apart, out...)
}

// componentOf is the component that a key of a set's file names, nil where none is.
func componentOf(key string) *component {
	i := slices.IndexFunc(components, func(c component) bool { return c.key == key })
	if i < 0 {
		return nil
	}
	return &components[i]
}

// lateNames lists what runs after the boot loader, for a sentence.
func lateNames() string {
	var names []string
	for _, c := range components {
		if c.late != "" {
			names = append(names, c.late)
		}
	}
	return enumerate("or", names)
}

// enumerate joins words as a person does: "a, b or c".
func enumerate(last string, words []string) string {
	switch n := len(words); n {
	case 0:
		return ""
	case 1:
		return words[0]
	default:
		out := words[0]
		for _, w := range words[1 : n-1] {
			out += ", " + w
		}
		return out + " " + last + " " + words[n-1]
	}
}

// as are a component's values in the type of its shape, which made them.
func as[T value](all []value) []T {
	out := make([]T, len(all))
	for i := range all {
		out[i] = all[i].(T) //nolint:forcetypeassert // a component has values of its shape alone.
	}
	return out
}

// asValues is the inverse of as.
func asValues[T value](all []T) []value {
	out := make([]value, len(all))
	for i := range all {
		out[i] = all[i]
	}
	return out
}

// foreignDigest says that a digest is not of a bank; "" is no digest.
func foreignDigest(what string, d eventlog.Digest, bank nodeclaim.HashAlg) []string {
	if d == "" || trimAlg(string(d), bank) != "-" {
		return nil
	}
	return []string{fmt.Sprintf("%s %s is not of bank %s", what, d, bank)}
}
