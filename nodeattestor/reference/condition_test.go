package reference_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/reference"
	"github.com/keelson-project/keelson/test/vectors"
)

// withCondition is a captured set with one condition more; expr has no single quote.
func withCondition(t testing.TB, name, expr string) reference.Set {
	t.Helper()
	return edited(t, name, "boot:\n", "conditions: [{expr: '"+expr+"', message: ask the platform team}]\nboot:\n")
}

// unproven is a boot that proves its bank and no fact.
func unproven(t testing.TB) reference.Evidence {
	t.Helper()
	l := vectors.NewLog(nodeclaim.SHA256)
	boot, err := eventlog.Replay(l.Raw(), l.Quoted(t))
	if err != nil {
		t.Fatal(err)
	}
	return reference.Evidence{Boot: boot, PCRs: l.Quoted(t)}
}

// broken is the condition's refusal, nil when it holds.
func broken(t testing.TB, s reference.Set, ev reference.Evidence) *nodeclaim.Refusal {
	t.Helper()
	for _, r := range s.Check(ev, now) {
		if r.Check == "reference.condition" {
			return &r
		}
	}
	return nil
}

func TestConditionsOverFacts(t *testing.T) {
	cases := map[string]struct {
		expr string
		want bool
	}{
		"secure boot is off":            {`secureBoot.enabled`, false},
		"secure boot is off, as wanted": {`!secureBoot.enabled`, true},
		"a word is absent":              {`!("test" in kernel.args)`, true},
		"a word is there":               {`"quiet" in kernel.args`, true},
		"a word is there, and must not": {`!("quiet" in kernel.args)`, false},
		"both":                          {`!secureBoot.enabled && !("test" in kernel.args)`, true},
		"part of the line":              {`kernel.cmdline.contains("ima_policy=tcb")`, true},
		"a regular expression":          {`kernel.cmdline.matches("ima_(policy|hash)=tcb")`, true},
		"a parameter has one value":     {`kernel.params["ima_policy"] == ["tcb"]`, true},
		"a parameter that is not there": {`kernel.params["init"] == ["/bin/sh"]`, false},
		"every word is short":           {`kernel.args.all(a, size(a) < 200)`, true},
		"some word":                     {`kernel.args.exists(a, a.startsWith("probe_urls="))`, true},
		"nobody let images in":          {`size(secureBoot.authorities) == 0`, true},
		"three firmware measurements":   {`size(firmware.digests) == 3`, true},
		"digests are of the bank":       {`kernel.digest.startsWith(bank + ":") && initrd.digest.startsWith("sha256:")`, true},
		"keys":                          {`secureBoot.pk != secureBoot.db && secureBoot.kek != secureBoot.dbx`, true},
		"boot loaders":                  {`size(bootLoader.digests) == 2 && !(kernel.digest in bootLoader.digests)`, true},
		"a unified kernel image":        {`uki.sections[".linux"] == kernel.digest`, true},
		"no section of that name":       {`uki.sections[".evil"] == kernel.digest`, false},
		"a false half decides":          {`firmware.digests[9] == "" && secureBoot.enabled`, false},
		"a true half decides":           {`firmware.digests[9] == "" || !secureBoot.enabled`, true},
		"an index that is not there":    {`firmware.digests[9] != ""`, false},
		"a division by zero":            {`1 / (size(firmware.digests) - 3) == 0`, false},
		"a text that is no expression":  {`kernel.cmdline.matches(kernel.cmdline + "(")`, false},
		"a number of a word":            {`int(kernel.args[0]) == 1`, false},
		"an error in the other branch":  {`secureBoot.enabled ? firmware.digests[9] == "" : true`, true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			set := withCondition(t, "good", c.expr)
			r := broken(t, set, evidence(t, "good"))
			if (r == nil) != c.want {
				t.Errorf("%s: got %v, want %t", c.expr, r, c.want)
			}
			if r != nil && (!strings.Contains(r.Reason, "condition 1 of reference set good") || !strings.Contains(r.Reason, "ask the platform team") || !strings.Contains(r.Reason, c.expr)) {
				t.Errorf("the refusal does not name condition, set and message: %s", r.Reason)
			}
			again, err := reference.ParseSet(set.Marshal())
			if err != nil || cmp.Diff(string(set.Marshal()), string(again.Marshal())) != "" {
				t.Errorf("written and read again: %v", err)
			}
		})
	}
}

