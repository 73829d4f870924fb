package reference

import (
	"fmt"
	"slices"
)

// closing are the parameters of the kernel's command line that close ways past what IMA measures, and what is open
// without them (Linux Documentation/admin-guide/kernel-parameters.txt).
var closing = []struct {
	name   string
	values []string // any of which will do
	open   string
}{
	{"lockdown", []string{"integrity", "confidentiality"}, "root can change the running kernel (kexec, /dev/mem, debugfs), which no list shows"},
	{"module.sig_enforce", []string{"1", "Y", "y", ""}, "root can load a module that nobody signed; IMA shows it only if it measures modules"},
	{"ima_appraise", []string{"enforce"}, "nothing says that files whose signature is bad or missing are kept from running (the kernel's default, which needs a policy with appraise rules)"},
}

// Gaps says in a person's words what the proven command line leaves open of what IMA measures, and how a set demands it, a
// line for each. There are none where the set would not look at measured files. A machine may be locked down without these parameters, by its
// build (CONFIG_LOCK_DOWN_KERNEL_FORCE_INTEGRITY) for example, which nothing measures; so they are warnings and no more.
func Gaps(ev Evidence) []string {
	bank, ok := captureBank(ev)
	if !ok || ev.IMA == nil || ev.IMA.Count == 0 {
		return nil
	}
	f, _ := ev.Boot.Facts(bank)
	params, ok := params(f)
	if !ok {
		return []string{commandLineName + ": its text is not proven, so no condition of a set can demand what closes IMA's gaps (lockdown, module.sig_enforce, ima_appraise)"}
	}
	var out []string
	for _, c := range closing {
		have := params[c.name]
		if n := len(have); n > 0 && slices.Contains(c.values, have[n-1]) { // the last one counts
			continue
		}
		out = append(out, fmt.Sprintf(commandLineName+": without %[1]s=%[2]s %[3]s; boot with it, and demand it by the condition kernel.params[%[1]q] == [%[2]q]", c.name, c.values[0], c.open))
	}
	return out
}
