package reference

import (
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// oneDigest is the digest of one file.
type oneDigest eventlog.Digest

// digestOf is nil without a digest.
func digestOf(d eventlog.Digest) value {
	if d == "" {
		return nil
	}
	return oneDigest(d)
}

// String implements value.
func (d oneDigest) String() string { return string(d) }

func (d oneDigest) node() *yaml.Node { return scalar(string(d)) }

func (d oneDigest) foreign(bank nodeclaim.HashAlg) []string {
	return foreignDigest("digest", eventlog.Digest(d), bank)
}

// digestList is the shape of a component that is one file: a list of digests, any of which will do.
type digestList struct{}

func (digestList) read(p *parser, n *yaml.Node, key string) []value {
	var out []value
	for _, d := range p.digests(n, key) {
		out = append(out, oneDigest(d))
	}
	return out
}

func (digestList) write(to *yaml.Node, key string, all []value) {
	put(to, key, list(as[oneDigest](all)))
}

func (digestList) compare(d *differ, c *component, from, to []value) {
	d.alternatives(c.one, strs(from), strs(to))
}

func (digestList) judge(c *checker, of *component, want []value) {
	have := of.proven(c.facts)
	allowed := strings.Join(strs(want), " or ")
	switch {
	case have == nil:
		c.component(of.check, of.pcrs, "%s is not proven by the evidence, %s has %s%s", of.one, c, allowed, c.hint(of, want))
	case !slices.Contains(want, have):
		c.component(of.check, of.pcrs, "%s has digest %s, %s has %s", of.one, have, c, allowed)
	}
}

// sequence has the digests of several measurements, which all count, in order.
type sequence []eventlog.Digest

// sequenceOf is nil without a digest.
func sequenceOf(list []eventlog.Digest) value {
	if len(list) == 0 {
		return nil
	}
	return sequence(list)
}

// String implements value.
func (s sequence) String() string { return "[" + strings.Join(texts(s), ", ") + "]" }

func (s sequence) node() *yaml.Node { return list(s) }

func (s sequence) foreign(bank nodeclaim.HashAlg) (out []string) {
	for _, d := range s {
		out = append(out, foreignDigest("digest", d, bank)...)
	}
	return out
}

// sequences is the shape of a component that is a whole PCR: one sequence, or a list of several, any of which will do.
type sequences struct{}

func (sequences) read(p *parser, n *yaml.Node, key string) []value {
	return asValues(alternatives(p, n, key, true, func(item *yaml.Node) sequence { return p.digests(item, key) }))
}

func (sequences) write(to *yaml.Node, key string, all []value) { putAny(to, key, all, value.node) }

func (sequences) compare(d *differ, c *component, from, to []value) {
	was, is := as[sequence](from), as[sequence](to)
	if len(was) != 1 || len(is) != 1 || len(was[0]) != len(is[0]) {
		d.alternatives(c.one+"s", strs(from), strs(to))
		return
	}
	for i := range was[0] {
		d.alternatives(fmt.Sprintf("%s %d of %d", c.one, i+1, len(was[0])), texts(was[0][i:i+1]), texts(is[0][i:i+1]))
	}
}

func (sequences) judge(c *checker, of *component, want []value) {
	all := as[sequence](want)
	if of.before != nil {
		earlier := of.before(c.facts).(sequence) //nolint:forcetypeassert // of the same shape.
		if slices.ContainsFunc(all, func(w sequence) bool { return slices.Equal(w, earlier) }) {
			return
		}
	}
	have, _ := of.proven(c.facts).(sequence)
	hint := c.hint(of, want)
	for _, f := range nearest(all, func(w sequence) []finding { return c.sequenceDifferences(of, hint, have, w) }) {
		c.component(f.check, of.pcrs, "%s", f.text)
	}
}

func (c *checker) sequenceDifferences(of *component, hint string, have, want sequence) []finding {
	var out []finding
	for i := range min(len(have), len(want)) {
		if have[i] != want[i] {
			out = append(out, finding{of.check, fmt.Sprintf("%s %d of %d has digest %s, %s has %s%s", of.one, i+1, len(have), have[i], c, want[i], hint)})
		}
	}
	if len(have) == 0 {
		out = append(out, finding{of.check, fmt.Sprintf("no %s is proven by the evidence, %s has %d", of.one, c, len(want))})
	} else if len(have) != len(want) {
		out = append(out, finding{of.check, fmt.Sprintf("the number of %ss is %d, %s has %d", of.one, len(have), c, len(want))})
	}
	return out
}

// commandLine is a text, or a digest where the text was never known.
type commandLine struct {
	text   string
	digest eventlog.Digest
}

func (c commandLine) is(have eventlog.CommandLine) bool {
	if c.digest != "" {
		return c.digest == have.Digest
	}
	return have.Is(c.text)
}

// String implements value.
func (c commandLine) String() string {
	if c.digest != "" {
		return string(c.digest)
	}
	return quoteText(c.text)
}

func (c commandLine) node() *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode}
	if c.digest != "" {
		put(n, "digest", scalar(string(c.digest)))
	} else {
		put(n, "text", scalar(c.text))
	}
	return n
}

