package reference

import (
	"go/ast"
	goparser "go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// factsOf are facts that prove every component; those of another seed differ in all of them.
func factsOf(seed string) eventlog.Facts {
	d := func(what string) eventlog.Digest {
		h := nodeclaim.SHA256.New()
		h.Write([]byte(what + seed))
		return eventlog.NewDigest(nodeclaim.SHA256, h.Sum(nil))
	}
	return eventlog.Facts{
		Bank: "sha256", Firmware: []eventlog.Digest{d("firmware")}, BootLoader: []eventlog.Digest{d("shim"), d("loader")},
		SecureBoot: eventlog.SecureBoot{State: eventlog.SecureBootEnabled, PK: d("pk"), KEK: d("kek"), DB: d("db"), DBX: d("dbx"),
			Authorities: []eventlog.Authority{{Variable: "db", Digest: d("authority")}}},
		Kernel: d("kernel"), Initrd: d("initrd"), CommandLine: eventlog.CommandLine{Text: "root=" + seed},
	}
}

// setOf pins one component, and of the PCRs what every set rests on.
func setOf(t *testing.T, name string, c *component, facts ...eventlog.Facts) Set {
	t.Helper()
	zero := make([]byte, nodeclaim.SHA256.Size())
	s := Set{name: name, boot: boot{bank: nodeclaim.SHA256, values: values{}, pcrs: map[nodeclaim.HashAlg]map[int][][]byte{nodeclaim.SHA256: {}}}}
	for _, i := range []int{0, 2, 4, 7} {
		s.boot.pcrs[nodeclaim.SHA256][i] = [][]byte{zero}
	}
	for _, f := range facts {
		v := c.proven(f)
		if v == nil {
			t.Fatalf("facts that prove every component do not prove %s: add it to factsOf", c.key)
		}
		s.boot.values[c.key] = append(s.boot.values[c.key], v)
	}
	return s
}

func mustParse(t *testing.T, s Set) Set {
	t.Helper()
	out, err := ParseSet(s.Marshal())
	if err != nil {
		t.Fatalf("%v\n%s", err, s.Marshal())
	}
	return out
}

func TestEveryComponentIsHandledByAllThatLoopsOverThem(t *testing.T) {
	ours, theirs := factsOf("ours"), factsOf("theirs")
	for i := range components {
		c := &components[i]
		t.Run(c.key, func(t *testing.T) {
			for what, text := range map[string]string{"one": c.one, "label": c.label, "ofClass": c.ofClass, "check": c.check, "absent": c.absent, "measured": c.measured} {
				if text == "" {
					t.Errorf("its entry has no %s", what)
				}
			}
			if len(c.pcrs) == 0 || (c.class == nil) != (c.classIs == "") {
				t.Errorf("its entry has PCRs %v, class %q", c.pcrs, c.classIs)
			}
			one, two, none := setOf(t, "a", c, ours), setOf(t, "a", c, theirs), setOf(t, "a", c)
			handlesConditions(t, c, ours)
			handlesFile(t, c, one, setOf(t, "a", c, ours, theirs))
			handlesCheck(t, c, one, ours, theirs)
			handlesDifferences(t, c, one, two, none)
			handlesMerge(t, c, one, two, none)
		})
	}
}

// handlesFile: what is written is read again, with one alternative and with two; the text has the key, and a person its label.
func handlesFile(t *testing.T, c *component, sets ...Set) {
	t.Helper()
	for _, s := range sets {
		text := string(s.Marshal())
		if !strings.Contains(text, "\n  "+c.key+":") {
			t.Errorf("Marshal does not write it:\n%s", text)
		}
		read := mustParse(t, s)
		if got, want := strs(read.boot.values[c.key]), strs(s.boot.values[c.key]); !slices.Equal(got, want) || string(read.Marshal()) != text {
			t.Errorf("ParseSet reads %q, want %q", got, want)
		}
		lines := slices.DeleteFunc(s.Describe(), func(l string) bool { return !strings.HasPrefix(l, c.label+": ") })
		if len(lines) != len(s.boot.values[c.key]) {
			t.Errorf("Describe says %q", lines)
		}
	}
	for name, wrong := range map[string]string{"an empty list": "[]", "nothing": "~", "a text": "soon", "a digest of no algorithm": "['md6:00']"} {
		_, err := ParseSet([]byte("name: a\nboot:\n  " + c.key + ": " + wrong + "\n"))
		if err == nil || !strings.Contains(err.Error(), "line 3") {
			t.Errorf("%s is read: %v", name, err)
		}
	}
}

// handlesCheck: the facts that a set is of pass, others and none are refused by its check.
func handlesCheck(t *testing.T, c *component, s Set, ours, theirs eventlog.Facts) {
	t.Helper()
	judge := func(f eventlog.Facts) (nodeclaim.Refusals, map[int]bool) {
		k := &checker{set: s, facts: f, explained: map[int]bool{}}
		c.judge(k, c, s.boot.values[c.key])
		return k.refusals, k.explained
	}
	if refusals, _ := judge(ours); len(refusals) > 0 {
		t.Errorf("what it was captured from is refused: %v", refusals)
	}
	for name, f := range map[string]eventlog.Facts{"other facts": theirs, "no facts": {Bank: "sha256"}} {
		refusals, explained := judge(f)
		named := slices.ContainsFunc(refusals, func(r nodeclaim.Refusal) bool {
			return r.Check == c.check || strings.HasPrefix(r.Check, c.check[:strings.Index(c.check, ".")+1])
		})
		if !named || !slices.Equal(slices.Sorted(maps.Keys(explained)), c.pcrs) {
			t.Errorf("%s: refused by %v, which explains PCRs %v", name, refusals, explained)
		}
		if c.proven(f) != nil && name == "no facts" {
			t.Errorf("no facts prove %s", c.proven(f))
		}
	}
}

// handlesConditions: conditions can read it where it is proven, and not where it is not; a set that has one looks at it.
func handlesConditions(t *testing.T, c *component, f eventlog.Facts) {
	t.Helper()
	if len(c.facts) == 0 {
		t.Error("no condition can read it")
	}
	for _, fact := range c.facts {
		if _, ok := fact.of(eventlog.Facts{}); ok {
			t.Errorf("%s is proven by nothing", fact.name)
		}
		if fact.name != "uki.sections" {
			if _, ok := known(proof{boot: f})[fact.name]; !ok {
				t.Errorf("%s cannot be read", fact.name)
			}
		}
		if s := (Set{conditions: []condition{{needs: []string{fact.name}}}}); !s.looksAt(*c) || s.late() != (c.late != "") {
			t.Errorf("a condition on %s does not look at it", fact.name)
		}
	}
}

// handlesDifferences: a change, an addition and a removal are told, and no change is not.
func handlesDifferences(t *testing.T, c *component, one, two, none Set) {
	t.Helper()
	for name, d := range map[string]struct {
		from, to Set
		want     bool
	}{"changed": {one, two, true}, "added": {none, one, true}, "taken away": {one, none, true}, "the same": {one, one, false}} {
		lines := Diff(d.from, d.to)
		told := slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, c.one) })
		if told != d.want || !d.want && len(lines) > 0 {
			t.Errorf("%s: Diff says %q", name, lines)
		}
	}
}

