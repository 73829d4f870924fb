package predict_test

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/predict"
	"github.com/keelson-project/keelson/nodeattestor/quote"
	"github.com/keelson-project/keelson/nodeattestor/reference"
	"github.com/keelson-project/keelson/test/vectors"
)

const bank = nodeclaim.SHA256

var (
	stub252 = part{name: ".sdmagic", content: []byte("#### LoaderInfo: systemd-stub 252.39-1 ####")}
	shim    = predict.File{Name: "shim", Data: image(part{name: ".text", content: []byte("shim")})}
	menu    = predict.File{Name: "systemd-boot", Data: image(part{name: ".sdmagic",
		content: []byte("#### LoaderInfo: systemd-boot 255.4 ####")})}
	kernel = predict.File{Name: "vmlinuz", Data: image(part{name: ".text", content: []byte("kernel")})}
)

// machine has what a machine with secure boot off measures before any image.
func machine() *vectors.Log {
	l := vectors.NewLog(bank)
	l.Measure(0, 8, []byte("firmware"))
	l.Measure(7, vectors.Variable, vectors.UEFIVariable(vectors.GlobalGUID, "SecureBoot", []byte{0}))
	l.Measure(7, vectors.Variable, vectors.UEFIVariable(vectors.DatabaseGUID, "dbx", hashList("old")))
	l.Measure(4, vectors.Action, []byte("Calling EFI Application from Boot Option"))
	for pcr := range 8 {
		l.Measure(pcr, vectors.Separator, []byte{0, 0, 0, 0})
	}
	return l
}

func started(t *testing.T, l *vectors.Log, images ...[]byte) {
	t.Helper()
	for _, data := range images {
		// The log takes what was measured; a digest is no preimage, so the image is measured by
		// what Authenticode covers.
		l.Event(4, vectors.Image, covered(data), []byte("path"))
	}
}

// covered is what Authenticode hashes of an image made by image.
func covered(data []byte) []byte {
	return slices.Concat(data[:checksumAt], data[checksumAt+4:certificateAt], data[certificateAt+8:])
}

// unified makes a unified kernel image.
func unified(name string, magic part, more ...part) predict.File {
	parts := append([]part{magic, {name: ".linux", content: kernel.Data}, {name: ".osrel", content: []byte("ID=x\n")},
		{name: ".cmdline", content: []byte("quiet " + name + "\n")}, {name: ".initrd",
			content: []byte("initrd of " + name)}}, more...)
	return predict.File{Name: name, Data: image(parts...)}
}

// bootUnified measures what firmware, systemd-stub 252 and the kernel do with a unified kernel
// image.
func bootUnified(t *testing.T, l *vectors.Log, loaders [][]byte, name string) {
	t.Helper()
	u := unified(name, stub252)
	started(t, l, append(slices.Clone(loaders), u.Data, kernel.Data)...)
	for _, s := range [][2]string{{".linux", string(kernel.Data)}, {".osrel", "ID=x\n"}, {".cmdline",
		"quiet " + name + "\n"}, {".initrd", "initrd of " + name}} {
		l.Measure(11, vectors.IPL, []byte(s[0]+"\x00")).Measure(11, vectors.IPL, []byte(s[1]))
	}
	l.Measure(9, 6, append(vectors.UTF16("quiet "+name), 0, 0)).Measure(9, 6, []byte("initrd of "+name))
}

func hashList(entries ...string) []byte {
	guid := []byte{0x26, 0x16, 0xc4, 0xc1, 0x4c, 0x50, 0x92, 0x40, 0xac, 0xa9, 0x41, 0xf9, 0x36, 0x93, 0x43, 0x28}
	out := binary.LittleEndian.AppendUint32(guid, uint32(28+48*len(entries)))
	out = binary.LittleEndian.AppendUint32(out, 0)
	out = binary.LittleEndian.AppendUint32(out, 48)
	for _, e := range entries {
		entry := make([]byte, 48)
		copy(entry[16:], e)
		out = append(out, entry...)
	}
	return out
}