func (c commandLine) foreign(bank nodeclaim.HashAlg) []string {
	return foreignDigest("command line digest", c.digest, bank)
}

// commandLines is the shape of the kernel command line: a list of texts and digests, any of which will do.
type commandLines struct{}

func (commandLines) read(p *parser, n *yaml.Node, key string) []value {
	var out []value
	p.sequence(n, key, func(item *yaml.Node) {
		var c commandLine
		p.mapping(item, "command line", func(key string, v *yaml.Node) bool {
			switch key {
			case "text":
				c.text = p.text(v, key)
			case "digest":
				c.digest = p.digest(v, key)
			default:
				return false
			}
			return true
		})
		if (c.text == "") == (c.digest == "") {
			p.at(item, "a command line has either a text or a digest")
		}
		if len(c.text) > eventlog.MaxCommandLine {
			p.at(item, "command line has %d bytes, more than the %d allowed", len(c.text), eventlog.MaxCommandLine)
		}
		out = append(out, c)
	})
	if n.Kind == yaml.SequenceNode && len(out) == 0 {
		p.at(n, "%s is an empty list; leave the key out where it is not to be looked at", key)
	}
	return out
}

func (commandLines) write(to *yaml.Node, key string, all []value) {
	lines := &yaml.Node{Kind: yaml.SequenceNode}
	for _, v := range all {
		lines.Content = append(lines.Content, v.node())
	}
	put(to, key, lines)
}

func (commandLines) compare(d *differ, c *component, from, to []value) {
	if len(from) == 1 && len(to) == 1 && from[0] != to[0] {
		words := wordDiff(as[commandLine](from)[0].text, as[commandLine](to)[0].text)
		d.add("%s: %s -> %s%s", c.one, from[0], to[0], words)
		return
	}
	d.alternatives(c.one, strs(from), strs(to))
}

func (commandLines) judge(c *checker, of *component, want []value) {
	all, have := as[commandLine](want), c.facts.CommandLine
	if slices.ContainsFunc(all, func(w commandLine) bool { return w.is(have) }) {
		return
	}
	allowed := fmt.Sprintf("%s has %s", c, strings.Join(strs(want), " or "))
	switch {
	case have.Text != "":
		c.component(of.check, of.pcrs, "%s is %s, %s%s", of.one, quoteText(have.Text), allowed, wordDiff(all[0].text, have.Text))
	case have.Digest != "":
		c.component(of.check, of.pcrs, "%s has digest %s, %s", of.one, have.Digest, allowed)
	default:
		c.component(of.check, of.pcrs, "%s is not proven by the evidence, %s", of.one, allowed)
	}
}
