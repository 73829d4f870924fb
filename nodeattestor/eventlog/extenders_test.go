package eventlog_test

import (
	"bytes"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/test/vectors"
)

// nvpcrs is what systemd-tpm2-setup measures into PCR 9 for three NvPCRs, and the log of it.
func nvpcrs(l *vectors.Log, log []byte) []byte {
	for i, name := range []string{"cryptsetup", "hardware", "verity"} {
		text := "nvpcr-init:" + name + ":0x1d1020" + strconv.Itoa(i) + ":000b" + hex.EncodeToString(digestOf(name))
		log = l.Userspace(log, 9, "nvpcr-init", []byte(text), text)
	}
	return l.Userspace(log, 9, "nvpcr-separator", []byte("nvpcr-separator"), "nvpcr-separator")
}

func TestNvPCRRecordsOfSystemdTakeNoFactAway(t *testing.T) {
	before := booted(nodeclaim.SHA1, nodeclaim.SHA256).Unquote(10)
	want := replay(t, before.Raw(), before.Quoted(t))
	if f, _ := want.Facts(nodeclaim.SHA256); f.Initrd == "" || f.CommandLine.Digest == "" {
		t.Fatalf("facts before: %+v", f)
	}
	l := booted(nodeclaim.SHA1, nodeclaim.SHA256).Unquote(10)
	user := nvpcrs(l, started(l))
	boot := both(t, l, user)
	if diff := cmp.Diff(factsJSON(t, want), factsJSON(t, boot)); diff != "" {
		t.Errorf("NvPCR records change facts (-before +after):\n%s", diff)
	}
	if got := boot.Phases(nodeclaim.SHA256); len(got) != 4 {
		t.Errorf("phases %v", got)
	}

	_, err := eventlog.ReplayBoth(l.Raw(), nil, l.Quoted(t))
	refusedFor(t, err, "eventlog.pcr")
	for _, says := range []string{"PCR 9", "systemd-tpm2-setup", "systemd's log was not sent", "/run/log/systemd", "Bottlerocket", "os_extended_pcrs"} {
		if err != nil && !strings.Contains(err.Error(), says) {
			t.Errorf("%v does not say %q", err, says)
		}
	}
	l.Extend(9, []byte("unknown to both"))
	if _, err = eventlog.ReplayBoth(l.Raw(), user, l.Quoted(t)); err == nil || !strings.Contains(err.Error(), "systemd's log was sent, and does not lead there") {
		t.Errorf("got %v", err)
	}
}

// What only looks like an NvPCR's record is a measurement of the boot: in another PCR, with another digest, or another text.
func TestThreat08_OnlyAConfirmedNvPCRRecordInPCR9IsNoMeasurement(t *testing.T) {
	const text = "nvpcr-init:hardware:0x1d10200:000b00"
	for name, c := range map[string]struct {
		pcr      int
		measured string
		text     string
	}{
		"another initrd under its name": {9, "another initrd", text},
		"another text":                  {9, "nvpcr-other:x", "nvpcr-other:x"},
		"in PCR 12":                     {12, text, text},
	} {
		l := booted(nodeclaim.SHA256).Unquote(10)
		user := l.Userspace(nil, c.pcr, "nvpcr-init", []byte(c.measured), c.text)
		boot := both(t, l, user)
		shown := slices.ContainsFunc(boot.Events(nodeclaim.SHA256), func(e eventlog.Entry) bool { return strings.HasPrefix(e.Type, "systemd:") })
		if f, _ := boot.Facts(nodeclaim.SHA256); !shown || c.pcr == 9 && f.Initrd != "" {
			t.Errorf("%s: it is not among the measurements: %+v", name, f)
		}
	}
}

