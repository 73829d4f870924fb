// Package grubscript interprets configurations of GRUB 2 as far as they say what GRUB measures: each command
// that it runs, with variables expanded, and each kernel command line (grub-core/script/execute.c:
// grub_script_execute_cmdline; grub-core/commands/efi/tpm.c and lib/cmdline.c: PCR 8).
//
// What a configuration does depends on the machine too: on files that are there, on GRUB's environment block, on
// what its modules set before. A text does not say that; a boot that took place does:
//
//	world, steps, err := grubscript.Learn("old/grub.cfg", old, measured) // explains every command that was measured
//	steps, err = world.Run("new/grub.cfg", updated)                      // or says which line it cannot decide
//
// Learn runs the configuration of that boot. Where it does not know a variable's value or what a test found, the
// commands that were measured next tell. An explanation accounts for every command, in order, to the kernel; a
// test whose outcome leaves no trace is not known. Run then decides what that boot was asked, and nothing else:
// whatever is not interpreted, or was not asked in that boot, is an error with the line and a word on what to do.
//
// A wrong prediction is refused when the machine boots; it never lets another boot pass than the one that it names.
package grubscript
