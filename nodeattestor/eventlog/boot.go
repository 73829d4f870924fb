package eventlog

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// Digest is a measurement with its algorithm: "sha256:" and lower hex. "" is no
// digest. Two digests compare as strings; only equal algorithms can be equal.
type Digest string

// NewDigest writes a digest of a bank.
func NewDigest(alg nodeclaim.HashAlg, sum []byte) Digest {
	return Digest(alg.String() + ":" + hex.EncodeToString(sum))
}

// hash is the digest of data in a bank.
func hash(alg nodeclaim.HashAlg, data []byte) Digest { return NewDigest(alg, sum(alg, data)) }

// sum is the bare digest.
func sum(alg nodeclaim.HashAlg, data []byte) []byte {
	if alg == nodeclaim.SHA256 { // nearly always, and then without the state of a hash.Hash
		d := sha256.Sum256(data)
		return d[:]
	}
	h := alg.New()
	h.Write(data)
	return h.Sum(nil)
}

// Boot is what a replayed log proves about how a machine started: facts for each
// quoted bank, drawn only from PCRs that were quoted and that the log reaches
// exactly. Only Replay makes one; the zero value proves nothing.
type Boot struct {
	banks map[nodeclaim.HashAlg]bank
}

type bank struct {
	facts      Facts
	replayed   []int
	unreplayed []int
	phases     []string
	measured   measured
	booted     map[int][]byte
}

// Banks lists the quoted banks, strongest first.
func (b Boot) Banks() []nodeclaim.HashAlg {
	banks := slices.Sorted(maps.Keys(b.banks))
	slices.Reverse(banks)
	return banks
}

// Facts are the facts of one bank, and whether that bank was quoted. Digests of
// one bank are no digests of another, so there is no default bank.
func (b Boot) Facts(alg nodeclaim.HashAlg) (Facts, bool) {
	f, ok := b.banks[alg]
	return f.facts.clone(), ok
}

// Replayed lists the PCRs of a bank that were quoted and that the log reaches, ascending.
func (b Boot) Replayed(alg nodeclaim.HashAlg) []int { return slices.Clone(b.banks[alg].replayed) }

// Unreplayed lists the PCRs of a bank that were quoted and whose log is elsewhere (IMA's
// 10, systemd's 11 and 15, those of a dynamic launch, ...), ascending. They can be
// matched by their exact value; no fact comes from them.
func (b Boot) Unreplayed(alg nodeclaim.HashAlg) []int {
	return slices.Clone(b.banks[alg].unreplayed)
}

// Booted is a replayed PCR's value as it stood when user space began, which is what IMA's boot_aggregate is over. It is the
// quoted value unless systemd has extended the PCR since. For a PCR that WithOSExtended names and that the logs do not
// reach, it is the firmware's log's claim, which boot_aggregate then proves or contradicts.
func (b Boot) Booted(alg nodeclaim.HashAlg, pcr int) ([]byte, bool) {
	v, ok := b.banks[alg].booted[pcr]
	return slices.Clone(v), ok
}

// Phases are the boot phases that systemd extended into PCR 11 after the log's events, nil when
// the log alone leads to the quoted value.
func (b Boot) Phases(alg nodeclaim.HashAlg) []string { return slices.Clone(b.banks[alg].phases) }

// Events lists the measured events of a bank's replayed PCRs in log order. They are
// for people: an entry's Type is never proven, its Text only where Confirmed says so.
func (b Boot) Events(alg nodeclaim.HashAlg) []Entry { return b.banks[alg].measured.entries() }

// Entry is one measured event, written out for a person.
type Entry struct {
	Index     int    `json:"index"` // position in the log, from 0
	PCR       int    `json:"pcr"`
	Type      string `json:"type"` // the log's claim; no digest covers it
	Digest    Digest `json:"digest"`
	Text      string `json:"text,omitempty"`
	Confirmed bool   `json:"confirmed"` // the digest covers the text
}

// Facts are the digest-confirmed facts of one bank. A field is empty where the
// evidence does not prove it; empty never means "fine".
type Facts struct {
	Bank string `json:"bank"`
	// Firmware has every measurement of PCR 0 but the separator, in order
	// (TCG PC Client Platform Firmware Profile 1.06, 3.3.4.1).
	Firmware   []Digest   `json:"firmware,omitempty"`
	SecureBoot SecureBoot `json:"secureBoot"`
	// BootLoader has the images of the last boot attempt in PCR 4, in the order in which they were
	// started: Authenticode digests (same, 3.3.4.5). They stand after the PCR's first separator and after
	// the last text there with which an attempt begins. A kernel that the firmware's loader started is among them, last.
	BootLoader []Digest `json:"bootLoader,omitempty"`
	// OtherImages are the images that PCR 4 holds besides: the firmware's own applications, and those of
	// boot attempts that returned. Who controls the machine later can append the begin of an attempt, which
	// makes these of all that ran; so only a pinned PCR 4 says which of them are good.
	OtherImages []Digest `json:"otherImages,omitempty"`
	// Kernel is the digest of a unified kernel image's .linux section (PCR 11), or, where PCR 11 proves that
	// there is none, the Authenticode digest of the last image of the boot attempt, where something else
	// than the number of images proves that a kernel was started by it (method measured.kernel).
	Kernel Digest `json:"kernel,omitempty"`
	// Initrd is what the kernel's EFI stub measured into PCR 9 after the command line, else
	// the .initrd section of a unified kernel image where nothing was added to it.
	Initrd      Digest      `json:"initrd,omitempty"`
	CommandLine CommandLine `json:"commandLine"`
	// Sections are those of a unified kernel image by name (".osrel"), as
	// systemd-stub measured them into PCR 11: digest of the section's content.
	Sections map[string]Digest `json:"sections,omitempty"`

	// loadOptions may be the command line's digest or the initrd's, until a text confirms it.
	loadOptions Digest
	scripted    bool
	untold      bool
	// withheld is an initrd that is proven only where it cannot have been appended.
	withheld    Digest
	started     []Digest
	authorities []Authority
}