// systemd-imdsd measures a cloud's user data into PCR 12, which has the boot loader's command line too.
func TestUserDataOfACloudTakeNoFactAway(t *testing.T) {
	text := "imds-userdata:" + strings.Repeat("5a", 32) + ":I2Nsb3VkLWNvbmZpZwo="
	line := append(vectors.UTF16("quiet"), 0, 0)
	boot := func() *vectors.Log {
		l := booted(nodeclaim.SHA1, nodeclaim.SHA256).Unquote(10)
		return l.Measure(12, vectors.IPL, line)
	}
	before, after, without := boot(), boot(), boot()
	want := replay(t, before.Raw(), before.Quoted(t))
	user := after.Userspace(nil, 12, "imds_userdata", []byte(text), text)
	if diff := cmp.Diff(factsJSON(t, want), factsJSON(t, both(t, after, user))); diff != "" {
		t.Errorf("user data change facts (-before +after):\n%s", diff)
	}
	without.Extend(12, []byte(text))
	_, err := eventlog.ReplayBoth(without.Raw(), nil, without.Quoted(t))
	if err == nil || !strings.Contains(err.Error(), "systemd-imdsd's user data") || !strings.Contains(err.Error(), "/run/log/systemd") {
		t.Errorf("without the log: %v", err)
	}
	for name, c := range map[string]struct {
		pcr            int
		measured, text string
	}{
		"another command line under its name": {12, "evil", text},
		"something after it":                  {12, text + "\x00", text + "\x00"},
		"a new line after it":                 {12, text + "\n", text + "\n"},
		"no digest":                           {12, "imds-userdata:5a:aaaa", "imds-userdata:5a:aaaa"},
		"in PCR 9":                            {9, text, text},
	} {
		l := boot()
		log := l.Userspace(nil, c.pcr, "imds_userdata", []byte(c.measured), c.text)
		shown := slices.ContainsFunc(both(t, l, log).Events(nodeclaim.SHA256), func(e eventlog.Entry) bool { return strings.HasPrefix(e.Type, "systemd:") })
		if !shown {
			t.Errorf("%s: it is not among the measurements", name)
		}
	}
}

func TestPhasesOfTalosAndOfSoftRebootsAreKnown(t *testing.T) {
	up, down := []string{"sysinit", "ready"}, []string{"shutdown", "final"}
	initrd := []string{"enter-initrd", "leave-initrd"}
	talos := slices.Concat(initrd, []string{"enter-machined", "start-the-world"})
	for name, c := range map[string]struct {
		words []string
		known bool
	}{
		"Talos":                         {talos, true},
		"Talos, which is still booting": {talos[:3], true},
		"Talos, and more":               {append(slices.Clone(talos), "ready"), false},
		"a soft reboot":                 {slices.Concat(initrd, up, down, up), true},
		"two, without an initrd":        {slices.Concat(up, down, up, down, up), true},
		"a soft reboot under way":       {slices.Concat(initrd, up, down, up[:1]), true},
		"the initrd a second time":      {slices.Concat(initrd, up, down, initrd), false},
		"not ended before":              {slices.Concat(initrd, up, up), false},
	} {
		t.Run(name, func(t *testing.T) {
			l := booted(nodeclaim.SHA256).Unquote(10)
			for _, word := range c.words {
				l.Extend(11, []byte(word))
			}
			boot := replay(t, l.Raw(), l.Quoted(t))
			f, _ := boot.Facts(nodeclaim.SHA256)
			if got := boot.Phases(nodeclaim.SHA256); c.known != slices.Equal(got, c.words) || c.known != (f.Kernel != "") {
				t.Errorf("phases %v, kernel %q", got, f.Kernel)
			}
		})
	}
}

func TestSeparatorsOfSystemdAreKnownWithoutItsLog(t *testing.T) {
	for name, c := range map[string]struct {
		pcr   int
		words []string
		known bool
	}{
		"no room for NvPCRs":                  {9, []string{"nvpcr-separator"}, true},
		"no room for NvPCRs, systemd 261":     {9, []string{"os-separator", "nvpcr-separator"}, true},
		"the other way round":                 {9, []string{"nvpcr-separator", "os-separator"}, true},
		"systemd 261":                         {12, []string{"os-separator"}, true},
		"no NvPCRs are of another PCR":        {12, []string{"nvpcr-separator"}, false},
		"one separator twice":                 {9, []string{"os-separator", "os-separator"}, false},
		"something after both":                {9, []string{"os-separator", "nvpcr-separator", "initrd"}, false},
		"systemd measures no word into PCR 8": {8, []string{"os-separator"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			want := factsJSON(t, replay(t, booted(nodeclaim.SHA256).Unquote(10).Raw(), booted(nodeclaim.SHA256).Unquote(10).Quoted(t)))
			l := booted(nodeclaim.SHA256).Unquote(10)
			for _, word := range c.words {
				l.Extend(c.pcr, []byte(word))
			}
			boot, err := eventlog.Replay(l.Raw(), l.Quoted(t))
			if !c.known {
				refusedFor(t, err, "eventlog.pcr")
			} else if err != nil {
				t.Error(err)
			} else if diff := cmp.Diff(want, factsJSON(t, boot)); diff != "" {
				t.Errorf("a separator changes facts (-before +after):\n%s", diff)
			}
		})
	}
}

