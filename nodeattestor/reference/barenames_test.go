package reference_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/reference"
)

func TestWhatAnyProcessCanHaveTheKernelWriteIsJudgedByTheSetsRules(t *testing.T) {
	ev := evidence(t, "good")
	other := "sha256:" + strings.Repeat("ab", 32)
	direct := func(path string) ima.Entry { return ima.Entry{Path: path, Unknown: true} }
	named := ima.Entry{Path: "boot_aggregate", Digest: other, NamedOnly: true}
	memfd := ima.Entry{Path: "memfd:runc_cloned:/proc/self/exe", Digest: other}
	plain := edited(t, "good")
	pods := edited(t, "good", "violations: deny", "ignoreDirectories: [/var/lib/containers]\n  violations: deny\n  bareNames: allow")
	dirs := edited(t, "good", "violations: deny", "ignoreDirectories: [/var/lib/containers]\n  violations: deny\n  bareNames: deny")
	violations := edited(t, "good", "violations: deny", "violations: allow")
	hosts := edited(t, "good", "violations: deny", "ignoreFiles: [/etc/hosts, /bin/busybox]\n  violations: deny")
	listed := edited(t, "good", "violations: deny", "violations: deny\n  bareNames: allow", "  files:\n", "  files:\n    tool: []\n")
	cases := map[string]struct {
		set  reference.Set
		e    ima.Entry
		want string // "": accepted
	}{
		"opened with O_DIRECT, anywhere":               {plain, direct("/home/x/tool"), "file /home/x/tool has unknown content"},
		"the same in an ignored directory":             {dirs, direct("/var/lib/containers/x/direct.bin"), ""},
		"the same beside it":                           {dirs, direct("/var/lib/containers2/x"), "file /var/lib/containers2/x has unknown content"},
		"the same, climbing out of it":                 {dirs, direct("/var/lib/containers/../x"), "has unknown content"},
		"the same where violations are allowed":        {violations, direct("/home/x/tool"), ""},
		"a listed file, opened with O_DIRECT":          {pods, direct("/bin/busybox"), "file /bin/busybox has unknown content"},
		"a file named boot_aggregate":                  {plain, named, "what a kernel left behind that kexec started"},
		"the same where bare names are allowed":        {pods, named, ""},
		"the same with unknown content":                {pods, direct("boot_aggregate"), ""},
		"boot_aggregate itself where they are":         {pods, ev.IMA.Entries[0], "started by kexec"},
		"a memfd":                                      {dirs, memfd, "bareNames: allow would let such files pass"},
		"a memfd where bare names are allowed":         {pods, memfd, ""},
		"an absolute path named boot_aggregate":        {pods, ima.Entry{Path: "/boot_aggregate", Digest: other}, "file /boot_aggregate has digest"},
		"a listed bare name":                           {listed, ima.Entry{Path: "tool", Digest: other}, "allows nothing under that path"},
		"a name with a new line":                       {plain, ima.Entry{Path: "a\nb", Digest: other}, `"a\nb"`},
		"a violation where bare names are allowed":     {pods, ima.Entry{Path: "boot_aggregate", Violation: true}, "is a violation"},
		"a file that is not looked at":                 {hosts, ima.Entry{Path: "/etc/hosts", Digest: other}, ""},
		"the same, opened with O_DIRECT":               {hosts, direct("/etc/hosts"), ""},
		"one below it":                                 {hosts, ima.Entry{Path: "/etc/hosts/x", Digest: other}, "does not have that path"},
		"one whose name begins so":                     {hosts, ima.Entry{Path: "/etc/hosts2", Digest: other}, "does not have that path"},
		"one that is listed and not looked at besides": {hosts, ima.Entry{Path: "/bin/busybox", Digest: other}, "file /bin/busybox has digest"},
		"a relative path that climbs":                  {dirs, ima.Entry{Path: "../var/lib/containers/x", Digest: other}, "does not have that path"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			with := withEntries(ev, c.e)
			for kind, ev := range map[string]reference.Evidence{"kept": with, "streamed": streamed(with, sets(t, c.set))} {
				got := c.set.Check(ev, now)
				if c.want == "" && len(got) > 0 {
					t.Errorf("%s: refused: %v", kind, got)
				}
				if c.want != "" && (len(got) != 1 || !strings.Contains(got[0].Reason, c.want)) {
					t.Errorf("%s: got %v, want %q", kind, got, c.want)
				}
			}
		})
	}
}

func TestARequiredFileOfUnknownContentWasNotSeen(t *testing.T) {
	set := edited(t, "good", "violations: deny", "required: [/bin/busybox]\n  violations: allow")
	ev := evidence(t, "good")
	if got := set.Check(ev, now); len(got) > 0 {
		t.Fatalf("refused: %v", got)
	}
	list := *ev.IMA
	list.Entries = nil
	for _, e := range ev.IMA.Entries {
		if e.Path == "/bin/busybox" {
			e = ima.Entry{Index: e.Index, Path: e.Path, Unknown: true}
		}
		list.Entries = append(list.Entries, e)
	}
	got := set.Check(reference.Evidence{Boot: ev.Boot, PCRs: ev.PCRs, IMA: &list}, now)
	if len(got) != 1 || got[0].Check != "ima.required" {
		t.Errorf("got %v, want the required file to be missing", got)
	}
}

func TestBareNamesAreWrittenDescribedComparedAndMerged(t *testing.T) {
	deny, allow := edited(t, "good"), edited(t, "good", "violations: deny", "violations: deny\n  bareNames: allow")
	if bytes.Contains(deny.Marshal(), []byte("bareNames")) || !bytes.Contains(allow.Marshal(), []byte("bareNames: allow")) {
		t.Error("the written set does not say so")
	}
	again, err := reference.ParseSet(allow.Marshal())
	if err != nil || !bytes.Equal(again.Marshal(), allow.Marshal()) {
		t.Errorf("read again: %v", err)
	}
	if text := strings.Join(allow.Describe(), "\n"); !strings.Contains(text, "without a directory") {
		t.Errorf("described as\n%s", text)
	}
	if text := strings.Join(reference.Diff(deny, allow), "\n"); !strings.Contains(text, "without a directory") {
		t.Errorf("the difference is\n%s", text)
	}
	if _, err := reference.ParseSet(bytes.Replace(allow.Marshal(), []byte("bareNames: allow"), []byte("bareNames: yes, please"), 1)); err == nil {
		t.Error("any word will do")
	}
}

func TestCaptureListsNoFileOfUnknownContent(t *testing.T) {
	ev := withEntries(evidence(t, "good"), ima.Entry{Path: "/dd.img", Unknown: true})
	if _, err := reference.Capture("x", ev); err == nil || !strings.Contains(err.Error(), "/dd.img has unknown content") {
		t.Errorf("captured: %v", err)
	}
}