// handlesMerge: both values are allowed after it, and sets of which one looks at it and the other does not are not of one class.
func handlesMerge(t *testing.T, c *component, one, two, none Set) {
	t.Helper()
	both, err := Merge("both", one, two)
	if err != nil {
		t.Fatal(err)
	}
	want := append(strs(one.boot.values[c.key]), strs(two.boot.values[c.key])...)
	if got := strs(both.boot.values[c.key]); !slices.Equal(got, want) {
		t.Errorf("Merge allows %q, want %q", got, want)
	}
	if same, err := Merge("same", one, one); err != nil || len(same.boot.values[c.key]) != 1 {
		t.Errorf("merged with itself: %v, %v", same.boot.values[c.key], err)
	}
	if len(one.boot.values[c.key]) != 1 {
		t.Error("Merge changed the set that it was given")
	}
	if _, err := Merge("half", one, none); err == nil || !strings.Contains(err.Error(), "differ in whether "+c.ofClass+" is looked at") {
		t.Errorf("one set looks at it, the other does not: %v", err)
	}
}

func TestACaptureAndWhatIsAbsentCoverEveryComponent(t *testing.T) {
	b := captureBoot(nodeclaim.SHA256, Evidence{})
	if len(b.values) > 0 {
		t.Errorf("no evidence proves %v", b.values)
	}
	for i := range components {
		c := &components[i]
		if c.proven(factsOf("ours")) == nil {
			t.Errorf("%s is never captured", c.key)
		}
	}
}

// Names of components stand in the table alone, so that another one is one entry. The files of shapes may name what they are
// the shape of.
func TestNoComponentIsSpelledOutsideTheTable(t *testing.T) {
	inTable := []string{"components.go", "shapes.go", "secureboot.go"}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	fields := map[string]bool{}
	for _, c := range components {
		fields[strings.ToUpper(c.key[:1])+c.key[1:]] = true
	}
	looked := 0
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") || slices.Contains(inTable, name) {
			continue
		}
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		fset := token.NewFileSet()
		file, err := goparser.ParseFile(fset, name, src, 0)
		if err != nil {
			t.Fatal(err)
		}
		looked++
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.BasicLit:
				if text, err := strconv.Unquote(n.Value); err == nil && n.Kind == token.STRING {
					if c := spelled(text); c != "" {
						t.Errorf("%s: %q spells the component %s", fset.Position(n.Pos()), text, c)
					}
				}
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); fields[n.Sel.Name] && (!ok || x.Name != "eventlog") {
					t.Errorf("%s: reads the component %s", fset.Position(n.Pos()), n.Sel.Name)
				}
			}
			return true
		})
	}
	if looked < 15 {
		t.Errorf("%d files were looked at", looked)
	}
}

// spelled is the component that a text names as a key, as a fact or as what a value is said to be of. Words of English that are
// keys as well ("kernel") count where they stand alone.
func spelled(text string) string {
	for _, c := range components {
		for _, name := range []string{c.key, c.one, c.label, c.ofClass} {
			if text == name || strings.HasPrefix(text, name+": ") {
				return c.key
			}
		}
		camel := strings.ToLower(c.key) != c.key
		if strings.HasPrefix(text, c.key+".") || (camel || c.key == "initrd") && strings.Contains(text, c.key) {
			return c.key
		}
	}
	return ""
}
