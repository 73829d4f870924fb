package eventlog_test

import (
	stdcmp "cmp"
	"encoding/json"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/quote"
	"github.com/keelson-project/keelson/test/vectors"
)

// factsJSON is every fact of every bank, as a report would write it.
func factsJSON(t testing.TB, b eventlog.Boot) string {
	t.Helper()
	var out strings.Builder
	for _, alg := range b.Banks() {
		f, ok := b.Facts(alg)
		if !ok {
			t.Fatalf("bank %s has no facts", alg)
		}
		j, err := json.MarshalIndent(f, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		out.Write(j)
	}
	return out.String()
}

// refusedFor demands that err is refusals of one check only.
func refusedFor(t testing.TB, err error, check string) {
	t.Helper()
	refusals := nodeclaim.AsRefusals(err)
	if len(refusals) == 0 {
		t.Fatalf("got %v, want a refusal for %s", err, check)
	}
	for _, r := range refusals {
		if r.Check != check || r.Reason == "" {
			t.Errorf("refused for %s (%s), want %s", r.Check, r.Reason, check)
		}
	}
}

func replay(t testing.TB, raw []byte, pcrs quote.PCRs) eventlog.Boot {
	t.Helper()
	b, err := eventlog.Replay(raw, pcrs)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestMeasuredBootsReplayToTheirQuotesWithTheirFacts(t *testing.T) {
	for _, name := range vectors.Boots() {
		t.Run(name, func(t *testing.T) {
			want := vectors.Expect(t, path.Join("measured-boots", name))
			boot := replay(t, vectors.Read(t, name, vectors.EventLog), vectors.Quoted(t, name))
			if diff := cmp.Diff([]int{10}, boot.Unreplayed(nodeclaim.SHA256)); diff != "" {
				t.Errorf("unreplayed PCRs (-want +got):\n%s", diff)
			}
			if n := len(boot.Replayed(nodeclaim.SHA256)); n != 14 {
				t.Errorf("%d PCRs replayed, want 14", n)
			}
			before, _ := boot.Facts(nodeclaim.SHA256)
			if before.CommandLine.Text != "" || before.CommandLine.Digest == "" {
				t.Errorf("command line before anybody offered a text: %+v", before.CommandLine)
			}
			facts, _ := boot.ConfirmCommandLine(string(vectors.Read(t, name, "cmdline.txt"))).Facts(nodeclaim.SHA256)
			checkFacts(t, facts, want)
			if len(facts.Firmware) != 3 || facts.Kernel != facts.Sections[".linux"] || facts.Initrd != facts.Sections[".initrd"] {
				t.Errorf("facts: %+v", facts)
			}
		})
	}
}

func checkFacts(t *testing.T, f eventlog.Facts, want vectors.Expectation) {
	t.Helper()
	got := vectors.Expectation{SecureBoot: string(f.SecureBoot.State), Text: f.CommandLine.Text, Images: len(f.BootLoader), Others: len(f.OtherImages)}
	for name, d := range map[string]struct {
		have eventlog.Digest
		want []string
	}{"kernel": {f.Kernel, want.Kernel}, "initrd": {f.Initrd, want.Initrd}} {
		if !slices.Contains(d.want, stdcmp.Or(string(d.have), "absent")) {
			t.Errorf("%s is %s, want %v", name, stdcmp.Or(string(d.have), "absent"), d.want)
		}
	}
	want = vectors.Expectation{SecureBoot: want.SecureBoot, Text: want.Text, Images: want.Images, Others: want.Others}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("facts (-want +got):\n%s", diff)
	}
}

func TestEachBankOfMultibankReplays(t *testing.T) {
	raw := vectors.Read(t, "multibank", vectors.EventLog)
	values := map[nodeclaim.HashAlg]map[int][]byte{}
	for alg, file := range map[nodeclaim.HashAlg]string{
		nodeclaim.SHA1: "pcrs-sha1.txt", nodeclaim.SHA256: "pcrs.txt", nodeclaim.SHA384: "pcrs-sha384.txt",
	} {
		values[alg] = vectors.ReadPCRs(t, "multibank", file)
	}
	boot := replay(t, raw, vectors.Quote(t, values))
	if diff := cmp.Diff([]nodeclaim.HashAlg{nodeclaim.SHA384, nodeclaim.SHA256, nodeclaim.SHA1}, boot.Banks()); diff != "" {
		t.Errorf("banks, strongest first (-want +got):\n%s", diff)
	}
	boot = boot.ConfirmCommandLine(string(vectors.Read(t, "multibank", "cmdline.txt")))
	for _, alg := range boot.Banks() {
		f, _ := boot.Facts(alg)
		if f.CommandLine.Text == "" || f.SecureBoot.State != eventlog.SecureBootDisabled {
			t.Errorf("bank %s: %+v", alg, f)
		}
		if len(boot.Replayed(alg)) != 23 { // all but 10
			t.Errorf("bank %s replayed %v", alg, boot.Replayed(alg))
		}
	}
	if _, ok := boot.Facts(nodeclaim.SHA512); ok {
		t.Error("a bank that was not quoted has facts")
	}
}

func TestRealLogsReplayWithTheirFacts(t *testing.T) {
	for _, dir := range vectors.RealLogs(t) {
		t.Run(path.Base(dir), func(t *testing.T) {
			want := vectors.Expect(t, dir)
			log, err := eventlog.Parse(vectors.RealLog(t, want))
			if err != nil {
				t.Fatal(err)
			}
			if want.Log == "parses" { // nobody wrote its PCRs down
				for _, alg := range log.Banks() {
					if want.PCRs[alg], err = log.Unverified(alg); err != nil {
						t.Fatal(err)
					}
				}
			}
			boot, err := log.Replay(vectors.Quote(t, want.PCRs))
			if err != nil {
				t.Fatal(err)
			}
			for _, alg := range boot.Banks() {
				f, _ := boot.Facts(alg)
				checkFacts(t, f, want)
			}
		})
	}
}

func TestReplayRefuses(t *testing.T) {
	good := vectors.Read(t, "good", vectors.EventLog)
	quoted := vectors.Quoted(t, "good")
	sha1 := vectors.Quote(t, map[nodeclaim.HashAlg]map[int][]byte{nodeclaim.SHA1: {0: make([]byte, 20)}})
	cases := map[string]struct {
		raw   []byte
		pcrs  quote.PCRs
		check string
	}{
		"the log of a boot with another command line":       {vectors.Read(t, "cmdline", vectors.EventLog), quoted, "eventlog.pcr"},
		"the last event was cut off":                        {good[:len(good)-(4+4+4+2+32+4+40)], quoted, "eventlog.pcr"},
		"a bank was quoted that the log does not have":      {good, sha1, "eventlog.bank"},
		"nothing was quoted":                                {good, quote.PCRs{}, "eventlog.bank"},
		"an event that was never extended is appended":      {vectors.NewLog(nodeclaim.SHA256).Fake(4, vectors.Image, []byte("x"), nil).Raw(), vectors.NewLog(nodeclaim.SHA256).Quoted(t), "eventlog.pcr"},
		"a PCR was extended behind the log's back":          {vectors.NewLog(nodeclaim.SHA256).Raw(), vectors.NewLog(nodeclaim.SHA256).Extend(4, []byte("x")).Quoted(t), "eventlog.pcr"},
		"an event in PCR 7 whose data are not what it hash": {changedVariable(t).Raw(), changedVariable(t).Quoted(t), "eventlog.event"},
		"a second, different startup locality":              {twoLocalities().Raw(), twoLocalities().Quoted(t), "eventlog.locality"},
		"a startup locality that does not exist":            {locality(7).Raw(), locality(7).Quoted(t), "eventlog.locality"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := eventlog.Replay(c.raw, c.pcrs)
			refusedFor(t, err, c.check)
		})
	}
}

