package eventlog

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// extender is software that extends PCRs after the firmware's log has ended.
type extender struct {
	who    string
	pcrs   []int
	source string // who says so
	// starts are texts that it extends, one after the other, when the machine starts. again are
	// those that it then extends any number of times (a soft reboot). Each is measured as it stands.
	starts [][]string
	again  []string
	// is tells texts that differ from machine to machine, where there are any.
	is func(text []byte) bool
	// logged says that systemd's log has what it extends.
	logged bool
	// normal says that the PCR may end elsewhere on any machine: no key of the configuration is needed.
	normal bool
}

// Sources of the table.
const (
	systemdMeasurements = "https://github.com/systemd/systemd/blob/main/docs/TPM2_PCR_MEASUREMENTS.md"
	systemdPCRPhase     = "https://www.freedesktop.org/software/systemd/man/latest/systemd-pcrphase.service.html"
	systemdSeparator    = "https://www.freedesktop.org/software/systemd/man/latest/systemd-pcrosseparator.service.html"
	talosPhases         = "https://github.com/siderolabs/talos/blob/main/internal/pkg/secureboot/secureboot.go"
	bottlerocketMeasure = "https://github.com/bottlerocket-os/bottlerocket-core-kit/blob/develop/sources/rottweiler/src/measure.rs"
	ubuntuCoreFDE       = "https://github.com/canonical/secboot/blob/master/efi/systemd_stub.go"
	cocoInitdata        = "https://github.com/confidential-containers/trustee/issues/1565"
	pcClientProfile     = "TCG PC Client Platform TPM Profile 1.05, 4.6"
)

// phasePCR is where systemd marks boot phases.
const phasePCR = 11

// osSeparator is what systemd 261 and later measure when user space begins, so that nothing measured after
// it can pass for the firmware's, and nvpcrSeparator what later ones measure after their NvPCRs' records.
const (
	osSeparator    = "os-separator"
	nvpcrInit      = "nvpcr-init:"
	nvpcrSeparator = "nvpcr-separator"
)

// imdsUserdata begins what systemd-imdsd measures of a cloud's user data: their SHA-256, and the first 256 bytes
// (systemd src/shared/pcrextend-util.c: pcrextend_imds_userdata_word).
const imdsUserdata = "imds-userdata:"

// isUserdata tells whether a text is of that form to the last byte. Nothing that stub or boot loader measure
// into PCR 12 can be: command lines end in NUL, archives and device trees begin otherwise.
var isUserdata = regexp.MustCompile(`^` + imdsUserdata + `[0-9a-f]{64}:[A-Za-z0-9+/]{0,342}={0,2}$`).Match

// upAndDown are systemd's marks from the start of the system manager to its end. A soft reboot passes
// through all of them again.
var upAndDown = []string{"sysinit", "ready", "shutdown", "final"}

// extenders names all that is known. A text is recognised by its digest, so that it can be nothing else:
// no image, initrd or command line has the digest of one of these words.
var extenders = []extender{
	{
		who: "systemd's boot phases", pcrs: []int{phasePCR}, source: systemdPCRPhase, logged: true, normal: true,
		starts: [][]string{
			slices.Concat([]string{"enter-initrd", "leave-initrd"}, upAndDown),
			upAndDown, // without an initrd
		},
		again: upAndDown,
	},
	{
		who: "Talos's boot phases", pcrs: []int{phasePCR}, source: talosPhases, normal: true,
		starts: [][]string{{"enter-initrd", "leave-initrd", "enter-machined", "start-the-world"}},
	},
	{
		who: "systemd's os-separator (261 and later)", pcrs: []int{0, 1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 14}, source: systemdSeparator,
		logged: true, starts: [][]string{{osSeparator}},
	},
	{
		who: "systemd-tpm2-setup's NvPCR records (systemd 259 and later)", pcrs: []int{9}, source: systemdMeasurements,
		logged: true, is: func(text []byte) bool { return bytes.HasPrefix(text, []byte(nvpcrInit)) },
		// Where the TPM has no room for NvPCRs, systemd goes on without, and measures the separators all the same.
		starts: [][]string{{nvpcrSeparator, osSeparator}, {osSeparator, nvpcrSeparator}},
	},
	{who: "systemd-imdsd's user data", pcrs: []int{12}, source: systemdMeasurements, logged: true, is: isUserdata},
	{who: "systemd's machine id and volume keys", pcrs: []int{15}, source: systemdMeasurements, logged: true, normal: true},
	{who: "Bottlerocket's settings and user data", pcrs: []int{8}, source: bottlerocketMeasure},
	{who: "Bottlerocket's kernel command line", pcrs: []int{9}, source: bottlerocketMeasure},
	{who: "Bottlerocket's boot phases", pcrs: []int{phasePCR}, source: bottlerocketMeasure, normal: true},
	{who: "Ubuntu Core's epoch and model", pcrs: []int{12}, source: ubuntuCoreFDE},
	{who: "the Confidential Containers agent's initdata", pcrs: []int{8}, source: cocoInitdata},
	{who: "IMA", pcrs: []int{imaPCR}, source: "https://www.kernel.org/doc/html/latest/security/IMA-templates.html", normal: true},
	{who: "debugging tools", pcrs: []int{16}, source: pcClientProfile, normal: true},
	{who: "a dynamic launch", pcrs: []int{17, 18, 19, 20, 21, 22}, source: pcClientProfile, normal: true},
	{who: "applications", pcrs: []int{23}, source: pcClientProfile, normal: true},
}

