package reference

import (
	"fmt"
	"slices"
	"unicode/utf8"

	"github.com/google/cel-go/cel"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// Keys of components on which others rest.
const (
	keySecureBoot  = "secureBoot"
	keyFirmware    = "firmware"
	keyBootLoader  = "bootLoader"
	keyCommandLine = "commandLine"
)

// commandLineName is what the kernel command line is called in a line of its own.
const commandLineName = "kernel command line"

// components are all that a set may say of a measured boot, in the order of a boot and of a set's file.
var components = []component{
	{
		key: keySecureBoot, one: "secure boot", label: "secure boot", ofClass: "secure boot", apart: true,
		check: "secureboot.state", pcrs: []int{7}, shape: secureBootShape{},
		proven: func(f eventlog.Facts) value {
			if !secureBootKnown(f) {
				return nil
			}
			secure := f.SecureBoot
			secure.Others = nil // PCR 7 itself is pinned
			if secure.Authorities == nil {
				secure.Authorities = []eventlog.Authority{} // none may be added
			}
			return secureBoot{secure}
		},
		facts: []bootFact{
			{"secureBoot.enabled", cel.BoolType, func(f eventlog.Facts) (any, bool) {
				return f.SecureBoot.State == eventlog.SecureBootEnabled, secureBootKnown(f)
			}},
			{"secureBoot.pk", cel.StringType, func(f eventlog.Facts) (any, bool) { return digest(f.SecureBoot.PK) }},
			{"secureBoot.kek", cel.StringType, func(f eventlog.Facts) (any, bool) { return digest(f.SecureBoot.KEK) }},
			{"secureBoot.db", cel.StringType, func(f eventlog.Facts) (any, bool) { return digest(f.SecureBoot.DB) }},
			{"secureBoot.dbx", cel.StringType, func(f eventlog.Facts) (any, bool) { return digest(f.SecureBoot.DBX) }},
			{"secureBoot.authorities", cel.ListType(cel.StringType), func(f eventlog.Facts) (any, bool) {
				out := []string{}
				for _, a := range f.SecureBoot.Authorities {
					out = append(out, string(a.Digest))
				}
				return out, secureBootKnown(f)
			}},
		},
		absent: "state of secure boot", measured: "quote PCR 7, which firmware with UEFI measures",
		class: func(v value) string { return string(as[secureBoot]([]value{v})[0].State) }, classIs: "the state of secure boot",
	},
	{
		key: keyFirmware, one: "firmware measurement", label: "firmware", ofClass: "firmware",
		check: "firmware.digest", pcrs: []int{0}, shape: sequences{},
		proven: func(f eventlog.Facts) value { return sequenceOf(f.Firmware) },
		facts: []bootFact{
			{"firmware.digests", cel.ListType(cel.StringType), func(f eventlog.Facts) (any, bool) { return digests(f.Firmware) }},
		},
		absent: "firmware", measured: "quote PCR 0",
		demands: func(b boot) []string {
			if b.has(keyFirmware) || b.exact(0) {
				return nil
			}
			return []string{fmt.Sprintf("boot pins neither firmware nor PCR 0 of bank %s: who measured the rest is unknown", b.bank)}
		},
	},
	{
		key: keyBootLoader, one: "boot loader image", label: "boot loader", ofClass: "the boot loader",
		check: "bootloader.digest", pcrs: []int{4}, shape: sequences{},
		proven: func(f eventlog.Facts) value { return sequenceOf(f.BootLoader) },
		// Sets from before 2026-11-29 list all of PCR 4, which demands more than the images of the boot attempt do.
		before: func(f eventlog.Facts) value { return sequence(f.Started()) },
		hint: func(c *checker, _ []value) string {
			if c.explained[4] && len(c.facts.Sections) > 0 {
				return " (a unified kernel image: it holds kernel, command line and initrd, see there)"
			}
			return ""
		},
		facts: []bootFact{
			{"bootLoader.digests", cel.ListType(cel.StringType), func(f eventlog.Facts) (any, bool) { return digests(f.BootLoader) }},
		},
		absent: "boot loader", measured: "quote PCR 4, into which UEFI firmware measures images",
		demands: bootLoaderDemands,
	},
	{
		key: "kernel", one: "kernel", label: "kernel", ofClass: "the kernel", late: "kernel", pinsKernel: true,
		check: "kernel.digest", pcrs: []int{4, 9, 11}, shape: digestList{},
		proven: func(f eventlog.Facts) value { return digestOf(f.Kernel) },
		// Captures before 2026-11-29 took a boot loader for the kernel.
		hint: func(c *checker, want []value) string {
			if !slices.ContainsFunc(as[oneDigest](want), func(d oneDigest) bool { return slices.Contains(c.facts.Started(), eventlog.Digest(d)) }) {
				return ""
			}
			return "; PCR 4 has that image, but nothing proves that it is the kernel and no boot loader: capture the set again"
		},
		facts: []bootFact{
			{"kernel.digest", cel.StringType, func(f eventlog.Facts) (any, bool) { return digest(f.Kernel) }},
			{"uki.sections", cel.MapType(cel.StringType, cel.StringType), func(f eventlog.Facts) (any, bool) {
				out := map[string]string{}
				for name, d := range f.Sections {
					out[name] = string(d)
				}
				return out, len(out) > 0
			}},
		},
		absent: "kernel", measured: "it is measured by ",
	},
	{
		key: "initrd", one: "initrd", label: "initrd", ofClass: "the initrd", late: "initrd",
		check: "kernel.initrd", pcrs: []int{4, 9, 11}, shape: digestList{},
		proven: func(f eventlog.Facts) value { return digestOf(f.Initrd) },
		facts: []bootFact{
			{"initrd.digest", cel.StringType, func(f eventlog.Facts) (any, bool) { return digest(f.Initrd) }},
		},
		absent: "initrd", measured: "it is measured by the kernel's EFI stub (Linux 5.18 and later, into PCR 9, but for one that \"initrd=\" on the command line may load: IMA's list proves then that none was), ",
		demands: func(b boot) []string {
			if !b.has("initrd") || b.has(keyCommandLine) || b.exact(9) || b.exact(4) {
				return nil
			}
			return []string{fmt.Sprintf("boot pins initrd, but neither commandLine nor PCR 4 or 9 of bank %s: \"initrd=\" on the command line loads another one, which is not measured", b.bank)}
		},
	},
	{
		key: keyCommandLine, one: commandLineName, label: commandLineName, ofClass: "the kernel command line", late: "command line",
		check: "kernel.cmdline", pcrs: []int{4, 8, 9, 11, 12}, shape: commandLines{},
		proven: func(f eventlog.Facts) value {
			switch {
			case f.CommandLine.Text != "":
				return commandLine{text: f.CommandLine.Text}
			case f.CommandLine.Digest != "":
				return commandLine{digest: f.CommandLine.Digest}
			}
			return nil
		},
		facts: []bootFact{
			{"kernel.cmdline", cel.StringType, func(f eventlog.Facts) (any, bool) { return f.CommandLine.Text, cmdlineKnown(f) }},
			{"kernel.args", cel.ListType(cel.StringType), func(f eventlog.Facts) (any, bool) {
				return kernelArgs(f.CommandLine.Text), cmdlineKnown(f)
			}},
			{"kernel.params", cel.MapType(cel.StringType, cel.ListType(cel.StringType)), func(f eventlog.Facts) (any, bool) {
				return kernelParams(f.CommandLine.Text), cmdlineKnown(f)
			}},
		},
		absent: commandLineName, measured: "it is measured by the kernel's EFI stub (Linux 6.1 and later, into PCR 9), ",
	},
}

// bootLoaderDemands says what the rest of a measured boot rests on: without what was started, everything later in the
// PCRs may be the node's invention.
func bootLoaderDemands(b boot) []string {
	var out []string
	if !b.has(keyBootLoader) && !b.has(keySecureBoot) && !b.exact(4) && !b.exact(7) {
		out = append(out, fmt.Sprintf("boot pins neither bootLoader, secureBoot, PCR 4 nor PCR 7 of bank %s: anything may have been started", b.bank))
	}
	disabled := func(s secureBoot) bool { return s.State != eventlog.SecureBootEnabled }
	enforced := b.has(keySecureBoot) && !slices.ContainsFunc(as[secureBoot](b.values[keySecureBoot]), disabled)
	if !b.exact(2) && !enforced {
		out = append(out, fmt.Sprintf("boot pins neither PCR 2 of bank %s nor secure boot as enabled: a driver that root installed (Driver####, option ROM) may have run before the boot loader and measured what it liked", b.bank))
	}
	return out
}

// unfounded says that a set looks at what runs late, but not at what measured it; "" where it does.
func (s Set) unfounded() string {
	if !s.late() || s.boot.has(keyBootLoader) || s.boot.exact(4) {
		return ""
	}
	return fmt.Sprintf("the set looks at %s, but boot pins neither bootLoader nor PCR 4 of bank %s: another kernel may have run and measured these afterwards", lateNames(), s.boot.bank)
}

// judged are facts as a set may believe them. Only the exact value of PCR 4 says which images before the boot attempt are
// good, and who controls the machine later can append the begin of an attempt: without it, all that ran counts.
func (b boot) judged(f eventlog.Facts, ev Evidence) eventlog.Facts {
	if !b.exact(4) {
		f.BootLoader = f.Started()
	}
	for _, line := range as[commandLine](b.values[keyCommandLine]) {
		if line.text != "" { // the node may have kept quiet about it
			f.Initrd = ev.started(b.bank, f.Knowing(line.text)).Initrd
		}
	}
	return f
}

// secureBootKnown tells whether the evidence proves the state of secure boot.
func secureBootKnown(f eventlog.Facts) bool {
	return f.SecureBoot.State.Tristate() != nodeclaim.Unknown
}

// cmdlineKnown wants a text: a line of which only the digest is proven has no words to look at.
// CEL's texts are UTF-8 (langdef.md, "Values"); another line is unknown to it.
func cmdlineKnown(f eventlog.Facts) bool {
	return f.CommandLine.Text != "" && utf8.ValidString(f.CommandLine.Text)
}

func digest(d eventlog.Digest) (any, bool) { return string(d), d != "" }

func digests(list []eventlog.Digest) (any, bool) {
	out := []string{}
	for _, d := range list {
		out = append(out, string(d))
	}
	return out, len(out) > 0
}

// params are the parameters of the proven command line, as kernelParams has them; false where its text is not proven.
func params(f eventlog.Facts) (map[string][]string, bool) {
	return kernelParams(f.CommandLine.Text), cmdlineKnown(f)
}

// has tells whether the set looks at a component.
func (b boot) has(key string) bool { return len(b.values[key]) > 0 }

// exact tells whether the set pins the exact value of a PCR of its bank.
func (b boot) exact(pcr int) bool { return b.pcrs[b.bank][pcr] != nil }