func TestWhatTheOperatingSystemExtendsIsMatchedByValueOnly(t *testing.T) {
	bottlerocket := func() *vectors.Log { // its rottweiler
		return booted(nodeclaim.SHA256).Unquote(10).Extend(8, []byte("settings")).Extend(8, []byte("user data")).Extend(9, []byte("quiet")).Extend(11, []byte("a phase"))
	}
	l := bottlerocket()
	_, err := eventlog.ReplayBoth(l.Raw(), nil, l.Quoted(t))
	refusedFor(t, err, "eventlog.pcr")
	for _, says := range []string{"Bottlerocket's settings", "Bottlerocket's kernel command line", "name PCR 8 in os_extended_pcrs", "name PCR 9 in os_extended_pcrs"} {
		if err != nil && !strings.Contains(err.Error(), says) {
			t.Errorf("%v does not say %q", err, says)
		}
	}
	boot, err := eventlog.ReplayBoth(l.Raw(), nil, l.Quoted(t), 8, 9)
	if err != nil {
		t.Fatal(err)
	}
	f, _ := boot.ConfirmCommandLine("quiet").Facts(nodeclaim.SHA256)
	if diff := cmp.Diff([]int{8, 9, 11}, boot.Unreplayed(nodeclaim.SHA256)); diff != "" {
		t.Errorf("unreplayed: %s", diff)
	}
	if f.Kernel != "" || f.Initrd != "" || f.CommandLine.Known() || f.Sections != nil || !f.Scripted() || len(f.BootLoader) != 1 {
		t.Errorf("facts: %+v", f)
	}
	// What IMA's boot_aggregate is compared with is the firmware's log's word.
	if v, ok := boot.Booted(nodeclaim.SHA256, 9); !ok || bytes.Equal(v, value(t, l, 9)) {
		t.Errorf("PCR 9 stood at %x when user space began", v)
	}
	// Only these two; and one that the log reaches is replayed all the same.
	l.Extend(12, []byte("epoch"))
	if _, err = eventlog.ReplayBoth(l.Raw(), nil, l.Quoted(t), 8, 9); err == nil || !strings.Contains(err.Error(), "Ubuntu Core") {
		t.Errorf("got %v", err)
	}
	plain := booted(nodeclaim.SHA256).Unquote(10)
	boot, err = eventlog.ReplayBoth(plain.Raw(), nil, plain.Quoted(t), 8, 9, 11)
	if err != nil || len(boot.Unreplayed(nodeclaim.SHA256)) != 0 {
		t.Errorf("%v, %v", boot.Unreplayed(nodeclaim.SHA256), err)
	}
	if f, _ := boot.Facts(nodeclaim.SHA256); f.Kernel == "" || f.Initrd == "" {
		t.Errorf("facts: %+v", f)
	}
}

func TestOnlyTheOperatingSystemsPCRsCanBeItsOwn(t *testing.T) {
	l := booted(nodeclaim.SHA256)
	for pcr := -1; pcr <= 24; pcr++ {
		_, err := eventlog.ReplayBoth(l.Raw(), nil, l.Quoted(t), pcr)
		if want := pcr >= 8 && pcr <= 15 && pcr != 10; want != (err == nil) || want != eventlog.OSExtendable(pcr) {
			t.Errorf("PCR %d: %v", pcr, err)
		}
	}
}

// An initrd of a unified image is no fact where PCR 9, into which the kernel measures what it really got, is unknown.
func TestAnInitrdRestsOnPCR9(t *testing.T) {
	uki := func() *vectors.Log {
		return vectors.NewLog(nodeclaim.SHA256).Unquote(10).Measure(11, vectors.IPL, []byte(".initrd\x00")).Measure(11, vectors.IPL, []byte("initrd"))
	}
	l := uki()
	if f, _ := replay(t, l.Raw(), l.Quoted(t)).Facts(nodeclaim.SHA256); f.Initrd == "" {
		t.Error("no initrd")
	}
	l = uki().Extend(9, []byte("x"))
	boot, err := eventlog.ReplayBoth(l.Raw(), nil, l.Quoted(t), 9)
	if f, _ := boot.Facts(nodeclaim.SHA256); err != nil || f.Initrd != "" {
		t.Errorf("%v, initrd %q", err, f.Initrd)
	}
}

