package reference_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/reference"
	"github.com/keelson-project/keelson/test/vectors"
)

// shimAndGRUB is a machine whose PCR 4 has two loaders, and whose kernel nothing measured.
func shimAndGRUB() *vectors.Log {
	l := vectors.NewLog(nodeclaim.SHA256).Measure(0, 8, []byte("version"))
	for pcr := range 8 {
		if pcr == 7 {
			l.Measure(7, vectors.Variable, vectors.UEFIVariable(vectors.GlobalGUID, "SecureBoot", []byte{0}))
		}
		l.Measure(pcr, vectors.Separator, make([]byte, 4))
	}
	return l.Event(4, vectors.Image, []byte("shimx64.efi"), nil).Event(14, vectors.IPL, []byte("keys"), nil).Event(4, vectors.Image, []byte("grubx64.efi"), nil)
}

// grubMeasures is what GRUB's tpm module measures besides.
func grubMeasures(l *vectors.Log, kernel string) *vectors.Log {
	return l.Event(8, vectors.IPL, []byte("linux /vmlinuz ro"), []byte("grub_cmd: linux /vmlinuz ro")).Event(9, vectors.IPL, []byte(kernel), []byte("/vmlinuz")).
		Event(8, vectors.IPL, []byte("/vmlinuz ro"), []byte("kernel_cmdline: /vmlinuz ro"))
}

func proven(t testing.TB, l *vectors.Log, osExtended ...int) reference.Evidence {
	t.Helper()
	boot, err := eventlog.ReplayBoth(l.Raw(), nil, l.Unquote(10).Quoted(t), osExtended...)
	if err != nil {
		t.Fatal(err)
	}
	return reference.Evidence{Boot: boot, PCRs: l.Quoted(t)}
}

func TestACaptureThatPinsNothingAboutTheKernelIsRefusedUnlessAskedFor(t *testing.T) {
	ev := proven(t, shimAndGRUB())
	_, err := reference.Capture("loaders", ev)
	for _, says := range []string{"would pin nothing about the kernel", "--allow-unpinned-kernel", "kernel: not proven", "unified kernel image", "GRUB with its tpm module"} {
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v does not say %q", err, says)
		}
	}
	s, err := reference.CaptureUnpinned("loaders", ev)
	if err != nil {
		t.Fatal(err)
	}
	if r := s.Check(ev, now); len(r) > 0 || !s.AllowsUnpinnedKernel() || s.PinsKernel() {
		t.Errorf("%v, %s", r, s.Marshal())
	}
	if !strings.Contains(string(s.Marshal()), "unpinnedKernel: allow") || !slices.Contains(s.Describe(), "kernel: any, by unpinnedKernel") {
		t.Errorf("the set does not say that any kernel passes:\n%s", s.Marshal())
	}
	if w := s.KernelWarning(); !strings.Contains(w, "as its unpinnedKernel says") {
		t.Errorf("warning %q", w)
	}
	// Where something pins the kernel after all, nothing is said.
	for name, l := range map[string]*vectors.Log{"GRUB's files": grubMeasures(shimAndGRUB(), "kernel"),
		"a unified image": shimAndGRUB().Measure(11, vectors.IPL, []byte(".linux\x00")).Measure(11, vectors.IPL, []byte("kernel"))} {
		a, err := reference.Capture("x", proven(t, l))
		b, err2 := reference.CaptureUnpinned("x", proven(t, l))
		if err != nil || err2 != nil || string(a.Marshal()) != string(b.Marshal()) || b.AllowsUnpinnedKernel() || a.KernelWarning() != "" {
			t.Errorf("%s: %v, %v, %q", name, err, err2, a.KernelWarning())
		}
	}
}

// grubUntold is a machine whose GRUB has no tpm module: PCR 9 has what the kernel's stub measured, and nothing the kernel.
func grubUntold() *vectors.Log {
	var path []byte
	for _, c := range `\EFI\debian\grubx64.efi` {
		path = append(path, byte(c), 0)
	}
	path = append(append([]byte{4, 4, byte(4 + len(path)), 0}, path...), 0x7F, 0xFF, 4, 0)
	l := vectors.NewLog(nodeclaim.SHA256).Measure(0, 8, []byte("version"))
	for pcr := range 8 {
		if pcr == 7 {
			l.Measure(7, vectors.Variable, vectors.UEFIVariable(vectors.GlobalGUID, "SecureBoot", []byte{0}))
		}
		l.Measure(pcr, vectors.Separator, make([]byte, 4))
	}
	l.Event(4, vectors.Image, []byte("refind"), nil).Event(4, vectors.Image, []byte("grub"), append(append(make([]byte, 24), byte(len(path)), 0, 0, 0, 0, 0, 0, 0), path...))
	return l.Event(9, vectors.IPL, []byte("r\x00o\x00\x00\x00"), nil).Event(9, vectors.IPL, []byte("initrd"), nil)
}

