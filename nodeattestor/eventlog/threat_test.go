package eventlog_test

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/test/vectors"
)

// typeOffsets finds where each event's type stands in a sha256-only log; the header is no event.
func typeOffsets(t testing.TB, raw []byte) []int {
	t.Helper()
	var out []int
	off := 32 + int(binary.LittleEndian.Uint32(raw[28:]))
	for off < len(raw) {
		out = append(out, off+4)
		off += 12 + 2 + 32
		off += 4 + int(binary.LittleEndian.Uint32(raw[off:]))
	}
	if off != len(raw) {
		t.Fatalf("events end at %d of %d", off, len(raw))
	}
	return out
}

func TestThreat08_RelabelledTypesChangeNoFact(t *testing.T) {
	raw, quoted := vectors.Read(t, "secureboot-on", vectors.EventLog), vectors.Quoted(t, "secureboot-on")
	want := factsJSON(t, replay(t, raw, quoted))
	types := []uint32{vectors.Separator, vectors.IPL, vectors.Variable, vectors.Image, vectors.Action, vectors.Authority, vectors.HCRTM, 0, 0xFFFFFFFF}
	for i, off := range typeOffsets(t, raw) {
		old := binary.LittleEndian.Uint32(raw[off:])
		for _, typ := range types {
			binary.LittleEndian.PutUint32(raw[off:], typ)
			boot, err := eventlog.Replay(raw, quoted)
			if err != nil {
				// An H-CRTM event says that PCR 0 began at locality 4, which the quote contradicts.
				if typ == vectors.HCRTM {
					continue
				}
				t.Fatalf("event %d as type %#x: %v", i+1, typ, err)
			}
			if got := factsJSON(t, boot); got != want {
				t.Fatalf("event %d as type %#x changed the facts:\n%s", i+1, typ, cmp.Diff(want, got))
			}
		}
		binary.LittleEndian.PutUint32(raw[off:], vectors.NoAction)
		if _, err := eventlog.Replay(raw, quoted); err == nil && old != vectors.NoAction {
			if binary.LittleEndian.Uint32(raw[off-4:]) != 11 { // PCR 11 is then unreplayed
				t.Errorf("event %d was hidden as EV_NO_ACTION", i+1)
			}
		}
		binary.LittleEndian.PutUint32(raw[off:], old)
	}
}

func TestThreat08_FakeEventsAppendedToTheLogAreRefused(t *testing.T) {
	raw, quoted := vectors.Read(t, "good", vectors.EventLog), vectors.Quoted(t, "good")
	header := len(vectors.NewLog(nodeclaim.SHA256).Raw())
	secure := vectors.UEFIVariable(vectors.GlobalGUID, "SecureBoot", []byte{1})
	for pcr := range 15 {
		for _, typ := range []uint32{vectors.Separator, vectors.Variable, vectors.Image, vectors.IPL} {
			fake := vectors.NewLog(nodeclaim.SHA256).Fake(pcr, typ, secure, secure).Raw()[header:]
			_, err := eventlog.Replay(append(bytes.Clone(raw), fake...), quoted)
			if pcr == 10 || pcr == 11 { // nothing is believed about these
				continue
			}
			refusedFor(t, err, "eventlog.pcr")
		}
	}
}

func TestThreat08_NoActionEventsGiveNoFact(t *testing.T) {
	raw, quoted := vectors.Read(t, "good", vectors.EventLog), vectors.Quoted(t, "good")
	want := factsJSON(t, replay(t, raw, quoted))
	header := len(vectors.NewLog(nodeclaim.SHA256).Raw())
	for pcr := range 24 {
		secure := vectors.UEFIVariable(vectors.GlobalGUID, "SecureBoot", []byte{1})
		fake := vectors.NewLog(nodeclaim.SHA256).Fake(pcr, vectors.NoAction, secure, secure).Raw()[header:]
		if got := factsJSON(t, replay(t, append(bytes.Clone(raw), fake...), quoted)); got != want {
			t.Errorf("EV_NO_ACTION in PCR %d changed the facts:\n%s", pcr, cmp.Diff(want, got))
		}
	}
}

// after is a boot without secure boot, to which root, who can extend PCRs and write the log, adds what it likes.
func after() *vectors.Log {
	return vectors.NewLog(nodeclaim.SHA256).
		Measure(0, 8, []byte("version")).Measure(0, vectors.Separator, make([]byte, 4)).
		Measure(7, vectors.Variable, vectors.UEFIVariable(vectors.GlobalGUID, "SecureBoot", []byte{0})).
		Measure(7, vectors.Variable, vectors.UEFIVariable(vectors.DatabaseGUID, "db", []byte("evil signer"))).
		Measure(7, vectors.Separator, make([]byte, 4)).
		Measure(4, vectors.Action, []byte("Calling EFI Application from Boot Option")).
		Measure(4, vectors.Separator, make([]byte, 4)).
		Measure(4, vectors.Image, []byte("evil loader")).
		Event(9, 6, vectors.UTF16("evil=1\x00"), []byte("LOADED_IMAGE::LoadOptions")).
		Event(9, 6, []byte("evil initrd"), []byte("Linux initrd"))
}

