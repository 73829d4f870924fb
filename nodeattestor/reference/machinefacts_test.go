package reference_test

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/reference"
	"github.com/keelson-project/keelson/test/imatest"
)

var infineon = reference.Maker{Manufacturer: "id:49465800", Model: "SLB9670", Version: "id:0007003E"}

func TestConditionsOverTagAndTPM(t *testing.T) {
	tag := map[string]string{"country": "DE", "rack": "r-7"}
	with := func(m reference.Maker) reference.Maker { return m }
	for name, c := range map[string]struct {
		expr  string
		maker reference.Maker
		tag   map[string]string
		want  string // "" where it holds
	}{
		"the tag's country":             {`tag["country"] == "DE" && tag.rack.startsWith("r-")`, infineon, tag, ""},
		"another country":               {`tag["country"] in ["FR", "NL"]`, infineon, tag, "does not hold"},
		"a key that the tag lacks":      {`tag["region"] != "eu"`, infineon, tag, "cannot be decided (no such key"},
		"whether the tag has a key":     {`!("region" in tag)`, infineon, tag, ""},
		"no tag":                        {`!("region" in tag)`, infineon, nil, "does not prove tag (no asset tag was verified)"},
		"no tag, and no matter":         {`tag == {}`, infineon, nil, "does not prove tag"},
		"the vendor":                    {`tpm.vendor in ["IFX", "STM"] && tpm.manufacturer == "id:49465800"`, infineon, nil, ""},
		"another vendor":                {`tpm.vendor == "AMD"`, infineon, nil, "does not hold"},
		"vendor with a space":           {`tpm.vendor == "STM"`, with(reference.Maker{Manufacturer: "id:53544D20"}), nil, ""},
		"model and version":             {`tpm.model == "SLB9670" && tpm.version != "id:00000000"`, infineon, nil, ""},
		"no certificate":                {`tpm.vendor != "AMD"`, reference.Maker{}, nil, "does not prove tpm.vendor (no certificate"},
		"a vendor that is no text":      {`tpm.vendor != "AMD"`, with(reference.Maker{Manufacturer: "id:00001014"}), nil, "does not prove tpm.vendor"},
		"the same by its number":        {`tpm.manufacturer == "id:00001014"`, with(reference.Maker{Manufacturer: "id:00001014"}), nil, ""},
		"a model of a megabyte":         {`tpm.model != "x"`, with(reference.Maker{Manufacturer: "id:49465800", Model: strings.Repeat("m", 1<<20)}), nil, "does not prove tpm.model"},
		"a model that is no text":       {`tpm.model != "x"`, with(reference.Maker{Manufacturer: "id:49465800", Model: "\xff"}), nil, "does not prove tpm.model"},
		"tag, maker and boot together":  {`!secureBoot.enabled && tag["country"] == "DE" && tpm.vendor == "IFX"`, infineon, tag, ""},
		"a true half decides, unproven": {`!secureBoot.enabled || tag["country"] == "DE"`, infineon, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			ev := evidence(t, "good")
			ev.Maker, ev.Tag = c.maker, c.tag
			r := broken(t, withCondition(t, "good", c.expr), ev)
			if c.want == "" && r != nil || c.want != "" && (r == nil || !strings.Contains(r.Reason, c.want)) {
				t.Errorf("%s: %v, want %q", c.expr, r, c.want)
			}
		})
	}
}

// buffer is an entry of a buffer of the kernel, as template ima-buf has it.
func buffer(name, content string) ima.Entry {
	return ima.Entry{Path: name, Digest: fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(content))), Signature: []byte(content)}
}

