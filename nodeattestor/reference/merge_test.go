package reference_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keelson-project/keelson/nodeattestor/reference"
	"github.com/keelson-project/keelson/test/vectors"
)

func TestAMergedSetAcceptsItsGoldenNodesAndNobodyElse(t *testing.T) {
	golden := []string{"good", "cmdline", "ima-payload-a"}
	var sets []reference.Set
	for _, name := range golden {
		sets = append(sets, capture(t, name))
	}
	merged, err := reference.Merge("fleet", sets...)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range vectors.Boots() {
		want := slices.Contains(golden, name) || len(capture(t, "good").Check(evidence(t, name), now)) == 0
		if got := merged.Check(evidence(t, name), now); (len(got) == 0) != want {
			t.Errorf("%s: %v, want accepted %t", name, got, want)
		}
	}
	if merged.Name() != "fleet" {
		t.Errorf("it is named %q", merged.Name())
	}
	again, err := reference.ParseSet(merged.Marshal())
	if err != nil || cmp.Diff(string(merged.Marshal()), string(again.Marshal())) != "" {
		t.Errorf("written and read again: %v", err)
	}
	other, err := reference.Merge("fleet", sets[2], sets[0], sets[1], sets[0])
	if err != nil {
		t.Fatal(err)
	}
	if lines := reference.Diff(merged, other); len(lines) > 0 {
		t.Errorf("another order gives another set: %v", lines)
	}
	if lines := reference.Diff(sets[0], capture(t, "good")); len(lines) > 0 {
		t.Errorf("merging changed what was merged: %v", lines)
	}
}

func TestAlternativesOfWholeSequences(t *testing.T) {
	zero := strings.Repeat("0", 64)
	base := capture(t, "good")
	cases := map[string][]string{
		"another firmware":         {"- sha256:f4f0c", "- sha256:00000"},
		"one firmware more":        {"  bootLoader:\n", "    - sha256:" + zero + "\n  bootLoader:\n"},
		"another boot loader":      {"- sha256:1b12f", "- sha256:00000"},
		"other keys":               {"pk: sha256:dea7", "pk: sha256:0000"},
		"a signer":                 {"authorities: []", "authorities: [{variable: db, digest: 'sha256:" + zero + "'}]"},
		"another PCR":              {`"14": "0000`, `"14": "0001`},
		"another kernel":           {"- sha256:51349", "- sha256:00000"},
		"another file":             {"sha256:3d9f2", "sha256:00000"},
		"a file that is not there": {"  files:\n", "  files:\n    /usr/bin/new: ['sha256:" + zero + "']\n"},
	}
	for name, edit := range cases {
		t.Run(name, func(t *testing.T) {
			merged, err := reference.Merge("both", base, edited(t, "good", edit...))
			if err != nil {
				t.Fatal(err)
			}
			if got := merged.Check(evidence(t, "good"), now); len(got) > 0 {
				t.Errorf("refused: %v", got)
			}
			if got := merged.Check(evidence(t, "secureboot-on"), now); len(got) == 0 {
				t.Error("another boot is accepted")
			}
			again, err := reference.ParseSet(merged.Marshal())
			if err != nil || cmp.Diff(string(merged.Marshal()), string(again.Marshal())) != "" {
				t.Errorf("written and read again: %v", err)
			}
		})
	}
	// None fits: the nearest is told.
	firmware := func(digit string) reference.Set {
		return edited(t, "good", "- sha256:f4f0c", "- sha256:"+strings.Repeat(digit, 5))
	}
	neither, err := reference.Merge("both", firmware("0"), firmware("1"))
	if err != nil {
		t.Fatal(err)
	}
	got := neither.Check(evidence(t, "good"), now)
	if len(got) != 1 || got[0].Check != "firmware.digest" || !strings.Contains(got[0].Reason, "(the nearest of the 2 that it allows)") {
		t.Errorf("got %v", got)
	}
}