func TestThreat08_WhatRootExtendsAfterBootReplacesNothing(t *testing.T) {
	l := after()
	want, _ := replay(t, l.Raw(), l.Quoted(t)).Facts(nodeclaim.SHA256)
	if want.SecureBoot.State != eventlog.SecureBootDisabled || len(want.BootLoader) != 1 || want.CommandLine.Digest == "" {
		t.Fatalf("facts before: %+v", want)
	}
	l = after().
		Measure(7, vectors.Variable, vectors.UEFIVariable(vectors.DatabaseGUID, "db", []byte("good signer"))).
		Measure(7, vectors.Variable, vectors.UEFIVariable(vectors.GlobalGUID, "PK", []byte("good owner"))).
		Measure(4, vectors.Image, []byte("good loader")).Measure(0, 8, []byte("good firmware")).
		Event(9, 6, vectors.UTF16("quiet\x00"), []byte("LOADED_IMAGE::LoadOptions"))
	boot := replay(t, l.Raw(), l.Quoted(t)).ConfirmCommandLine("quiet")
	got, _ := boot.Facts(nodeclaim.SHA256)
	if got.SecureBoot.State != want.SecureBoot.State || got.SecureBoot.DB != want.SecureBoot.DB || got.SecureBoot.PK != "" {
		t.Errorf("secure boot: %+v, was %+v", got.SecureBoot, want.SecureBoot)
	}
	if len(got.SecureBoot.Authorities) != 2 || len(got.BootLoader) != 2 || len(got.Firmware) != 2 {
		t.Errorf("what was appended does not show: %+v", got)
	}
	if got.CommandLine != want.CommandLine {
		t.Errorf("command line %+v, was %+v", got.CommandLine, want.CommandLine)
	}
	if evil, _ := boot.ConfirmCommandLine("evil=1").Facts(nodeclaim.SHA256); evil.CommandLine.Text != "evil=1" {
		t.Errorf("the true command line is not confirmed: %+v", evil.CommandLine)
	}
}

func TestThreat08_SecureBootMeasuredAgainIsRefused(t *testing.T) {
	on := vectors.UEFIVariable(vectors.GlobalGUID, "SecureBoot", []byte{1})
	l := after().Measure(7, vectors.Variable, on)
	_, err := eventlog.Replay(l.Raw(), l.Quoted(t))
	refusedFor(t, err, "eventlog.event")

	l = vectors.NewLog(nodeclaim.SHA256).Measure(7, vectors.Separator, make([]byte, 4)).Measure(7, vectors.Variable, on)
	_, err = eventlog.Replay(l.Raw(), l.Quoted(t))
	refusedFor(t, err, "eventlog.event")
}

func TestThreat08_ASecondSeparatorIsRefused(t *testing.T) {
	for _, data := range [][]byte{{0, 0, 0, 0}, {0xFF, 0xFF, 0xFF, 0xFF}, {1, 0, 0, 0}} {
		for _, typ := range []uint32{vectors.Separator, vectors.Variable, vectors.IPL} { // whatever it is called
			l := after().Measure(7, typ, data)
			_, err := eventlog.Replay(l.Raw(), l.Quoted(t))
			refusedFor(t, err, "eventlog.separator")
		}
	}
	// In PCR 0 a separator appended later shows as one more measurement.
	l := after().Measure(0, vectors.Separator, make([]byte, 4))
	if f, _ := replay(t, l.Raw(), l.Quoted(t)).Facts(nodeclaim.SHA256); len(f.Firmware) != 2 {
		t.Errorf("firmware %v", f.Firmware)
	}
}

func TestThreat08_SecureBootIsUnknownWithoutASeparator(t *testing.T) {
	l := vectors.NewLog(nodeclaim.SHA256).Measure(7, vectors.Variable, vectors.UEFIVariable(vectors.GlobalGUID, "SecureBoot", []byte{1}))
	if f, _ := replay(t, l.Raw(), l.Quoted(t)).Facts(nodeclaim.SHA256); f.SecureBoot.State != eventlog.SecureBootUnknown {
		t.Errorf("secure boot is %s", f.SecureBoot.State)
	}
}

