package verify_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/ek"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/reference"
	"github.com/keelson-project/keelson/nodeattestor/verify"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// classes gives the bench's server a second set, which accepts what runs under /usr besides, and an inventory that says what the bench may match.
func (b *bench) classes(t testing.TB, allowed []string) {
	t.Helper()
	strict := b.references(t)[0].Marshal()
	weak := bytes.Replace(strict, []byte("name: good"), []byte("name: a-lab"), 1)
	weak = bytes.Replace(weak, []byte("\n  violations:"), []byte("\n  ignoreDirectories: [/usr]\n  violations:"), 1)
	b.policy.References = must(reference.NewSets(must(reference.ParseSet(strict))(t), must(reference.ParseSet(weak))(t)))(t)
	c, _ := b.begin(t)
	b.policy.Anchors.Inventory = ek.Machines{c.EK(): {Node: "fra-1", EKHashes: []nodeclaim.EKHash{c.EK()}, References: allowed, Line: 2}}
}

// A machine that ran a backdoor does not come in by the set of another class, which would accept it.
func TestThreat22_AMachineDoesNotFallBackToTheSetsOfAnotherClass(t *testing.T) {
	for name, tc := range map[string]struct {
		allowed       []string
		before, after string // set that accepts it before and after the backdoor ran, "" for none
	}{
		"its inventory entry names no set":     {nil, "a-lab", "a-lab"},
		"its class is the strict one":          {[]string{"good"}, "good", ""},
		"its class by the beginning of a name": {[]string{"goo*", "prod-*"}, "good", ""},
		"its class is the other one":           {[]string{"a-lab"}, "a-lab", "a-lab"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.classes(t, tc.allowed)
			if err := b.policy.Validate(); err != nil {
				t.Fatal(err)
			}
			k := &kept{}
			accepted := func() string {
				a, _ := b.attest(t, k)
				if a.Err != nil && len(a.Refusals) == 0 {
					t.Fatal(a.Err)
				}
				if a.Err != nil && (!strings.Contains(a.Err.Error(), "ima.file") || strings.Contains(a.Err.Error(), "a-lab")) {
					t.Errorf("refused by %v, want the file, and nothing of another class", a.Err)
				}
				return a.Claims.Reference
			}
			for range 2 { // the second time from what is known
				if got := accepted(); got != tc.before {
					t.Errorf("accepted by %q, want %q", got, tc.before)
				}
			}
			b.measure(tpmtest.IMAEntry("/usr/bin/backdoor", []byte("evil")))
			if got := accepted(); got != tc.after {
				t.Errorf("after the backdoor ran: accepted by %q, want %q", got, tc.after)
			}
		})
	}
}

func TestThreat22_AnEKThatIsNotListedHasNoClass(t *testing.T) {
	b := newBench(t)
	b.classes(t, []string{"good"})
	for id, m := range b.policy.Anchors.Inventory {
		delete(b.policy.Anchors.Inventory, id)
		id[0] ^= 1
		b.policy.Anchors.Inventory[id] = m
		break
	}
	_, err := verify.Begin(&b.payload, &b.policy, nil, now, &seen{})
	wantCheck(t, err, "reference.class")
	for id, m := range b.policy.Anchors.Inventory { // without classes it may match every set, as ever
		m.References = nil
		b.policy.Anchors.Inventory[id] = m
	}
	if _, err := verify.Begin(&b.payload, &b.policy, nil, now, &seen{}); err != nil {
		t.Error(err)
	}
}

func TestThreat22_AClassWithoutASetIsRefusedAtTheStart(t *testing.T) {
	b := newBench(t)
	b.classes(t, []string{"goood", "prod-*"})
	if err := b.policy.Validate(); err == nil || !strings.Contains(err.Error(), "inventory line 2: machine fra-1 may match reference sets goood, prod-* alone, and none of that name is there") {
		t.Errorf("got %v", err)
	}
	names := []string{}
	for _, s := range b.policy.References.For([]string{"*ood", "g*", "a-la"}) {
		names = append(names, s.Name())
	}
	if !slices.Equal(names, []string{"good"}) {
		t.Errorf("sets %v, want good alone", names)
	}
}