func base(t *testing.T, l *vectors.Log) predict.Base {
	t.Helper()
	log, err := eventlog.Parse(l.Raw())
	must(t, err)
	b, err := predict.NewBase(log, bank)
	must(t, err)
	return b
}

func evidence(t *testing.T, l *vectors.Log, line string) reference.Evidence {
	t.Helper()
	return evidenceOf(t, l.Raw(), l.Quoted(t), line)
}

func evidenceOf(t *testing.T, raw []byte, pcrs quote.PCRs, line string) reference.Evidence {
	t.Helper()
	boot, err := eventlog.Replay(raw, pcrs)
	must(t, err)
	return reference.Evidence{Boot: boot.ConfirmCommandLine(line), PCRs: pcrs}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// accepted demands that the set made of a prediction accepts the boot that really takes place, and
// that a capture of that boot would have been the same set.
func accepted(t *testing.T, before, after *vectors.Log, lineBefore, lineAfter string,
	changes ...predict.Change) predict.Prediction {
	t.Helper()
	captured, err := reference.Capture("old", evidence(t, before, lineBefore))
	must(t, err)
	p, err := base(t, before).Predict(changes...)
	must(t, err)
	set, notes, err := p.Set(captured, "new", nil)
	must(t, err)
	if len(notes) > 0 {
		t.Errorf("notes: %q", notes)
	}
	later := evidence(t, after, lineAfter)
	if refusals := set.Check(later, time.Now()); len(refusals) > 0 {
		t.Errorf("the boot as it took place is refused: %v", refusals)
	}
	want, err := reference.Capture("new", later)
	must(t, err)
	if got := string(set.Marshal()); got != string(want.Marshal()) {
		t.Errorf("predicted:\n%s\ncaptured:\n%s", got, want.Marshal())
	}
	if d, err := p.Compare(base(t, after)); err != nil || len(d) > 0 {
		t.Errorf("differences: %v, %v", d, err)
	}
	return p
}

func TestUnifiedKernelImageIsPredicted(t *testing.T) {
	for name, loaders := range map[string][]predict.File{"by firmware": nil, "by shim and systemd-boot": {shim, menu}} {
		t.Run(name, func(t *testing.T) {
			var data [][]byte
			for _, f := range loaders {
				data = append(data, f.Data)
			}
			before, after := machine(), machine()
			bootUnified(t, before, data, "one")
			bootUnified(t, after, data, "two")
			accepted(t, before, after, "quiet one", "quiet two", predict.UKI{Loaders: loaders, Image: unified("two",
				stub252)})
		})
	}
}

func TestSystemdBootIsPredicted(t *testing.T) {
	boot := func(l *vectors.Log, line, initrd string) {
		started(t, l, menu.Data, kernel.Data)
		wide := append(vectors.UTF16(line), 0, 0)
		l.Measure(12, vectors.IPL, wide).Measure(9, 6, wide).Measure(9, 6, []byte(initrd))
	}
	before, after := machine(), machine()
	boot(before, "initrd=\\a quiet", "A")
	boot(after, "initrd=\\b initrd=\\c", "BC")
	accepted(t, before, after, "initrd=\\a quiet", "initrd=\\b initrd=\\c", predict.Linux{
		Loaders: []predict.File{menu}, Kernel: kernel, CommandLine: "initrd=\\b initrd=\\c",
		Initrds: []predict.File{{Name: "b", Data: []byte("B")}, {Name: "c", Data: []byte("C")}},
	})
}

// grub is a boot by shim and GRUB, which starts the kernel by the firmware and has its stub
// measure.
func grub(t *testing.T, version, line string) *vectors.Log {
	l := machine()
	grub := image(part{name: ".text", content: []byte("grub")})
	started(t, l, shim.Data, grub, linux(version).Data)
	text := "/vmlinuz-" + version + " " + line
	l.Event(8, vectors.IPL, []byte("linux "+text), []byte("grub_cmd: linux "+text+"\x00"))
	l.Event(8, vectors.IPL, []byte(text), []byte("kernel_cmdline: "+text+"\x00"))
	l.Measure(9, vectors.IPL, config(version, line).Data).Measure(9, vectors.IPL, linux(version).Data).Measure(9,
		vectors.IPL, []byte("initrd"+version))
	l.Measure(9, 6, append(vectors.UTF16("BOOT_IMAGE="+text), 0, 0))
	return l
}

func linux(version string) predict.File {
	return predict.File{Name: "vmlinuz-" + version, Data: image(part{name: ".text",
		content: []byte("kernel " + version)})}
}

func config(version, line string) predict.File {
	return predict.File{Name: version + "/grub.cfg", Data: fmt.Appendf(nil, "linux /vmlinuz-%s %s\n", version, line)}
}

func grubChange() predict.GRUB {
	return predict.GRUB{
		Files: []predict.Replacement{
			{Old: linux("6.1"), New: linux("6.2")}, {Old: config("6.1", "quiet"), New: config("6.2", "quiet splash")},
			{Old: predict.File{Name: "initrd-6.1", Data: []byte("initrd6.1")}, New: predict.File{Name: "initrd-6.2",
				Data: []byte("initrd6.2")}},
		},
		Texts: []predict.Substitution{{Old: "6.1", New: "6.2"}, {Old: "quiet", New: "quiet splash"}},
	}
}

func TestGRUBIsPredictedByWhatChanges(t *testing.T) {
	before, after := grub(t, "6.1", "quiet"), grub(t, "6.2", "quiet splash")
	p := accepted(t, before, after, "", "", grubChange())
	if want := "/vmlinuz-6.2 quiet splash"; p.CommandLine != want {
		t.Errorf("command line %q, want %q", p.CommandLine, want)
	}
}

func TestDBXUpdateIsPredicted(t *testing.T) {
	forbid := func(dbx []byte) *vectors.Log {
		l := vectors.NewLog(bank)
		l.Measure(0, 8, []byte("firmware")).Measure(7, vectors.Variable, vectors.UEFIVariable(vectors.GlobalGUID,
			"SecureBoot", []byte{0}))
		l.Measure(7, vectors.Variable, vectors.UEFIVariable(vectors.DatabaseGUID, "dbx", dbx)).Measure(4,
			vectors.Action, []byte("Calling EFI Application from Boot Option"))
		for pcr := range 8 {
			l.Measure(pcr, vectors.Separator, []byte{0, 0, 0, 0})
		}
		bootUnified(t, l, nil, "one")
		return l
	}
	before := forbid(hashList("old"))
	after := forbid(append(hashList("old"), hashList("new")...))
	header := append(make([]byte, 16), 24+8, 0, 0, 0, 0, 2, 0xF1, 0x0E, 0x9d, 0xd2, 0xaf, 0x4a, 0xdf, 0x68, 0xee,
		0x49, 0x8a, 0xa9, 0x34, 0x7d, 0x37, 0x56, 0x65, 0xa7)
	header = append(header, "PKCS #7!"...)
	for name, x := range map[string]predict.DBX{
		"content":              {Content: append(hashList("old"), hashList("new")...)},
		"content of efivarfs":  {Content: slices.Concat([]byte{0x27, 0, 0, 0}, hashList("old"), hashList("new"))},
		"update":               {Update: hashList("old", "new")},
		"authenticated update": {Update: append(header, hashList("old", "new")...)},
		"update in two lists":  {Update: append(hashList("old"), hashList("new")...)},
	} {
		t.Run(name, func(t *testing.T) {
			accepted(t, before, after, "quiet one", "quiet one", x)
		})
	}
}

func TestWhatCannotBePredictedIsNamed(t *testing.T) {
	uki := machine()
	bootUnified(t, uki, nil, "one")
	empty := vectors.NewLog(bank)
	empty.Measure(0, 8, []byte("firmware"))
	other := grubChange()
	other.Files[1].New.Data = append(other.Files[1].New.Data, "reboot\n"...)
	several := grub(t, "6.1", "quiet")
	several.Event(9, 6, []byte("both initrds"), []byte("\xec\x22\x3b\x8f\x0d\x00\x00\x00Linux initrd\x00"))
	for name, c := range map[string]struct {
		before *vectors.Log
		change predict.Change
		pcr    int
		says   string
	}{
		"a device tree that hardware chooses": {uki, predict.UKI{Image: unified("two", part{name: ".sdmagic",
			content: []byte("#### LoaderInfo: systemd-stub 257 ####")}, part{name: ".dtbauto",
			content: []byte("tree")})}, 11, "fits the machine's hardware"},
		"secure boot unknown": {empty, predict.UKI{Image: unified("two", stub252)}, 4,
			"does not say whether secure boot is on"},
		"another GRUB configuration": {grub(t, "6.1", "quiet"), other, 8,
			"differs from 6.1/grub.cfg by more than the texts"},
		"an initrd that GRUB made": {several, grubChange(), 9, "GRUB made it of several"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := base(t, c.before).Predict(c.change)
			must(t, err)
			if !strings.Contains(p.Unknown[c.pcr], c.says) {
				t.Errorf("PCR %d: %q, want %q", c.pcr, p.Unknown[c.pcr], c.says)
			}
			if _, has := p.PCRs[c.pcr]; has {
				t.Errorf("PCR %d has a value all the same", c.pcr)
			}
		})
	}
}

