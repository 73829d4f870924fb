package reference

import (
	"bytes"
	"encoding/hex"
	"maps"
	"slices"
	"strconv"
	"time"

	"go.yaml.in/yaml/v3"
)

// Marshal writes the set as YAML that ParseSet reads: the same set, the same bytes.
func (s Set) Marshal() []byte {
	root := &yaml.Node{Kind: yaml.MappingNode, HeadComment: headComment()}
	put(root, "name", scalar(s.name))
	if !s.notBefore.IsZero() {
		put(root, "notBefore", scalar(s.notBefore.UTC().Format(time.RFC3339)))
	}
	if !s.notAfter.IsZero() {
		put(root, "notAfter", scalar(s.notAfter.UTC().Format(time.RFC3339)))
	}
	if len(s.conditions) > 0 {
		all := &yaml.Node{Kind: yaml.SequenceNode}
		for _, c := range s.conditions {
			one := &yaml.Node{Kind: yaml.MappingNode}
			put(one, "expr", scalar(c.expr))
			put(one, "message", scalar(c.message))
			all.Content = append(all.Content, one)
		}
		put(root, "conditions", all)
	}
	put(root, "boot", s.boot.node())
	if s.ima != nil {
		put(root, "ima", s.ima.node())
	}
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := enc.Encode(root); err != nil {
		panic("reference: marshal: " + err.Error()) // a tree of scalars, lists and mappings always encodes
	}
	return out.Bytes()
}

// headComment is what a person reads first in a set's file.
func headComment() string {
	var lists, whole []string
	for _, c := range components {
		switch c.shape.(type) {
		case digestList, commandLines:
			lists = append(lists, c.key)
		case sequences:
			whole = append(whole, c.key)
		}
	}
	return "Reference values of a measured boot: what a machine must have measured to be trusted.\n" +
		"Lists under " + enumerate("and", lists) + " are alternatives; " + enumerate("and", whole) + " are\nwhole sequences, or lists of alternative ones. A key that is left out is not looked at."
}

func (b boot) node() *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode}
	put(n, "bank", scalar(b.bank.String()))
	for _, c := range components {
		if all := b.values[c.key]; len(all) > 0 {
			c.write(n, c.key, all)
		}
	}
	if b.unpinnedKernel {
		put(n, unpinnedKernelKey, scalar(allowUnpinned))
	}
	banks := &yaml.Node{Kind: yaml.MappingNode}
	for _, alg := range slices.Sorted(maps.Keys(b.pcrs)) {
		values := &yaml.Node{Kind: yaml.MappingNode}
		for _, i := range slices.Sorted(maps.Keys(b.pcrs[alg])) {
			putAny(values, strconv.Itoa(i), b.pcrs[alg][i], func(v []byte) *yaml.Node { return scalar(hex.EncodeToString(v)) })
		}
		if len(values.Content) > 0 {
			put(banks, alg.String(), values)
		}
	}
	if len(banks.Content) > 0 {
		put(n, "pcrs", banks)
	}
	return n
}

func (p imaPolicy) node() *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode}
	files := &yaml.Node{Kind: yaml.MappingNode}
	for _, file := range slices.Sorted(maps.Keys(p.files)) {
		put(files, file, list(p.files[file]))
	}
	put(n, "files", files)
	if len(p.ignore) > 0 {
		put(n, "ignoreDirectories", list(p.ignore))
	}
	if len(p.ignoreFiles) > 0 {
		put(n, "ignoreFiles", list(p.ignoreFiles))
	}
	if len(p.required) > 0 {
		put(n, "required", list(p.required))
	}
	if len(p.keys) > 0 {
		keys := &yaml.Node{Kind: yaml.SequenceNode}
		for _, k := range p.keys {
			text := scalar(k.PEM())
			text.Style = yaml.LiteralStyle
			keys.Content = append(keys.Content, text)
		}
		put(n, "signatureKeys", keys)
	}
	violations := "deny"
	if p.allowViolations {
		violations = "allow"
	}
	put(n, "violations", scalar(violations))
	if p.allowBareNames {
		put(n, bareNamesKey, scalar("allow"))
	}
	return n
}

func put(n *yaml.Node, key string, value *yaml.Node) {
	n.Content = append(n.Content, scalar(key), value)
}

// putAny writes one alternative as it is, several as a list, none not at all.
func putAny[T any](n *yaml.Node, key string, alternatives []T, node func(T) *yaml.Node) {
	if len(alternatives) == 1 {
		put(n, key, node(alternatives[0]))
	}
	if len(alternatives) < 2 {
		return
	}
	all := &yaml.Node{Kind: yaml.SequenceNode}
	for _, a := range alternatives {
		all.Content = append(all.Content, node(a))
	}
	put(n, key, all)
}

// scalar is a text; the tag makes the encoder quote what would read as a number or a bool.
func scalar(s string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
}

func list[T ~string](items []T) *yaml.Node {
	n := &yaml.Node{Kind: yaml.SequenceNode}
	for _, i := range items {
		n.Content = append(n.Content, scalar(string(i)))
	}
	return n
}
