package ek_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keelson-project/keelson/nodeattestor/ek"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

func hash(digit string) string { return strings.Repeat(digit, 64) }

func TestInventoryListsEachEKOfAMachine(t *testing.T) {
	got, err := ek.ParseInventory([]byte("machines:\n- node: fra-1\n  ekHashes: [" + hash("a") + ", " + hash("b") + "]\n- {node: par-1.example.org, ekHashes: [\"" + hash("1") + "\"]}\n"))
	if err != nil {
		t.Fatal(err)
	}
	parse := func(digit string) nodeclaim.EKHash {
		h, err := nodeclaim.ParseEKHash(hash(digit))
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	fra := ek.InventoryEntry{Node: "fra-1", Line: 2, EKHashes: []nodeclaim.EKHash{parse("a"), parse("b")}}
	par := ek.InventoryEntry{Node: "par-1.example.org", Line: 4, EKHashes: []nodeclaim.EKHash{parse("1")}}
	if diff := cmp.Diff(ek.Machines{parse("a"): fra, parse("b"): fra, parse("1"): par}, got); diff != "" {
		t.Errorf("inventory (-want +got):\n%s", diff)
	}
	if empty, err := ek.ParseInventory([]byte("machines: []")); err != nil || len(empty) != 0 {
		t.Errorf("an empty inventory is %v, %v", empty, err)
	}
}

func TestInventoryProblemsAreAllNamedWithTheirLine(t *testing.T) {
	_, err := ek.ParseInventory([]byte(strings.Join([]string{
		"machines:",
		"- node: fra-1",
		"  ekHashes: [" + hash("a") + "]",
		"  ekHashs: []",
		"- node: fra-1",
		"  ekHashes: [" + hash("b") + "]",
		"- node: par-1",
		"  ekHashes: [" + hash("a") + "]",
		"- node: Par_2",
		"  ekHashes: [abc, " + hash("A") + "]",
		"- ekHashes: []",
	}, "\n")))
	var got []string
	problems, ok := err.(ek.InventoryErrors) //nolint:errorlint // the type is the contract
	if !ok {
		t.Fatalf("error is a %T: %v", err, err)
	}
	for _, e := range problems {
		got = append(got, e.Error())
	}
	want := []string{
		`ek: inventory line 4: a machine has unknown key "ekHashs"; known are node, ekHashes, references`,
		`ek: inventory line 5: node "fra-1" is already named in line 2; list all EKs of a machine in one entry`,
		`ek: inventory line 8: EK hash ` + hash("a") + ` is already used by node "fra-1" in line 2; an EK belongs to one machine and is listed once`,
		`ek: inventory line 9: node "Par_2" is not a Kubernetes node name (lower-case letters, digits, '-' and '.')`,
		`ek: inventory line 10: EK hash "abc" is not 64 lower-case hex digits`,
		`ek: inventory line 10: EK hash "` + hash("A") + `" is not 64 lower-case hex digits`,
		`ek: inventory line 11: a machine lacks key "node"`,
		`ek: inventory line 11: ekHashes must be a list of at least one EK hash`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}

func TestInventoryLimitsTheSetsOfAMachine(t *testing.T) {
	machines, err := ek.ParseInventory([]byte("machines:\n- node: n\n  ekHashes: [" + hash("a") + "]\n  references: [prod-2026-11, \"edge-*\", a*]\n- {node: m, ekHashes: [" + hash("b") + "]}\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range machines {
		if want := map[string][]string{"n": {"prod-2026-11", "edge-*", "a*"}}[m.Node]; !cmp.Equal(m.References, want) {
			t.Errorf("machine %s may match %v, want %v", m.Node, m.References, want)
		}
	}
	_, err = ek.ParseInventory([]byte(strings.Join([]string{
		"machines:",
		"- {node: a, ekHashes: [" + hash("a") + "], references: []}",
		"- {node: b, ekHashes: [" + hash("b") + "], references: prod}",
		"- {node: c, ekHashes: [" + hash("c") + "], references: [\"*\", prod, prod, Prod, \"pr*d\", [prod]]}",
		"- {node: d, ekHashes: [" + hash("d") + "], references: }",
	}, "\n")))
	want := strings.Join([]string{
		`ek: inventory line 2: references must be a list of at least one reference set; leave it out where every set may accept the machine`,
		`ek: inventory line 3: references must be a list of at least one reference set; leave it out where every set may accept the machine`,
		`ek: inventory line 4: reference set "*" is neither a set's name nor the beginning of one with "*"`,
		`ek: inventory line 4: reference set "prod" is named twice`,
		`ek: inventory line 4: reference set "Prod" is neither a set's name nor the beginning of one with "*"`,
		`ek: inventory line 4: reference set "pr*d" is neither a set's name nor the beginning of one with "*"`,
		`ek: inventory line 4: reference set "" is neither a set's name nor the beginning of one with "*"`,
		`ek: inventory line 5: references must be a list of at least one reference set; leave it out where every set may accept the machine`,
	}, "\n")
	if err == nil || err.Error() != want {
		t.Errorf("(-want +got):\n%s", cmp.Diff(want, err.Error()))
	}
}

func TestUnfitInventoriesAreRefused(t *testing.T) {
	one := "- {node: n, ekHashes: [" + hash("a") + "]}\n"
	for name, data := range map[string]string{
		"nothing":               "",
		"a list":                one,
		"a word":                "machines",
		"machines are a word":   "machines: all",
		"no machines":           "{}",
		"a null":                "machines:\n",
		"an unknown key":        "machines: []\nmode: both\n",
		"machines twice":        "machines: []\nmachines: []\n",
		"the node twice":        "machines:\n- {node: n, node: m, ekHashes: [" + hash("a") + "]}\n",
		"one EK twice":          "machines:\n- {node: n, ekHashes: [" + hash("a") + ", " + hash("a") + "]}\n",
		"two documents":         "machines: []\n---\nmachines: []\n",
		"not YAML":              "machines: [",
		"an alias as a machine": "machines:\n- &a {node: n, ekHashes: [" + hash("a") + "]}\n- *a\n",
		"an alias as a hash":    "machines:\n- {node: n, ekHashes: [&a " + hash("a") + ", *a]}\n",
		"a merge key":           "machines:\n- {<<: {node: n}, ekHashes: [" + hash("a") + "]}\n",
		"a hash in a list":      "machines:\n- {node: n, ekHashes: [[" + hash("a") + "]]}\n",
		"a node that is a list": "machines:\n- {node: [n], ekHashes: [" + hash("a") + "]}\n",
		"more than the limit":   strings.Repeat("#", ek.MaxInventorySize+1),
	} {
		t.Run(name, func(t *testing.T) {
			if m, err := ek.ParseInventory([]byte(data)); err == nil || m != nil {
				t.Errorf("accepted as %v", m)
			}
		})
	}
}

func FuzzParseInventory(f *testing.F) {
	f.Add([]byte("machines:\n- node: fra-1\n  ekHashes: [" + hash("a") + "]\n"))
	f.Add([]byte("machines: &a [*a]"))
	f.Add([]byte("a: b\nmachines:\n- {}\n- 1\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		machines, err := ek.ParseInventory(data)
		if err != nil {
			return
		}
		for h, m := range machines {
			if m.Node == "" || h.IsZero() && !strings.Contains(string(data), hash("0")) {
				t.Errorf("EK %s is in the inventory as %+v", h, m)
			}
		}
	})
}