// Started is all that PCR 4 holds but separators and the texts that were known before 2026-11-29. It is what sets of
// reference values from before then call the boot loader.
func (f Facts) Started() []Digest { return slices.Clone(f.started) }

// ListedAuthorities are SecureBoot's authorities and, at their places, the settings that sets of reference values from
// before 2026-11-29 list among them.
func (f Facts) ListedAuthorities() []Authority { return slices.Clone(f.authorities) }

// Scripted tells whether a boot loader that takes commands (GRUB) measured them into PCR 8, or may have because what
// PCR 8 holds is not known. It can start a kernel that PCR 4 does not have, and what it did not measure can be appended later: kernel, initrd and
// command line are then only as good as the exact values of PCR 8 (its commands) and 9 (the files that it read).
func (f Facts) Scripted() bool { return f.scripted }

// KernelUntold tells whether the log itself says that a boot loader started the kernel and measured nothing of it: the last
// image is a loader's by its path, and PCR 8 has no command of one. What PCR 9 holds then is of the kernel's
// stub, its command line and initrd, and says nothing of the kernel. No digest covers paths, so false proves nothing.
func (f Facts) KernelUntold() bool { return f.untold }

func (f Facts) clone() Facts {
	f.Firmware = slices.Clone(f.Firmware)
	f.BootLoader = slices.Clone(f.BootLoader)
	f.OtherImages = slices.Clone(f.OtherImages)
	f.Sections = maps.Clone(f.Sections)
	f.SecureBoot.Authorities = slices.Clone(f.SecureBoot.Authorities)
	f.SecureBoot.Others = slices.Clone(f.SecureBoot.Others)
	return f
}

// SecureBoot is what PCR 7 proves (TCG PFP 1.06, 3.3.4.8). The digests are those
// of the measured UEFI_VARIABLE_DATA, not of the variable's content alone.
type SecureBoot struct {
	State SecureBootState `json:"state"`
	PK    Digest          `json:"pk,omitempty"`
	KEK   Digest          `json:"kek,omitempty"`
	DB    Digest          `json:"db,omitempty"`
	DBX   Digest          `json:"dbx,omitempty"`
	// Authorities are the database entries and other variables that let images start, in order. Settings never do.
	Authorities []Authority `json:"authorities,omitempty"`
	// Others are all further measurements of PCR 7, in order: more variables, action strings.
	Others []Digest `json:"others,omitempty"`
}

// Authority is a variable that vouched for an image.
type Authority struct {
	Variable string `json:"variable"` // "db", "MokListRT", "SbatLevel"
	Digest   Digest `json:"digest"`
}

// SecureBootState is a word for the state of secure boot.
type SecureBootState string

// The states. Unknown never satisfies a reference value.
const (
	SecureBootUnknown  SecureBootState = "unknown"
	SecureBootEnabled  SecureBootState = "enabled"
	SecureBootDisabled SecureBootState = "disabled"
)

// Tristate is the state in the vocabulary of claims.
func (s SecureBootState) Tristate() nodeclaim.Tristate {
	switch s {
	case SecureBootEnabled:
		return nodeclaim.True
	case SecureBootDisabled:
		return nodeclaim.False
	case SecureBootUnknown:
		return nodeclaim.Unknown
	default:
		return nodeclaim.Unknown
	}
}

// CommandLine is the kernel command line. A PCR holds only its digest, so its text is
// known only when somebody offered it (the log itself, the machine, a reference set)
// and a digest confirmed it.
type CommandLine struct {
	Text   string `json:"text,omitempty"`
	Digest Digest `json:"digest,omitempty"` // as measured: of the text, or of it in UTF-16LE with a final NUL

	// wide is set where the kernel's stub measured it, which writes UTF-16. Nothing else may then count as the
	// text: load options are bytes that the node chooses, and the bytes of a good line in ASCII are
	// another line to the kernel.
	wide bool
}

// Known reports whether anything about the command line is proven.
func (c CommandLine) Known() bool { return c.Text != "" || c.Digest != "" }

// Is reports whether text is proven to be the command line.
func (c CommandLine) Is(text string) bool {
	if c.Text != "" {
		return c.Text == text
	}
	alg, _, ok := strings.Cut(string(c.Digest), ":")
	if !ok || !utf8.ValidString(text) {
		return false
	}
	a, err := nodeclaim.ParseHashAlg(alg)
	return err == nil && (hash(a, loadOptions(text)) == c.Digest || !c.wide && hash(a, []byte(text)) == c.Digest)
}