func changedVariable(t *testing.T) *vectors.Log {
	t.Helper()
	return vectors.NewLog(nodeclaim.SHA256).
		Event(7, vectors.Variable, vectors.UEFIVariable(vectors.GlobalGUID, "SecureBoot", []byte{0}), vectors.UEFIVariable(vectors.GlobalGUID, "SecureBoot", []byte{1})).
		Measure(7, vectors.Separator, make([]byte, 4))
}

func locality(n byte) *vectors.Log {
	return vectors.NewLog(nodeclaim.SHA256).Set(0, n).Fake(0, vectors.NoAction, nil, append([]byte("StartupLocality\x00"), n)).Measure(0, 8, []byte("version"))
}

func twoLocalities() *vectors.Log {
	return locality(3).Fake(0, vectors.NoAction, nil, []byte("StartupLocality\x00\x04"))
}

func TestStartupLocalityAndHCRTMSetPCR0(t *testing.T) {
	cases := map[string]*vectors.Log{
		"locality 0, said":                 locality(0),
		"locality 3, said":                 locality(3),
		"locality 4, said":                 locality(4),
		"locality 4 after H-CRTM, unsaid":  vectors.NewLog(nodeclaim.SHA256).Set(0, 4).Measure(0, vectors.HCRTM, []byte("HCRTM")),
		"locality 0, as nobody says other": vectors.NewLog(nodeclaim.SHA256).Measure(0, 8, []byte("version")),
	}
	for name, l := range cases {
		t.Run(name, func(t *testing.T) {
			if f, _ := replay(t, l.Raw(), l.Quoted(t)).Facts(nodeclaim.SHA256); len(f.Firmware) != 1 {
				t.Errorf("firmware %v, want one measurement", f.Firmware)
			}
		})
	}
	if _, err := eventlog.Replay(locality(3).Raw(), locality(3).Set(0, 0).Quoted(t)); err == nil {
		t.Error("a locality that PCR 0 does not have was believed")
	}
}

