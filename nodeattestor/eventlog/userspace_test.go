package eventlog_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/test/vectors"
)

// booted is a log with something in PCRs 0, 4, 5, 7, 9, 11, 12.
func booted(banks ...nodeclaim.HashAlg) *vectors.Log {
	l := vectors.NewLog(banks...)
	for _, pcr := range []int{0, 4, 5, 7} {
		l.Measure(pcr, vectors.Separator, make([]byte, 4))
	}
	l.Measure(4, vectors.Image, []byte("an image"))
	l.Measure(9, vectors.IPL, []byte("load options")).Measure(9, vectors.IPL, []byte("initrd"))
	l.Measure(11, vectors.IPL, []byte(".linux\x00")).Measure(11, vectors.IPL, []byte("kernel"))
	return l
}

var separated = []int{0, 1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 14}

// started is the log of a user space that systemd 261 started.
func started(l *vectors.Log) []byte {
	var log []byte
	phase := func(word string) { log = l.Userspace(log, 11, "phase", []byte(word), word) }
	phase("enter-initrd")
	for _, pcr := range separated {
		log = l.Userspace(log, pcr, "os-separator", []byte("os-separator"), "os-separator")
	}
	log = l.Userspace(log, 15, "volume-key", []byte("an HMAC by the key"), "cryptsetup:root:5e47a9db")
	phase("leave-initrd")
	log = l.Userspace(log, 15, "machine-id", []byte("machine-id:abc"), "machine-id:abc")
	phase("sysinit")
	phase("ready")
	return log
}

func both(t testing.TB, l *vectors.Log, user []byte) eventlog.Boot {
	t.Helper()
	boot, err := eventlog.ReplayBoth(l.Raw(), user, l.Quoted(t))
	if err != nil {
		t.Fatal(err)
	}
	return boot
}

func TestUserspacesLogReplaysWhatItExtended(t *testing.T) {
	before := booted(nodeclaim.SHA1, nodeclaim.SHA256)
	want := replay(t, before.Raw(), before.Unquote(10).Quoted(t))
	l := booted(nodeclaim.SHA1, nodeclaim.SHA256)
	user := started(l)
	boot := both(t, l.Unquote(10), user)
	if diff := cmp.Diff(factsJSON(t, want), factsJSON(t, boot)); diff != "" {
		t.Errorf("systemd's words change facts (-before +after):\n%s", diff)
	}
	for _, alg := range boot.Banks() {
		if got := boot.Unreplayed(alg); len(got) != 0 {
			t.Errorf("%s: unreplayed %v", alg, got)
		}
		if diff := cmp.Diff([]string{"enter-initrd", "leave-initrd", "sysinit", "ready"}, boot.Phases(alg)); diff != "" {
			t.Errorf("%s: phases: %s", alg, diff)
		}
		var later []eventlog.Entry
		for _, e := range boot.Events(alg) {
			if strings.HasPrefix(e.Type, "systemd:") {
				e.Index, e.Digest = 0, ""
				later = append(later, e)
			}
		}
		if diff := cmp.Diff([]eventlog.Entry{
			{PCR: 15, Type: "systemd:volume-key", Text: "cryptsetup:root:5e47a9db"},
			{PCR: 15, Type: "systemd:machine-id", Text: "machine-id:abc", Confirmed: true},
		}, later); diff != "" {
			t.Errorf("%s: later events (-want +got):\n%s", alg, diff)
		}
		for _, pcr := range []int{0, 4, 5, 7, 9, 11, 15} {
			a, _ := want.Booted(alg, pcr)
			b, ok := boot.Booted(alg, pcr)
			if !ok || !bytes.Equal(a, b) {
				t.Errorf("%s: PCR %d stood at %x when user space began, want %x", alg, pcr, b, a)
			}
		}
	}
}

