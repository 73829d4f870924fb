package eventlog

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"unicode/utf16"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// attempt is what PCR 4 says of the boot attempt that led to the running system.
type attempt struct {
	images, others []Digest // see Facts.BootLoader and Facts.OtherImages
	started        []Digest // see Facts.Started
	paths          []imagePath
	separated      bool // a separator ends what firmware started before it
	legacy         bool // a BIOS, which measures boot sectors
}

// attempt reads PCR 4 by position: what stands before its first separator is the firmware's, and each text with
// which an attempt begins or ends (TCG PFP 1.06, 3.3.4.5) puts what was started before it among
// the others. An image's data (a device path) make no fact: they are the log's word only.
func (m measured) attempt() attempt {
	var a attempt
	for _, e := range m.byPCR[4] {
		begins := m.words.begins[e.digest]
		switch {
		case m.separator(e):
			begins = !a.separated
			a.separated = true
		case m.words.known[e.digest] != "":
			a.legacy = a.legacy || m.words.legacy[e.digest]
			if m.words.recent[e.digest] {
				a.started = append(a.started, e.digest)
			}
		case m.bootOption(e):
			begins = true
			a.started = append(a.started, e.digest)
		default:
			a.images = append(a.images, e.digest)
			a.started = append(a.started, e.digest)
			a.paths = append(a.paths, parseImagePath(e.data))
		}
		if begins {
			a.others = append(a.others, a.images...)
			a.images, a.paths = nil, nil
		}
	}
	return a
}

// bootOption tells whether an event is a text that names a boot option of any number, and its digest confirms that.
func (m measured) bootOption(e measurement) bool {
	text := string(bytes.TrimRight(e.data, "\x00"))
	for _, f := range []struct{ before, after string }{{"Booting to Boot", " Option"}, {"Returning from Boot", " Option"}, {"Failed to boot Boot", " Option"}} {
		rest, begins := strings.CutPrefix(text, f.before)
		number, ends := strings.CutSuffix(rest, f.after)
		if begins && ends && len(number) == 4 && strings.Trim(number, "0123456789abcdefABCDEF") == "" {
			return m.covers(e, []byte(text)) || m.covers(e, e.data)
		}
	}
	return false
}

// sectionNames are the sections that systemd-stub measures (UAPI Group, "UKI" specification,
// and systemd's TPM2 PCR Measurements: PCR 11).
var sectionNames = []string{
	".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".dtbauto", ".efifw", ".hwids",
	".uname", ".sbat", ".pcrpkey", ".profile",
}

