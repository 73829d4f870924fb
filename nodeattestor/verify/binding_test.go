package verify_test

import (
	"strings"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/ek"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/verify"
)

func TestThreat07_ATokenDoesNotMakeAnEKAnotherNode(t *testing.T) {
	for name, tc := range map[string]struct {
		nodes  []string
		refuse string
	}{
		"an EK that was never bound":          {nil, ""},
		"an EK of this node":                  {[]string{"fra-2"}, ""},
		"an EK of another node":               {[]string{"fra-1"}, "bound to node fra-1, the token names node fra-2"},
		"an EK of this node and of another":   {[]string{"fra-1", "fra-2"}, "bound to node fra-1, the token names node fra-2"},
		"an EK of two other nodes, both told": {[]string{"fra-1", "par-1"}, "delete the NodeTrust of fra-1, par-1"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.policy.Binding, b.policy.RequireNode, b.payload.Token = verify.ByToken, true, []byte("token")
			c, r := b.begin(t)
			n := must(must(c.Prove(r, now))(t).Named("fra-2"))(t)
			_, err := n.Bind(verify.Known{Nodes: tc.nodes})
			if tc.refuse == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			wantCheck(t, err, "node.elsewhere")
			if !strings.Contains(err.Error(), tc.refuse) || n.Stop(err).Outcome() != verify.Unproved {
				t.Errorf("%v (%s); want %q, and nothing that lowers the node's verdict", err, n.Stop(err).Outcome(), tc.refuse)
			}
		})
	}
}

func TestANodeIsNamedByWhatThePolicyBindsBy(t *testing.T) {
	for name, tc := range map[string]struct {
		binding  verify.Binding
		listed   string // by the inventory
		reviewed string
		node     string
		check    string // "" with no node: an error that is no refusal
	}{
		"the inventory's":                     {verify.ByInventory, "fra-1", "", "fra-1", ""},
		"the token's":                         {verify.ByToken, "", "fra-2", "fra-2", ""},
		"the token's, whatever the inventory": {verify.ByToken, "fra-1", "fra-2", "fra-2", ""},
		"both, which agree":                   {verify.ByInventoryToken, "fra-1", "fra-1", "fra-1", ""},
		"both, which differ":                  {verify.ByInventoryToken, "fra-1", "fra-2", "", "node.token"},
		"both, and nobody reviewed the token": {verify.ByInventoryToken, "fra-1", "", "", ""},
		"a token that nobody reviewed":        {verify.ByToken, "", "", "", ""},
		"a token where the policy knows none": {verify.ByInventory, "fra-1", "fra-1", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.policy.Binding, b.payload.Token = tc.binding, []byte("token")
			c, _ := b.begin(t)
			if tc.listed != "" {
				b.policy.Anchors.Inventory = ek.Machines{c.EK(): {Node: tc.listed, EKHashes: []nodeclaim.EKHash{c.EK()}}}
			}
			c, r := b.begin(t)
			p := must(c.Prove(r, now))(t)
			if (p.Token() != nil) != tc.binding.UsesToken() {
				t.Errorf("token %q", p.Token())
			}
			n, err := p.Named(tc.reviewed)
			switch {
			case tc.node != "" && (err != nil || n.Node() != tc.node):
				t.Errorf("%v, %v; want %s", n, err, tc.node)
			case tc.node == "" && tc.check == "" && (err == nil || len(nodeclaim.AsRefusals(err)) > 0):
				t.Errorf("got %v, want an error that says nothing about the machine", err)
			case tc.check != "":
				wantCheck(t, err, tc.check)
			}
		})
	}
}
