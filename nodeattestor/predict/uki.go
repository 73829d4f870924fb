package predict

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// UKI is a unified kernel image with systemd-stub (UAPI Group, Unified Kernel Image;
// systemd-stub(7)).
type UKI struct {
	// Loaders are the images that run before it, in the order in which they are started: shim,
	// systemd-boot. None where the firmware starts it.
	Loaders []File
	Image   File
	// Profile is the number of the profile that is booted, in an image with several.
	Profile int
	// LoadOptions is a command line that the loader or the firmware's boot entry passes to the
	// image, "" for none.
	LoadOptions string
	// Global has what lies in /loader of the boot partition, Own what lies beside the image in
	// NAME.efi.extra.d.
	Global, Own Extras
}

// Extras are files beside a unified kernel image that systemd-stub adds to it, content by file
// name.
type Extras struct {
	Addons      map[string][]byte // *.addon.efi
	Credentials map[string][]byte // *.cred
	Extensions  map[string][]byte // *.raw, without *.confext.raw
	Configs     map[string][]byte // *.confext.raw
}

// NewestStub is the newest version of systemd-stub whose measurements are known here. What a newer
// one does differently cannot be told from the file.
const NewestStub = 257

// stubSections are the sections that systemd-stub measures into PCR 11, in its order, each with the
// first version that does so (systemd src/fundamental/uki.h: "PLEASE DO NOT REORDER").
var stubSections = []struct {
	name  string
	since int
}{
	{".linux", 0}, {".osrel", 0}, {".cmdline", 0}, {".initrd", 0}, {".ucode", 256}, {".splash", 0}, {".dtb", 0},
	{".uname", 254}, {".sbat", 254},
	{".pcrpkey", 0}, {".profile", 257}, {".dtbauto", 257}, {".hwids", 257},
}

// chosenByHardware are sections of which the stub takes the one that fits the machine, or none.
var chosenByHardware = []string{".dtbauto", ".efifw"}

// unified is an image as the stub reads it.
type unified struct {
	image    Image
	version  int
	name     string // of the version
	sections map[string]section
}

func (u unified) has(name string) bool { _, ok := u.sections[name]; return ok }

func (u unified) content(name string) []byte {
	s, ok := u.sections[name]
	if !ok {
		return nil
	}
	return u.image.content(s)
}

// text is a section's text as the stub reads it: up to the first NUL.
func (u unified) text(name string) string {
	text, _, _ := strings.Cut(string(u.content(name)), "\x00")
	return text
}

// readUnified finds the sections of a profile: those before the first .profile section, overridden
// by those of the profile's own. The first of a name counts.
func readUnified(f File, profile int) (unified, error) {
	img, err := ParseImage(f.Data)
	if err != nil {
		return unified{}, fmt.Errorf("%s: %w", f.Name, err)
	}
	u := unified{image: img, sections: map[string]section{}}
	program, name, version := img.Systemd()
	if program == "systemd-stub" {
		u.version, u.name = version, name
	}
	number, own := -1, map[string]section{}
	for _, s := range img.sections {
		if s.name == ".profile" {
			number++
		}
		into := u.sections
		if number >= 0 {
			into = own
		}
		if number >= 0 && number != profile {
			continue
		}
		if _, twice := into[s.name]; !twice && s.virtualSize > 0 {
			into[s.name] = s
		}
	}
	if profile > number && profile > 0 {
		return unified{}, fmt.Errorf("%s: the image has no profile %d: it has %d", f.Name, profile, number+1)
	}
	maps.Copy(u.sections, own)
	if !u.has(".linux") {
		return unified{}, fmt.Errorf("%s: not a unified kernel image: it has no section .linux", f.Name)
	}
	return u, nil
}

// apply predicts PCRs 4, 8, 9, 11, 12 and 13.
func (k UKI) apply(d *draft) error {
	u, err := readUnified(k.Image, k.Profile)
	if err != nil {
		return err
	}
	switch {
	case u.version == 0:
		return fmt.Errorf("%s: the image does not say what version of systemd-stub it has (section .sdmagic), so what it measures is not known", k.Image.Name)
	case u.version < 252 || u.version > NewestStub:
		return fmt.Errorf("%s: its systemd-stub %s is not among those whose measurements are known here (252 to %d): capture a set from a machine that booted it", k.Image.Name, u.name, NewestStub)
	}
	d.set(8, nil)
	if err := k.started(d, u); err != nil {
		return err
	}
	k.measured(d, u)
	s := k.parameters(d, u)
	d.cmdline, d.cmdlineKnown = s.cmdline, true
	d.stub(u.content(".linux"), s.cmdline, combined(s.initrds))
	return nil
}