// Whatever the expression: where its facts are not proven, it is not true.
func TestThreat22_NoConditionIsTrueForWantOfProof(t *testing.T) {
	for _, expr := range []string{
		`!secureBoot.enabled`, `!("test" in kernel.args)`, `kernel.args.all(a, a != "test")`, `!kernel.args.exists(a, a == "test")`, `kernel.cmdline == ""`,
		`size(kernel.args) == 0`, `kernel.args == []`, `kernel.cmdline != "x"`, `!(".linux" in uki.sections)`, `uki.sections == {}`, `size(firmware.digests) == 0`,
		`secureBoot.pk == ""`, `secureBoot.pk != "x"`, `type(kernel.cmdline) == string`, `dyn(kernel.cmdline) != 1`, `[kernel.cmdline].size() == 1`,
		`!kernel.cmdline.matches("x")`, `kernel.params.all(k, true)`, `!("a" in kernel.params)`, `secureBoot.enabled || !secureBoot.enabled`, `secureBoot.enabled ? true : true`,
		`kernel.args.filter(a, a == "x") == []`, `[1].exists_one(x, kernel.cmdline != "x")`, `initrd.digest == initrd.digest`, `{"a": kernel.digest}.size() == 1`,
	} {
		t.Run(expr, func(t *testing.T) {
			r := broken(t, withCondition(t, "good", expr), unproven(t))
			if r == nil {
				t.Fatal("it holds")
			}
			if !strings.Contains(r.Reason, "cannot be decided: the evidence does not prove ") {
				t.Errorf("the reason is %s", r.Reason)
			}
		})
	}
	r := broken(t, withCondition(t, "good", `!secureBoot.enabled && !("test" in kernel.args)`), unproven(t))
	if r == nil || !strings.Contains(r.Reason, "does not prove kernel.args, secureBoot.enabled: ask the platform team (") {
		t.Errorf("got %v", r)
	}
	// A line of which only the digest is proven has no words.
	boot, err := eventlog.Replay(vectors.Read(t, "good", vectors.EventLog), vectors.Quoted(t, "good"))
	if err != nil {
		t.Fatal(err)
	}
	ev := evidence(t, "good")
	ev.Boot = boot
	if r := broken(t, withCondition(t, "good", `!("test" in kernel.args)`), ev); r == nil {
		t.Error("holds for a command line that nobody knows")
	}
}