func TestWhatTheKernelsStubMeasuresPinsNoKernelThatALoaderStarted(t *testing.T) {
	ev := proven(t, grubUntold())
	if f, _ := ev.Boot.Facts(nodeclaim.SHA256); f.Kernel != "" || !f.KernelUntold() {
		t.Fatalf("facts: %+v", f)
	}
	if s, err := reference.Capture("untold", ev); err == nil || !strings.Contains(err.Error(), "would pin nothing about the kernel") {
		t.Errorf("any kernel with this command line and initrd passes: %v\n%s", err, s.Marshal())
	}
	s, err := reference.CaptureUnpinned("untold", ev)
	if err != nil {
		t.Fatal(err)
	}
	if r := s.Check(ev, now); len(r) > 0 || !s.AllowsUnpinnedKernel() || s.PinsKernel() || !strings.Contains(s.KernelWarning(), "as its unpinnedKernel says") {
		t.Errorf("%v, %q\n%s", r, s.KernelWarning(), s.Marshal())
	}
}

// Root can append texts and images to PCR 4, so only its exact value makes images before the boot attempt harmless.
func TestThreat08_AnAppendedBootAttemptHidesNoImage(t *testing.T) {
	const called = "Calling EFI Application from Boot Option"
	good := proven(t, grubMeasures(shimAndGRUB(), "kernel"))
	set, err := reference.Capture("good", good)
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(set.Marshal()), "\n      \"4\": ")
	value4, _, _ := strings.Cut(after, "\n")
	open, err := reference.ParseSet([]byte(strings.Replace(string(set.Marshal()), "\n      \"4\": "+value4, "", 1)))
	if err != nil {
		t.Fatal(err)
	}
	if r := open.Check(good, now); len(r) > 0 {
		t.Fatal(r)
	}
	evil := vectors.NewLog(nodeclaim.SHA256).Measure(0, 8, []byte("version"))
	for pcr := range 8 {
		if pcr == 7 {
			evil.Measure(7, vectors.Variable, vectors.UEFIVariable(vectors.GlobalGUID, "SecureBoot", []byte{0}))
		}
		evil.Measure(pcr, vectors.Separator, make([]byte, 4))
	}
	evil.Event(4, vectors.Image, []byte("evil.efi"), nil).Measure(4, vectors.Action, []byte(called)).
		Event(4, vectors.Image, []byte("shimx64.efi"), nil).Event(14, vectors.IPL, []byte("keys"), nil).Event(4, vectors.Image, []byte("grubx64.efi"), nil)
	bad := proven(t, grubMeasures(evil, "kernel"))
	for name, s := range map[string]reference.Set{"PCR 4 pinned": set, "the boot loader alone": open} {
		want := map[string]string{"PCR 4 pinned": "pcr.value", "the boot loader alone": "bootloader.digest"}[name]
		if got := checks(s.Check(bad, now)); !slices.Contains(got, want) {
			t.Errorf("%s: %v, want %s", name, got, want)
		}
	}
}

