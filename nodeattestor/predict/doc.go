// Package predict computes what a machine will measure from the files that it is going to boot,
// before it boots: so that reference values can be rolled out before the machines restart.
//
// Firmware is not predicted. A [Base], read from the event log of a golden machine, has what
// firmware, platform and keys measure; a [Change] says which files take the place of those that
// this machine booted:
//
//   - [UKI]: a unified kernel image with systemd-stub (PCRs 4, 9, 11, 12, 13);
//   - [Linux]: a kernel, its initrds and its command line, started by systemd-boot or by the firmware (PCRs 4, 9, 12);
//   - [GRUB]: files that GRUB reads, and its configuration or texts in its commands (PCRs 4, 8, 9);
//   - [DBX]: an update of the forbidden signatures of secure boot (PCR 7).
//
// [Base.Predict] writes the event log that this boot will have and reads it as the server reads a
// node's, so that the facts of a prediction are those that the server will prove. [Prediction.Set]
// puts them into a captured reference set.
//
// # What is not predicted
//
// What depends on more than files is named in Prediction.Unknown, and is in no set: what GRUB does
// with a configuration that asks what the boot before did not answer (package grubscript); a device tree or
// firmware that the stub chooses by the machine's hardware; what user space extends after boot.
// [Prediction.Compare] holds a prediction against a boot that took place: whoever has the files
// that the golden machine booted checks the method by them.
//
// The measurements follow systemd's stub and boot loader (their sources of versions 250 to 257),
// Linux's EFI stub (drivers/firmware/efi/libstub), TCG PC Client Platform Firmware Profile 1.06 and
// EDK II.
package predict
