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
		if n := len(got); n == 0 || !strings.HasPrefix(got[n-1], "IMA policy: ") {
			t.Errorf("%s: %q, want a warning of a second policy last", line, got)
			continue
		} else {
			got = got[:n-1]
		}
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

// TestCapturesAreToldThatASecondPolicyLeavesNoTrace: each way that shows a second policy, or keeps it out, is no gap; the condition that
// the warning names holds on such a machine and on no other.
func TestCapturesAreToldThatASecondPolicyLeavesNoTrace(t *testing.T) {
	closed := "lockdown=integrity module.sig_enforce=1 ima_appraise=enforce "
	record := buffer("ima_policy_loaded", "measure func=BPRM_CHECK\n")
	unlike := record
	unlike.Signature = nil
	for name, c := range map[string]struct {
		line    string
		entries []ima.Entry
		warned  bool
		demand  bool // the condition over the command line holds
	}{
		"nothing":                           {"", nil, true, false},
		"another policy":                    {"ima_policy=tcb", nil, true, false},
		"signed policies alone":             {"ima_policy=secure_boot", nil, false, true},
		"signed policies beside others":     {"ima_policy=tcb|secure_boot|fail_securely", nil, false, true},
		"quoted, with spaces":               {`"ima_policy=tcb secure_boot"`, nil, false, true},
		"by two parameters":                 {"ima_policy=secure_boot ima_policy=tcb", nil, false, true},
		"a name that has it in it":          {"ima_policy=no_secure_boot", nil, true, false},
		"for init":                          {"-- ima_policy=secure_boot", nil, true, false},
		"a kernel that records each policy": {"ima_policy=tcb", []ima.Entry{record}, false, false},
		"a file of that name":               {"ima_policy=tcb", []ima.Entry{unlike}, true, false},
	} {
		ev := booted(t, closed+c.line)
		ev.IMA.Entries = append(ev.IMA.Entries, c.entries...)
		got := reference.Gaps(ev)
		if (len(got) == 1) != c.warned || len(got) > 1 {
			t.Errorf("%s: %q, want a warning: %t", name, got, c.warned)
		}
		if c.warned && !strings.Contains(got[0], demand) {
			t.Errorf("%s: %q does not name the condition", name, got[0])
		}
		set, err := reference.Capture("x", ev)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.Replace(string(set.Marshal()), "boot:\n", "conditions: [{expr: '"+demand+"', message: m}]\nboot:\n", 1)
		if set, err = reference.ParseSet([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if r := broken(t, set, ev); (r == nil) != c.demand {
			t.Errorf("%s: the condition: %v", name, r)
		}
	}
}

// demand is the condition that a warning names.
const demand = `kernel.params["ima_policy"].exists(p, p.matches("(^|[ |])secure_boot([ |]|$)"))`