// started predicts PCR 4: the loaders, the image, its add-ons, and the kernel in it where the stub
// has firmware load that. Since version 252 it bypasses firmware for that where secure boot is on
// (src/boot/efi/linux.c: install_security_override), and then firmware does not measure it.
func (k UKI) started(d *draft, u unified) error {
	var images []event
	for _, f := range append(slices.Clone(k.Loaders), k.Image) {
		e, err := d.image(f)
		if err != nil {
			return err
		}
		images = append(images, e)
	}
	for _, x := range []Extras{k.Global, k.Own} {
		for _, name := range slices.Sorted(maps.Keys(x.Addons)) {
			e, err := d.image(File{name, x.Addons[name]})
			if err != nil {
				return err
			}
			images = append(images, e)
		}
	}
	enabled, known := d.base.secureBoot()
	if !known {
		d.unknown[4] = "the boot before does not say whether secure boot is on, and the stub has firmware measure the kernel only where it is off"
		d.set(4, d.base.byPCR[4])
		return nil
	}
	if !enabled {
		e, err := d.image(File{k.Image.Name + " (.linux)", u.content(".linux")})
		if err != nil {
			return err
		}
		images = append(images, e)
	}
	d.start(images)
	return nil
}

// measured predicts PCR 11: each section's name with a NUL, then its content.
func (k UKI) measured(d *draft, u unified) {
	d.set(11, nil)
	for _, s := range stubSections {
		if u.version < s.since || !u.has(s.name) || slices.Contains(chosenByHardware, s.name) {
			continue
		}
		d.add(11, d.base.measure(typeIPL, []byte(s.name+"\x00"), "name of section "+s.name), d.base.measure(typeIPL,
			u.content(s.name), "section "+s.name))
	}
	for _, name := range chosenByHardware {
		if u.has(name) {
			d.unknown[11] = fmt.Sprintf("section %s is measured only where it fits the machine's hardware", name)
		}
	}
	if _, os := d.base.facts.Sections[".linux"]; !os {
		d.note("PCR 11: the boot before measured nothing into it, so it does not say whether the operating system marks its boot phases there: the set does not pin its value")
	}
}

// settled is what the stub hands to the kernel.
type settled struct {
	cmdline string
	initrds [][]byte
}

// parameters predicts PCRs 12 and 13, in the stub's order, and what the kernel gets.
func (k UKI) parameters(d *draft, u unified) settled {
	d.set(12, nil)
	d.set(13, nil)
	enabled, _ := d.base.secureBoot()
	options := k.LoadOptions
	if number := k.loaderVersion(); number > 0 {
		if options == "" && number < 255 {
			options = mangled(u.text(".cmdline")) // systemd-boot passes on what it reads from the image itself
		}
		d.add(12, d.base.texts(typeIPL, options, "command line, by systemd-boot")...)
	}
	if k.Profile != 0 && u.version >= 257 {
		d.add(12, d.base.texts(typeEventTag, fmt.Sprint(k.Profile), "number of the profile")...)
	}
	s := settled{cmdline: mangled(u.text(".cmdline"))}
	if options = mangled(options); options != "" && (!enabled || !u.has(".cmdline")) {
		d.add(12, d.base.texts(typeIPL, options, "command line, by the stub")...)
		s.cmdline = options
	}
	a := k.addons(d, u, &s)
	sidecars := k.sidecars(d, u)
	d.add(12, a.measured...)
	s.initrds = append(s.initrds, a.first...)
	if u.version >= 256 {
		s.initrds = append(s.initrds, u.content(".ucode"))
	}
	s.initrds = append(s.initrds, u.content(".initrd"))
	s.initrds = append(s.initrds, sidecars...)
	for _, e := range []struct {
		section, file string
		since         int
	}{{".pcrsig", "tpm2-pcr-signature.json", 0}, {".pcrpkey", "tpm2-pcr-public-key.pem", 0}, {".osrel", "os-release",
		257}, {".profile", "profile", 257}} {
		if u.has(e.section) && u.version >= e.since {
			s.initrds = append(s.initrds, target{".extra", 0o555,
				0o444}.archive(map[string][]byte{e.file: u.content(e.section)}))
		}
	}
	s.initrds = append(s.initrds, a.last...)
	return s
}

// loaderVersion is the version of systemd-boot among the loaders, 0 without one.
func (k UKI) loaderVersion() int {
	for _, f := range k.Loaders {
		img, err := ParseImage(f.Data)
		if err != nil {
			continue // started says so
		}
		if program, _, number := img.Systemd(); program == "systemd-boot" {
			return number
		}
	}
	return 0
}

// added are parts of the initrd that add-ons bring, and their events, which come after those of the
// sidecars.
type added struct {
	first, last [][]byte
	measured    []event
}