func TestUnknownPCRsAreInNoSet(t *testing.T) {
	before := grub(t, "6.1", "quiet")
	captured, err := reference.Capture("old", evidence(t, before, ""))
	must(t, err)
	other := grubChange()
	other.Files[1].New.Data = append(other.Files[1].New.Data, "reboot\n"...)
	p, err := base(t, before).Predict(other)
	must(t, err)
	set, notes, err := p.Set(captured, "new", nil)
	must(t, err)
	text := string(set.Marshal())
	if strings.Contains(text, "\"8\":") || strings.Contains(text, "commandLine:") || strings.Contains(text,
		" kernel:") {
		t.Errorf("the set pins what is not known:\n%s", text)
	}
	if len(notes) < 2 || !strings.HasPrefix(notes[0], "PCR 8 is not pinned: ") {
		t.Errorf("notes: %q", notes)
	}
}

func TestRefusedPredictions(t *testing.T) {
	uki := machine()
	bootUnified(t, uki, nil, "one")
	one := unified("one", stub252)
	magic := func(text string) part { return part{name: ".sdmagic", content: []byte(text)} }
	unread := grubChange()
	unread.Files[0].Old.Data = image(part{name: ".text", content: []byte("another")})
	untold := grubChange()
	untold.Texts = append(untold.Texts, predict.Substitution{Old: "never", New: "x"})
	forbidden := authenticode(t, unified("two", stub252).Data)
	for name, c := range map[string]struct {
		before  *vectors.Log
		changes []predict.Change
		says    string
	}{
		"nothing": {uki, nil, "nothing changes"},
		"no image": {uki, []predict.Change{predict.UKI{Image: predict.File{Name: "x",
			Data: []byte("text")}}}, "x: predict: not an EFI image"},
		"no kernel":       {uki, []predict.Change{predict.UKI{Image: shim}}, "no section .linux"},
		"no such profile": {uki, []predict.Change{predict.UKI{Image: one, Profile: 2}}, "no profile 2"},
		"stub of unknown version": {uki, []predict.Change{predict.UKI{Image: unified("x", part{name: ".text",
			content: []byte("y")})}}, "does not say what version"},
		"newer stub": {uki, []predict.Change{predict.UKI{Image: unified("x",
			magic("#### LoaderInfo: systemd-stub 300 ####"))}}, "systemd-stub 300 is not among those"},
		"older stub": {uki, []predict.Change{predict.UKI{Image: unified("x",
			magic("#### LoaderInfo: systemd-stub 249 ####"))}}, "systemd-stub 249 is not among those"},
		"loader that is no image": {uki, []predict.Change{predict.UKI{Loaders: []predict.File{{Name: "l"}},
			Image: one}}, "l: predict: not an EFI image"},
		"loaders of unknown kind": {uki, []predict.Change{predict.Linux{Loaders: []predict.File{shim, shim},
			Kernel: kernel}}, "none of the loaders says"},
		"GRUB did not run":       {uki, []predict.Change{grubChange()}, "GRUB measured no command"},
		"file that was not read": {grub(t, "6.1", "quiet"), []predict.Change{unread}, "neither read this file"},
		"text that was not told": {grub(t, "6.1", "quiet"), []predict.Change{untold}, "was not told \"never\""},
		"empty text": {grub(t, "6.1", "quiet"),
			[]predict.Change{predict.GRUB{Texts: []predict.Substitution{{}}}}, "is empty"},
		"dbx twice": {uki, []predict.Change{predict.DBX{Content: []byte{}, Update: []byte{}}},
			"give either"},
		"dbx not at all": {uki, []predict.Change{predict.DBX{}}, "give either"},
		"dbx of other bytes": {uki, []predict.Change{predict.DBX{Content: []byte("these are no lists at all")}},
			"is cut"},
		"dbx update of other ones": {uki, []predict.Change{predict.DBX{Update: hashList("a")[:40]}},
			"the update: predict: signature list"},
		"dbx too large": {uki, []predict.Change{predict.DBX{Update: make([]byte, predict.MaxDBX+1)}},
			"more than the"},
		"image that dbx forbids": {uki, []predict.Change{predict.UKI{Image: unified("two", stub252)},
			predict.DBX{Update: hashList(string(forbidden))}}, "two: the new dbx forbids this image"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := base(t, c.before).Predict(c.changes...); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %q", err, c.says)
			}
		})
	}
}

