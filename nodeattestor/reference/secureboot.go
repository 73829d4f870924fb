package reference

import (
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// secureBoot is what a set says of secure boot: its state, and of its keys and authorities what is not to change.
type secureBoot struct{ eventlog.SecureBoot }

// String implements value.
func (s secureBoot) String() string {
	parts := []string{string(s.State)}
	for _, k := range secureBootKeys {
		if v := k.of(s.SecureBoot); v != "" {
			parts = append(parts, k.name+" "+string(v))
		}
	}
	if s.Authorities != nil {
		parts = append(parts, "images let in by "+authorities(s.Authorities))
	}
	return strings.Join(parts, ", ")
}

// foreign implements value: a digest of another bank is none that a machine's can equal, so it refuses by itself.
func (secureBoot) foreign(nodeclaim.HashAlg) []string { return nil }

// secureBootShape is the shape of secure boot: one mapping, or a list of several, any of which will do.
type secureBootShape struct{}

func (secureBootShape) read(p *parser, n *yaml.Node, key string) []value {
	return asValues(alternatives(p, n, key, false, func(item *yaml.Node) secureBoot { return secureBoot{p.secureBoot(item)} }))
}

func (secureBootShape) write(to *yaml.Node, key string, all []value) {
	putAny(to, key, all, value.node)
}

func (secureBootShape) compare(d *differ, c *component, from, to []value) {
	if len(from) != 1 || len(to) != 1 {
		d.alternatives(c.one, strs(from), strs(to))
		return
	}
	was, is := as[secureBoot](from)[0].SecureBoot, as[secureBoot](to)[0].SecureBoot
	d.alternatives(c.one, []string{string(was.State)}, []string{string(is.State)})
	for _, k := range secureBootKeys {
		d.alternatives(c.one+"'s "+k.name, optional(k.of(was)), optional(k.of(is)))
	}
	d.alternatives(c.one+" lets images in by", letIn(was), letIn(is))
}

func (secureBootShape) judge(c *checker, of *component, want []value) {
	for _, f := range nearest(as[secureBoot](want), func(w secureBoot) []finding { return c.secureBootDifferences(of, w.SecureBoot) }) {
		c.component(f.check, of.pcrs, "%s", f.text)
	}
}

func (c *checker) secureBootDifferences(of *component, want eventlog.SecureBoot) []finding {
	have := c.facts.SecureBoot
	var out []finding
	if have.State != want.State {
		state := "is " + string(have.State)
		if have.State == eventlog.SecureBootUnknown {
			state = "is not proven by the evidence"
		}
		out = append(out, finding{of.check, fmt.Sprintf("%s %s, %s has %s", of.one, state, c, want.State)})
	}
	var changed []string
	for _, k := range secureBootKeys {
		if w := k.of(want); w != "" && k.of(have) != w {
			changed = append(changed, k.name)
		}
	}
	if len(changed) > 0 {
		out = append(out, finding{"secureboot.keys", fmt.Sprintf("%s's %s differ from those in %s", of.one, strings.Join(changed, ", "), c)})
	}
	if want.Authorities != nil && !slices.Equal(have.Authorities, want.Authorities) && !slices.Equal(c.facts.ListedAuthorities(), want.Authorities) {
		out = append(out, finding{"secureboot.authority", fmt.Sprintf("images were let in by %s, %s has %s", authorities(have.Authorities), c, authorities(want.Authorities))})
	}
	return out
}

var secureBootKeys = []struct {
	name string
	of   func(eventlog.SecureBoot) eventlog.Digest
}{
	{"platform key (PK)", func(s eventlog.SecureBoot) eventlog.Digest { return s.PK }},
	{"key exchange keys (KEK)", func(s eventlog.SecureBoot) eventlog.Digest { return s.KEK }},
	{"allowed signers (db)", func(s eventlog.SecureBoot) eventlog.Digest { return s.DB }},
	{"forbidden signers and images (dbx)", func(s eventlog.SecureBoot) eventlog.Digest { return s.DBX }},
}

func authorities(list []eventlog.Authority) string {
	if len(list) == 0 {
		return "no signer"
	}
	names := make([]string, len(list))
	for i, a := range list {
		names[i] = fmt.Sprintf("%s entry %s", a.Variable, a.Digest)
	}
	return strings.Join(names, ", ")
}

func (p *parser) secureBoot(n *yaml.Node) eventlog.SecureBoot {
	s := eventlog.SecureBoot{}
	keys := map[string]*eventlog.Digest{"pk": &s.PK, "kek": &s.KEK, "db": &s.DB, "dbx": &s.DBX}
	p.mapping(n, "secureBoot", func(key string, v *yaml.Node) bool {
		to, ok := keys[key]
		switch {
		case ok:
			*to = p.digest(v, key)
		case key == "state":
			s.State = eventlog.SecureBootState(p.text(v, key))
			if s.State != eventlog.SecureBootEnabled && s.State != eventlog.SecureBootDisabled {
				p.at(v, "state %.40q is neither enabled nor disabled", s.State)
			}
		case key == "authorities":
			s.Authorities = []eventlog.Authority{}
			p.sequence(v, key, func(item *yaml.Node) { s.Authorities = append(s.Authorities, p.authority(item)) })
		default:
			return false
		}
		return true
	})
	if s.State == "" {
		p.at(n, "secureBoot has no state; say enabled or disabled")
	}
	return s
}

func (p *parser) authority(n *yaml.Node) eventlog.Authority {
	var a eventlog.Authority
	p.mapping(n, "authority", func(key string, v *yaml.Node) bool {
		switch key {
		case "variable":
			a.Variable = p.text(v, key)
		case "digest":
			a.Digest = p.digest(v, key)
		default:
			return false
		}
		return true
	})
	if a.Digest == "" {
		p.at(n, "authority has no digest")
	}
	return a
}

func (s secureBoot) node() *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode}
	put(n, "state", scalar(string(s.State)))
	for _, k := range []struct {
		key string
		d   eventlog.Digest
	}{{"pk", s.PK}, {"kek", s.KEK}, {"db", s.DB}, {"dbx", s.DBX}} {
		if k.d != "" {
			put(n, k.key, scalar(string(k.d)))
		}
	}
	if s.Authorities == nil {
		return n
	}
	all := &yaml.Node{Kind: yaml.SequenceNode}
	for _, a := range s.Authorities {
		one := &yaml.Node{Kind: yaml.MappingNode}
		put(one, "variable", scalar(a.Variable))
		put(one, "digest", scalar(string(a.Digest)))
		all.Content = append(all.Content, one)
	}
	put(n, "authorities", all)
	return n
}

func letIn(s eventlog.SecureBoot) []string {
	if s.Authorities == nil {
		return nil
	}
	return []string{authorities(s.Authorities)}
}