// addons adds what *.addon.efi files say: texts to the command line, and parts of the initrd, which
// are returned. Global ones come first; of microcode the last one does, because the kernel takes
// the first that fits.
func (k UKI) addons(d *draft, u unified, s *settled) (out added) {
	var lines []string
	var trees, initrds []event
	for _, x := range []Extras{k.Global, k.Own} {
		var own []string
		for _, name := range slices.Sorted(maps.Keys(x.Addons)) {
			a, err := readAddon(x.Addons[name])
			if err != nil {
				continue // started says so
			}
			if why := u.rejects(a); why != "" {
				d.note("%s: the stub passes it over: %s", name, why)
				continue
			}
			if text := mangled(a.text(".cmdline")); text != "" {
				own = append(own, text)
			}
			if tree := a.content(".dtb"); tree != nil {
				trees = append(trees, d.base.measure(typeEventTag, tree, "device tree of "+name))
			}
			if part := a.content(".initrd"); u.version >= 257 && part != nil {
				initrds = append(initrds, d.base.measure(typeEventTag, part, "initrd of "+name))
				out.last = append(out.last, part)
			}
			if part := a.content(".ucode"); u.version >= 257 && part != nil {
				out.measured = append([]event{d.base.measure(typeEventTag, part, "microcode of "+name)},
					out.measured...)
				out.first = append([][]byte{part}, out.first...)
			}
			if a.has(".dtbauto") {
				d.unknown[12] = fmt.Sprintf("%s has a device tree that is measured only where it fits the machine's hardware", name)
			}
		}
		lines = append(lines, strings.Join(own, " "))
	}
	out.measured = append(out.measured, initrds...)
	lines = slices.DeleteFunc(lines, func(l string) bool { return l == "" })
	if u.version >= 255 && len(lines) > 0 { // before, each folder's were measured by themselves
		lines = []string{strings.Join(lines, " ")}
	}
	for _, l := range lines {
		d.add(12, d.base.texts(typeIPL, l, "command line of add-ons")...)
		s.cmdline = strings.TrimPrefix(s.cmdline+" "+l, " ")
	}
	d.add(12, trees...)
	return out
}

// readAddon finds the sections of an add-on.
func readAddon(data []byte) (unified, error) {
	img, err := ParseImage(data)
	if err != nil {
		return unified{}, err
	}
	a := unified{image: img, sections: map[string]section{}}
	for _, s := range img.sections {
		if !a.has(s.name) && s.virtualSize > 0 {
			a.sections[s.name] = s
		}
	}
	return a, nil
}

// rejects is why the stub does not take an add-on, "" where it does.
func (u unified) rejects(addon unified) string {
	switch {
	case u.version < 254:
		return fmt.Sprintf("systemd-stub %s knows no add-ons", u.name)
	case addon.has(".linux"):
		return "it is a unified kernel image"
	case u.has(".uname") && addon.has(".uname") && u.text(".uname") != addon.text(".uname"):
		return "its .uname is not the image's"
	}
	return ""
}

// sidecars measures credentials and extensions as the archives that the stub makes of them, and
// returns these.
func (k UKI) sidecars(d *draft, u unified) [][]byte {
	var out [][]byte
	for _, s := range []struct {
		files map[string][]byte
		to    target
		pcr   int
		since int
		what  string
	}{
		{k.Own.Credentials, target{".extra/credentials", 0o500, 0o400}, 12, 0, "credentials"},
		{k.Global.Credentials, target{".extra/global_credentials", 0o500, 0o400}, 12, 0, "global credentials"},
		{k.Own.Extensions, target{".extra/sysext", 0o555, 0o444}, 13, 0, "system extensions"},
		{k.Global.Extensions, target{".extra/global_sysext", 0o555, 0o444}, 13, 257, "global system extensions"},
		{k.Own.Configs, target{".extra/confext", 0o555, 0o444}, 12, 256, "configuration extensions"},
		{k.Global.Configs, target{".extra/global_confext", 0o555, 0o444}, 12, 257, "global configuration extensions"},
	} {
		if len(s.files) == 0 {
			continue
		}
		if u.version < s.since {
			d.note("%s: systemd-stub %s passes them over", s.what, u.name)
			continue
		}
		archive := s.to.archive(s.files)
		d.add(s.pcr, d.base.measure(typeIPL, archive, s.what))
		out = append(out, archive)
	}
	return out
}

// mangled is a command line as the stub writes it: control characters are spaces, none at its ends.
func mangled(text string) string {
	text, _, _ = strings.Cut(text, "\x00")
	return strings.Trim(strings.Map(func(r rune) rune {
		if r <= 0x1F {
			return ' '
		}
		return r
	}, text), " ")
}

// wide is a text as EFI programs have it: UTF-16LE with a final NUL.
func wide(text string) []byte {
	if !utf8.ValidString(text) {
		text = strings.ToValidUTF8(text, "\uFFFD")
	}
	var out []byte
	for _, c := range append(utf16.Encode([]rune(text)), 0) {
		out = binary.LittleEndian.AppendUint16(out, c)
	}
	return out
}