func TestSetOfAnotherBootIsRefused(t *testing.T) {
	one, two := machine(), machine()
	bootUnified(t, one, nil, "one")
	bootUnified(t, two, nil, "two")
	captured, err := reference.Capture("two", evidence(t, two, "quiet two"))
	must(t, err)
	p, err := base(t, one).Predict(predict.UKI{Image: unified("three", stub252)})
	must(t, err)
	if _, _, err := p.Set(captured, "three", nil); err == nil || !strings.Contains(err.Error(),
		"the set is of another boot") {
		t.Errorf("%v", err)
	}
}

func TestCompareNamesTheFirstDifference(t *testing.T) {
	one := machine()
	bootUnified(t, one, nil, "one")
	p, err := base(t, one).Predict(predict.UKI{Image: unified("two", stub252)})
	must(t, err)
	differences, err := p.Compare(base(t, one))
	must(t, err)
	var pcrs []int
	for _, d := range differences {
		pcrs = append(pcrs, d.PCR)
	}
	if want := []int{4, 9, 11}; !slices.Equal(pcrs, want) {
		t.Errorf("PCRs %v differ, want %v: %v", pcrs, want, differences)
	}
	if s := differences[1].String(); !strings.Contains(s, "PCR 9: event 1: predicted sha256:") || !strings.Contains(s,
		"command line, by the kernel's stub") {
		t.Errorf("%q", s)
	}
}