// sections reads PCR 11, into which systemd-stub measures each section of the unified kernel
// image as two events: its name with a final NUL, then its content. A digest tells the name,
// so the log's data are not needed. Reading ends at the first event that is no name; a name
// that comes twice with different content is left out.
func (m measured) sections() map[string]Digest {
	out := map[string]Digest{}
	var doubtful []string
	events := m.byPCR[11]
	for i := 0; i+1 < len(events); i += 2 {
		name, ok := m.words.names[events[i].digest]
		if !ok {
			break
		}
		content := events[i+1].digest
		if old, twice := out[name]; twice && old != content {
			doubtful = append(doubtful, name)
		}
		out[name] = content
	}
	for _, n := range doubtful {
		delete(out, n)
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// kernel is the .linux section where there is one. Where PCR 11 proves that there is none, it is the last image of
// the boot attempt, if that cannot be a boot loader: a loader may start a kernel without the firmware, which then
// measures nothing, and firmware and loaders start further loaders. So two things must come together:
//
//   - something measured that a kernel was started: the kernel's EFI stub, into PCR 9, where PCR 8 proves that
//     GRUB took no command; or GRUB, into PCR 8, a command that starts one;
//   - the attempt has more images than loaders are proven to have run: GRUB and the loader that started it; shim, which
//     measures its keys into PCR 14 where it has any, and the loader that it started; else one. What the firmware
//     started from its own flash counts besides.
//
// The log's word on where images are from is believed where it keeps the fact from being claimed: an image
// from flash, shim, or a last image with a loader's name.
func (m measured) kernel(f Facts, a attempt) Digest {
	if d, ok := f.Sections[".linux"]; ok {
		return d
	}
	if !m.replayed(11) || !m.replayed(8) || !a.separated || a.legacy {
		return ""
	}
	loaders := 1
	switch {
	case len(m.byPCR[8]) > 0:
		if !m.linuxCommand() {
			return ""
		}
		loaders = 2
	case len(m.stubEvents()) == 0:
		return ""
	case !m.empty(14), slices.ContainsFunc(a.paths, imagePath.shim):
		loaders = 2
	}
	for _, p := range a.paths {
		if p.firmware {
			loaders++
		}
	}
	if a.endsInLoader() {
		return ""
	}
	images := slices.Compact(slices.Clone(a.images)) // shim and the firmware may both measure one
	if len(images) <= loaders {
		return ""
	}
	return images[len(images)-1]
}

// endsInLoader tells whether the log says that the last image is a boot loader, or the firmware's.
func (a attempt) endsInLoader() bool { return len(a.paths) > 0 && a.paths[len(a.paths)-1].loader() }

// linuxCommands are GRUB's that load a kernel for it to start.
var linuxCommands = []string{"linux", "linuxefi", "linux16"}

// linuxCommand tells whether PCR 8 has a command of GRUB that loads a kernel, as its digest confirms.
func (m measured) linuxCommand() bool {
	for _, e := range m.byPCR[8] {
		s, ok := m.text(e)
		if !ok { // GRUB of RHEL 8 has another label, which is in no digest either, and measures the final NUL
			s, ok = strings.CutPrefix(string(e.data), "grub_cmd ")
			ok = ok && m.covers(e, []byte(s))
		}
		if verb, _, args := strings.Cut(s, " "); ok && args && slices.Contains(linuxCommands, verb) {
			return true
		}
	}
	return false
}

// stubEvents are the measurements that the kernel's EFI stub made into PCR 9. GRUB measures
// every file it reads there, before the stub, and its strings into PCR 8: unless PCR 8 is
// proven empty, nothing tells which event is whose.
func (m measured) stubEvents() []measurement {
	if !m.replayed(8) || len(m.byPCR[8]) > 0 {
		return nil
	}
	return m.byPCR[9]
}

// initrd is the kernel's stub's second measurement of exactly two: what the kernel was given. The unified image's
// section is a part of that only, for systemd-stub adds credentials and extensions from the boot partition, which
// root writes; so it counts where the kernel measured just that, or where there is no such measurement and PCRs 12
// and 13 prove that nothing was added. A third measurement, which root can append, leaves it open, and
// so does a second one that systemd's log has: it came later by the node's own word.
func (m measured) initrd(f Facts) Digest {
	section := f.Sections[".initrd"]
	e := m.stubEvents()
	switch {
	case len(e) > 0 && e[0].digest == section:
		return section
	case len(e) == 2 && e[1].origin == "":
		return e[1].digest
	case len(e) == 0 && m.replayed(9) && m.empty(12) && m.empty(13):
		return section
	default:
		return ""
	}
}

// empty tells whether a PCR is proven to hold nothing.
func (m measured) empty(pcr int) bool { return m.replayed(pcr) && len(m.byPCR[pcr]) == 0 }

// commandLine is the stub's first measurement: SHA over the UTF-16LE load options with their
// final NUL (Linux drivers/firmware/efi/libstub/efi-stub-helper.c, since 5.18). Older kernels
// measure the initrd only; with a single event it is left open which of both it is until a text
// confirms it, so that event is returned apart. For such a kernel in a unified image, its
// section counts, where PCR 12 proves that nobody overrode it.
func (m measured) commandLine(f Facts) (CommandLine, Digest) {
	if text, ok := m.grubCommandLine(); ok {
		return CommandLine{Text: text, Digest: hash(m.alg, []byte(text))}, ""
	}
	section, sectioned := f.Sections[".cmdline"]
	initrd := f.Sections[".initrd"]
	e := m.stubEvents()
	switch {
	case len(e) == 0 || e[0].digest == initrd:
		if sectioned && m.replayed(9) && m.empty(12) {
			return CommandLine{Digest: section}, ""
		}
		return CommandLine{}, ""
	case len(e) == 1 && !sectioned:
		return CommandLine{}, e[0].digest
	default:
		return CommandLine{Digest: e[0].digest, wide: true}, ""
	}
}

// grubCommandLine reads GRUB's strings from PCR 8: the command "linux KERNEL ARGS" and after it
// "KERNEL ARGS" itself, with labels that no digest covers and that are not looked at. All must
// be confirmed and agree: whoever controls the machine can append more to PCR 8.
func (m measured) grubCommandLine() (string, bool) {
	found := ""
	commands := map[string]bool{}
	for _, e := range m.byPCR[8] {
		s, ok := m.text(e)
		if !ok || found != "" && commands[unquoted(s)] && s != found {
			return "", false
		}
		if commands[unquoted(s)] {
			found = s
		}
		if verb, rest, _ := strings.Cut(s, " "); slices.Contains(linuxCommands, verb) {
			commands[unquoted(rest)] = true
		}
	}
	return found, found != "" && len(commands) == 1
}

// unquoted drops what GRUB adds to or takes from a command's words.
func unquoted(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '"' || r == '\'' || r == '\\' {
			return -1
		}
		return r
	}, s)
}