func TestConditionsOverMeasuredPaths(t *testing.T) {
	signer := imatest.NewSigner(t)
	policy := buffer("ima_policy_loaded", "measure func=BPRM_CHECK\n")
	list := "  files:\n    ima_policy_loaded: [" + policy.Digest + "]\n"
	loose := "violations: allow\n  ignoreDirectories: [/var/lib/containers]\n  bareNames: allow"
	other := "sha256:" + strings.Repeat("ab", 32)
	ev := withEntries(evidence(t, "good"),
		signedFile(t, signer, "/opt/tool", "tool"), signedFile(t, signer, "/opt/tool", "tool"), policy,
		ima.Entry{Path: "/var/lib/containers/x/evil", Digest: other}, ima.Entry{Path: "memfd:x", Digest: other},
		ima.Entry{Path: "/violated", Violation: true}, ima.Entry{Path: "/unknown", Unknown: true})
	for expr, want := range map[string]bool{
		`"/bin/busybox" in ima.paths && "/init" in ima.paths`:                                  true,
		`"/opt/tool" in ima.paths`:                                                             true,
		`ima.paths.filter(p, p == "/opt/tool").size() == 1`:                                    true,
		`ima.paths.exists(p, p.startsWith("/var/lib/containers") || p.startsWith("memfd:"))`:   false,
		`"/violated" in ima.paths || "/unknown" in ima.paths || "boot_aggregate" in ima.paths`: false,
		`!ima.paths.exists(p, p.startsWith("/opt/"))`:                                          false,
		`ima.policies.size() == 1`:                                                             true,
		`ima.policies == ["` + policy.Digest + `"]`:                                            true,
		`ima.policies[0] == "sha256:00"`:                                                       false,
		`kernel.params["ima_policy"].exists(p, p.matches("(^|[ |])tcb([ |]|$)"))`:              true,
		`kernel.params["ima_policy"].exists(p, p.matches("(^|[ |])secure_boot([ |]|$)"))`:      false,
	} {
		set := keyed(t, []string{"boot:\n", "conditions: [{expr: '" + expr + "', message: m}]\nboot:\n", "violations: deny", loose, "  files:\n", list}, signer)
		for kind, ev := range map[string]reference.Evidence{"kept": ev, "streamed": streamed(ev, sets(t, set))} {
			if r := set.Check(ev, now); (len(r) == 0) != want {
				t.Errorf("%s, %s: %v", expr, kind, r)
			}
		}
	}
}

// TestMeasuredPathsAreKnownWholeOrNotAtAll: a signer that signs many files can be made to fill the
// list; nothing is decided by a part of it.
func TestMeasuredPathsAreKnownWholeOrNotAtAll(t *testing.T) {
	signer := imatest.NewSigner(t)
	one := signedFile(t, signer, "/opt/0", "tool")
	at := func(path string) ima.Entry { e := one; e.Path = path; return e }
	set := keyed(t, []string{"boot:\n", "conditions: [{expr: '!(\"/opt/evil\" in ima.paths)', message: m}]\nboot:\n"}, signer)
	good := evidence(t, "good")
	var many []ima.Entry
	for i := range 16384 {
		many = append(many, at(fmt.Sprintf("/opt/%d", i)))
	}
	for name, c := range map[string]struct {
		entries []ima.Entry
		known   bool
	}{
		"few":                        {many[:100], true},
		"the same few again":         {slices.Concat(many[:100], many[:100]), true},
		"some thousand":              {many[:16000], true},
		"more than are kept":         {many, false},
		"more bytes than are kept":   {longPaths(one, 300, 4000), false},
		"a path that is not UTF-8":   {[]ima.Entry{at("/opt/\xff")}, false},
		"none, where all are listed": {nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			ev := withEntries(good, c.entries...)
			r := broken(t, set, ev)
			if c.known && r != nil || !c.known && (r == nil || !strings.Contains(r.Reason, "does not prove ima.paths")) {
				t.Errorf("got %v, want known %t", r, c.known)
			}
			if got := broken(t, set, streamed(ev, sets(t, set))); (got == nil) != (r == nil) {
				t.Errorf("streamed: %v", got)
			}
		})
	}
	none := good
	none.IMA = nil
	if r := broken(t, set, none); r == nil || !strings.Contains(r.Reason, "does not prove ima.paths (no measured file is proven") {
		t.Errorf("without a list: %v", r)
	}
}

func longPaths(like ima.Entry, n, length int) (out []ima.Entry) {
	for i := range n {
		e := like
		e.Path = fmt.Sprintf("/opt/%04d/%s", i, strings.Repeat("x", length))
		out = append(out, e)
	}
	return out
}

// TestAConditionOverManyPathsStaysWithinItsCost: what a fleet would write holds with as many paths
// as are kept, and what runs in squares is cut.
func TestAConditionOverManyPathsStaysWithinItsCost(t *testing.T) {
	signer := imatest.NewSigner(t)
	one := signedFile(t, signer, "/opt/0", "tool")
	var many []ima.Entry
	for i := range 16000 {
		e := one
		e.Path = fmt.Sprintf("/usr/lib/some/directory/file-%d", i)
		many = append(many, e)
	}
	ev := withEntries(evidence(t, "good"), many...)
	for expr, want := range map[string]string{
		`!ima.paths.exists(p, p.startsWith("/tmp/") || p.startsWith("/home/"))`: "",
		`ima.paths.all(a, ima.paths.all(b, a != b + "x"))`:                      "cost limit exceeded",
	} {
		set := keyed(t, []string{"boot:\n", "conditions: [{expr: '" + expr + "', message: m}]\nboot:\n"}, signer)
		r := broken(t, set, ev)
		if want == "" && r != nil || want != "" && (r == nil || !strings.Contains(r.Reason, want)) {
			t.Errorf("%s: %v, want %q", expr, r, want)
		}
	}
}

