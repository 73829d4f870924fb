package eventlog_test

import (
	"crypto/sha256"
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
		"the kernel's stub alone":                                 {initrd(stub(vectors.NewLog(sha256), "quiet")), "quiet\n", "quiet", true, true},
		"another text is offered":                                 {initrd(stub(vectors.NewLog(sha256), "quiet")), "evil", "", true, true},
		"no text is offered":                                      {initrd(stub(vectors.NewLog(sha256), "quiet")), "", "", true, true},
		"one event, which a text confirms":                        {stub(vectors.NewLog(sha256), "quiet"), "quiet", "quiet", true, false},
		"one event, which may be the initrd":                      {initrd(vectors.NewLog(sha256)), "quiet", "", false, false},
		"a unified image without initrd":                          {stub(section(vectors.NewLog(sha256), ".cmdline", "quiet"), "quiet"), "", "", true, false},
		"a unified image whose line was overridden":               {initrd(stub(section(vectors.NewLog(sha256), ".cmdline", "quiet"), "evil")), "quiet", "", true, true},
		"an old kernel in a unified image":                        {initrd(section(section(vectors.NewLog(sha256), ".cmdline", "quiet"), ".initrd", "initrd")), "quiet", "quiet", true, true},
		"an old kernel, and the stub measured another line":       {initrd(section(section(vectors.NewLog(sha256), ".cmdline", "quiet"), ".initrd", "initrd")).Measure(12, vectors.IPL, vectors.UTF16("evil\x00")), "quiet", "", false, true},
		"the initrd stands first, so it is taken for the line":    {stub(initrd(vectors.NewLog(sha256).Measure(12, vectors.IPL, vectors.UTF16("quiet\x00"))), "quiet"), "", "", true, true},
		"systemd-boot's text with the stub's digest":              {initrd(stub(vectors.NewLog(sha256).Measure(12, vectors.IPL, vectors.UTF16("quiet\x00")), "quiet")), "", "quiet", true, true},
		"systemd-boot's entry, whose initrd the kernel may read":  {initrd(stub(vectors.NewLog(sha256).Measure(12, vectors.IPL, vectors.UTF16("initrd=\\x quiet\x00")), "initrd=\\x quiet")), "", "initrd=\\x quiet", true, false},
		"the same, in quotes":                                     {initrd(stub(vectors.NewLog(sha256), `quiet "initrd=\a b"`)), `quiet "initrd=\a b"`, `quiet "initrd=\a b"`, true, false},
		"the same in a unified image, which hands its own over":   {initrd(stub(section(section(vectors.NewLog(sha256), ".linux", "k"), ".initrd", "initrd"), "initrd=\\x")), "initrd=\\x", "initrd=\\x", true, true},
		"the same with the sections of an image that did not run": {initrd(stub(section(section(vectors.NewLog(sha256).Measure(4, vectors.Image, []byte("k")), ".linux", "k"), ".initrd", "initrd"), "initrd=\\x")), "initrd=\\x", "initrd=\\x", true, false},
		"the same with a section of the initrd alone":             {initrd(stub(section(vectors.NewLog(sha256), ".initrd", "initrd"), "initrd=\\x")), "initrd=\\x", "initrd=\\x", true, false},
		"the stub looks inside of words":                          {initrd(stub(vectors.NewLog(sha256), "a.initrd=y")), "a.initrd=y", "a.initrd=y", true, false},
		"more than two events: the initrd is left open":           {initrd(initrd(stub(vectors.NewLog(sha256), "quiet"))), "quiet", "quiet", true, false},
		"a unified image to whose initrd something was added":     {stub(section(vectors.NewLog(sha256), ".initrd", "initrd"), "quiet").Event(9, 6, []byte("initrd and credentials"), nil), "quiet", "quiet", true, true},
		"the same, hidden behind a third measurement":             {stub(section(vectors.NewLog(sha256), ".initrd", "initrd"), "quiet").Event(9, 6, []byte("initrd and credentials"), nil).Event(9, 6, []byte("x"), nil), "quiet", "quiet", true, false},
		"an old kernel, and the stub added credentials":           {section(vectors.NewLog(sha256), ".initrd", "initrd").Measure(12, vectors.IPL, []byte("credentials")), "", "", false, false},
		"an old kernel, and the stub added extensions":            {section(vectors.NewLog(sha256), ".initrd", "initrd").Measure(13, vectors.IPL, []byte("extension")), "", "", false, false},
		"a kernel that measures nothing, and nothing was added":   {section(vectors.NewLog(sha256), ".initrd", "initrd"), "", "", false, true},
		"a kernel that measures nothing, and PCR 13 is unquoted":  {section(vectors.NewLog(sha256), ".initrd", "initrd").Unquote(13), "", "", false, false},
		"an endless text":                                         {initrd(stub(vectors.NewLog(sha256), "quiet")), strings.Repeat("x", eventlog.MaxCommandLine+1), "", true, true},
		"load options in ASCII are another line to the kernel":    {initrd(vectors.NewLog(sha256).Event(9, 6, []byte("quiet"), nil)), "quiet", "", true, true},
		"a text that is not UTF-8":                                {initrd(stub(vectors.NewLog(sha256), "quiet")), "quiet\xff", "", true, true},
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
	action := func(l *vectors.Log, text string) *vectors.Log { return l.Measure(4, vectors.Action, []byte(text)) }
	bare := func() *vectors.Log { return vectors.NewLog(nodeclaim.SHA256) }
	log := func() *vectors.Log { return bare().Measure(4, vectors.Separator, make([]byte, 4)) }
	stub := func(l *vectors.Log) *vectors.Log {
		return l.Event(9, 6, vectors.UTF16("quiet\x00"), nil).Event(9, 6, []byte("initrd"), nil)
	}
	shim := func(l *vectors.Log) *vectors.Log {
		return l.Event(14, vectors.IPL, []byte("its keys"), []byte("MokList\x00"))
	}
	grub := func(l *vectors.Log) *vectors.Log {
		return l.Event(8, vectors.IPL, []byte("linux /vmlinuz"), []byte("grub_cmd: linux /vmlinuz")).Event(9, vectors.IPL, []byte("kernel"), []byte("/vmlinuz"))
	}
	const called = "Calling EFI Application from Boot Option"
	cases := map[string]struct {
		log    *vectors.Log
		kernel string
		loader int // images of the boot attempt
		others int
	}{
		"boot loader, and a kernel whose stub measured":      {stub(image(log(), "boot", "kernel")), "kernel", 2, 0},
		"boot loader and another, and nobody says more":      {image(log(), "boot", "x"), "", 2, 0},
		"shim and GRUB, and nobody says more":                {shim(image(log(), "shim", "grub")), "", 2, 0},
		"shim and GRUB, which starts a kernel unmeasured":    {stub(shim(image(log(), "shim", "grub"))), "", 2, 0},
		"shim, boot loader and kernel":                       {stub(shim(image(log(), "shim", "boot", "kernel"))), "kernel", 3, 0},
		"three loaders, and nobody says more":                {shim(image(log(), "shim", "fallback", "grub")), "", 3, 0},
		"PCR 14 not quoted, so shim may have run":            {stub(image(log(), "shim", "grub").Unquote(14)), "", 2, 0},
		"one image whose stub measured: GRUB may hide it":    {stub(image(log(), "x")), "", 1, 0},
		"one image, measured twice":                          {stub(image(log(), "x", "x")), "", 2, 0},
		"shim and GRUB":                                      {grub(image(log(), "shim", "grub")), "", 2, 0},
		"shim, GRUB and kernel":                              {grub(image(log(), "shim", "grub", "kernel")), "kernel", 3, 0},
		"the same, GRUB of RHEL 8":                           {image(log(), "shim", "grub", "kernel").Event(8, vectors.IPL, []byte("linux /x\x00"), []byte("grub_cmd linux /x\x00")), "kernel", 3, 0},
		"shim, GRUB and a kernel that is measured twice":     {grub(image(log(), "shim", "grub", "kernel", "kernel")), "kernel", 4, 0},
		"shim, GRUB and what it chained to":                  {image(log(), "shim", "grub", "other").Measure(8, vectors.IPL, []byte("chainloader /other")), "", 3, 0},
		"GRUB's command is not what was measured":            {image(log(), "shim", "grub", "other").Event(8, vectors.IPL, []byte("chainloader /x"), []byte("grub_cmd: linux /x")), "", 3, 0},
		"shim, GRUB, kernel, no PCR 8":                       {grub(image(log(), "shim", "grub", "kernel")).Unquote(8), "", 3, 0},
		"PCR 8 not quoted":                                   {stub(image(log(), "boot", "kernel")).Unquote(8), "", 2, 0},
		"PCR 11 not quoted":                                  {stub(image(log(), "boot", "kernel")).Unquote(11), "", 2, 0},
		"PCR 11 extended by others":                          {stub(image(log(), "boot", "kernel")).Extend(11, []byte("x")), "", 2, 0},
		"no separator says where firmware ended":             {stub(image(bare(), "firmware's", "boot")), "", 2, 0},
		"firmware's application before the attempt":          {stub(image(action(image(log(), "a"), called), "boot")), "", 1, 1},
		"the same before the separator":                      {stub(image(action(image(bare(), "a", "b"), called).Measure(4, vectors.Separator, make([]byte, 4)), "boot", "kernel")), "kernel", 2, 2},
		"an attempt before that returned":                    {stub(image(action(action(image(action(log(), called), "pxe", "x"), "Returning from EFI Application from Boot Option"), called), "boot", "kernel")), "kernel", 2, 2},
		"a number names the boot option":                     {stub(image(action(log(), "Booting to Boot0001 Option"), "boot")), "", 1, 0},
		"a high number names it":                             {stub(image(action(log(), "Booting to Boot20AF Option"), "boot")), "", 1, 0},
		"the text of a high number is not what was measured": {stub(image(log().Event(4, vectors.Action, []byte("evil"), []byte("Booting to Boot20AF Option")), "boot")), "boot", 2, 0},
		"a BIOS and its boot sector":                         {stub(image(action(action(log(), "Calling INT 19h"), "Booting BCV device 80h (Hard drive)"), "sector", "x")), "", 2, 0},
		"a second separator, which anybody can append":       {stub(image(image(log(), "evil").Measure(4, vectors.Separator, make([]byte, 4)), "boot", "kernel")), "kernel", 3, 0},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			f, _ := replay(t, c.log.Raw(), c.log.Quoted(t)).Facts(nodeclaim.SHA256)
			want := eventlog.Digest("")
			if c.kernel != "" {
				want = eventlog.NewDigest(nodeclaim.SHA256, digestOf(c.kernel))
			}
			if f.Kernel != want || len(f.BootLoader) != c.loader || len(f.OtherImages) != c.others {
				t.Errorf("kernel %q of images %v, others %v; want %q of %d, others %d", f.Kernel, f.BootLoader, f.OtherImages, want, c.loader, c.others)
			}
		})
	}
}

func digestOf(text string) []byte {
	sum := sha256.Sum256([]byte(text))
	return sum[:]
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
