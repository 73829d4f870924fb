package predict

import (
	"fmt"
)

// Linux is a kernel with an EFI stub that systemd-boot or the firmware starts, not in a unified
// image.
type Linux struct {
	// Loaders are the images that run before it, in the order in which they are started: shim,
	// systemd-boot. None where the firmware starts it.
	Loaders []File
	Kernel  File
	// Initrds are loaded one after the other, as the loader's entry names them.
	Initrds []File
	// CommandLine is all of it, as /proc/cmdline will show it. For an entry of systemd-boot it
	// begins with "initrd=\PATH" for each initrd.
	CommandLine string
}

// apply predicts PCRs 4, 8, 9, 11, 12 and 13. systemd-boot measures the command line into PCR 12
// and hands the initrds, one after the other with nothing between, to the kernel's stub (systemd
// src/boot/efi/boot.c: initrd_prepare, image_start).
func (k Linux) apply(d *draft) error {
	var images []event
	loader := 0
	for _, f := range append(append([]File{}, k.Loaders...), k.Kernel) {
		e, err := d.image(f)
		if err != nil {
			return err
		}
		images = append(images, e)
		img, err := ParseImage(f.Data)
		if err != nil {
			return err
		}
		if program, _, number := img.Systemd(); program == "systemd-boot" {
			loader = number
		}
	}
	if loader == 0 && len(k.Loaders) > 1 {
		return fmt.Errorf("predict: none of the loaders says that it is systemd-boot, so it is not known what they measure; for GRUB, replace files of the boot before")
	}
	d.start(images)
	for _, pcr := range []int{8, 11, 12, 13} {
		d.set(pcr, nil)
	}
	if loader > 0 {
		d.add(12, d.base.texts(typeIPL, k.CommandLine, "command line, by systemd-boot")...)
	}
	var initrd []byte
	for _, f := range k.Initrds {
		initrd = append(initrd, f.Data...)
	}
	if loader == 0 && len(k.Initrds) > 0 {
		// Without a loader the kernel reads the files itself (initrd=) and does not measure them.
		d.note("initrd: the firmware hands none to the kernel; one that the command line names is measured by nothing")
		initrd = nil
	}
	d.cmdline, d.cmdlineKnown = k.CommandLine, true
	d.stub(k.Kernel.Data, k.CommandLine, initrd)
	return nil
}

// stub predicts PCR 9, into which the kernel's EFI stub measures the command line and then the
// initrd that the loader hands over (Linux drivers/firmware/efi/libstub/efi-stub-helper.c:
// efi_convert_cmdline and efi_load_initrd). Initrds are measured since Linux 5.18, command lines
// since 6.1.
func (d *draft) stub(kernel []byte, cmdline string, initrd []byte) {
	d.set(9, nil)
	withLine, withInitrd := true, true
	if major, minor, ok := kernelVersion(kernel); ok {
		withInitrd = major > 5 || major == 5 && minor >= 18
		withLine = major > 6 || major == 6 && minor >= 1
	} else if before := len(d.base.byPCR[9]); len(d.base.byPCR[8]) == 0 && before > 0 {
		d.note("PCR 9: the kernel does not say its version; it is taken to be 6.1 or later, which measures command line and initrd")
	}
	if withLine {
		d.add(9, d.base.texts(typeEventTag, cmdline, "command line, by the kernel's stub")...)
	}
	if withInitrd && len(initrd) > 0 {
		d.add(9, d.base.measure(typeEventTag, initrd, "initrd, by the kernel's stub"))
	}
}
