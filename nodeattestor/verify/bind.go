package verify

import (
	"fmt"
	"slices"
	"strings"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// Named is an attestation that was proved and says which node its machine is. That the node has no
// other machine is still to be checked.
type Named struct {
	*machine
	proved *Proved
	node   string
}

// Node is the node that the EK belongs to: the inventory's, or where the policy binds by token
// alone that of the reviewed token. "" when it belongs to none.
func (n *Named) Node() string { return n.node }

// Known is what the shared store knows of the node; the zero value means that it was never seen.
type Known struct {
	EKHash    string // EK that the node is bound to, "" when it is bound to none
	TagSerial uint64 // highest asset-tag serial seen for it
	// Nodes are those that the EK is bound to, for a policy that binds by token alone: where an
	// inventory binds, it says so itself, and lists each EK once.
	Nodes []string
}

// Bound is an attestation whose evidence is proved to be its node's own. What is wrong with it from
// here on lowers the node's verdict; before that nothing may count against the node, since a
// stranger's evidence, or a proved stranger's, says nothing about it.
type Bound struct {
	*machine
	proved *Proved
	node   string
	known  Known
}

// Node is the node that the machine is; "" when it belongs to none.
func (b *Bound) Node() string { return b.node }

// Bind checks the proved EK against what is known of its node. The binding is immutable in both
// directions: another EK under the same name, and another node of the same EK, need an
// administrator's act.
func (n *Named) Bind(known Known) (*Bound, error) {
	if n.node == "" && n.policy.RequireNode {
		return nil, nodeclaim.Refuse("node.unbound", fmt.Sprintf("EK %s belongs to no node; add it to the inventory", n.EK()))
	}
	if known.EKHash != "" && known.EKHash != n.EK().String() {
		return nil, nodeclaim.Refuse("node.binding", fmt.Sprintf("node %s is bound to EK %s, this machine has EK %s; if the machine was replaced, delete the node's NodeTrust", n.node, known.EKHash, n.EK()))
	}
	others := slices.DeleteFunc(slices.Clone(known.Nodes), func(node string) bool { return node == n.node })
	if len(others) > 0 {
		return nil, nodeclaim.Refuse("node.elsewhere", fmt.Sprintf("EK %s is bound to node %s, the token names node %s: one machine is one node; if it was renamed, delete the NodeTrust of %[2]s", n.EK(), strings.Join(others, ", "), n.node))
	}
	return &Bound{machine: n.machine, proved: n.proved, node: n.node, known: known}, nil
}

// Revoked refuses a machine of which any EK is revoked, as whoever has the TPM can show each of
// them. It is asked once the machine is bound, for it is proof that its node is not to be trusted.
// Read asks it too.
func (b *Bound) Revoked() error {
	for _, ek := range b.MachineEKs() {
		if why, revoked := b.policy.Revoked[ek]; revoked {
			return nodeclaim.Refuse("ek.revoked", fmt.Sprintf("EK %s of this machine is revoked: %s", ek, why))
		}
	}
	return nil
}