func TestSettingsAreNoAuthorities(t *testing.T) {
	settings := func(l *vectors.Log) *vectors.Log {
		vendor := [16]byte{1, 2, 3}
		l.Measure(7, vectors.Variable, vectors.UEFIVariable(vectors.GlobalGUID, "SecureBoot", []byte{1}))
		for _, name := range []string{"AuditMode", "DeployedMode"} {
			l.Measure(7, vectors.Variable, vectors.UEFIVariable(vectors.GlobalGUID, name, []byte{0}))
		}
		for _, name := range []string{"db", "dbx", "dbt", "dbr"} {
			l.Measure(7, vectors.Variable, vectors.UEFIVariable(vectors.DatabaseGUID, name, []byte("keys")))
		}
		l.Measure(7, vectors.Variable, vectors.UEFIVariable(vendor, "Setup", []byte{1}))
		// A driver that db lets start before the separator.
		l.Measure(7, vectors.Authority, vectors.UEFIVariable(vectors.DatabaseGUID, "db", []byte("the vendor's key")))
		return l.Measure(7, vectors.Separator, make([]byte, 4))
	}
	l := settings(vectors.NewLog(nodeclaim.SHA256)).
		Measure(7, vectors.Authority, vectors.UEFIVariable([16]byte{9}, "MokListRT", []byte("key"))).
		Measure(7, vectors.Variable, vectors.UEFIVariable(vectors.GlobalGUID, "DeployedMode", []byte{1})).
		Measure(7, vectors.Variable, vectors.UEFIVariable(vectors.DatabaseGUID, "dbr", []byte("late")))
	f, _ := replay(t, l.Raw(), l.Quoted(t)).Facts(nodeclaim.SHA256)
	var names, listed []string
	for _, a := range f.SecureBoot.Authorities {
		names = append(names, a.Variable)
	}
	for _, a := range f.ListedAuthorities() {
		listed = append(listed, a.Variable)
	}
	if diff := cmp.Diff([]string{"db", "MokListRT"}, names); diff != "" || len(f.SecureBoot.Others) != 7 || f.SecureBoot.DB == "" || f.SecureBoot.DBX == "" {
		t.Errorf("authorities (-want +got):\n%s\n%+v", diff, f.SecureBoot)
	}
	if diff := cmp.Diff([]string{"AuditMode", "DeployedMode", "dbt", "dbr", "Setup", "db", "MokListRT", "DeployedMode", "dbr"}, listed); diff != "" {
		t.Errorf("as older releases listed them (-want +got):\n%s", diff)
	}
}

func TestPaddedRecordsAreReadAsWhatTheyMean(t *testing.T) {
	padded := func(tail ...byte) *vectors.Log {
		return vectors.NewLog(nodeclaim.SHA256).Set(0, 3).Fake(0, vectors.NoAction, nil, append([]byte("StartupLocality\x00\x03"), tail...)).Measure(0, 8, []byte("version"))
	}
	for name, c := range map[string]struct {
		log  *vectors.Log
		good bool
	}{
		"as the profile has it":     {padded(), true},
		"zeros up to a fixed size":  {padded(make([]byte, 33)...), true},
		"something else after them": {padded(0, 0, 1), false},
		"another locality after it": {padded(4), false},
	} {
		_, err := eventlog.Replay(c.log.Raw(), c.log.Quoted(t))
		if c.good != (err == nil) {
			t.Errorf("%s: %v", name, err)
		}
		if !c.good {
			refusedFor(t, err, "eventlog.locality")
		}
	}
	none := vectors.NewLog(nodeclaim.SHA256).Fake(0, vectors.NoAction, nil, []byte("StartupLocality\x00"))
	_, err := eventlog.Replay(none.Raw(), none.Quoted(t))
	refusedFor(t, err, "eventlog.locality")

	on := vectors.UEFIVariable(vectors.GlobalGUID, "SecureBoot", []byte{1})
	for name, c := range map[string]struct {
		measured, data []byte
		state          eventlog.SecureBootState
	}{
		"a separator with longer data":        {make([]byte, 4), make([]byte, 50), eventlog.SecureBootEnabled},
		"longer data that are measured whole": {make([]byte, 50), make([]byte, 50), eventlog.SecureBootUnknown},
	} {
		l := vectors.NewLog(nodeclaim.SHA256).Measure(7, vectors.Variable, on).Event(7, vectors.Separator, c.measured, c.data)
		if f, _ := replay(t, l.Raw(), l.Quoted(t)).Facts(nodeclaim.SHA256); f.SecureBoot.State != c.state {
			t.Errorf("%s: secure boot is %s", name, f.SecureBoot.State)
		}
	}
}

