package ek

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// MaxInventorySize bounds an inventory file in bytes: about 50000 machines.
const MaxInventorySize = 16 << 20

// Machines is the operator's inventory: EK hash -> machine. A machine appears under
// each of its EKs (a TPM has an RSA and an ECC one).
type Machines map[nodeclaim.EKHash]InventoryEntry

// InventoryEntry is what the inventory says about the machine that an EK belongs to.
type InventoryEntry struct {
	Node     string             // Kubernetes node name
	EKHashes []nodeclaim.EKHash // all EKs of this machine, in the file's order
	// References are the names of the reference sets that may accept this machine, each of which may end with "*"; nil
	// means every set.
	References []string
	Line       int // of the machine in the inventory file, 1-based
}

// Classed reports whether the inventory says for any machine which reference sets may accept it.
func (m Machines) Classed() bool {
	for _, machine := range m {
		if machine.References != nil {
			return true
		}
	}
	return false
}

// InventoryErrors are all problems of an inventory, in the order of their lines.
type InventoryErrors []error

// Error joins the problems, one per line.
func (e InventoryErrors) Error() string {
	lines := make([]string, len(e))
	for i := range e {
		lines[i] = e[i].Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives errors.Is and errors.As the single problems.
func (e InventoryErrors) Unwrap() []error { return e }

// ParseInventory reads the operator's YAML:
//
//	machines:
//	- node: fra-1
//	  ekHashes: [64 hex digits, ...]
//	  references: [prod-*]           # optional: the sets that may accept it
//
// A node named twice, or an EK in two machines (or twice in one), is an error: which
// machine a verdict is about must never depend on the order of lines. Unknown and
// repeated keys, aliases and further documents are errors. The error is
// InventoryErrors, with the line of each problem.
func ParseInventory(data []byte) (Machines, error) {
	if len(data) > MaxInventorySize {
		return nil, InventoryErrors{fmt.Errorf("ek: inventory has %d bytes, more than the %d allowed", len(data), MaxInventorySize)}
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("it is empty; an inventory without machines is \"machines: []\"")
		}
		return nil, InventoryErrors{fmt.Errorf("ek: inventory: %w", err)}
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, InventoryErrors{errors.New("ek: inventory: only one YAML document is allowed")}
	}
	p := inventoryParser{what: "inventory", machines: Machines{}, nodes: map[string]int{}}
	p.document(doc.Content[0])
	if len(p.problems) > 0 {
		return nil, p.problems
	}
	return p.machines, nil
}

type inventoryParser struct {
	what     string
	machines Machines
	nodes    map[string]int // node name -> line
	problems InventoryErrors
}

func (p *inventoryParser) problem(n *yaml.Node, format string, args ...any) {
	p.problems = append(p.problems, fmt.Errorf("ek: %s line %d: %s", p.what, n.Line, fmt.Sprintf(format, args...)))
}

// fields reads a mapping that must have the known keys and no others.
func (p *inventoryParser) fields(n *yaml.Node, what string, known ...string) map[string]*yaml.Node {
	return p.someFields(n, what, known, known)
}

// someFields is fields where only some of the known keys are required.
func (p *inventoryParser) someFields(n *yaml.Node, what string, required, known []string) map[string]*yaml.Node {
	out := map[string]*yaml.Node{}
	if n.Kind != yaml.MappingNode {
		p.problem(n, "%s must be a mapping with %s", what, strings.Join(known, ", "))
		return out
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		switch {
		case !slices.Contains(known, key.Value):
			p.problem(key, "%s has unknown key %.60q; known are %s", what, key.Value, strings.Join(known, ", "))
		case out[key.Value] != nil:
			p.problem(key, "%s has key %q twice", what, key.Value)
		default:
			out[key.Value] = n.Content[i+1]
		}
	}
	for _, k := range required {
		if out[k] == nil {
			p.problem(n, "%s lacks key %q", what, k)
		}
	}
	return out
}

func (p *inventoryParser) document(n *yaml.Node) {
	machines := p.fields(n, "the inventory", "machines")["machines"]
	if machines == nil {
		return
	}
	if machines.Kind != yaml.SequenceNode {
		p.problem(machines, "machines must be a list")
		return
	}
	for _, m := range machines.Content {
		p.machine(m)
	}
}

// nodeName is a DNS-1123 subdomain, as Kubernetes names nodes.
var nodeName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)

func (p *inventoryParser) machine(n *yaml.Node) {
	f := p.someFields(n, "a machine", []string{"node", "ekHashes"}, []string{"node", "ekHashes", "references"})
	entry := InventoryEntry{Line: n.Line}
	if sets := f["references"]; sets != nil {
		entry.References = p.references(sets)
	}
	if name := f["node"]; name != nil {
		entry.Node = p.node(name)
	}
	list := f["ekHashes"]
	if list == nil {
		return
	}
	if list.Kind != yaml.SequenceNode || len(list.Content) == 0 {
		p.problem(list, "ekHashes must be a list of at least one EK hash")
		return
	}
	var nodes []*yaml.Node
	for _, h := range list.Content {
		hash, err := nodeclaim.ParseEKHash(h.Value)
		if h.Kind != yaml.ScalarNode || err != nil {
			p.problem(h, "EK hash %.80q is not 64 lower-case hex digits", h.Value)
			continue
		}
		entry.EKHashes = append(entry.EKHashes, hash)
		nodes = append(nodes, h)
	}
	for i, hash := range entry.EKHashes {
		if other, taken := p.machines[hash]; taken {
			p.problem(nodes[i], "EK hash %s is already used by node %q in line %d; an EK belongs to one machine and is listed once", hash, other.Node, other.Line)
			continue
		}
		p.machines[hash] = entry
	}
}

// setName is a reference set's name, or its beginning with "*" for the rest: names have dates, and change with each roll-out.
var setName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}\*?$`)

// references reads which sets may accept a machine. An empty list is a problem: it would accept none, which is what a revocation says.
func (p *inventoryParser) references(n *yaml.Node) []string {
	if n.Kind != yaml.SequenceNode || len(n.Content) == 0 {
		p.problem(n, "references must be a list of at least one reference set; leave it out where every set may accept the machine")
		return nil
	}
	var out []string
	for _, item := range n.Content {
		switch {
		case item.Kind != yaml.ScalarNode || !setName.MatchString(item.Value):
			p.problem(item, "reference set %.80q is neither a set's name nor the beginning of one with \"*\"", item.Value)
		case slices.Contains(out, item.Value):
			p.problem(item, "reference set %q is named twice", item.Value)
		default:
			out = append(out, item.Value)
		}
	}
	return out
}

func (p *inventoryParser) node(n *yaml.Node) string {
	if n.Kind != yaml.ScalarNode || len(n.Value) > 253 || !nodeName.MatchString(n.Value) {
		p.problem(n, "node %.80q is not a Kubernetes node name (lower-case letters, digits, '-' and '.')", n.Value)
		return ""
	}
	if line, taken := p.nodes[n.Value]; taken {
		p.problem(n, "node %q is already named in line %d; list all EKs of a machine in one entry", n.Value, line)
		return ""
	}
	p.nodes[n.Value] = n.Line
	return n.Value
}
