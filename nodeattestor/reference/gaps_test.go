package reference_test

import (
	"strings"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/reference"
	"github.com/keelson-project/keelson/test/vectors"
)

// booted is a machine whose unified image's stub measured a command line, and that measured files.
func booted(t testing.TB, line string) reference.Evidence {
	ev := proven(t, shimAndGRUB().Measure(11, vectors.IPL, []byte(".linux\x00")).Measure(11, vectors.IPL, []byte("kernel")).
		Measure(11, vectors.IPL, []byte(".cmdline\x00")).Measure(11, vectors.IPL, []byte(line)))
	ev.Boot = ev.Boot.ConfirmCommandLine(line)
	ev.IMA = &ima.Result{Count: 1, Entries: []ima.Entry{{Path: "boot_aggregate"}}}
	return ev
}

func TestCapturesAreToldWhatTheCommandLineLeavesOpen(t *testing.T) {
	for line, want := range map[string][]string{
		"quiet": {"lockdown", "module.sig_enforce", "ima_appraise"},
		"lockdown=integrity module.sig_enforce=1 ima_appraise=enforce":       nil,
		"lockdown=confidentiality module.sig_enforce ima_appraise=enforce":   nil,
		"lockdown=integrity lockdown=none module.sig-enforce=1":              {"lockdown", "ima_appraise"},
		"lockdown=integrity module.sig_enforce=1 ima_appraise=log":           {"ima_appraise"},
		"-- lockdown=integrity module.sig_enforce=1 ima_appraise=enforce":    {"lockdown", "module.sig_enforce", "ima_appraise"},
		"\"lockdown=integrity\" module.sig_enforce=1 ima_appraise=enforce x": nil,
	} {
		ev := booted(t, line)
		if f, _ := ev.Boot.Facts(nodeclaim.SHA256); f.CommandLine.Text != line {
			t.Fatalf("the command line is not proven: %+v", f.CommandLine)
		}
		got := reference.Gaps(ev)
		if len(got) != len(want) {
			t.Errorf("%s: %q, want %q", line, got, want)
			continue
		}
		for i, w := range want {
			if !strings.Contains(got[i], "without "+w+"=") || !strings.Contains(got[i], `kernel.params["`+w+`"] == [`) {
				t.Errorf("%s: %q does not name %s", line, got[i], w)
			}
		}
		ev.IMA = nil
		if got := reference.Gaps(ev); len(got) > 0 {
			t.Errorf("without measured files: %q", got)
		}
	}
	unknown := proven(t, shimAndGRUB())
	unknown.IMA = &ima.Result{Count: 1}
	if got := reference.Gaps(unknown); len(got) != 1 || !strings.Contains(got[0], "its text is not proven") {
		t.Errorf("%q", got)
	}
}