// TestSystemdsWordsAreKnownWithoutItsLog: a node whose agent cannot read it.
func TestSystemdsWordsAreKnownWithoutItsLog(t *testing.T) {
	before := booted(nodeclaim.SHA256)
	l := booted(nodeclaim.SHA256)
	started(l)
	want := replay(t, before.Raw(), before.Unquote(10).Quoted(t))
	boot := both(t, l.Unquote(10), nil)
	if diff := cmp.Diff(factsJSON(t, want), factsJSON(t, boot)); diff != "" {
		t.Errorf("facts (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff([]int{15}, boot.Unreplayed(nodeclaim.SHA256)); diff != "" {
		t.Errorf("unreplayed: %s", diff)
	}
	if v, _ := boot.Booted(nodeclaim.SHA256, 4); bytes.Equal(v, value(t, l, 4)) {
		t.Error("PCR 4 stood at its quoted value already when user space began")
	}
}

func value(t testing.TB, l *vectors.Log, pcr int) []byte {
	t.Helper()
	v, ok := l.Quoted(t).Value(nodeclaim.SHA256, pcr)
	if !ok {
		t.Fatalf("PCR %d was not quoted", pcr)
	}
	return v
}

func TestFirmwaresUnloggedWordsComeBeforeUserspaces(t *testing.T) {
	for _, logged := range []bool{true, false} {
		l := booted(nodeclaim.SHA256).Unquote(10)
		l.Extend(5, []byte("Exit Boot Services Invocation")).Extend(5, []byte("Exit Boot Services Returned with Success"))
		end := value(t, l, 5)
		user := l.Userspace(nil, 5, "os-separator", []byte("os-separator"), "os-separator")
		if !logged {
			user = nil
		}
		if v, ok := both(t, l, user).Booted(nodeclaim.SHA256, 5); !ok || !bytes.Equal(v, end) {
			t.Errorf("logged %v: PCR 5 stood at %x, want %x", logged, v, end)
		}
	}
}

func TestUserspaceGoesOnWhileTheTPMQuotes(t *testing.T) {
	l := booted(nodeclaim.SHA256).Unquote(10)
	user := started(l)
	boot := both(t, l, append(user, l.Record(11, "phase", []byte("shutdown"), "shutdown")...))
	if got := boot.Phases(nodeclaim.SHA256); len(got) != 4 {
		t.Errorf("phases %v, the quote has four", got)
	}
	boot = both(t, l, append(user, `{"pcr":1`...)) // half a record, with no separator before it: the last one is cut
	if got := boot.Phases(nodeclaim.SHA256); len(got) != 4 {
		t.Errorf("phases %v", got)
	}
	boot = both(t, l, append(bytes.Clone(user), "\x1e{\"pcr\":1"...))
	if got := boot.Phases(nodeclaim.SHA256); len(got) != 4 {
		t.Errorf("phases %v", got)
	}
}

// TestThreat08_WhatIsPassedOffAsUserspacesIsOfTheBoot: an image of the firmware's log shown in user space's.
func TestThreat08_WhatIsPassedOffAsUserspacesIsOfTheBoot(t *testing.T) {
	l := booted(nodeclaim.SHA256).Unquote(10)
	user := l.Userspace(nil, 4, "os-separator", []byte("an evil image"), "os-separator")
	user = l.Userspace(user, 9, "nvpcr-init", []byte("another initrd"), "nvpcr-init:x")
	user = l.Userspace(user, 0, "phase", []byte("other firmware"), "ready")
	f, _ := both(t, l, user).Facts(nodeclaim.SHA256)
	if len(f.BootLoader) != 2 || len(f.Firmware) != 1 || f.Initrd != "" {
		t.Errorf("facts leave out what was measured: %+v", f)
	}
}

func TestThreat08_UserspacesLogMustLeadToTheQuote(t *testing.T) {
	l := booted(nodeclaim.SHA256).Unquote(10)
	user := started(l)
	records := slices.DeleteFunc(bytes.SplitAfter(user, []byte{'\n'}), func(b []byte) bool { return len(b) == 0 })
	for name, log := range map[string][]byte{
		"other digests":         bytes.ReplaceAll(user, []byte(`"digest":"`), []byte(`"digest":"0`+"\x00")),
		"volume key left out":   bytes.Join(slices.Delete(slices.Clone(records), 13, 14), nil),
		"in another order":      bytes.Join(append(slices.Clone(records[14:]), records[:14]...), nil),
		"no digest of the bank": bytes.ReplaceAll(user, []byte("sha256"), []byte("sha999")),
	} {
		boot, err := eventlog.ReplayBoth(l.Raw(), log, l.Quoted(t))
		if err == nil && !slices.Contains(boot.Unreplayed(nodeclaim.SHA256), 15) {
			t.Errorf("%s: PCR 15 is replayed", name)
		}
	}
	l.Extend(4, []byte("unknown to both"))
	_, err := eventlog.ReplayBoth(l.Raw(), user, l.Quoted(t))
	refusedFor(t, err, "eventlog.pcr")
}

func TestMalformedUserspaceLogsAreRefused(t *testing.T) {
	l := booted(nodeclaim.SHA256).Unquote(10)
	good := string(started(l))
	for name, c := range map[string]struct{ log, says string }{
		"text":                         {"hello", "begins with byte 0x68"},
		"JSON lines":                   {strings.ReplaceAll(good, "\x1e", ""), "begins with byte 0x7b"},
		"no JSON":                      {"\x1ehello\n" + good, "record 0"},
		"two values in a record":       {"\x1e{\"pcr\":1} {}\n", "record 0"},
		"nothing extended":             {"\x1e{}\n", "says nothing of what was extended"},
		"a PCR that is none":           {"\x1e{\"pcr\":24}\n", "PCR 24 does not exist"},
		"a negative PCR":               {"\x1e{\"pcr\":-1}\n", "PCR -1 does not exist"},
		"a PCR that is no number":      {"\x1e{\"pcr\":\"7\"}\n", "record 0"},
		"a digest that is too short":   {"\x1e{\"pcr\":7,\"digests\":[{\"hashAlg\":\"sha256\",\"digest\":\"00\"}]}\n", "is no sha256 digest"},
		"a digest that is no hex":      {"\x1e{\"pcr\":7,\"digests\":[{\"hashAlg\":\"sha256\",\"digest\":\"" + strings.Repeat("x", 64) + "\"}]}\n", "is no sha256 digest"},
		"two digests of one algorithm": {"\x1e{\"pcr\":7,\"digests\":[" + twice + "," + twice + "]}\n", "two sha256 digests"},
		"one that is too large":        {strings.Repeat("\x1e", eventlog.MaxUserspaceLog+1), "more than the 1048576 allowed"},
		"too many records":             {strings.Repeat("\x1e{\"nv_index\":1}\n", 4097), "more than the 4096 allowed"},
		"a record that is too large":   {"\x1e{\"pcr\":7,\"x\":\"" + strings.Repeat("x", 64<<10) + "\"}\n" + good, "more than the 65536 allowed"},
		"a record cut in the middle":   {good[:len(good)/2] + "\n" + good, "record"},
	} {
		_, err := eventlog.ReplayBoth(l.Raw(), []byte(c.log), l.Quoted(t))
		refusedFor(t, err, "eventlog.userspace")
		if err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
	for name, log := range map[string]string{
		"NV indices":          "\x1e{\"nv_index\":30474705,\"digests\":[]}\n" + good,
		"a TDX register":      "\x1e{\"rtmr\":2,\"digests\":[]}\n" + good,
		"an unknown bank":     "\x1e{\"pcr\":16,\"digests\":[{\"hashAlg\":\"sm3_256\",\"digest\":\"00\"}]}\n" + good,
		"a field of the time": strings.ReplaceAll(good, `"pcr":`, `"new":[1],"pcr":`),
	} {
		if boot, err := eventlog.ReplayBoth(l.Raw(), []byte(log), l.Quoted(t)); err != nil || len(boot.Unreplayed(nodeclaim.SHA256)) != 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

const twice = `{"hashAlg":"sha256","digest":"0000000000000000000000000000000000000000000000000000000000000000"}`

// TestFlippedBitsOfUserspacesLogChangeNoFact: they are refused, or lead to no PCR, or change what no digest covers.
func TestFlippedBitsOfUserspacesLogChangeNoFact(t *testing.T) {
	l := booted(nodeclaim.SHA256).Unquote(10)
	user := l.Userspace(nil, 11, "phase", []byte("enter-initrd"), "enter-initrd")
	user = l.Userspace(user, 15, "machine-id", []byte("machine-id:abc"), "machine-id:abc")
	want := both(t, l, user)
	events := func(b eventlog.Boot) (out []eventlog.Entry) {
		for _, e := range b.Events(nodeclaim.SHA256) {
			if e.Type = ""; !e.Confirmed {
				e.Text = ""
			}
			out = append(out, e)
		}
		return out
	}
	quoted := l.Quoted(t)
	for bit := range len(user) * 8 {
		changed := bytes.Clone(user)
		changed[bit/8] ^= 1 << (bit % 8)
		got, err := eventlog.ReplayBoth(l.Raw(), changed, quoted)
		if err != nil {
			refusedFor(t, err, "eventlog.userspace")
			continue
		}
		if factsJSON(t, got) != factsJSON(t, want) {
			t.Fatalf("bit %d changes facts", bit)
		}
		if !slices.Contains(got.Unreplayed(nodeclaim.SHA256), 15) {
			for i, e := range events(got) {
				w := events(want)[i]
				if e.PCR != w.PCR || e.Digest != w.Digest || e.Confirmed && e.Text != w.Text {
					t.Errorf("bit %d: event %+v, want %+v", bit, e, w)
				}
			}
		}
	}
}

// FuzzUserspace: no log of user space panics, changes what the firmware's log proves, or hides what it measured.
func FuzzUserspace(f *testing.F) {
	l := booted(nodeclaim.SHA256).Unquote(10)
	user := started(l)
	f.Add(user)
	f.Add(user[:len(user)/2])
	f.Add(nvpcrs(booted(nodeclaim.SHA256), bytes.Clone(user)))
	f.Add([]byte("\x1e{\"nv_index\":1}\n"))
	f.Add(l.Record(4, "x", []byte("y"), "z"))
	quoted := l.Quoted(f)
	want := factsJSON(f, both(f, l, user))
	f.Fuzz(func(t *testing.T, log []byte) {
		boot, err := eventlog.ReplayBoth(l.Raw(), log, quoted)
		if err != nil {
			if len(nodeclaim.AsRefusals(err)) == 0 {
				t.Errorf("no refusal: %v", err)
			}
			return
		}
		if got := factsJSON(t, boot); got != want {
			t.Errorf("facts: %s", got)
		}
		boot.Events(nodeclaim.SHA256)
	})
}