// offered is a text that the log itself has for the command line: systemd-boot and
// systemd-stub measure it into PCR 12 (formerly 8). It counts only if the fact's digest confirms it.
func (m measured) offered(f Facts) (string, bool) {
	for _, pcr := range []int{12, 8} {
		for _, e := range m.byPCR[pcr] {
			text, ok := m.text(e)
			if !ok {
				continue
			}
			if _, ok := f.withCommandLine(text); ok {
				return text, true
			}
		}
	}
	return "", false
}

// loadOptions is a command line as the EFI stub measures it.
func loadOptions(text string) []byte {
	u := append(utf16.Encode([]rune(text)), 0)
	b := make([]byte, 0, 2*len(u))
	for _, c := range u {
		b = binary.LittleEndian.AppendUint16(b, c)
	}
	return b
}

// loadsInitrd tells whether a command line names an initrd that the kernel's stub may read by itself. The stub looks for
// these letters anywhere in it (drivers/firmware/efi/libstub/file.c: find_file_option).
func loadsInitrd(text string) bool { return strings.Contains(text, "initrd=") }

// handed tells whether a unified kernel image hands its initrd over, so that the stub measures one whatever the command
// line says. A section's digest is over all of it, that of an image in PCR 4 leaves parts out: the two are equal
// only where root has copied one into PCR 11.
func (f Facts) handed() bool {
	kernel := f.Sections[".linux"]
	return kernel != "" && f.Sections[".initrd"] != "" && !slices.Contains(f.BootLoader, kernel) && !slices.Contains(f.OtherImages, kernel)
}

// Knowing is the facts for a verifier that knows a text: if it is the command line, they have it, and what it leaves open is
// left open.
func (f Facts) Knowing(text string) Facts {
	f, _ = f.clone().withCommandLine(text)
	return f
}

// AsTheKernelStarted is the facts for a verifier to which IMA's boot_aggregate proves what PCR 9 was when the kernel started
// (eventlog.Boot.Booted): that the initrd's measurement was not appended since.
func (f Facts) AsTheKernelStarted() Facts {
	if f.Initrd == "" {
		f.Initrd = f.withheld
	}
	return f
}

// MaxCommandLine is the longest command line that is looked at, in bytes; Linux stops
// at 2048 on x86 and 4096 elsewhere.
const MaxCommandLine = 8192

// withCommandLine takes an offered text over, if a digest confirms it.
//
// With "initrd=" in it, the initrd is not proven. The kernel's stub measures an initrd that a loader hands over, and not one
// that it reads itself by that name (Linux drivers/firmware/efi/libstub/efi-stub-helper.c: efi_load_initrd).
// systemd-boot puts "initrd=" there for each initrd of an entry; an entry that names none, and whose options say it, gives
// the same command line. Any initrd then runs, and appends the digest that is expected of it to PCR 9: see AsTheKernelStarted.
func (f Facts) withCommandLine(text string) (Facts, bool) {
	if text == "" || len(text) > MaxCommandLine {
		return f, false
	}
	if c := (CommandLine{Digest: f.loadOptions, wide: true}); f.loadOptions != "" && c.Is(text) {
		f.CommandLine = c
	}
	if !f.CommandLine.Is(text) {
		return f, false
	}
	f.CommandLine.Text = text
	if loadsInitrd(text) && !f.handed() && f.Initrd != "" {
		f.Initrd, f.withheld = "", f.Initrd
	}
	return f, true
}

// ConfirmCommandLine offers a text for the kernel command line, such as the machine's own
// /proc/cmdline (a final newline is dropped). Where a digest of a bank confirms it, it
// becomes that bank's fact; else nothing changes. The offer may come from anybody.
func (b Boot) ConfirmCommandLine(text string) Boot {
	text = strings.TrimSuffix(text, "\n")
	out := Boot{banks: make(map[nodeclaim.HashAlg]bank, len(b.banks))}
	for alg, bk := range b.banks {
		bk.facts, _ = bk.facts.clone().withCommandLine(text)
		out.banks[alg] = bk
	}
	return out
}