func TestConditionsThatAreRefusedWhenRead(t *testing.T) {
	cases := map[string]struct{ conditions, want string }{
		"a syntax error":             {`[{expr: "secureBoot.enabled &&", message: m}]`, "Syntax error"},
		"an unknown fact":            {`[{expr: "secureBoot.off", message: m}]`, "undeclared reference"},
		"a wrong type":               {`[{expr: "kernel.args == 'x'", message: m}]`, "no matching overload"},
		"not a truth":                {`[{expr: "kernel.cmdline", message: m}]`, "it is a string, not true or false"},
		"any value":                  {`[{expr: "dyn(secureBoot.enabled)", message: m}]`, "it is a dyn"},
		"a constant":                 {`[{expr: "1 < 2", message: m}]`, "it reads no fact"},
		"has":                        {`[{expr: "!has(kernel.args)", message: m}]`, "undeclared reference to 'has'"},
		"a bad regular expression":   {`[{expr: "kernel.cmdline.matches('(')", message: m}]`, "error parsing regexp"},
		"no message":                 {`[{expr: secureBoot.enabled}]`, "needs a message"},
		"no expression":              {`[{message: m}]`, "needs an expr"},
		"an unknown key":             {`[{expr: secureBoot.enabled, message: m, when: now}]`, `condition has no key "when"`},
		"not a list":                 {`{expr: secureBoot.enabled}`, "conditions is not a list"},
		"a text in the list":         {`[secureBoot.enabled]`, "condition is not a mapping"},
		"an endless expression":      {`[{expr: "secureBoot.enabled` + strings.Repeat(" && true", 300) + `", message: m}]`, "at most 2048 bytes"},
		"an endless message":         {`[{expr: secureBoot.enabled, message: ` + strings.Repeat("m", 600) + `}]`, "at most 512 bytes"},
		"deep nesting":               {`[{expr: "` + strings.Repeat("(", 200) + "secureBoot.enabled" + strings.Repeat(")", 200) + `", message: m}]`, "recursion"},
		"too many":                   {`[` + strings.Repeat(`{expr: secureBoot.enabled, message: m}, `, reference.MaxConditions+1) + `]`, "more than the 32 conditions"},
		"the time of day, no matter": {`[{expr: "now() > timestamp('2026-01-01T00:00:00Z') && secureBoot.enabled", message: m}]`, "undeclared reference to 'now'"},
	}
	text := string(capture(t, "good").Marshal())
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := reference.ParseSet([]byte(strings.Replace(text, "boot:\n", "conditions: "+c.conditions+"\nboot:\n", 1)))
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "line 5") {
				t.Errorf("got %v, want %q in line 5", err, c.want)
			}
		})
	}
}

func TestThreat24_AConditionThatNeverEndsIsCutAndRefused(t *testing.T) {
	nested := `kernel.args.all(a, kernel.args.all(b, kernel.args.all(c, kernel.args.all(d, kernel.args.all(e, kernel.args.all(f, kernel.args.all(g, kernel.args.all(h, a+b+c+d+e+f+g+h != ""))))))))`
	r := broken(t, withCondition(t, "good", nested), evidence(t, "good"))
	if r == nil || !strings.Contains(r.Reason, "cost limit exceeded") {
		t.Errorf("got %v", r)
	}
}

func TestConditionsCannotStandForPins(t *testing.T) {
	_, err := reference.ParseSet([]byte("name: a\nconditions: [{expr: secureBoot.enabled, message: m}]\nboot: {}\n"))
	if err == nil || !strings.Contains(err.Error(), "neither firmware nor PCR 0") {
		t.Errorf("got %v", err)
	}
}

// FuzzCondition: no expression makes parser, checker or evaluation panic or run on, and what
// holds without any fact proven holds with them: facts can only turn an undecided condition.
func FuzzCondition(f *testing.F) {
	for _, expr := range []string{`secureBoot.enabled && !("test" in kernel.args)`, `kernel.args.all(a, a.size() < 9)`, `kernel.params["a"] == ["b"]`,
		`uki.sections.exists(k, k == ".linux") || true || secureBoot.enabled`, `kernel.cmdline.matches("a*")`, `true || secureBoot.enabled`, `[1,2].map(x, x * 2)[0] == 2 && bank != ""`} {
		f.Add(expr)
	}
	good, nothing := evidence(f, "good"), unproven(f)
	set := capture(f, "good").Marshal()
	f.Fuzz(func(t *testing.T, expr string) {
		quoted := strings.NewReplacer("'", "''", "\n", " ", "\r", " ").Replace(expr)
		s, err := reference.ParseSet([]byte(strings.Replace(string(set), "boot:\n", "conditions: [{expr: '"+quoted+"', message: m}]\nboot:\n", 1)))
		if err != nil {
			return
		}
		if broken(t, s, nothing) == nil && broken(t, s, good) != nil {
			t.Errorf("%q holds only while nothing is proven", expr)
		}
		again, err := reference.ParseSet(s.Marshal())
		if err != nil || string(again.Marshal()) != string(s.Marshal()) {
			t.Errorf("%q written and read again: %v", expr, err)
		}
	})
}
