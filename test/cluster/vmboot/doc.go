// Package vmboot boots virtual machines that measure themselves: firmware (OVMF), boot stub (systemd's) and kernel (Debian's)
// extend the TPM (swtpm) and write the logs, nothing is replayed, and SPIRE's agent runs in the guest with our attestor plugin,
// which reaches the TPM through the kernel's resource manager at /dev/tpmrm0.
//
//	kit, err := vmboot.Gather(ctx, log, dir)                    // QEMU, firmware, kernel, the guest's programs; cached
//	image, err := kit.Build(ctx, dir, vmboot.Changes{})          // the golden image; Changes say what is tampered with
//	tpm, err := kit.MakeTPM(ctx, group, log, "fra-1", dir, ca, provision)
//	vm, err := kit.Start(ctx, group, vmboot.VMOptions{Image: image, TPM: tpm, Server: spire, …})
//	err = vm.Evidence(ctx, folder)                               // of a golden guest, for `keelson reference capture`
//	vm.Close()                                                   // the TPM stays, for the next boot
//
// Images can also be started by systemd-boot, and by Debian's shim and GRUB, with secure boot too ([Changes], [VMOptions]). A guest
// without a server runs no agent: it writes its evidence and is done. With NodePrograms it first loads the IMA policy of examples/ima-policy and
// runs containerd and kubelet, and a container that runc starts with the rights of a pod (containerConfig). Where it is asked to,
// that has the kernel write odd entries (package pod).
//
// Processors are emulated, so that it works where there is no KVM, inside another virtual machine for example.
//
// # The guest
//
// What boots is a unified kernel image: kernel, command line, and an initrd with busybox, drivers and init.sh, its PID 1. PCR 4
// has the image as a whole, PCR 11 its sections, PCR 9 what the kernel was given. SPIRE's agent, the plugin and the program that
// collects evidence come from the second disk and are measured by IMA, each before it runs: they are unpacked on
// a ramfs, because the kernel's policy "tcb" leaves out tmpfs. (In the initrd, firmware would hash them three times over, in
// emulation.) What differs from run to run (the agent's configuration, the trust bundle, the asset tag) comes from the third disk, is
// unpacked on a tmpfs and is measured by nobody, so init runs nothing from there; but the agent's configuration names the plugin, and
// a real machine has it measured. Disks but the first are tar archives. A golden guest writes its evidence to the last.
// The guest reaches one address, 10.0.2.100:8081, which QEMU hands to the SPIRE server on the host's loopback.
//
// On two idle cores a boot takes about 18 s until init runs and 5 s more until the server's verdict.
//
// # As a node of a cluster
//
// The guest attests; no kubelet or container runtime runs in it. Scenario virtual (test/e2e) takes one for what stands below
// a node: the server's inventory lists tpm.EKHashes under the node's name, a kubelet of that name runs beside the guest, and the
// verdict about the guest's boot becomes that node's NodeTrust, its label and its taint; booting a tampered image on the same TPM
// closes it. Workloads of such a node would have to be attested by an agent on the host, which must not be the same TPM's:
// it needs another node attestor (join_token), and entries parented to the node.
package vmboot