func TestPCRsThatOthersExtendAreUnreplayedAndGiveNoFacts(t *testing.T) {
	uki := func() *vectors.Log {
		return vectors.NewLog(nodeclaim.SHA256).
			Measure(11, vectors.IPL, []byte(".linux\x00")).Measure(11, vectors.IPL, []byte("kernel"))
	}
	boot := replay(t, uki().Raw(), uki().Quoted(t))
	if f, _ := boot.Facts(nodeclaim.SHA256); f.Kernel == "" {
		t.Error("a replayed PCR 11 gives no kernel")
	}
	l := uki().Extend(11, []byte("a word of somebody")).Extend(15, []byte("machine-id"))
	boot = replay(t, l.Raw(), l.Quoted(t))
	if diff := cmp.Diff([]int{10, 11, 15}, boot.Unreplayed(nodeclaim.SHA256)); diff != "" {
		t.Errorf("unreplayed (-want +got):\n%s", diff)
	}
	f, _ := boot.Facts(nodeclaim.SHA256)
	if f.Kernel != "" || f.Sections != nil {
		t.Errorf("an unreplayed PCR 11 gave facts: %+v", f)
	}
}

func TestUnquotedPCRsGiveNoFacts(t *testing.T) {
	l := vectors.NewLog(nodeclaim.SHA256).Measure(0, 8, []byte("version")).Measure(4, vectors.Image, []byte("loader")).
		Measure(7, vectors.Variable, vectors.UEFIVariable(vectors.GlobalGUID, "SecureBoot", []byte{1})).Measure(7, vectors.Separator, make([]byte, 4)).
		Measure(9, 6, vectors.UTF16("quiet\x00")).Measure(9, 6, []byte("initrd"))
	for _, i := range []int{0, 4, 7, 8, 9, 11} {
		l.Unquote(i)
	}
	boot := replay(t, l.Raw(), l.Quoted(t)).ConfirmCommandLine("quiet")
	f, _ := boot.Facts(nodeclaim.SHA256)
	want := eventlog.Facts{Bank: "sha256", SecureBoot: eventlog.SecureBoot{State: eventlog.SecureBootUnknown}}
	if diff := cmp.Diff(want, f, cmp.AllowUnexported(eventlog.Facts{}, eventlog.CommandLine{})); diff != "" {
		t.Errorf("facts from PCRs that nobody quoted (-want +got):\n%s", diff)
	}
	if len(boot.Events(nodeclaim.SHA256)) != 0 {
		t.Error("events of PCRs that nobody quoted are shown as measured")
	}
}

