package verify_test

import (
	"strings"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/ek"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/verify"
)

func TestARevokedMachineDoesNotComeBackWithItsOtherEK(t *testing.T) {
	other := nodeclaim.EKHash{7}
	for name, tc := range map[string]struct {
		listed func(mine nodeclaim.EKHash) ek.Machines
		check  string
	}{
		"the inventory lists both EKs": {func(mine nodeclaim.EKHash) ek.Machines {
			entry := ek.InventoryEntry{Node: "fra-1", EKHashes: []nodeclaim.EKHash{other, mine}}
			return ek.Machines{mine: entry, other: entry}
		}, "ek.revoked"},
		"the other EK is another machine's": {func(mine nodeclaim.EKHash) ek.Machines {
			return ek.Machines{mine: {Node: "fra-1", EKHashes: []nodeclaim.EKHash{mine}}, other: {Node: "fra-2", EKHashes: []nodeclaim.EKHash{other}}}
		}, ""},
		"the inventory does not know the machine": {func(nodeclaim.EKHash) ek.Machines { return nil }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			c, _ := b.begin(t)
			b.policy.Anchors.Inventory = tc.listed(c.EK())
			b.policy.Revoked = map[nodeclaim.EKHash]string{other: "stolen in October"}
			bound := b.bound(t)
			_, err := bound.Read(nil, b.feed(t, 100_000))
			if tc.check == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			wantCheck(t, err, tc.check)
			if a := bound.Stop(err); a.Outcome() != verify.Untrusted || !strings.Contains(err.Error(), "stolen in October") || !strings.Contains(err.Error(), other.String()) {
				t.Errorf("%s, %v; want the reason and the EK that is listed, and a lower verdict", a.Outcome(), err)
			}
		})
	}
}
