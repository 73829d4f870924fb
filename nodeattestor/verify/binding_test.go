package verify_test

import (
	"strings"
	"testing"

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
			p, r := b.begin(t)
			if err := p.Prove(r, now); err != nil {
				t.Fatal(err)
			}
			if err := p.Reviewed("fra-2"); err != nil {
				t.Fatal(err)
			}
			err := p.Bind(verify.Known{Nodes: tc.nodes})
			if tc.refuse == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			wantCheck(t, err, "node.elsewhere")
			if !strings.Contains(err.Error(), tc.refuse) || p.Proved() {
				t.Errorf("%v (proved %t); want %q, and nothing that lowers the node's verdict", err, p.Proved(), tc.refuse)
			}
		})
	}
}