// A GRUB whose user typed a command line; labels say what root wants them to say.
func TestThreat08_LabelsOfGRUBStringsAreNotBelieved(t *testing.T) {
	say := func(l *vectors.Log, label, s string) *vectors.Log {
		return l.Event(8, vectors.IPL, []byte(s), []byte(label+": "+s+"\x00"))
	}
	cases := map[string]struct {
		log  func(*vectors.Log) *vectors.Log
		want string
	}{
		"as GRUB measures it": {func(l *vectors.Log) *vectors.Log {
			return say(say(say(l, "grub_cmd", "set x=1"), "grub_cmd", "linux /vmlinuz quiet"), "kernel_cmdline", "/vmlinuz quiet")
		}, "/vmlinuz quiet"},
		"labels swapped": {func(l *vectors.Log) *vectors.Log {
			return say(say(l, "kernel_cmdline", "linux /vmlinuz quiet"), "grub_cmd", "/vmlinuz quiet")
		}, "/vmlinuz quiet"},
		"quoted words": {func(l *vectors.Log) *vectors.Log {
			return say(say(l, "grub_cmd", "linux /vmlinuz a=b c"), "kernel_cmdline", `/vmlinuz "a=b c"`)
		}, `/vmlinuz "a=b c"`},
		"a good line is appended after boot": {func(l *vectors.Log) *vectors.Log {
			return say(say(say(say(l, "grub_cmd", "linux /vmlinuz evil"), "kernel_cmdline", "/vmlinuz evil"), "grub_cmd", "linux /vmlinuz quiet"), "kernel_cmdline", "/vmlinuz quiet")
		}, ""},
		"a string that no command announced": {func(l *vectors.Log) *vectors.Log {
			return say(say(l, "grub_cmd", "linux /vmlinuz evil"), "kernel_cmdline", "/vmlinuz quiet")
		}, ""},
		"a string whose data are not what was measured": {func(l *vectors.Log) *vectors.Log {
			return say(say(l, "grub_cmd", "linux /vmlinuz evil"), "kernel_cmdline", "/vmlinuz evil").Event(8, vectors.IPL, []byte("x"), []byte("grub_cmd: y"))
		}, ""},
		"only the label says so": {func(l *vectors.Log) *vectors.Log {
			return say(l, "kernel_cmdline", "/vmlinuz quiet")
		}, ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			l := c.log(vectors.NewLog(nodeclaim.SHA256))
			f, _ := replay(t, l.Raw(), l.Quoted(t)).ConfirmCommandLine("/vmlinuz quiet").Facts(nodeclaim.SHA256)
			if f.CommandLine.Text != c.want {
				t.Errorf("command line %q, want %q", f.CommandLine.Text, c.want)
			}
		})
	}
}

func TestThreat09_LimitsAndMalformedLogs(t *testing.T) {
	good := vectors.Read(t, "good", vectors.EventLog)
	head := vectors.NewLog(nodeclaim.SHA256).Raw()
	legacy := append(make([]byte, 4), 1, 0, 0, 0) // PCR 0, EV_POST_CODE
	legacy = append(append(legacy, make([]byte, 20)...), 0, 0, 0, 0)
	specID := func(change func(h []byte) []byte) []byte {
		h := change(bytes.Clone(head[32:]))
		out := bytes.Clone(head[:28])
		return append(binary.LittleEndian.AppendUint32(out, uint32(len(h))), h...)
	}
	put := func(off int, b ...byte) func([]byte) []byte {
		return func(h []byte) []byte { copy(h[off:], b); return h }
	}
	event := func(change func(e []byte) []byte) []byte {
		e := vectors.NewLog(nodeclaim.SHA256).Fake(4, vectors.Image, []byte("x"), []byte("data")).Raw()[len(head):]
		return append(bytes.Clone(head), change(bytes.Clone(e))...)
	}
	many := bytes.Repeat(legacy, eventlog.MaxEvents+1)
	cases := map[string]struct {
		raw  []byte
		says string
	}{
		"empty":                                {nil, "is empty"},
		"a log above the size limit":           {make([]byte, eventlog.MaxLogSize+1), "more than the 4194304 allowed"},
		"more events than allowed":             {many, "more than the 16384 events allowed"},
		"more agile events than allowed":       {append(bytes.Clone(head), bytes.Repeat(event(func(e []byte) []byte { return e })[len(head):], eventlog.MaxEvents)...), "events allowed"},
		"garbage":                              {bytes.Repeat([]byte{0xA5}, 200), "does not exist"},
		"an event of 4 GiB":                    {event(put(46, 0xFF, 0xFF, 0xFF, 0xFF)), "its data has 4294967295 bytes"},
		"an event longer than the log":         {event(put(46, 5, 0, 0, 0)), "it was cut"},
		"trailing bytes":                       {append(bytes.Clone(good), 1, 2, 3), "it was cut"},
		"a PCR that does not exist":            {event(put(0, 24)), "PCR 24 does not exist"},
		"PCR -1 in an event that counts":       {event(put(0, 0xFF, 0xFF, 0xFF, 0xFF)), "does not exist"},
		"no digest":                            {event(put(8, 0)), "has 0 digests"},
		"four billion digests":                 {event(put(8, 0xFF, 0xFF, 0xFF, 0xFF)), "has 4294967295 digests"},
		"a digest of another algorithm":        {event(put(12, 4, 0)), "which the header does not name"},
		"a header without algorithms":          {specID(put(24, 0)), "names 0 digest algorithms"},
		"a header with four billion of them":   {specID(put(24, 0xFF, 0xFF, 0xFF, 0xFF)), "names 4294967295"},
		"a header with a wrong digest size":    {specID(put(30, 20)), "sha256 digests 20 bytes"},
		"a header with an endless digest":      {specID(put(28, 0x12, 0, 0xFF, 0xFF)), "digests 65535 bytes"},
		"a header that is cut":                 {specID(func(h []byte) []byte { return h[:26] }), "it was cut"},
		"a header with trailing bytes":         {specID(func(h []byte) []byte { return append(h, 1) }), "vendor information"},
		"a legacy log that is cut in its data": {append(bytes.Clone(legacy[:28]), 9, 0, 0, 0, 1), "it was cut"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := eventlog.Parse(c.raw)
			refusedFor(t, err, "eventlog.format")
			if err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("reason %q does not say %q", err, c.says)
			}
		})
	}
	quoted := vectors.Quoted(t, "good")
	want := factsJSON(t, replay(t, good, quoted))
	end := bytes.LastIndex(good, []byte("Exit Boot Services Invocation")) - (8 + 4 + 2 + 32 + 4) // some kernels log nothing from here on
	for n := range len(good) {
		boot, err := eventlog.Replay(good[:n], quoted)
		if err == nil && (n != end || factsJSON(t, boot) != want) {
			t.Fatalf("a log cut to %d bytes was accepted", n)
		}
	}
}

