package reference

import (
	"encoding/hex"

	"go.yaml.in/yaml/v3"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// mapping calls each for every key of a mapping; each is false for a key that it does not know.
func (p *parser) mapping(n *yaml.Node, what string, each func(key string, value *yaml.Node) bool) {
	if n.Kind != yaml.MappingNode {
		p.at(n, "%s is not a mapping of keys to values", what)
		return
	}
	seen := make(map[string]bool, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		if k.Kind != yaml.ScalarNode || k.Tag == "!!merge" || k.Anchor != "" {
			p.at(k, "%s has a key that is no plain text", what)
			continue
		}
		if seen[k.Value] {
			p.at(k, "%s has key %.80q twice", what, k.Value)
			continue
		}
		seen[k.Value] = true
		if !each(k.Value, n.Content[i+1]) {
			p.at(k, "%s has no key %.80q", what, k.Value)
		}
	}
}

func (p *parser) sequence(n *yaml.Node, what string, each func(*yaml.Node)) {
	if n.Kind != yaml.SequenceNode {
		p.at(n, "%s is not a list", what)
		return
	}
	for _, item := range n.Content {
		each(item)
	}
}

// alternatives reads one value, or a list of several of which any will do. Where a value is
// a list itself, the first item tells which of both it is.
func alternatives[T any](p *parser, n *yaml.Node, what string, lists bool, read func(*yaml.Node) T) []T {
	several := n.Kind == yaml.SequenceNode
	if lists {
		several = several && len(n.Content) > 0 && n.Content[0].Kind == yaml.SequenceNode
	}
	if !several {
		return []T{read(n)}
	}
	if len(n.Content) == 0 {
		p.at(n, "%s is an empty list; leave the key out where it is not to be looked at", what)
	}
	var out []T
	for _, item := range n.Content {
		out = append(out, read(item))
	}
	return out
}

func (p *parser) text(n *yaml.Node, what string) string {
	if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
		p.at(n, "%s is not a text", what)
		return ""
	}
	return n.Value
}

func (p *parser) bank(n *yaml.Node, name string) nodeclaim.HashAlg {
	alg, err := nodeclaim.ParseHashAlg(name)
	if err != nil {
		p.at(n, "bank: %v", err)
	}
	return alg
}

// hex reads size bytes in lower-case hex.
func (p *parser) hex(n *yaml.Node, size int) []byte {
	b, err := hex.DecodeString(n.Value)
	if n.Kind != yaml.ScalarNode || err != nil || len(b) != size || hex.EncodeToString(b) != n.Value {
		p.at(n, "%.140q is not %d bytes in lower-case hex", n.Value, size)
		return make([]byte, size)
	}
	return b
}

func (p *parser) digests(n *yaml.Node, what string) []eventlog.Digest {
	var out []eventlog.Digest
	p.sequence(n, what, func(item *yaml.Node) { out = append(out, p.digest(item, what)) })
	if n.Kind == yaml.SequenceNode && len(out) == 0 {
		p.at(n, "%s is an empty list; leave the key out where it is not to be looked at", what)
	}
	return out
}

func (p *parser) digest(n *yaml.Node, what string) eventlog.Digest {
	s := p.text(n, what)
	for _, alg := range nodeclaim.HashAlgs() {
		sum, err := hex.DecodeString(trimAlg(s, alg))
		if err == nil && len(sum) == alg.Size() && eventlog.NewDigest(alg, sum) == eventlog.Digest(s) {
			return eventlog.Digest(s)
		}
	}
	p.at(n, "%s %.160q is not an algorithm (sha256), a colon and its digest in lower-case hex", what, s)
	return ""
}

func trimAlg(s string, alg nodeclaim.HashAlg) string {
	prefix := alg.String() + ":"
	if len(s) < len(prefix) || s[:len(prefix)] != prefix {
		return "-"
	}
	return s[len(prefix):]
}
