// Package eventlog replays a TCG measured-boot log to quoted PCRs and draws facts from it: how the firmware
// was measured, whether secure boot was on and by whose keys, what was started, the kernel's
// initrd and command line.
//
// # What is believed
//
// The node controls every byte of its log. A PCR that the TPM quoted proves the digests that the log has
// for it, and their order within that PCR; [Replay] is the only maker of a [Boot]. Nothing else is
// proven: not an event's type, not its data, not the order between two PCRs. So a fact rests on
//
//   - digests alone: images in PCR 4 at their place in it, measurements in PCR 0, sections of a unified kernel image in PCR 11,
//     whose names are recognised by their digest; what the kernel's stub measured into PCR 9;
//   - data that the digest confirms: variables in PCR 7, GRUB's strings in PCR 8, texts in PCR 12;
//   - position: firmware measures before the separator and once, and who controls the machine later can
//     append to a PCR but not insert. A text at its place is a fact, one appended is not; where several
//     could be meant there is no fact.
//
// A PCR that was not quoted, or that others than the firmware's log extend (the table extenders, and what
// Log.WithOSExtended names), gives no fact unless the log reaches it exactly. systemd's own log, which is optional, is replayed after
// the firmware's ([ReplayBoth]); without it, its boot phases in PCR 11, also Talos's, and its os-separator are tried. Nothing tells where the
// one log ends and the other begins but the node, so what user space measured counts for facts as if firmware had.
//
// # What is not
//
// Absence proves little: PCRs 4, 8, 9, 11 and 12 have no end mark, so a machine that measured nothing into
// one of them can later extend what another measured. A fact about what was started is therefore only as
// good as what measured it: reference values must pin firmware and boot loader too (package reference
// demands it). The log says nothing about what runs after boot; see package ima.
//
// Why this parser is our own: design/2026-11-23-own-parser.md. Why images are told by position: design/2026-11-29-position-not-count.md.
// What each fact rests on, and who extends which PCR: README.md.
package eventlog
