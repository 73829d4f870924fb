package reference_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/reference"
	"github.com/keelson-project/keelson/test/vectors"
)

func TestASetSurvivesWritingAndReading(t *testing.T) {
	for _, name := range vectors.Boots() {
		first := capture(t, name).Marshal()
		again, err := reference.ParseSet(first)
		if err != nil {
			t.Fatal(err)
		}
		if second := again.Marshal(); !bytes.Equal(first, second) {
			t.Errorf("%s: written again:\n%s\nfirst:\n%s", name, second, first)
		}
	}
	full := edited(t, "good", "name: good\n", "name: good\nnotBefore: 2026-01-01T00:00:00Z\nnotAfter: 2027-01-01T00:00:00Z\n",
		"commandLine:\n", "commandLine:\n    - digest: sha256:"+strings.Repeat("1", 64)+"\n",
		"violations: deny", "ignoreDirectories: [/var/]\n  ignoreFiles: [/etc/hosts]\n  required: [/init]\n  violations: allow").Marshal()
	again, err := reference.ParseSet(full)
	if err != nil || !bytes.Equal(again.Marshal(), full) {
		t.Errorf("%v: got\n%s\nwant\n%s", err, again.Marshal(), full)
	}
}

func TestASetMayBeJSON(t *testing.T) {
	var tree any
	if err := yaml.Unmarshal(capture(t, "good").Marshal(), &tree); err != nil {
		t.Fatal(err)
	}
	j, err := json.Marshal(tree)
	if err != nil {
		t.Fatal(err)
	}
	s, err := reference.ParseSet(j)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Check(evidence(t, "good"), now); len(got) > 0 {
		t.Errorf("the set in JSON refuses its boot: %v", got)
	}
}

func TestEveryMistakeInASetIsToldWithItsLine(t *testing.T) {
	text := `name: Good!
owner: me
notBefore: 2027-01-01T00:00:00Z
notAfter: yesterday
boot:
  bank: sha255
  bank: sha256
  secureBoot: {pk: 12, mode: x, authorities: [{variable: db}]}
  firmware: []
  kernel: sha256:00
  initrd: [nonsense]
  commandLine: [{}, {text: a, digest: b}, {words: c}]
  pcrs:
    md5: {}
    sha256: {0: abc, 10: ` + strings.Repeat("0", 64) + `, 24: "00", x: "00"}
ima:
  files: {/init: [abc], /x: abc}
  ignoreDirectories: [/, relative, /a/../b]
  ignoreFiles: [/, etc/hosts, /etc/, /a/../b, /a//b]
  violations: perhaps
  &a anchored: 1
`
	_, err := reference.ParseSet([]byte(text))
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		`line 1: name "Good!"`, `line 2: the set has no key "owner"`, `line 4: notAfter "yesterday" is not a time`,
		`line 6: bank: `, `line 7: boot has key "bank" twice`, `line 8: pk "12" is not an algorithm`, `line 8: secureBoot has no key "mode"`,
		`line 8: authority has no digest`, `line 8: secureBoot has no state`, `line 9: firmware is an empty list`, `line 10: kernel is not a list`,
		`line 11: initrd "nonsense"`, `line 12: a command line has either a text or a digest`, `line 12: command line has no key "words"`,
		`line 14: pcrs: `, `line 15: "abc" is not 32 bytes`, `line 15: PCR 10 follows every measured file`, `line 15: pcrs of sha256 has no key "24"`,
		`line 15: pcrs of sha256 has no key "x"`, `line 17: digest "abc"`, `line 17: digests of /x is not a list`,
		`line 18: directory "/" is not`, `line 18: directory "relative" is not`, `line 18: directory "/a/../b" is not`,
		`line 19: file "/" is not`, `line 19: file "etc/hosts" is not`, `line 19: file "/etc/" is not`, `line 19: file "/a/../b" is not`,
		`line 19: file "/a//b" is not`, `line 20: violations "perhaps": use deny or allow`, `line 21: ima has a key that is no plain text`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("not told: %s", want)
		}
	}
	last := 0
	for _, l := range strings.Split(err.Error(), "\n") {
		var line int
		if _, rest, ok := strings.Cut(l, "line "); ok {
			for _, c := range rest {
				if c < '0' || c > '9' {
					break
				}
				line = line*10 + int(c-'0')
			}
		}
		if line < last {
			t.Errorf("out of order: %s", l)
		}
		last = line
	}
}

