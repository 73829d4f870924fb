package reference_test

import (
	"path"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/reference"
	"github.com/keelson-project/keelson/test/vectors"
)

var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// evidence proves a measured boot.
func evidence(t testing.TB, name string) reference.Evidence {
	t.Helper()
	quoted := vectors.Quoted(t, name)
	boot, err := eventlog.Replay(vectors.Read(t, name, vectors.EventLog), quoted)
	if err != nil {
		t.Fatal(err)
	}
	r := ima.NewReplayer(quoted, ima.Options{})
	if _, err := r.Write(vectors.Read(t, name, vectors.IMALog)); err != nil {
		t.Fatal(err)
	}
	res, err := r.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return reference.Evidence{Boot: boot.ConfirmCommandLine(string(vectors.Read(t, name, "cmdline.txt"))), PCRs: quoted, IMA: &res}
}

func capture(t testing.TB, name string) reference.Set {
	t.Helper()
	s, err := reference.Capture(name, evidence(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// edited is the captured set of a boot with its text changed; each pair is old and new.
func edited(t testing.TB, name string, pairs ...string) reference.Set {
	t.Helper()
	text := string(capture(t, name).Marshal())
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) {
			t.Fatalf("the set has no %q:\n%s", pairs[i], text)
		}
		text = strings.Replace(text, pairs[i], pairs[i+1], 1)
	}
	s, err := reference.ParseSet([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func checks(r nodeclaim.Refusals) []string {
	out := []string{}
	for _, x := range r {
		out = append(out, x.Check)
	}
	return out
}

func TestMeasuredBootsAgainstCapturedSets(t *testing.T) {
	for _, name := range vectors.Boots() {
		for set, want := range vectors.Expect(t, path.Join("measured-boots", name)).Against {
			t.Run(name+" against "+set, func(t *testing.T) {
				got := capture(t, set).Check(evidence(t, name), now)
				if diff := cmp.Diff(want, checks(got)); diff != "" {
					t.Errorf("checks (-want +got):\n%s\n%v", diff, got)
				}
				for _, r := range got {
					if !strings.Contains(r.Reason, "reference set "+set) {
						t.Errorf("reason does not name the set: %s", r.Reason)
					}
				}
			})
		}
	}
}

func TestReasonsAreInAPersonsWords(t *testing.T) {
	cases := map[string]struct {
		set, boot string
		want      string
	}{
		"the command line, and what was added": {"good", "cmdline", `kernel command line is "console=ttyS0 quiet loglevel=4 panic=-1 rootfstype=ramfs ima_policy=tcb ima_hash=sha256 probe_urls=http://10.0.2.2:18081/,http://10.0.2.2:18082/,http://10.0.2.100:18081/ evil=1", reference set good has "console=ttyS0 quiet loglevel=4 panic=-1 rootfstype=ramfs ima_policy=tcb ima_hash=sha256 probe_urls=http://10.0.2.2:18081/,http://10.0.2.2:18082/,http://10.0.2.100:18081/"; added: "evil=1"`},
		"secure boot":                          {"good", "secureboot-on", "secure boot is enabled, reference set good has disabled"},
		"the script":                           {"ima-payload-a", "ima-payload-b", "script /tmp/payload.sh has digest sha256:e4170789b444257bc3d815052fc45f3791812ea00d39a5ab19023028c91b8630, reference set ima-payload-a allows sha256:b2b6c97567f1e52ad6210d34935f95033c40e20af322234dbb678a507220fc60"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got := capture(t, c.set).Check(evidence(t, c.boot), now)
			if len(got) == 0 || got[0].Reason != c.want {
				t.Errorf("got  %v\nwant %s", got, c.want)
			}
		})
	}
}

func TestACommandLineWithoutTextIsComparedByDigest(t *testing.T) {
	ev := evidence(t, "cmdline")
	boot, err := eventlog.Replay(vectors.Read(t, "cmdline", vectors.EventLog), ev.PCRs)
	if err != nil {
		t.Fatal(err)
	}
	ev.Boot = boot // nobody offered a text
	got := capture(t, "good").Check(ev, now)
	if len(got) == 0 || !strings.Contains(got[0].Reason, "kernel command line has digest sha256:0beda55d") {
		t.Errorf("got %v", got)
	}
	set, err := reference.Capture("cmdline", ev)
	if err != nil {
		t.Fatal(err)
	}
	if refusals := set.Check(evidence(t, "cmdline"), now); len(refusals) > 0 {
		t.Errorf("a set with the digest refuses the boot whose text is known: %v", refusals)
	}
	if refusals := set.Check(evidence(t, "good"), now); len(refusals) == 0 || refusals[0].Check != "kernel.cmdline" {
		t.Errorf("a set with the digest accepts another line: %v", refusals)
	}
}

func TestEveryPinIsCompared(t *testing.T) {
	zero64 := strings.Repeat("0", 64)
	cases := map[string]struct {
		edit  []string
		want  string
		check string
	}{
		"secure boot wanted":          {[]string{"state: disabled", "state: enabled"}, "secure boot is disabled, reference set good has enabled", "secureboot.state"},
		"another platform key":        {[]string{"pk: sha256:dea7", "pk: sha256:0000"}, "platform key (PK) differ", "secureboot.keys"},
		"another dbx":                 {[]string{"dbx: sha256:9f75", "dbx: sha256:0000"}, "(dbx) differ", "secureboot.keys"},
		"a signer":                    {[]string{"authorities: []", "authorities: [{variable: db, digest: 'sha256:" + zero64 + "'}]"}, "let in by no signer", "secureboot.authority"},
		"another firmware":            {[]string{"- sha256:f4f0c", "- sha256:00000"}, "firmware measurement 2 of 3 has digest sha256:f4f0c", "firmware.digest"},
		"one firmware more":           {[]string{"  bootLoader:\n", "    - sha256:" + zero64 + "\n  bootLoader:\n"}, "the number of firmware measurements is 3, reference set good has 4", "firmware.digest"},
		"another boot loader":         {[]string{"- sha256:1b12f", "- sha256:00000"}, "boot loader image 1 of 2 has digest sha256:1b12f", "bootloader.digest"},
		"another kernel":              {[]string{"- sha256:51349", "- sha256:00000"}, "kernel has digest sha256:51349", "kernel.digest"},
		"another initrd":              {[]string{"- sha256:9e3ef", "- sha256:00000"}, "initrd has digest sha256:9e3ef", "kernel.initrd"},
		"another PCR 14":              {[]string{`"14": "0000`, `"14": "0001`}, "PCR 14 (sha256) is " + zero64, "pcr.value"},
		"a PCR that was not quoted":   {[]string{`"14": "` + zero64, `"16": "` + zero64}, "PCR 16 (sha256) was not quoted, reference set good pins it", "pcr.unquoted"},
		"a bank that was not quoted":  {[]string{"pcrs:\n", "pcrs:\n    sha1: {'4': '" + zero64[:40] + "'}\n"}, "PCR 4 (sha1) was not quoted", "pcr.unquoted"},
		"a file with another digest":  {[]string{"sha256:3d9f2", "sha256:00000"}, "file /bin/busybox has digest sha256:3d9f2", "ima.file"},
		"a kernel module that is new": {[]string{"/modules/virtio.ko:", "/modules/other.ko:"}, "kernel module /modules/virtio.ko has digest sha256:3e4e318d2a961f1bde18e2e404bb1ac0a8e83b65c28dd5290543bce6b96e3f47, reference set good does not have that path (a file with that digest is allowed as /modules/other.ko)", "ima.file"},
		"a file that is required":     {[]string{"  files:\n", "  files:\n    /usr/bin/containerd: ['sha256:" + zero64 + "']\n", "violations: deny", "required: [/usr/bin/containerd]\n  violations: deny"}, "file /usr/bin/containerd was not measured, reference set good requires it", "ima.required"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got := edited(t, "good", c.edit...).Check(evidence(t, "good"), now)
			if len(got) != 1 || got[0].Check != c.check || !strings.Contains(got[0].Reason, c.want) {
				t.Errorf("got %v\nwant %s: … %s …", got, c.check, c.want)
			}
		})
	}
}

func TestAlternativesAndIgnoredDirectories(t *testing.T) {
	zero := "sha256:" + strings.Repeat("0", 64)
	cases := map[string][]string{
		"another kernel may run too":       {"kernel:\n", "kernel:\n    - " + zero + "\n"},
		"another initrd may run too":       {"initrd:\n", "initrd:\n    - " + zero + "\n"},
		"another command line may be used": {"commandLine:\n", "commandLine:\n    - text: other\n"},
		"a file may have another digest":   {"/init:\n", "/init:\n      - " + zero + "\n"},
		"a directory is not looked at":     {"/modules/virtio.ko:", "/x:", "violations: deny", "ignoreDirectories: [/modules]\n  violations: deny"},
	}
	for name, edit := range cases {
		t.Run(name, func(t *testing.T) {
			if got := edited(t, "good", edit...).Check(evidence(t, "good"), now); len(got) > 0 {
				t.Errorf("refused: %v", got)
			}
		})
	}
	// What only begins like the directory is not in it.
	got := edited(t, "good", "/modules/virtio.ko:", "/x:", "violations: deny", "ignoreDirectories: [/mod]\n  violations: deny").Check(evidence(t, "good"), now)
	if len(got) != 1 {
		t.Errorf("/mod stands for /modules too: %v", got)
	}
}

func TestIMAEntriesThatNoListMayLetThrough(t *testing.T) {
	ev := evidence(t, "good")
	with := func(e ...ima.Entry) reference.Evidence {
		res := *ev.IMA
		res.Entries = append(append([]ima.Entry{}, res.Entries...), e...)
		return reference.Evidence{Boot: ev.Boot, PCRs: ev.PCRs, IMA: &res}
	}
	set := edited(t, "good", "violations: deny", "ignoreDirectories: [/var/]\n  violations: deny")
	listed := edited(t, "good", "violations: deny", "ignoreDirectories: [/var/]\n  violations: deny", "  files:\n", "  files:\n    /var/lib/tool: ['sha256:"+strings.Repeat("0", 64)+"']\n")
	other := "sha256:" + strings.Repeat("ab", 32)
	var many []ima.Entry
	for i := range 500 {
		many = append(many, ima.Entry{Path: "/x" + strings.Repeat("y", i), Digest: other})
	}
	cases := map[string]struct {
		ev    reference.Evidence
		set   reference.Set
		count int
		want  string
	}{
		"a violation":                            {with(ima.Entry{Index: 14, Path: "/etc/passwd", Violation: true}), set, 1, `IMA entry 14 is a violation: a file was changed while it was measured (the node names "/etc/passwd"), reference set good denies violations`},
		"a violation in an ignored directory":    {with(ima.Entry{Path: "/var/x", Violation: true}), set, 1, "is a violation"},
		"a violation called boot_aggregate":      {with(ima.Entry{Path: "boot_aggregate", Violation: true}), set, 1, "is a violation"},
		"a path that climbs out of a directory":  {with(ima.Entry{Path: "/var/../bin/x", Digest: other}), set, 1, "file /var/../bin/x"},
		"a good file elsewhere":                  {with(ima.Entry{Path: "/tmp/busybox", Digest: "sha256:3d9f2889d6782537624a4e1a10e68a2ddd53e0ee8bac02676f27308f42ec6bf6"}), set, 1, "is allowed as /bin/busybox"},
		"a fs-verity digest in a file's place":   {with(ima.Entry{Path: "/init", Digest: "verity:sha256:9b3293f06ad44a37837640aaf0857d1b0cfd3864915e9ee8c3f77c05beea61bc"}), set, 1, "has digest verity:sha256"},
		"a path with control characters":         {with(ima.Entry{Path: "/a\x1b[2Jb", Digest: other}), set, 1, `"/a\x1b[2Jb"`},
		"five hundred files are not all told":    {with(many...), set, 21, "has digest"},
		"the same file again is told once":       {with(many[0], many[0]), set, 1, "has digest"},
		"a listed file in an ignored directory":  {with(ima.Entry{Path: "/var/lib/tool", Digest: other}), listed, 1, "file /var/lib/tool has digest " + other},
		"a kernel that kexec started":            {with(ev.IMA.Entries[0]), set, 1, "IMA entry 0 is another boot_aggregate: the running kernel was started by kexec"},
		"two such kernels are told once":         {with(ev.IMA.Entries[0], ev.IMA.Entries[0]), set, 1, "kexec"},
		"no list":                                {reference.Evidence{Boot: ev.Boot, PCRs: ev.PCRs}, set, 1, "no measured file is proven"},
		"an empty list":                          {reference.Evidence{Boot: ev.Boot, PCRs: ev.PCRs, IMA: &ima.Result{}}, set, 1, "no measured file is proven"},
		"an allowed violation, as a set says so": {with(ima.Entry{Path: "/etc/passwd", Violation: true}), edited(t, "good", "violations: deny", "violations: allow"), 0, ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got := c.set.Check(c.ev, now)
			if len(got) != c.count || c.count > 0 && !strings.Contains(got[0].Reason, c.want) {
				t.Errorf("%d refusals, want %d with %q: %v", len(got), c.count, c.want, got)
			}
		})
	}
}

// grubBoot is a machine that booted through shim and GRUB; commands and files are what GRUB measured.
func grubBoot(t testing.TB, commands, files []string) reference.Evidence {
	t.Helper()
	l := vectors.NewLog(nodeclaim.SHA256).Measure(0, vectors.IPL, []byte("firmware")).Measure(2, vectors.IPL, []byte("driver"))
	for _, image := range []string{"shim", "grub", "kernel"} {
		l.Event(4, vectors.Image, []byte(image), nil)
	}
	for _, c := range commands {
		l.Measure(8, vectors.IPL, []byte(c))
	}
	for _, f := range files {
		l.Event(9, vectors.IPL, []byte(f), nil)
	}
	quoted := l.Quoted(t)
	boot, err := eventlog.Replay(l.Raw(), quoted)
	if err != nil {
		t.Fatal(err)
	}
	return reference.Evidence{Boot: boot, PCRs: quoted}
}

func TestThreat08_WhatGRUBMeasuredIsNotReplacedByWhatRootAppends(t *testing.T) {
	good := grubBoot(t, []string{"linux /vmlinuz quiet", "/vmlinuz quiet"}, []string{"kernel"})
	// The kernel was started in another way, with another line; the good one was appended after boot.
	evil := grubBoot(t, []string{"chainloader /vmlinuz init=/evil", "linux /vmlinuz quiet", "/vmlinuz quiet"}, []string{"kernel"})
	whole, err := reference.Capture("grub", good)
	if err != nil {
		t.Fatal(err)
	}
	text := string(whole.Marshal())
	if !strings.Contains(text, "text: /vmlinuz quiet") {
		t.Fatalf("the command line is not proven:\n%s", text)
	}
	if got := whole.Check(good, now); len(got) > 0 {
		t.Errorf("the good boot is refused: %v", got)
	}
	if got := whole.Check(evil, now); len(got) != 1 || !strings.Contains(got[0].Reason, "PCR 8") {
		t.Errorf("got %v, want a refusal by PCR 8", got)
	}
	var components []string // without exact values, but for PCR 2
	for line := range strings.Lines(text) {
		if key := strings.TrimSpace(line); !strings.HasPrefix(key, `"`) || strings.HasPrefix(key, `"2":`) {
			components = append(components, line)
		}
	}
	set, err := reference.ParseSet([]byte(strings.Join(components, "")))
	if err != nil {
		t.Fatal(err)
	}
	if got := set.Check(evil, now); len(got) != 1 || got[0].Check != "bootloader.scripted" {
		t.Errorf("got %v, want a refusal by bootloader.scripted", got)
	}
	var condition []string
	for _, line := range components {
		if !strings.Contains(line, "commandLine:") && !strings.Contains(line, "- text:") {
			condition = append(condition, line)
		}
	}
	condition = append(condition, "conditions: [{expr: '\"quiet\" in kernel.args', message: it must be quiet}]\n")
	if set, err = reference.ParseSet([]byte(strings.Join(condition, ""))); err != nil {
		t.Fatal(err)
	}
	if got := set.Check(evil, now); len(got) != 1 || got[0].Check != "bootloader.scripted" {
		t.Errorf("got %v for a condition, want a refusal by bootloader.scripted", got)
	}
}

func TestMatchTakesTheFirstSetThatAcceptsAndElseTellsTheNearest(t *testing.T) {
	good, line, payload := capture(t, "good"), capture(t, "cmdline"), capture(t, "ima-payload-a")
	sets, err := reference.NewSets(payload, good, line)
	if err != nil {
		t.Fatal(err)
	}
	set, refusals := sets.Match(evidence(t, "good-repeat"), now)
	if set.Name() != "good" || len(refusals) != 0 || !set.ChecksIMA() || set.Bank() != nodeclaim.SHA256 {
		t.Errorf("matched %q, %v", set.Name(), refusals)
	}
	set, refusals = sets.Match(evidence(t, "ima-payload-b"), now)
	if set.Name() != "" || len(refusals) != 1 || !strings.Contains(refusals[0].Reason, "reference set ima-payload-a") {
		t.Errorf("matched %q, nearest %v", set.Name(), refusals)
	}
	if _, err := reference.NewSets(good, good); err == nil {
		t.Error("two sets of one name were taken")
	}
	if _, err := reference.NewSets(reference.Set{}); err == nil {
		t.Error("a set without a name was taken")
	}
}

func TestThreat22_NothingIsTrustedWithoutAValidSet(t *testing.T) {
	ev := evidence(t, "good")
	dated := func(lines string) reference.Set { return edited(t, "good", "name: good\n", "name: good\n"+lines) }
	before, after := now.Add(-time.Hour).Format(time.RFC3339), now.Add(time.Hour).Format(time.RFC3339)
	cases := map[string]struct {
		sets  reference.Sets
		ev    reference.Evidence
		now   time.Time
		check string
	}{
		"no set":                    {nil, ev, now, "reference.none"},
		"a set that nobody parsed":  {reference.Sets{{}}, ev, now, "reference.none"},
		"an expired set":            {reference.Sets{dated("notAfter: " + before + "\n")}, ev, now, "reference.expired"},
		"a set that ends right now": {reference.Sets{dated("notAfter: " + now.Format(time.RFC3339) + "\n")}, ev, now, "reference.expired"},
		"a set of the future":       {reference.Sets{dated("notBefore: " + after + "\n")}, ev, now, "reference.notyet"},
		"an unknown time":           {reference.Sets{capture(t, "good")}, ev, time.Time{}, "reference.time"},
		"evidence that proves no bank of the set": {reference.Sets{edited(t, "good", "\nima:", "\nima:")},
			reference.Evidence{PCRs: ev.PCRs, IMA: ev.IMA}, now, "reference.bank"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			set, refusals := c.sets.Match(c.ev, c.now)
			if set.Name() != "" || len(refusals) != 1 || refusals[0].Check != c.check {
				t.Errorf("set %q, refusals %v, want %s", set.Name(), refusals, c.check)
			}
		})
	}
	valid := reference.Sets{dated("notBefore: " + before + "\nnotAfter: " + after + "\n")}
	if set, refusals := valid.Match(ev, now); set.Name() != "good" || len(refusals) != 0 {
		t.Errorf("a valid set: %q, %v", set.Name(), refusals)
	}
}

func TestThreat22_UnprovenComponentsAreRefused(t *testing.T) {
	l := vectors.NewLog(nodeclaim.SHA256)
	boot, err := eventlog.Replay(l.Raw(), l.Quoted(t))
	if err != nil {
		t.Fatal(err)
	}
	set := capture(t, "good")
	got := set.Check(reference.Evidence{Boot: boot, PCRs: l.Quoted(t), IMA: evidence(t, "good").IMA}, now)
	unproven := 0
	for _, r := range got {
		if strings.Contains(r.Reason, "proven by the evidence") {
			unproven++
		}
	}
	if unproven != 6 { // secure boot, command line, initrd, kernel, boot loader, firmware
		t.Errorf("%d components are told to be unproven, want 6: %v", unproven, got)
	}
}