// imaPCR is IMA's, which has a log of its own.
const imaPCR = 10

// mayEndElsewhere tells whether others than the firmware's log extend a PCR after boot on any machine. Only such a PCR, and
// what WithOSExtended names, may be left unreplayed; any other quoted PCR must be reached exactly.
func mayEndElsewhere(pcr int) bool {
	return slices.ContainsFunc(extenders, func(x extender) bool { return x.normal && slices.Contains(x.pcrs, pcr) })
}

// userspaceWords are all texts of the table that are the same on every machine.
func userspaceWords() []string {
	out := []string{nvpcrSeparator, "factory-reset", "storage-target-mode"} // the latter two: systemd-pcrphase.service(8)
	for _, x := range extenders {
		for _, words := range x.starts {
			out = append(out, words...)
		}
	}
	return out
}

// maxSoftReboots bounds how many soft reboots without systemd's log are tried.
const maxSoftReboots = 64

// reachByWords tries what user space is known to extend where it shows no log of it.
func reachByWords(alg nodeclaim.HashAlg, pcr int, start, quoted []byte) (way, bool) {
	for _, x := range extenders {
		if !slices.Contains(x.pcrs, pcr) {
			continue
		}
		for _, words := range x.starts {
			if said, ok := x.reach(alg, words, start, quoted); ok {
				w := way{booted: start}
				if pcr == phasePCR {
					w.phases = said
				}
				return w, true
			}
		}
	}
	return way{}, false
}

// reach extends a value by one start's texts, then by those of soft reboots, until it is the quoted one. A soft
// reboot follows only what has come to its end.
func (x extender) reach(alg nodeclaim.HashAlg, words []string, value, quoted []byte) (said []string, ok bool) {
	for range maxSoftReboots + 1 {
		for _, word := range words {
			value = extended(alg, value, sum(alg, []byte(word)))
			said = append(said, word)
			if bytes.Equal(value, quoted) {
				return said, true
			}
		}
		if words = x.again; len(words) == 0 {
			break
		}
	}
	return nil, false
}

// ofUserspace tells whether an event of systemd's log says nothing about how the machine was started, and its text where
// it is a word of the table. Its digest decides: a text that it does not confirm counts as a measurement of the boot,
// because the node may show the firmware's last events in this log.
func (w *words) ofUserspace(alg nodeclaim.HashAlg, e *event, digest []byte) (word string, ok bool) {
	if word, ok := w.userspace[NewDigest(alg, digest)]; ok {
		return word, true
	}
	ok = slices.ContainsFunc(extenders, func(x extender) bool {
		return x.is != nil && slices.Contains(x.pcrs, e.pcr) && x.is(e.data)
	})
	return "", ok && bytes.Equal(sum(alg, e.data), digest)
}

// OSExtendable tells whether a PCR may be configured as extended by the operating system: 8 to 15 are its
// own (TCG PC Client Platform TPM Profile 1.05, 4.6), and 10 is IMA's.
func OSExtendable(pcr int) bool { return pcr >= 8 && pcr <= 15 && pcr != imaPCR }

// WithOSExtended is the log of a machine whose operating system extends further PCRs and keeps no log of it. One
// that the logs do not reach is then unreplayed: it is matched by its exact value, and no fact comes from it.
// Errors are for PCRs that firmware measures (OSExtendable).
func (l Log) WithOSExtended(pcrs []int) (Log, error) {
	for _, i := range pcrs {
		if !OSExtendable(i) {
			return Log{}, fmt.Errorf("eventlog: PCR %d cannot be extended by the operating system: give PCRs 8 to 15 without 10", i)
		}
	}
	l.osExtended = slices.Clone(pcrs)
	return l, nil
}

// unreached says why a PCR that the logs do not lead to is refused, who is known to extend it, and what to do about that.
func (l Log) unreached(alg nodeclaim.HashAlg, pcr int, value, quoted []byte) *nodeclaim.Refusal {
	var who []string
	logged, silent := false, false
	for _, x := range extenders {
		if slices.Contains(x.pcrs, pcr) {
			who = append(who, x.who)
			logged, silent = logged || x.logged, silent || !x.logged
		}
	}
	why := fmt.Sprintf("event log: its %d events for PCR %d (%s) lead to %x, the TPM quoted %x: the log was changed or cut, or something was measured that it does not have",
		l.count(pcr), pcr, alg, value, quoted)
	if len(who) > 0 {
		why += fmt.Sprintf(". Known to extend PCR %d after boot: %s", pcr, strings.Join(who, "; "))
	}
	switch {
	case logged && len(l.userspace) == 0:
		why += ". systemd's log was not sent: let the agent read it (mount /run/log/systemd)"
	case logged:
		why += ". systemd's log was sent, and does not lead there either"
	}
	if silent && OSExtendable(pcr) {
		why += fmt.Sprintf(". What keeps no log: name PCR %d in os_extended_pcrs, or do not quote it", pcr)
	}
	return nodeclaim.Refuse("eventlog.pcr", why)
}