func TestPathsAndPoliciesOfEarlierAttestationsStayKnown(t *testing.T) {
	policy := buffer("ima_policy_loaded", "measure func=BPRM_CHECK\n")
	list := "  files:\n    ima_policy_loaded: [" + policy.Digest + "]\n"
	expr := `"/init" in ima.paths && ima.policies.size() == 1 && ima.paths.filter(p, p == "/init").size() == 1`
	set := edited(t, "good", "boot:\n", "conditions: [{expr: '"+expr+"', message: m}]\nboot:\n", "  files:\n", list)
	all := sets(t, set)
	ev := withEntries(evidence(t, "good"), policy)
	add := func(m *reference.Measured, entries ...ima.Entry) {
		for _, e := range entries {
			m.Add([]ima.View{e.View()})
		}
	}
	m := all.Measure()
	add(m, ev.IMA.Entries...)
	judged := m.Judged()
	if without := sets(t, edited(t, "good", "  files:\n", list)).Measure(); judged.Size() <= without.Judged().Size() {
		t.Errorf("the paths that are kept take no memory: %d bytes", judged.Size())
	}
	for range 3 { // each goes on from the same state, which none changes
		again, ok := all.Resume(judged)
		if !ok {
			t.Fatal("not resumed")
		}
		next := withEntries(ev, ev.IMA.Entries[1])
		add(again, ev.IMA.Entries[1])
		if r := set.Check(withoutEntries(next, again), now); len(r) > 0 {
			t.Errorf("refused: %v", r)
		}
		second, ok := all.Resume(judged)
		if !ok {
			t.Fatal("not resumed")
		}
		add(second, policy)
		if r := set.Check(withoutEntries(withEntries(ev, policy), second), now); len(r) != 1 || r[0].Check != "reference.condition" {
			t.Errorf("a policy that was loaded again: %v", r)
		}
	}
}

// TestTheKernelsRecordsAreNoFilesWithoutADirectory: a set that does not look at memfds looks at a
// second policy of IMA.
func TestTheKernelsRecordsAreNoFilesWithoutADirectory(t *testing.T) {
	second := "dont_measure fsmagic=0xef53\n"
	pods := edited(t, "good", "violations: deny", "violations: deny\n  bareNames: allow")
	for _, name := range []string{"ima_policy_loaded", "ima_policy_written", "kexec-cmdline"} {
		record := buffer(name, second)
		file := record
		file.Signature = nil
		odd := record
		odd.Signature = []byte("of something else")
		listed := edited(t, "good", "violations: deny", "violations: deny\n  bareNames: allow", "  files:\n", "  files:\n    "+name+": ["+record.Digest+"]\n")
		for what, c := range map[string]struct {
			set  reference.Set
			e    ima.Entry
			want string
		}{
			"the record":                  {pods, record, "bareNames does not let it pass"},
			"the record, listed":          {listed, record, ""},
			"another record, one listed":  {listed, buffer(name, second+"\n"), "allows sha256:"},
			"a file of that name":         {pods, file, ""},
			"a signed file of that name":  {pods, odd, ""},
			"a record that the set knows": {pods, buffer("keyring-of-a-user", second), ""},
		} {
			ev := withEntries(evidence(t, "good"), c.e)
			got := c.set.Check(streamed(ev, sets(t, c.set)), now)
			if c.want == "" && len(got) > 0 || c.want != "" && (len(got) != 1 || !strings.Contains(got[0].Reason, c.want)) {
				t.Errorf("%s, %s: %v, want %q", name, what, got, c.want)
			}
		}
	}
}

func TestASetThatLooksAtNoFilesReadsNoPaths(t *testing.T) {
	text, _, _ := strings.Cut(string(withCondition(t, "good", `ima.paths.size() > 0`).Marshal()), "\nima:\n")
	if _, err := reference.ParseSet([]byte(text + "\n")); err == nil || !strings.Contains(err.Error(), "has no ima section") {
		t.Errorf("got %v", err)
	}
}

func TestPoliciesBeyondTheBoundAreNotKnown(t *testing.T) {
	var records []ima.Entry
	list := "  files:\n    ima_policy_loaded:\n"
	for i := range 20 {
		e := buffer("ima_policy_loaded", fmt.Sprint("measure func=BPRM_CHECK uid=", i))
		records, list = append(records, e), list+"    - "+e.Digest+"\n"
	}
	set := edited(t, "good", "boot:\n", "conditions: [{expr: 'ima.policies.size() > 1', message: m}]\nboot:\n", "  files:\n", list)
	for n, holds := range map[int]bool{0: false, 1: false, 2: true, 16: true, 17: false, 20: false} {
		if r := broken(t, set, withEntries(evidence(t, "good"), records[:n]...)); (r == nil) != holds {
			t.Errorf("%d policies: %v", n, r)
		}
	}
}
