package eventlog_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/test/vectors"
)

func TestCommandLineAndInitrdOfEachKindOfBoot(t *testing.T) {
	sha256 := nodeclaim.SHA256
	stub := func(l *vectors.Log, line string) *vectors.Log {
		return l.Event(9, 6, append(vectors.UTF16(line), 0, 0), []byte("LOADED_IMAGE::LoadOptions"))
	}
	initrd := func(l *vectors.Log) *vectors.Log { return l.Event(9, 6, []byte("initrd"), []byte("Linux initrd")) }
	section := func(l *vectors.Log, name, content string) *vectors.Log {
		return l.Measure(11, vectors.IPL, []byte(name+"\x00")).Measure(11, vectors.IPL, []byte(content))
	}
	cases := map[string]struct {
		log    *vectors.Log
		offer  string
		text   string
		digest bool
		initrd bool
	}{
		"the kernel's stub alone":                                {initrd(stub(vectors.NewLog(sha256), "quiet")), "quiet\n", "quiet", true, true},
		"another text is offered":                                {initrd(stub(vectors.NewLog(sha256), "quiet")), "evil", "", true, true},
		"no text is offered":                                     {initrd(stub(vectors.NewLog(sha256), "quiet")), "", "", true, true},
		"one event, which a text confirms":                       {stub(vectors.NewLog(sha256), "quiet"), "quiet", "quiet", true, false},
		"one event, which may be the initrd":                     {initrd(vectors.NewLog(sha256)), "quiet", "", false, false},
		"a unified image without initrd":                         {stub(section(vectors.NewLog(sha256), ".cmdline", "quiet"), "quiet"), "", "", true, false},
		"a unified image whose line was overridden":              {initrd(stub(section(vectors.NewLog(sha256), ".cmdline", "quiet"), "evil")), "quiet", "", true, true},
		"an old kernel in a unified image":                       {initrd(section(section(vectors.NewLog(sha256), ".cmdline", "quiet"), ".initrd", "initrd")), "quiet", "quiet", true, true},
		"an old kernel, and the stub measured another line":      {initrd(section(section(vectors.NewLog(sha256), ".cmdline", "quiet"), ".initrd", "initrd")).Measure(12, vectors.IPL, vectors.UTF16("evil\x00")), "quiet", "", false, true},
		"the initrd stands first, so it is taken for the line":   {stub(initrd(vectors.NewLog(sha256).Measure(12, vectors.IPL, vectors.UTF16("quiet\x00"))), "quiet"), "", "", true, true},
		"systemd-boot's text with the stub's digest":             {initrd(stub(vectors.NewLog(sha256).Measure(12, vectors.IPL, vectors.UTF16("quiet\x00")), "quiet")), "", "quiet", true, true},
		"more than two events: the initrd is left open":          {initrd(initrd(stub(vectors.NewLog(sha256), "quiet"))), "quiet", "quiet", true, false},
		"a unified image to whose initrd something was added":    {stub(section(vectors.NewLog(sha256), ".initrd", "initrd"), "quiet").Event(9, 6, []byte("initrd and credentials"), nil), "quiet", "quiet", true, true},
		"the same, hidden behind a third measurement":            {stub(section(vectors.NewLog(sha256), ".initrd", "initrd"), "quiet").Event(9, 6, []byte("initrd and credentials"), nil).Event(9, 6, []byte("x"), nil), "quiet", "quiet", true, false},
		"an old kernel, and the stub added credentials":          {section(vectors.NewLog(sha256), ".initrd", "initrd").Measure(12, vectors.IPL, []byte("credentials")), "", "", false, false},
		"an old kernel, and the stub added extensions":           {section(vectors.NewLog(sha256), ".initrd", "initrd").Measure(13, vectors.IPL, []byte("extension")), "", "", false, false},
		"a kernel that measures nothing, and nothing was added":  {section(vectors.NewLog(sha256), ".initrd", "initrd"), "", "", false, true},
		"a kernel that measures nothing, and PCR 13 is unquoted": {section(vectors.NewLog(sha256), ".initrd", "initrd").Unquote(13), "", "", false, false},
		"an endless text":                                        {initrd(stub(vectors.NewLog(sha256), "quiet")), strings.Repeat("x", eventlog.MaxCommandLine+1), "", true, true},
		"load options in ASCII are another line to the kernel":   {initrd(vectors.NewLog(sha256).Event(9, 6, []byte("quiet"), nil)), "quiet", "", true, true},
		"a text that is not UTF-8":                               {initrd(stub(vectors.NewLog(sha256), "quiet")), "quiet\xff", "", true, true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			f, _ := replay(t, c.log.Raw(), c.log.Quoted(t)).ConfirmCommandLine(c.offer).Facts(sha256)
			if f.CommandLine.Text != c.text || (f.CommandLine.Digest != "") != c.digest || (f.Initrd != "") != c.initrd {
				t.Errorf("got %+v and initrd %q", f.CommandLine, f.Initrd)
			}
			if c.text != "" && (!f.CommandLine.Is(c.text) || f.CommandLine.Is("evil")) || f.CommandLine.Known() != c.digest {
				t.Errorf("%+v does not know what it is", f.CommandLine)
			}
			if c.text == "" && c.offer != "" && f.CommandLine.Is(strings.TrimSpace(c.offer)) {
				t.Errorf("%+v is taken for what was offered", f.CommandLine)
			}
		})
	}
}

