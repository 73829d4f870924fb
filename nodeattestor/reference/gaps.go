package reference

import (
	"fmt"
	"slices"
	"strings"

	"github.com/keelson-project/keelson/nodeattestor/ima"
)

// closing are the parameters of the kernel's command line that close ways past what IMA measures,
// and what is open without them (Linux Documentation/admin-guide/kernel-parameters.txt).
var closing = []struct {
	name   string
	values []string // any of which will do
	open   string
}{
	{"lockdown", []string{"integrity", "confidentiality"}, "root can change the running kernel (kexec, /dev/mem, debugfs), which no list shows"},
	{"module.sig_enforce", []string{"1", "Y", "y", ""}, "root can load a module that nobody signed; IMA shows it only if it measures modules"},
	{"ima_appraise", []string{"enforce"}, "nothing says that files whose signature is bad or missing are kept from running (the kernel's default, which needs a policy with appraise rules)"},
}

// Gaps says in a person's words what the proven command line leaves open of what IMA measures, and
// how a set demands it, a line for each. There are none where the set would not look at measured
// files. A machine may be locked down without these parameters, by its build
// (CONFIG_LOCK_DOWN_KERNEL_FORCE_INTEGRITY) for example, which nothing measures; so they are
// warnings and no more.
func Gaps(ev Evidence) []string {
	bank, ok := captureBank(ev)
	if !ok || ev.IMA == nil || ev.IMA.Count == 0 {
		return nil
	}
	f, _ := ev.Facts(bank)
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
	return append(out, policyGap(params, ev)...)
}

// policyGap says whether a second policy of IMA, which may measure nothing any more, can be loaded
// without a trace. A kernel that takes signed policies alone (ima_policy=secure_boot;
// security/integrity/ima/ima_fs.c, ima_write_policy) reads them from files, which it measures. One
// that records each policy as it becomes effective (critical data, label ima_policy) shows them
// too.
func policyGap(params map[string][]string, ev Evidence) []string {
	signedOnly := slices.ContainsFunc(params["ima_policy"], func(v string) bool { return slices.Contains(policyNames(v), "secure_boot") })
	recorded := slices.ContainsFunc(ev.IMA.Entries, func(e ima.Entry) bool { v := e.View(); return policyRecord(&v) })
	if signedOnly || recorded {
		return nil
	}
	return []string{"IMA policy: root can write another one as text, which measures nothing any more and which no list shows, unless the kernel is built without CONFIG_IMA_WRITE_POLICY; " +
		"boot with ima_policy=secure_boot beside the others (as in ima_policy=\"tcb|secure_boot\"), and demand it " +
		`by the condition kernel.params["ima_policy"].exists(p, p.matches("(^|[ |])secure_boot([ |]|$)"))` +
		"; or, where the kernel records each policy (ima_policy_loaded), demand ima.policies.size() == 1"}
}

// policyNames are the built-in policies that one value of ima_policy= asks for (policy_setup splits
// it at these bytes).
func policyNames(value string) []string {
	return strings.FieldsFunc(value, func(r rune) bool { return r == ' ' || r == '|' || r == '\n' })
}
