// Package imapolicy holds the example policy to the kernel's grammar, and to what it
// promises to measure.
package imapolicy

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// rule is one line of a policy: an action with conditions.
type rule struct {
	action     string
	conditions map[string]string
}

var (
	actions   = []string{"measure", "dont_measure", "appraise", "dont_appraise", "audit", "dont_audit", "hash", "dont_hash"}
	functions = []string{"BPRM_CHECK", "MMAP_CHECK", "CREDS_CHECK", "FILE_CHECK", "MODULE_CHECK", "FIRMWARE_CHECK", "POLICY_CHECK",
		"KEXEC_KERNEL_CHECK", "KEXEC_INITRAMFS_CHECK", "KEXEC_CMDLINE", "KEY_CHECK", "CRITICAL_DATA", "SETXATTR_CHECK", "MMAP_CHECK_REQPROT"}
	// buffers are the functions that measure no file: no file's condition fits them.
	buffers = []string{"KEXEC_CMDLINE", "KEY_CHECK", "CRITICAL_DATA"}
)

const number = `[0-9]+`

// values is the grammar of each condition (Linux Documentation/ABI/testing/ima_policy).
var values = map[string]*regexp.Regexp{
	"func":     regexp.MustCompile(`^(` + strings.Join(functions, "|") + `)$`),
	"mask":     regexp.MustCompile(`^\^?MAY_(READ|WRITE|APPEND|EXEC)$`),
	"fsmagic":  regexp.MustCompile(`^0x[0-9a-fA-F]{1,8}$`),
	"fsuuid":   regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`),
	"fsname":   regexp.MustCompile(`^\S+$`),
	"uid":      regexp.MustCompile(`^` + number + `$`),
	"euid":     regexp.MustCompile(`^` + number + `$`),
	"gid":      regexp.MustCompile(`^` + number + `$`),
	"egid":     regexp.MustCompile(`^` + number + `$`),
	"fowner":   regexp.MustCompile(`^` + number + `$`),
	"fgroup":   regexp.MustCompile(`^` + number + `$`),
	"obj_type": regexp.MustCompile(`^[a-z_]+_t$`), "obj_user": regexp.MustCompile(`^\S+$`), "obj_role": regexp.MustCompile(`^\S+$`),
	"subj_type": regexp.MustCompile(`^[a-z_]+_t$`), "subj_user": regexp.MustCompile(`^\S+$`), "subj_role": regexp.MustCompile(`^\S+$`),
	"pcr":         regexp.MustCompile(`^` + number + `$`),
	"template":    regexp.MustCompile(`^ima(-ng|-sig|-buf|-modsig|-ngv2|-sigv2)?$`),
	"digest_type": regexp.MustCompile(`^verity$`),
	"label":       regexp.MustCompile(`^\S+$`),
	"keyrings":    regexp.MustCompile(`^\S+$`),
}

func parseRule(line string) (rule, error) {
	words := strings.Fields(line)
	r := rule{action: words[0], conditions: map[string]string{}}
	if !slices.Contains(actions, r.action) {
		return r, fmt.Errorf("action %q is unknown", r.action)
	}
	for _, w := range words[1:] {
		key, value, ok := strings.Cut(w, "=")
		grammar := values[key]
		switch {
		case !ok || grammar == nil:
			return r, fmt.Errorf("condition %q is unknown", w)
		case !grammar.MatchString(value):
			return r, fmt.Errorf("value of %q is malformed", w)
		case r.conditions[key] != "":
			return r, fmt.Errorf("condition %q is given twice", key)
		}
		r.conditions[key] = value
	}
	return r, r.whole()
}

// whole checks what holds between conditions.
func (r rule) whole() error {
	if len(r.conditions) == 0 {
		return fmt.Errorf("%s without a condition matches everything", r.action)
	}
	for _, key := range []string{"template", "pcr", "label", "keyrings"} {
		if r.conditions[key] != "" && r.action != "measure" {
			return fmt.Errorf("%s= only goes with measure", key)
		}
	}
	if !slices.Contains(buffers, r.conditions["func"]) {
		return nil
	}
	for key := range r.conditions {
		if !slices.Contains([]string{"func", "pcr", "template", "label", "keyrings", "uid"}, key) {
			return fmt.Errorf("%s= does not go with func=%s", key, r.conditions["func"])
		}
	}
	return nil
}

// parse reads a policy; the optional rules stand in comments and must be right too.
func parse(text string) (rules, optional []rule, err error) {
	for i, line := range strings.Split(text, "\n") {
		rest, isOptional := strings.CutPrefix(line, "#optional ")
		if strings.TrimSpace(rest) == "" || strings.HasPrefix(rest, "#") {
			continue
		}
		r, err := parseRule(rest)
		if err != nil {
			return nil, nil, fmt.Errorf("line %d: %w", i+1, err)
		}
		if isOptional {
			optional = append(optional, r)
		} else {
			rules = append(rules, r)
		}
	}
	return rules, optional, nil
}

func policy(t *testing.T) []rule {
	t.Helper()
	text, err := os.ReadFile("ima-policy")
	if err != nil {
		t.Fatal(err)
	}
	rules, optional, err := parse(string(text))
	if err != nil {
		t.Fatal(err)
	}
	if len(optional) == 0 {
		t.Error("no optional rule was found")
	}
	return rules
}

// event is what happens to a file in the kernel.
type event map[string]string

// measured tells whether the first rule that matches measures (Linux ima_match_policy).
func measured(rules []rule, e event) bool {
	for _, r := range rules {
		if r.matches(e) {
			return r.action == "measure"
		}
	}
	return false
}

func (r rule) matches(e event) bool {
	for key, value := range r.conditions {
		if e[key] != value {
			return false
		}
	}
	return true
}

const (
	ext4, xfs, btrfs  = "0xef53", "0x58465342", "0x9123683e"
	tmpfs, ramfs      = "0x01021994", "0x858458f6"
	overlay, squashfs = "0x794c7630", "0x73717368"
	fuse, nfs         = "0x65735546", "0x6969"
	proc              = "0x9fa0"
)

func TestThreat12_ProgramsAreMeasuredWhereverTheyLieAndWhoeverRunsThem(t *testing.T) {
	rules := policy(t)
	for _, fs := range []string{ext4, xfs, btrfs, tmpfs, ramfs, overlay, squashfs, fuse, nfs} {
		for _, uid := range []string{"0", "1000", "65532"} {
			for _, e := range []event{{"func": "BPRM_CHECK", "mask": "MAY_EXEC"}, {"func": "MMAP_CHECK", "mask": "MAY_EXEC"},
				{"func": "MODULE_CHECK", "mask": "MAY_READ"}, {"func": "FIRMWARE_CHECK", "mask": "MAY_READ"},
				{"func": "KEXEC_KERNEL_CHECK", "mask": "MAY_READ"}, {"func": "KEXEC_INITRAMFS_CHECK", "mask": "MAY_READ"},
				{"func": "POLICY_CHECK", "mask": "MAY_READ"}, {"func": "KEXEC_CMDLINE"}} {
				e["fsmagic"], e["uid"], e["euid"] = fs, uid, uid
				if !measured(rules, e) {
					t.Errorf("not measured: %v", e)
				}
			}
		}
	}
}

// TestThreat12_WhatIsNotSeenIsWrittenDown holds the README's list to what the rules do.
func TestThreat12_WhatIsNotSeenIsWrittenDown(t *testing.T) {
	rules := policy(t)
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for words, e := range map[string]event{
		"scripts opened as data": {"func": "FILE_CHECK", "mask": "MAY_READ", "fsmagic": ext4, "uid": "0"},
		"configuration":          {"func": "FILE_CHECK", "mask": "MAY_READ", "fsmagic": xfs, "uid": "0"},
		"`/proc`, `/sys`":        {"func": "BPRM_CHECK", "mask": "MAY_EXEC", "fsmagic": proc, "uid": "0"},
	} {
		if measured(rules, e) {
			t.Errorf("%s: measured, so that the README is wrong", words)
		}
		if !strings.Contains(string(readme), words) {
			t.Errorf("README.md does not name: %s", words)
		}
	}
	for _, words := range []string{"memfd", "overlayfs", "tmpfs", "eBPF", "JIT", "rename", "mprotect", "FUSE", "initrd"} {
		if !strings.Contains(string(readme), words) {
			t.Errorf("README.md says nothing of %s", words)
		}
	}
}

func TestOnlyFileSystemsThatTheKernelMakesUpAreExcepted(t *testing.T) {
	for _, r := range policy(t) {
		if r.action == "dont_measure" && (len(r.conditions) != 1 || r.conditions["fsmagic"] == "") {
			t.Errorf("an exception that names no file system: %v", r)
		}
		if r.action != "measure" && r.action != "dont_measure" {
			t.Errorf("the policy measures; %s is another matter", r.action)
		}
	}
}

func TestMalformedRulesAreFound(t *testing.T) {
	for line, want := range map[string]string{
		"mesure func=BPRM_CHECK":                      "action",
		"measure func=BPRM_CHEK":                      "malformed",
		"measure path=/usr/bin/runc":                  "unknown",
		"measure func=MMAP_CHECK mask=EXEC":           "malformed",
		"dont_measure fsmagic=9fa0":                   "malformed",
		"measure func=FILE_CHECK func=BPRM_CHECK":     "twice",
		"dont_measure fsmagic=0x9fa0 template=ima-ng": "only goes with measure",
		"measure func=KEXEC_CMDLINE fsmagic=0x9fa0":   "does not go with",
		"measure":            "without a condition",
		"measure func":       "unknown",
		"measure fsuuid=abc": "malformed",
		"measure uid=root":   "malformed",
	} {
		if _, _, err := parse("# comment\n\n" + line); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "line 3") {
			t.Errorf("%s: %v, want %q", line, err, want)
		}
	}
}