// fewer is a log of two banks of which one event has one digest only.
func fewer() (raw []byte, l *vectors.Log) {
	l = vectors.NewLog(nodeclaim.SHA1, nodeclaim.SHA256).Measure(0, 8, []byte("version"))
	one := vectors.NewLog(nodeclaim.SHA256)
	header := len(one.Raw())
	l.Extend(4, []byte("image"))
	return append(bytes.Clone(l.Raw()), one.Fake(4, vectors.Image, []byte("image"), nil).Raw()[header:]...), l
}

func TestABankThatEveryEventHasIsReplayed(t *testing.T) {
	raw, l := fewer()
	log, err := eventlog.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]nodeclaim.HashAlg{nodeclaim.SHA256}, log.Banks()); diff != "" {
		t.Errorf("banks (-want +got):\n%s", diff)
	}
	value256, _ := l.Quoted(t).Value(nodeclaim.SHA256, 4)
	value1, _ := l.Quoted(t).Value(nodeclaim.SHA1, 4)
	boot, err := log.Replay(vectors.Quote(t, map[nodeclaim.HashAlg]map[int][]byte{nodeclaim.SHA256: {4: value256}}))
	if f, _ := boot.Facts(nodeclaim.SHA256); err != nil || len(f.BootLoader) != 1 {
		t.Errorf("%v, %+v", err, f)
	}
	_, err = log.Replay(vectors.Quote(t, map[nodeclaim.HashAlg]map[int][]byte{nodeclaim.SHA1: {4: value1}}))
	refusedFor(t, err, "eventlog.bank")
	if err != nil && !strings.Contains(err.Error(), "event 2 has no digest of bank sha1") {
		t.Errorf("got %v", err)
	}
}

// Whatever byte of these logs is changed, they are refused, or nothing that is read from them changes but what a text in them
// confirmed: which NvPCR's record it is.
func TestFlippedBytesOfLogsThatDifferChangeNoFact(t *testing.T) {
	nv := booted(nodeclaim.SHA256).Unquote(10)
	user := nvpcrs(nv, nil)
	some, l := fewer()
	pcr, _ := l.Quoted(t).Value(nodeclaim.SHA256, 4)
	attempt := booted(nodeclaim.SHA256).Unquote(10).Measure(4, vectors.Action, []byte("Booting to Boot0001 Option")).Event(4, vectors.Image, []byte("b"), nil)
	for name, c := range map[string]struct {
		raw, user []byte
		quoted    map[nodeclaim.HashAlg]map[int][]byte
		log       *vectors.Log
	}{
		"fewer digests": {raw: some, quoted: map[nodeclaim.HashAlg]map[int][]byte{nodeclaim.SHA256: {4: pcr}}},
		"NvPCRs":        {raw: nv.Raw(), user: user, log: nv},
		"boot option":   {raw: attempt.Raw(), log: attempt},
	} {
		quoted := vectors.Quote(t, c.quoted)
		if c.log != nil {
			quoted = c.log.Quoted(t)
		}
		good, err := eventlog.ReplayBoth(c.raw, c.user, quoted)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for part, data := range map[string][]byte{"log": c.raw, "user space's log": c.user} {
			for i := range data {
				data[i] ^= 0x21
				boot, err := eventlog.ReplayBoth(c.raw, c.user, quoted)
				data[i] ^= 0x21
				if err != nil || slices.Contains(boot.Unreplayed(nodeclaim.SHA256), 11) {
					continue
				}
				want, _ := good.Facts(nodeclaim.SHA256)
				got, _ := boot.Facts(nodeclaim.SHA256)
				if name == "NvPCRs" && got.Initrd == "" {
					want.Initrd = ""
				}
				if diff := cmp.Diff(want, got, cmp.AllowUnexported(eventlog.Facts{}, eventlog.CommandLine{})); diff != "" {
					t.Fatalf("%s: byte %d of the %s changes facts (-want +got):\n%s", name, i, part, diff)
				}
			}
		}
	}
}