func TestSetsThatAreNotMerged(t *testing.T) {
	base := capture(t, "good")
	dated, err := base.WithValidity(now, now.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	without := func(part string) reference.Set {
		text := string(base.Marshal())
		i := strings.Index(text, part)
		j := i + strings.IndexByte(text[i:], '\n') + 1
		for strings.HasPrefix(text[j:], "    ") {
			j += strings.IndexByte(text[j:], '\n') + 1
		}
		s, err := reference.ParseSet([]byte(text[:i] + text[j:]))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	noIMA := func() reference.Set {
		text, _, _ := strings.Cut(string(base.Marshal()), "ima:")
		s, err := reference.ParseSet([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	cases := map[string]struct {
		name string
		sets []reference.Set
		want string
	}{
		"one set":                     {"x", []reference.Set{base}, "at least two"},
		"no set":                      {"x", nil, "at least two"},
		"an empty set":                {"x", []reference.Set{base, {}}, "a set is empty"},
		"a bad name":                  {"X", []reference.Set{base, base}, "lower-case letters"},
		"secure boot on and off":      {"x", []reference.Set{base, capture(t, "secureboot-on")}, "differ in the state of secure boot"},
		"another validity":            {"x", []reference.Set{base, dated}, "differ in their validity"},
		"another condition":           {"x", []reference.Set{base, withCondition(t, "good", "secureBoot.enabled")}, "differ in their conditions"},
		"an initrd that only one has": {"x", []reference.Set{base, without("  initrd:\n")}, "differ in whether the initrd is looked at"},
		"a PCR that only one has":     {"x", []reference.Set{base, without(`      "14":`)}, "differ in whether PCR 14 (sha256) is looked at"},
		"files that only one has":     {"x", []reference.Set{noIMA(), base}, "whether measured files are looked at"},
		"files that are ignored":      {"x", []reference.Set{base, edited(t, "good", "violations: deny", "ignoreFiles: [/etc/hosts]\n  violations: deny")}, "the files that are not looked at"},
		"directories":                 {"x", []reference.Set{base, edited(t, "good", "violations: deny", "ignoreDirectories: [/var]\n  violations: deny")}, "the directories"},
		"required files":              {"x", []reference.Set{base, edited(t, "good", "violations: deny", "required: [/init]\n  violations: deny")}, "the required files"},
		"violations":                  {"x", []reference.Set{base, edited(t, "good", "violations: deny", "violations: allow")}, "whether violations"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s, err := reference.Merge(c.name, c.sets...)
			if err == nil || !strings.Contains(err.Error(), c.want) || s.Name() != "" {
				t.Errorf("got %q, %v, want %q", s.Name(), err, c.want)
			}
		})
	}
}

func TestWhatAnUpdateChangesInAPersonsWords(t *testing.T) {
	zero := strings.Repeat("0", 64)
	file := "file /bin/busybox: sha256:3d9f2889d6782537624a4e1a10e68a2ddd53e0ee8bac02676f27308f42ec6bf6"
	cases := map[string]struct {
		edit []string
		want string
	}{
		"an end":                 {[]string{"boot:\n", "notAfter: 2027-01-01T00:00:00Z\nboot:\n"}, "valid until: not looked at before, now 2027-01-01T00:00:00Z"},
		"secure boot":            {[]string{"state: disabled", "state: enabled"}, "secure boot: disabled -> enabled"},
		"a key":                  {[]string{"pk: sha256:dea7", "pk: sha256:0000"}, "secure boot's platform key (PK): sha256:dea7"},
		"a signer":               {[]string{"authorities: []", "authorities: [{variable: db, digest: 'sha256:" + zero + "'}]"}, "secure boot lets images in by: no signer -> db entry sha256:" + zero},
		"firmware":               {[]string{"- sha256:f4f0c", "- sha256:00000"}, "firmware measurement 2 of 3: sha256:f4f0c"},
		"more firmware":          {[]string{"  bootLoader:\n", "    - sha256:" + zero + "\n  bootLoader:\n"}, "firmware measurements: ["},
		"a boot loader":          {[]string{"- sha256:1b12f", "- sha256:00000"}, "boot loader image 1 of 2: sha256:1b12f"},
		"a kernel":               {[]string{"- sha256:51349", "- sha256:00000"}, "kernel: sha256:51349"},
		"a second kernel":        {[]string{"kernel:\n", "kernel:\n    - sha256:" + zero + "\n"}, "kernel: also sha256:" + zero},
		"an initrd":              {[]string{"- sha256:9e3ef", "- sha256:00000"}, "initrd: sha256:9e3ef"},
		"a word of the line":     {[]string{"quiet loglevel=4", "quiet loglevel=7"}, `; added: "loglevel=7"; missing: "loglevel=4"`},
		"a second line":          {[]string{"commandLine:\n", "commandLine:\n    - text: other\n"}, `kernel command line: also "other"`},
		"a PCR":                  {[]string{`"14": "0000`, `"14": "0001`}, "PCR 14 (sha256): " + zero + " -> 0001"},
		"a PCR no longer":        {[]string{`      "14": "` + zero + "\"\n", ""}, "PCR 14 (sha256): no longer looked at, before " + zero},
		"a file":                 {[]string{"sha256:3d9f2", "sha256:00000"}, file + " -> sha256:00000"},
		"a new file":             {[]string{"  files:\n", "  files:\n    /usr/bin/new: ['sha256:" + zero + "']\n"}, "file /usr/bin/new: now allowed, sha256:" + zero},
		"a file that is refused": {[]string{"  files:\n", "  files:\n    /usr/bin/new: []\n"}, "file /usr/bin/new: not looked at before, now never allowed"},
		"a renamed file":         {[]string{"/modules/virtio.ko:", "/modules/other.ko:"}, "kernel module /modules/virtio.ko: no longer allowed, before sha256:3e4e3"},
		"a file that is ignored": {[]string{"violations: deny", "ignoreFiles: [/etc/hosts]\n  violations: deny"}, "file is no longer looked at: /etc/hosts"},
		"a directory":            {[]string{"violations: deny", "ignoreDirectories: [/var]\n  violations: deny"}, "files under it are no longer looked at: /var/"},
		"a required file":        {[]string{"violations: deny", "required: [/init]\n  violations: deny"}, "measured file now required: /init"},
		"violations":             {[]string{"violations: deny", "violations: allow"}, "violations: denied -> allowed"},
		"a condition":            {[]string{"boot:\n", "conditions: [{expr: secureBoot.enabled, message: m}]\nboot:\n"}, "condition: also secureBoot.enabled (m)"},
	}
	base := capture(t, "good")
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			to := edited(t, "good", c.edit...)
			lines := reference.Diff(base, to)
			if !strings.Contains(strings.Join(lines, "\n"), c.want) || len(lines) == 0 || len(lines) > 2 {
				t.Errorf("got %q\nwant %q", lines, c.want)
			}
			if back := reference.Diff(to, base); len(back) == 0 || slices.Equal(back, lines) {
				t.Errorf("the way back: %q", back)
			}
		})
	}
	t.Run("files no longer looked at", func(t *testing.T) {
		text, _, _ := strings.Cut(string(base.Marshal()), "ima:")
		s, err := reference.ParseSet([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if got := reference.Diff(base, s); !slices.Equal(got, []string{"measured files: no longer looked at"}) {
			t.Errorf("got %q", got)
		}
		if got := reference.Diff(s, base); !slices.Equal(got, []string{"measured files: not looked at before, now they are"}) {
			t.Errorf("got %q", got)
		}
	})
	if got := reference.Diff(base, edited(t, "good", "name: good\n", "name: other\n")); len(got) > 0 {
		t.Errorf("another name alone: %q", got)
	}
}

func TestMistakesInAlternatives(t *testing.T) {
	zero := strings.Repeat("0", 64)
	d := "'sha256:" + zero + "'"
	cases := map[string]struct{ boot, want string }{
		"no state of secure boot":        {"secureBoot: []", "secureBoot is an empty list"},
		"a state that is a text":         {"secureBoot: [enabled]", "secureBoot is not a mapping"},
		"an empty sequence":              {"firmware: [[]]", "firmware is an empty list"},
		"an empty sequence among others": {"firmware: [[" + d + "], []]", "firmware is an empty list"},
		"lists and texts mixed":          {"firmware: [[" + d + "], " + d + "]", "firmware is not a list"},
		"texts and lists mixed":          {"bootLoader: [" + d + ", [" + d + "]]", "bootLoader is not a text"},
		"no value of a PCR":              {"pcrs: {sha256: {0: []}}", "PCR 0 is an empty list"},
		"a short value of a PCR":         {"pcrs: {sha256: {0: ['" + zero + "', '00']}}", "is not 32 bytes"},
		"another bank's sequence":        {"firmware: [[" + d + "], ['sha1:" + zero[:40] + "']], bootLoader: [" + d + "], pcrs: {sha256: {2: '" + zero + "'}}", "is not of bank sha256"},
		"secure boot that may be off":    {"firmware: [" + d + "], secureBoot: [{state: enabled}, {state: disabled}]", "neither PCR 2 of bank sha256 nor secure boot as enabled"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := reference.ParseSet([]byte("name: a\nboot: {" + c.boot + "}\n"))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}