// The measured boots' files are not there, but their command lines are, and what else is known of
// them.
func TestCommandLinesOfMeasuredBoots(t *testing.T) {
	for _, name := range vectors.Boots() {
		log, err := eventlog.Parse(vectors.Read(t, name, vectors.EventLog))
		must(t, err)
		b, err := predict.NewBase(log, bank)
		must(t, err)
		line := strings.TrimSuffix(string(vectors.Read(t, name, "cmdline.txt")), "\n")
		image := predict.File{Name: "unified", Data: imageWith(line)}
		p, err := b.Predict(predict.UKI{Image: image})
		must(t, err)
		differences, err := p.Compare(b)
		must(t, err)
		for _, d := range differences {
			if d.PCR == 9 && d.Event == 1 {
				t.Errorf("%s: %v", name, d)
			}
			if d.PCR == 12 || d.PCR == 13 {
				t.Errorf("%s: %v", name, d)
			}
		}
	}
}

func imageWith(line string) []byte {
	return image(stub252, part{name: ".linux", content: kernel.Data}, part{name: ".cmdline", content: []byte(line)},
		part{name: ".initrd", content: []byte("x")})
}

func FuzzDBX(f *testing.F) {
	l := vectors.NewLog(bank)
	l.Measure(7, vectors.Variable, vectors.UEFIVariable(vectors.GlobalGUID, "SecureBoot", []byte{0}))
	l.Measure(7, vectors.Variable, vectors.UEFIVariable(vectors.DatabaseGUID, "dbx", hashList("old"))).Measure(7,
		vectors.Separator, []byte{0, 0, 0, 0})
	log, err := eventlog.Parse(l.Raw())
	if err != nil {
		f.Fatal(err)
	}
	b, err := predict.NewBase(log, bank)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(hashList("old", "new"), true)
	f.Add(hashList(), false)
	f.Fuzz(func(t *testing.T, data []byte, update bool) {
		x := predict.DBX{Content: data}
		if update {
			x = predict.DBX{Update: data}
		}
		p, err := b.Predict(x)
		if err == nil && p.PCRs[7] == nil {
			t.Error("no error, and no PCR 7")
		}
	})
}

