// Package ima replays the Linux kernel's integrity measurement list (IMA) to quoted PCR 10.
//
// A [Replayer] takes the list's binary form (securityfs binary_runtime_measurements, little-endian) in
// chunks of any size and stops at the entry whose replay is quoted PCR 10. What follows is
// unproven and ignored: the list grows while the TPM quotes. A list that never gets there is refused.
// A stream ([NewStream]) keeps no entry, so that a list's length costs no memory. The [State] that
// it ends in lets [Resume] go on from there in the same boot of the same TPM, under the same AK.
//
// What it does not do: it does not decide which files are good (package reference does), check
// IMA signatures (package imasig does), or read anything that no quoted PCR covers. The node controls every byte
// of the list. The name of an entry's template is in no digest, so nothing rests on it: fields
// that mean different things in two templates of the same shape are told apart by nothing.
// What any process can have the kernel write spoils no list: a digest of zeros ([Entry.Unknown]), a violation, a name
// without a directory or one that looks like boot_aggregate ([Entry.NamedOnly]) is an entry, for the sets to judge.
// The path is what the kernel saw, in the mount namespace of who opened the file.
package ima