func TestASectionThatComesTwiceWithDifferentContentIsLeftOut(t *testing.T) {
	l := vectors.NewLog(nodeclaim.SHA256)
	for _, s := range []string{".linux\x00", "kernel", ".osrel\x00", "a", ".osrel\x00", "b", ".linux\x00", "kernel"} {
		l.Measure(11, vectors.IPL, []byte(s))
	}
	f, _ := replay(t, l.Raw(), l.Quoted(t)).Facts(nodeclaim.SHA256)
	if f.Kernel == "" || len(f.Sections) != 1 {
		t.Errorf("sections %v", f.Sections)
	}
	// A content that looks like a name is content.
	l = vectors.NewLog(nodeclaim.SHA256)
	for _, s := range []string{".osrel\x00", ".linux\x00", "evil kernel"} {
		l.Measure(11, vectors.IPL, []byte(s))
	}
	if f, _ := replay(t, l.Raw(), l.Quoted(t)).Facts(nodeclaim.SHA256); f.Sections[".linux"] != "" || f.Sections[".osrel"] == "" {
		t.Errorf("sections %v", f.Sections)
	}
}

func TestKernelIsTheLastImageOnlyWhereNothingElseCanBe(t *testing.T) {
	image := func(l *vectors.Log, names ...string) *vectors.Log {
		for _, n := range names {
			l.Event(4, vectors.Image, []byte(n), nil)
		}
		return l
	}
	grub := func() *vectors.Log { return vectors.NewLog(nodeclaim.SHA256).Measure(8, vectors.IPL, []byte("grub")) }
	cases := map[string]struct {
		log  *vectors.Log
		want bool
	}{
		"boot loader and kernel":       {image(vectors.NewLog(nodeclaim.SHA256), "boot", "kernel"), true},
		"one image":                    {image(vectors.NewLog(nodeclaim.SHA256), "boot"), false},
		"shim and GRUB":                {image(grub(), "shim", "grub"), false},
		"shim, GRUB and kernel":        {image(grub(), "shim", "grub", "kernel"), true},
		"shim, GRUB, kernel, no PCR 8": {image(vectors.NewLog(nodeclaim.SHA256), "shim", "grub", "kernel").Unquote(8), false},
		"PCR 8 not quoted":             {image(vectors.NewLog(nodeclaim.SHA256), "boot", "kernel").Unquote(8), false},
		"PCR 11 not quoted":            {image(vectors.NewLog(nodeclaim.SHA256), "boot", "kernel").Unquote(11), false},
		"PCR 11 extended by others":    {image(vectors.NewLog(nodeclaim.SHA256), "boot", "kernel").Extend(11, []byte("x")), false},
		"PCR 4 with action strings":    {image(vectors.NewLog(nodeclaim.SHA256).Measure(4, vectors.Action, []byte("Calling EFI Application from Boot Option")), "boot"), false},
		"images and a closing message": {image(vectors.NewLog(nodeclaim.SHA256), "boot", "kernel").Measure(5, vectors.Action, []byte("Exit Boot Services Invocation")), true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			f, _ := replay(t, c.log.Raw(), c.log.Quoted(t)).Facts(nodeclaim.SHA256)
			if (f.Kernel != "") != c.want {
				t.Errorf("kernel %q of images %v", f.Kernel, f.BootLoader)
			}
		})
	}
}

func TestEventsForPeopleSayWhatIsConfirmed(t *testing.T) {
	boot := replay(t, vectors.Read(t, "secureboot-on", vectors.EventLog), vectors.Quoted(t, "secureboot-on"))
	texts := map[string]bool{}
	for _, e := range boot.Events(nodeclaim.SHA256) {
		if e.Text != "" {
			texts[e.Text] = e.Confirmed
		}
	}
	want := map[string]bool{
		"variable SecureBoot": true, "variable PK": true, "variable KEK": true, "variable db": true, "variable dbx": true,
		"separator": true, "Calling EFI Application from Boot Option": true, "Exit Boot Services Invocation": true,
		"Exit Boot Services Returned with Success": true, "name of section .linux": true, "name of section .osrel": true,
		"name of section .cmdline": true, "name of section .initrd": true,
		".linux": false, ".osrel": false, ".cmdline": false, ".initrd": false,
	}
	if diff := cmp.Diff(want, texts); diff != "" {
		t.Errorf("texts (-want +got):\n%s", diff)
	}
	if eventlog.EventType(0x42).String() != "0x00000042" {
		t.Error("an unknown type has a name")
	}
}