func recorded(t *testing.T, dir string) predict.Base {
	t.Helper()
	log, err := eventlog.Parse(vectors.ReadFile(t, dir, vectors.EventLog))
	must(t, err)
	b, err := predict.NewBase(log, bank)
	must(t, err)
	return b
}

// Of recorded updates the files are not there, but the command line is, and a dbx in the log.
func TestRecordedUpdatesOfGRUB(t *testing.T) {
	for before, after := range map[string]string{"loader-boots/grub": "loader-boots/grub-update",
		"loader-boots/grub-secure-boot": "loader-boots/grub-secure-boot-update"} {
		b := recorded(t, before)
		p, err := b.Predict(predict.GRUB{Texts: []predict.Substitution{{Old: "ima_hash=sha256",
			New: "ima_hash=sha256 a=b"}}})
		must(t, err)
		differences, err := p.Compare(recorded(t, after))
		must(t, err)
		for _, d := range differences {
			if d.PCR == 8 {
				t.Errorf("%s: %v", after, d)
			}
		}
		if want := vectors.Expect(t, after).Text; p.CommandLine != want {
			t.Errorf("%s: command line %q, want %q", after, p.CommandLine, want)
		}
	}
}

// A command that changes stands in a file, or hangs on one. Where none is replaced, PCR 9 is not known.
func TestCommandsChangeWithTheFilesThatHoldThem(t *testing.T) {
	texts := []predict.Substitution{{Old: "ima_hash=sha256", New: "ima_hash=sha256 a=b"}}
	b := recorded(t, "loader-boots/grub")
	p, err := b.Predict(predict.GRUB{Texts: texts})
	must(t, err)
	if why := p.Unknown[9]; !strings.Contains(why, "grub.cfg") || !strings.Contains(why, "replace it beside the texts") {
		t.Errorf("PCR 9 is taken over: %q", why)
	}
	before := base(t, grub(t, "6.1", "quiet"))
	p, err = before.Predict(grubChange())
	must(t, err)
	if why := p.Unknown[9]; why != "" {
		t.Errorf("with its configuration replaced: %q", why)
	}
}

func TestUpdateOfARealDBX(t *testing.T) {
	b := recorded(t, "loader-boots/grub-secure-boot")
	p, err := b.Predict(predict.DBX{Update: hashList()})
	must(t, err)
	if d, err := p.Compare(b); err != nil || len(d) > 0 {
		t.Errorf("an update without an entry: %v, %v", d, err)
	}
	p, err = b.Predict(predict.DBX{Update: hashList("new")})
	must(t, err)
	d, err := p.Compare(b)
	if err != nil || len(d) != 1 || d[0].PCR != 7 || d[0].Event != 5 {
		t.Errorf("an update: %v, %v", d, err)
	}
}
