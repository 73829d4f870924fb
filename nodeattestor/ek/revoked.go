package ek

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// maxReason bounds the reason of a revocation in bytes.
const maxReason = 256

// ParseRevoked reads the operator's YAML of EKs that are trusted no more:
//
//	revoked:
//	- ekHash: 64 hex digits
//	  reason: stolen in October
//
// The result maps each hash to its reason. Unknown and repeated keys, a hash that stands
// twice, a missing reason and further documents are errors; the error is
// InventoryErrors, with the line of each problem.
func ParseRevoked(data []byte) (map[nodeclaim.EKHash]string, error) {
	if len(data) > MaxInventorySize {
		return nil, InventoryErrors{fmt.Errorf("ek: revocation list has %d bytes, more than the %d allowed", len(data), MaxInventorySize)}
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("it is empty; a list without EKs is \"revoked: []\"")
		}
		return nil, InventoryErrors{fmt.Errorf("ek: revocation list: %w", err)}
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, InventoryErrors{errors.New("ek: revocation list: only one YAML document is allowed")}
	}
	p := inventoryParser{what: "revocation list"}
	out := map[nodeclaim.EKHash]string{}
	list := p.fields(doc.Content[0], "the revocation list", "revoked")["revoked"]
	if list != nil && list.Kind != yaml.SequenceNode {
		p.problem(list, "revoked must be a list")
	} else if list != nil {
		for _, n := range list.Content {
			p.revoked(n, out)
		}
	}
	if len(p.problems) > 0 {
		return nil, p.problems
	}
	return out, nil
}

func (p *inventoryParser) revoked(n *yaml.Node, out map[nodeclaim.EKHash]string) {
	f := p.fields(n, "a revocation", "ekHash", "reason")
	if f["ekHash"] == nil || f["reason"] == nil {
		return
	}
	hash, err := nodeclaim.ParseEKHash(f["ekHash"].Value)
	reason := strings.TrimSpace(f["reason"].Value)
	switch {
	case f["ekHash"].Kind != yaml.ScalarNode || err != nil:
		p.problem(f["ekHash"], "EK hash %.80q is not 64 lower-case hex digits", f["ekHash"].Value)
	case f["reason"].Kind != yaml.ScalarNode || reason == "" || len(reason) > maxReason:
		p.problem(f["reason"], "reason must be text of 1 to %d bytes", maxReason)
	case out[hash] != "":
		p.problem(f["ekHash"], "EK hash %s stands twice", hash)
	default:
		out[hash] = reason
	}
}