func TestSetsFromBeforeAreReadAsTheyWereMeant(t *testing.T) {
	build := func() *vectors.Log {
		l := vectors.NewLog(nodeclaim.SHA256).Measure(0, 8, []byte("version")).Event(4, vectors.Image, []byte("firmware's application"), nil)
		l.Measure(7, vectors.Variable, vectors.UEFIVariable(vectors.GlobalGUID, "SecureBoot", []byte{1})).
			Measure(7, vectors.Variable, vectors.UEFIVariable(vectors.GlobalGUID, "AuditMode", []byte{0}))
		for pcr := range 8 {
			l.Measure(pcr, vectors.Separator, make([]byte, 4))
		}
		l.Measure(4, vectors.Action, []byte("Booting to Boot0001 Option")).Event(4, vectors.Image, []byte("shimx64.efi"), nil).Event(4, vectors.Image, []byte("grubx64.efi"), nil)
		return grubMeasures(l, "kernel")
	}
	ev := proven(t, build())
	f, _ := ev.Boot.Facts(nodeclaim.SHA256)
	if len(f.BootLoader) != 2 || len(f.OtherImages) != 1 || len(f.Started()) != 4 || f.Kernel != "" {
		t.Fatalf("facts: %+v", f)
	}
	set, err := reference.Capture("now", ev)
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, d := range f.Started() {
		all.WriteString("    - " + string(d) + "\n")
	}
	var two strings.Builder
	for _, d := range f.BootLoader {
		two.WriteString("    - " + string(d) + "\n")
	}
	text := strings.Replace(string(set.Marshal()), "bootLoader:\n"+two.String(), "bootLoader:\n"+all.String(), 1)
	text = strings.Replace(text, "authorities: []", "authorities: [{variable: AuditMode, digest: "+string(f.ListedAuthorities()[0].Digest)+"}]", 1)
	old, err := reference.ParseSet([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if text == string(set.Marshal()) || len(reference.Diff(set, old)) != 2 {
		t.Fatalf("not as it was before: %v", reference.Diff(set, old))
	}
	if r := old.Check(ev, now); len(r) > 0 {
		t.Errorf("refused: %v", r)
	}
	// GRUB pinned as the kernel pins no kernel, and the refusal says why.
	wrong, err := reference.ParseSet([]byte(strings.Replace(text, "bootLoader:\n", "kernel: ["+string(f.BootLoader[1])+"]\n  bootLoader:\n", 1)))
	if err != nil {
		t.Fatal(err)
	}
	r := wrong.Check(ev, now)
	if diff := cmp.Diff([]string{"kernel.digest"}, checks(r)); diff != "" || !strings.Contains(r[0].Reason, "no boot loader: capture the set again") {
		t.Errorf("got %v", r)
	}
}

func TestAbsentSaysWhatIsNotPinnedAndWhatWouldMeasureIt(t *testing.T) {
	for name, c := range map[string]struct {
		ev   reference.Evidence
		want []string // begins
	}{
		"a unified kernel image": {evidence(t, "good"), nil},
		"shim and GRUB":          {proven(t, shimAndGRUB()), []string{"kernel: not proven", "initrd: not proven", "kernel command line: not proven"}},
		"GRUB's files":           {proven(t, grubMeasures(shimAndGRUB(), "kernel")), []string{"kernel: not proven", "initrd: not proven"}},
		"PCRs that Bottlerocket extends": {proven(t, shimAndGRUB().Extend(8, []byte("x")).Extend(9, []byte("y")), 8, 9),
			[]string{"kernel: not proven", "initrd: not proven", "kernel command line: not proven", "PCR 8: the logs do not lead", "PCR 9: the logs do not lead"}},
		"nothing": {reference.Evidence{}, nil},
	} {
		got := reference.Absent(c.ev)
		if len(got) != len(c.want) {
			t.Errorf("%s: %q", name, got)
			continue
		}
		for i := range got {
			if !strings.HasPrefix(got[i], c.want[i]) {
				t.Errorf("%s: %q does not begin with %q", name, got[i], c.want[i])
			}
		}
	}
}

func TestUnpinnedKernelIsOneWordAndOfOneClass(t *testing.T) {
	s, err := reference.CaptureUnpinned("loaders", proven(t, shimAndGRUB()))
	if err != nil {
		t.Fatal(err)
	}
	text := string(s.Marshal())
	if _, err := reference.ParseSet([]byte(strings.Replace(text, "unpinnedKernel: allow", "unpinnedKernel: yes", 1))); err == nil || !strings.Contains(err.Error(), "use allow") {
		t.Errorf("got %v", err)
	}
	silent, err := reference.ParseSet([]byte(strings.Replace(text, "\n  unpinnedKernel: allow", "", 1)))
	if err != nil {
		t.Fatal(err)
	}
	if w := silent.KernelWarning(); !strings.Contains(w, "capture it again") || silent.AllowsUnpinnedKernel() {
		t.Errorf("warning %q", w)
	}
	if diff := cmp.Diff([]string{"any kernel passes: true -> false"}, reference.Diff(s, silent)); diff != "" {
		t.Error(diff)
	}
	if _, err := reference.Merge("both", s, silent); err == nil || !strings.Contains(err.Error(), "any kernel passes") {
		t.Errorf("got %v", err)
	}
}

// Where the command line has "initrd=" and no unified image ran, nothing proves the initrd: a set that pins it
// refuses, also a node that does not say its command line, and a capture leaves it out.
func TestThreat08_AnInitrdThatTheKernelMayReadItselfIsInNoSet(t *testing.T) {
	const line = `initrd=\x quiet`
	entry := func() *vectors.Log {
		l := shimAndGRUB().Event(4, vectors.Image, []byte("vmlinuz"), nil)
		return l.Measure(9, 6, append(vectors.UTF16(line), 0, 0)).Event(9, 6, []byte("initrd"), nil)
	}
	l := entry()
	boot, err := eventlog.Replay(l.Raw(), l.Quoted(t))
	if err != nil {
		t.Fatal(err)
	}
	quiet := reference.Evidence{Boot: boot, PCRs: l.Quoted(t)}
	told := reference.Evidence{Boot: boot.ConfirmCommandLine(line), PCRs: l.Quoted(t)}
	captured, err := reference.Capture("entry", told)
	if err != nil {
		t.Fatal(err)
	}
	if text := string(captured.Marshal()); strings.Contains(text, "initrd:") {
		t.Errorf("captured:\n%s", text)
	}
	if absent := reference.Absent(told); !slices.ContainsFunc(absent, func(s string) bool {
		return strings.HasPrefix(s, "initrd: not proven") && strings.Contains(s, `but for one that "initrd="`)
	}) {
		t.Errorf("absent: %q", absent)
	}
	f, _ := boot.Facts(nodeclaim.SHA256)
	set, err := reference.ParseSet([]byte(strings.Replace(string(captured.Marshal()), "boot:\n", "boot:\n  initrd: ['"+string(f.Initrd)+"']\n", 1)))
	if err != nil {
		t.Fatal(err)
	}
	for name, ev := range map[string]reference.Evidence{"told": told, "quiet": quiet} {
		if got := set.Check(ev, now); len(got) != 1 || got[0].Check != "kernel.initrd" || !strings.Contains(got[0].Reason, "not proven") {
			t.Errorf("%s: %v", name, got)
		}
		if got := captured.Check(ev, now); len(got) > 0 {
			t.Errorf("%s: the captured set refuses: %v", name, got)
		}
	}
}
