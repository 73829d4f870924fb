package ima

import "github.com/keelson-project/keelson/nodeattestor/nodeclaim"

// Result is what a replayed IMA log proves: the entries that quoted PCR 10 covers,
// and nothing after them.
type Result struct {
	// Entries are the proven entries; nil from a Replayer that keeps none.
	Entries []Entry
	// Count is how many entries are proven, those of a resumed state included.
	Count int
	// Violations counts the entries whose file changed while it was measured, so that
	// its digest is unknown.
	Violations int
	// Unproven counts bytes after the entry that reached quoted PCR 10: the log grew
	// while the quote was made. They prove nothing and are not read.
	Unproven int64
	// Aggregated is the bank whose PCRs 0 to 9 (0 to 7 of SHA-1) boot_aggregate proves as they stood when the
	// kernel started.
	Aggregated nodeclaim.HashAlg
	// Weak is set when nothing stronger than SHA-1 covers the entries.
	Weak bool
}

// Entry is one proven measurement.
type Entry struct {
	Index int // position in the log, from 0; 0 is boot_aggregate
	// Path is the file's path as the kernel saw it, or the name of a buffer
	// ("kexec-cmdline"). In a violation no digest covers it: it is the node's claim.
	Path string
	// Digest is the file's (or buffer's) digest as "sha256:hex"; an fs-verity digest is
	// "verity:sha256:hex". "" in a violation, and where the content is unknown.
	Digest string
	// Signature is the file's IMA signature (or a buffer's content, or "" - the field
	// that follows the name), unverified here.
	Signature []byte
	Violation bool
	// Unknown says that the kernel could not hash the file and wrote a digest of zeros: it was opened with O_DIRECT, for
	// example (Linux ima_calc_file_hash), as any process can. The path is proven, the content is not.
	Unknown bool
	// NamedOnly says that the file has the name boot_aggregate and is none: the PCRs do not give its digest.
	NamedOnly bool
}

// IsBootAggregate tells whether an entry is boot_aggregate. A proven one was recomputed from the
// quoted PCRs by the replay; there is one for each kernel that kexec started. A file that is only named so is
// none.
func IsBootAggregate(e Entry) bool {
	return !e.Violation && !e.Unknown && !e.NamedOnly && e.Path == bootAggregate
}