func TestSetsThatProveEnoughAreTaken(t *testing.T) {
	zero := strings.Repeat("0", 64)
	d := "['sha256:" + zero + "']"
	for name, boot := range map[string]string{
		"exact values":                           "pcrs: {sha256: {0: '" + zero + "', 2: '" + zero + "', 4: '" + zero + "'}}",
		"firmware and enforced secure boot":      "firmware: " + d + ", secureBoot: {state: enabled}",
		"every component, enforced secure boot":  "firmware: " + d + ", secureBoot: {state: enabled}, bootLoader: " + d + ", kernel: " + d + ", initrd: " + d + ", commandLine: [{text: quiet}]",
		"every component and the drivers' value": "firmware: " + d + ", pcrs: {sha256: {2: '" + zero + "'}}, bootLoader: " + d + ", kernel: " + d + ", initrd: " + d + ", commandLine: [{text: quiet}]",
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := reference.ParseSet([]byte("name: a\nboot: {" + boot + "}")); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSetsThatProveNothingAreRefused(t *testing.T) {
	zero := strings.Repeat("0", 64)
	cases := map[string]struct{ text, want string }{
		"empty":                {"", "it is empty"},
		"not YAML":             {"a: [", "reference: set:"},
		"not a mapping":        {"[]", "the set is not a mapping"},
		"two documents":        {"name: a\n---\nname: b\n", "only one YAML document"},
		"no name":              {"boot: {pcrs: {sha256: {0: '" + zero + "', 4: '" + zero + "'}}}", "the set has no name"},
		"no boot":              {"name: a", "would accept any machine"},
		"an empty boot":        {"name: a\nboot: {}", "neither firmware nor PCR 0"},
		"a command line alone": {"name: a\nboot: {commandLine: [{text: quiet}]}", "neither firmware nor PCR 0"},
		"firmware alone":       {"name: a\nboot: {firmware: ['sha256:" + zero + "']}", "anything may have been started"},
		"nothing of drivers":   {"name: a\nboot: {firmware: ['sha256:" + zero + "'], bootLoader: ['sha256:" + zero + "']}", "neither PCR 2 of bank sha256 nor secure boot as enabled"},
		"nothing of drivers, secure boot disabled": {"name: a\nboot: {firmware: ['sha256:" + zero + "'], secureBoot: {state: disabled}}", "neither PCR 2 of bank sha256 nor secure boot as enabled"},
		"a kernel without what loads it":           {"name: a\nboot: {firmware: ['sha256:" + zero + "'], secureBoot: {state: enabled}, kernel: ['sha256:" + zero + "']}", "another kernel may have run"},
		"a line without what loads it":             {"name: a\nboot: {firmware: ['sha256:" + zero + "'], secureBoot: {state: enabled}, commandLine: [{text: quiet}]}", "another kernel may have run"},
		"a condition on what runs late":            {"name: a\nconditions: [{expr: '!(\"test\" in kernel.args)', message: m}]\nboot: {firmware: ['sha256:" + zero + "'], secureBoot: {state: enabled}}", "another kernel may have run"},
		"an initrd without a line":                 {"name: a\nboot: {firmware: ['sha256:" + zero + "'], secureBoot: {state: enabled}, bootLoader: ['sha256:" + zero + "'], initrd: ['sha256:" + zero + "']}", "loads another one"},
		"no command line in the list":              {"name: a\nboot: {firmware: ['sha256:" + zero + "'], bootLoader: ['sha256:" + zero + "'], pcrs: {sha256: {2: '" + zero + "'}}, commandLine: []}", "commandLine is an empty list"},
		"a required file of any content":           {"name: a\nboot: {pcrs: {sha256: {0: '" + zero + "', 2: '" + zero + "', 4: '" + zero + "'}}}\nima: {files: {}, ignoreDirectories: [/usr], required: [/usr/bin/runc]}", "required \"/usr/bin/runc\" has no digest"},
		"PCR 0 of another bank":                    {"name: a\nboot: {bank: sha384, pcrs: {sha256: {0: '" + zero + "', 4: '" + zero + "'}}}", "PCR 0 of bank sha384"},
		"a digest of another bank":                 {"name: a\nboot: {firmware: ['sha256:" + zero + "'], bootLoader: ['sha1:" + zero[:40] + "']}", "is not of bank sha256"},
		"a line's digest of another bank":          {"name: a\nboot: {firmware: ['sha256:" + zero + "'], bootLoader: ['sha256:" + zero + "'], commandLine: [{digest: 'sha1:" + zero[:40] + "'}]}", "command line digest"},
		"a window that never opens":                {"name: a\nnotBefore: 2027-01-01T00:00:00Z\nnotAfter: 2026-01-01T00:00:00Z\nboot: {pcrs: {sha256: {0: '" + zero + "', 4: '" + zero + "'}}}", "notAfter is not after notBefore"},
		"an alias":                                 {"name: &a x\nboot: *a", "boot is not a mapping"},
		"a merge":                                  {"name: x\nboot:\n  <<: {bank: sha256}", "no plain text"},
		"a null":                                   {"name: ~\nboot: {}", "name is not a text"},
		"too large":                                {strings.Repeat("#", reference.MaxSetSize+1), "more than the 16777216 allowed"},
		"an endless command line":                  {"name: a\nboot: {commandLine: [{text: " + strings.Repeat("x", eventlog.MaxCommandLine+1) + "}]}", "command line has 8193 bytes"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s, err := reference.ParseSet([]byte(c.text))
			if err == nil || !strings.Contains(err.Error(), c.want) || s.Name() != "" {
				t.Errorf("set %q, error %v, want one with %q", s.Name(), err, c.want)
			}
		})
	}
}

func TestCaptureRefusesWhatCannotBeASet(t *testing.T) {
	ev := evidence(t, "good")
	with := func(e ima.Entry) reference.Evidence {
		res := *ev.IMA
		res.Entries = append(append([]ima.Entry{}, res.Entries...), e)
		return reference.Evidence{Boot: ev.Boot, PCRs: ev.PCRs, IMA: &res}
	}
	l := vectors.NewLog(nodeclaim.SHA256).Unquote(0)
	bare, err := eventlog.Replay(l.Raw(), l.Quoted(t))
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		name string
		ev   reference.Evidence
		want string
	}{
		"a name in capitals":          {"Good", ev, "lower-case letters"},
		"an empty name":               {"", ev, "lower-case letters"},
		"no boot":                     {"x", reference.Evidence{}, "proves no boot"},
		"a golden node w/ violations": {"x", with(ima.Entry{Path: "/a", Violation: true}), "would refuse it"},
		"a path that is not UTF-8":    {"x", with(ima.Entry{Path: "/\xff", Digest: "sha256:" + strings.Repeat("0", 64)}), "is not UTF-8"},
		"PCR 0 was not quoted":        {"x", reference.Evidence{Boot: bare, PCRs: l.Quoted(t)}, "does not suffice"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if _, err := reference.Capture(c.name, c.ev); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestCaptureLeavesOutWhatChangesOnAHealthyMachine(t *testing.T) {
	text := string(capture(t, "good").Marshal())
	for _, pcr := range []string{`"1":`, `"5":`, `"6":`, `"10":`} {
		if strings.Contains(text, pcr) {
			t.Errorf("PCR %s is pinned:\n%s", pcr, text)
		}
	}
	l := vectors.NewLog(nodeclaim.SHA384, nodeclaim.SHA256).Measure(0, 8, []byte("firmware")).Measure(4, vectors.Image, []byte("loader")).
		Measure(11, vectors.IPL, []byte(".linux\x00")).Measure(11, vectors.IPL, []byte("kernel")).Extend(11, []byte("enter-initrd"))
	boot, err := eventlog.Replay(l.Raw(), l.Quoted(t))
	if err != nil {
		t.Fatal(err)
	}
	s, err := reference.Capture("uki", reference.Evidence{Boot: boot, PCRs: l.Quoted(t)})
	if err != nil {
		t.Fatal(err)
	}
	if text := string(s.Marshal()); strings.Contains(text, `"11":`) || !strings.Contains(text, "kernel:") || !strings.Contains(text, "bank: sha256") || s.ChecksIMA() {
		t.Errorf("a machine between two boot phases:\n%s", text)
	}
}

// FuzzParseSet: no text makes the parser panic, and whatever it takes can be written, read again and
// accepts no empty evidence.
func FuzzParseSet(f *testing.F) {
	f.Add(capture(f, "good").Marshal())
	f.Add(capture(f, "secureboot-on").Marshal())
	f.Add([]byte(`{"name": "a", "boot": {"pcrs": {"sha256": {"0": "` + strings.Repeat("0", 64) + `", "4": "` + strings.Repeat("0", 64) + `"}}}}`))
	f.Add([]byte("name: a\nboot: &b {bank: *b}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := reference.ParseSet(data)
		if err != nil {
			return
		}
		text := s.Marshal()
		again, err := reference.ParseSet(text)
		if err != nil || !bytes.Equal(again.Marshal(), text) {
			t.Errorf("written and read again: %v\n%s", err, text)
		}
		if len(s.Check(reference.Evidence{}, now)) == 0 {
			t.Errorf("accepts nothing at all:\n%s", text)
		}
	})
}