func TestTheZeroBootProvesNothing(t *testing.T) {
	var b eventlog.Boot
	if _, ok := b.Facts(nodeclaim.SHA256); ok || len(b.Banks()) != 0 || len(b.Replayed(nodeclaim.SHA256)) != 0 {
		t.Error("a Boot that no replay made has facts")
	}
	if got := b.ConfirmCommandLine("quiet"); len(got.Banks()) != 0 {
		t.Error("an offered text made facts")
	}
}

func TestBootPhasesOfSystemdAreRecognisedInPCR11(t *testing.T) {
	cases := map[string]struct {
		extended []string
		phases   []string
		kernel   bool
	}{
		"none yet":               {nil, nil, true},
		"in the initrd":          {[]string{"enter-initrd"}, []string{"enter-initrd"}, true},
		"up, through an initrd":  {[]string{"enter-initrd", "leave-initrd", "sysinit", "ready"}, []string{"enter-initrd", "leave-initrd", "sysinit", "ready"}, true},
		"up, without an initrd":  {[]string{"sysinit", "ready"}, []string{"sysinit", "ready"}, true},
		"out of order":           {[]string{"ready", "sysinit"}, nil, false},
		"a word of somebody":     {[]string{"enter-initrd", "evil"}, nil, false},
		"twice the same phase":   {[]string{"ready", "ready"}, nil, false},
		"a phase is left out":    {[]string{"enter-initrd", "sysinit"}, nil, false},
		"after the shutdown too": {[]string{"sysinit", "ready", "shutdown", "final"}, []string{"sysinit", "ready", "shutdown", "final"}, true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			l := vectors.NewLog(nodeclaim.SHA256).Measure(11, vectors.IPL, []byte(".linux\x00")).Measure(11, vectors.IPL, []byte("kernel"))
			for _, word := range c.extended {
				l.Extend(11, []byte(word))
			}
			boot := replay(t, l.Raw(), l.Quoted(t))
			if diff := cmp.Diff(c.phases, boot.Phases(nodeclaim.SHA256)); diff != "" {
				t.Errorf("phases (-want +got):\n%s", diff)
			}
			if f, _ := boot.Facts(nodeclaim.SHA256); (f.Kernel != "") != c.kernel {
				t.Errorf("kernel %q", f.Kernel)
			}
		})
	}
}

// PCR 11 is one that others extend, so a log that was changed there is not refused; what it would have
// proven is then not proven, and nothing else is affected.
func TestFlippedBitsOfALogAreRefusedOrChangeNoFact(t *testing.T) {
	for name, step := range map[string]int{"good": 1, "secureboot-on": 7} {
		raw, quoted := vectors.Read(t, name, vectors.EventLog), vectors.Quoted(t, name)
		line := string(vectors.Read(t, name, "cmdline.txt"))
		good := replay(t, raw, quoted).ConfirmCommandLine(line)
		facts, _ := good.Facts(nodeclaim.SHA256)
		want := factsJSON(t, good)
		facts.Kernel, facts.Sections = "", nil
		without, err := json.MarshalIndent(facts, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		for bit := 0; bit < len(raw)*8; bit += step {
			raw[bit/8] ^= 1 << (bit % 8)
			if boot, err := eventlog.Replay(raw, quoted); err == nil {
				boot = boot.ConfirmCommandLine(line)
				expect := want
				if slices.Contains(boot.Unreplayed(nodeclaim.SHA256), 11) {
					expect = string(without)
				}
				if got := factsJSON(t, boot); got != expect {
					t.Fatalf("%s: with bit %d of byte %d flipped the facts changed (-want +got):\n%s", name, bit%8, bit/8, cmp.Diff(expect, got))
				}
			}
			raw[bit/8] ^= 1 << (bit % 8)
		}
	}
}
