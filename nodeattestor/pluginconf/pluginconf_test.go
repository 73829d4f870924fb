package pluginconf_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keelson-project/keelson/nodeattestor/pluginconf"
)

type config struct {
	Path  string              `hcl:"path"`
	Roots []string            `hcl:"roots"`
	PCRs  map[string][]int    `hcl:"pcrs"`
	Tag   *tag                `hcl:"tag"`
	Keys  map[string]verifier `hcl:"keys"`
}

type tag struct {
	Index string `hcl:"index"`
}

type verifier struct {
	Path string `hcl:"path"`
}

func TestGoodConfigurationIsRead(t *testing.T) {
	text := `
path = "/dev/tpmrm0"
roots = ["a", "b"]
pcrs { sha256 = [0, 7] }
tag { index = "0x1" }
keys "one" { path = "p1" }
keys "two" { path = "p2" }
`
	var got config
	p := pluginconf.Decode(text, &got)
	if err := p.Err(); err != nil {
		t.Fatal(err)
	}
	want := config{Path: "/dev/tpmrm0", Roots: []string{"a", "b"}, PCRs: map[string][]int{"sha256": {0, 7}},
		Tag: &tag{Index: "0x1"}, Keys: map[string]verifier{"one": {Path: "p1"}, "two": {Path: "p2"}}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if !p.Has("tag.index") || p.Has("tag.other") {
		t.Error("Has does not know which keys the text has")
	}
}

func TestEveryProblemIsReportedWithItsLine(t *testing.T) {
	cases := map[string]struct {
		text string
		want []string
	}{
		"unknown keys at every level": {
			"paht = \"x\"\ntag {\n  indexx = \"1\"\n}\nkeys \"one\" {\n  pth = \"1\"\n}\nkeys {\n two { nope = 1 }\n}\n",
			[]string{"line 1: paht: unknown key", "line 3: tag.indexx: unknown key", "line 6: keys.one.pth: unknown key", "line 8: keys: stands in line 5 already", "line 9: keys.two.nope: unknown key"}},
		"a key that stands twice": {
			"path = \"a\"\npath = \"b\"\n", []string{"line 2: path: stands in line 1 already"}},
		"a label that stands twice": {
			"keys \"one\" { path = \"a\" }\nkeys \"one\" { }\n", []string{"line 2: keys.one: stands in line 1 already"}},
		"not HCL": {"path = [", []string{"configuration: not HCL: At 1:9: unexpected token while parsing list: EOF"}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			var c config
			if d := cmp.Diff(tc.want, pluginconf.Decode(tc.text, &c).List()); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestAddNamesTheLineOfTheKey(t *testing.T) {
	var c config
	p := pluginconf.Decode("\n\npath = \"x\"\n", &c)
	p.Add("path", "%q does not exist", c.Path)
	p.Add("roots", "missing")
	if d := cmp.Diff([]string{`line 3: path: "x" does not exist`, "roots: missing"}, p.List()); d != "" {
		t.Error(d)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("path = \"a\"\nkeys \"one\" { path = \"p\" }\npcrs { sha256 = [1] }")
	f.Add("tag { index = 1 } tag = 3 keys = [1]")
	f.Fuzz(func(t *testing.T, text string) {
		var c config
		if p := pluginconf.Decode(text, &c); p.Err() == nil && len(p.List()) != 0 {
			t.Fatal("problems without an error")
		}
	})
}