func TestThreat09_VariablesThatLieAboutTheirSizes(t *testing.T) {
	huge := vectors.UEFIVariable(vectors.GlobalGUID, "SecureBoot", []byte{1})
	for _, off := range []int{16, 24} {
		for _, n := range []uint64{1 << 63, 1<<64 - 1, 513, 1 << 31} {
			data := bytes.Clone(huge)
			binary.LittleEndian.PutUint64(data[off:], n)
			l := vectors.NewLog(nodeclaim.SHA256).Measure(7, vectors.Variable, data).Measure(7, vectors.Separator, make([]byte, 4))
			f, _ := replay(t, l.Raw(), l.Quoted(t)).Facts(nodeclaim.SHA256)
			if f.SecureBoot.State != eventlog.SecureBootUnknown || len(f.SecureBoot.Others) != 1 {
				t.Errorf("size %d at %d: %+v", n, off, f.SecureBoot)
			}
		}
	}
}

// shim before 15.3 measures one byte less than it logs; MokListTrusted and SbatLevel are measured like
// authorities. None of them is tampering.
func TestThreat09_QuirksOfRealSoftwareAreNoAlarm(t *testing.T) {
	mok := vectors.UEFIVariable(vectors.DatabaseGUID, "MokListTrusted", []byte{1})
	short := append(vectors.UEFIVariable(vectors.DatabaseGUID, "Shim", []byte("certificate")), 1, 2, 3, 4, 5, 6)
	l := after().Measure(7, vectors.Authority, mok).Event(7, vectors.Authority, short[:len(short)-1], short).
		Event(7, vectors.Authority, []byte("only content"), vectors.UEFIVariable(vectors.DatabaseGUID, "db", []byte("only content")))
	f, _ := replay(t, l.Raw(), l.Quoted(t)).Facts(nodeclaim.SHA256)
	var names []string
	for _, a := range f.SecureBoot.Authorities {
		names = append(names, a.Variable)
	}
	if diff := cmp.Diff([]string{"MokListTrusted", "Shim", "unknown"}, names); diff != "" {
		t.Errorf("authorities (-want +got):\n%s", diff)
	}
	// Before the separator, content alone makes no setting: it could be any variable's.
	early := vectors.NewLog(nodeclaim.SHA256).
		Event(7, vectors.Variable, []byte{1}, vectors.UEFIVariable(vectors.GlobalGUID, "SecureBoot", []byte{1})).
		Measure(7, vectors.Separator, make([]byte, 4))
	if f, _ := replay(t, early.Raw(), early.Quoted(t)).Facts(nodeclaim.SHA256); f.SecureBoot.State != eventlog.SecureBootUnknown {
		t.Errorf("secure boot is %s by a variable whose name nobody measured", f.SecureBoot.State)
	}
}
