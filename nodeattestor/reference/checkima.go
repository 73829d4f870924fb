package reference

import (
	"bytes"
	"cmp"
	"path"
	"slices"
	"sort"
	"strings"

	"github.com/keelson-project/keelson/nodeattestor/ima"
)

// maxFileRefusals bounds how many files one evidence is refused for by name; the node chooses
// how many it measures.
const maxFileRefusals = 20

// ima checks every proven entry, from the list itself or from what was learned while it streamed.
func (c *checker) ima(ev Evidence) {
	if c.set.ima == nil {
		return
	}
	t := c.set.tally(ev)
	if t == nil && ev.IMA != nil && ev.IMA.Unproven > 0 {
		c.refuse("ima.absent", "PCR 10 was never extended although the IMA list has %d bytes: IMA started before the TPM's driver (the kernel's log says TPM-bypass); build the driver into the kernel, for %s wants proven files", ev.IMA.Unproven, c)
		return
	}
	if t == nil {
		c.refuse("ima.absent", "no measured file is proven (no IMA list, or an empty one), %s wants one", c)
		return
	}
	c.list = t
	c.refusals = append(c.refusals, t.judgement()...)
}

// tally is what the list of the evidence says by the set's rules; nil where the set does not look at one, or none is proven.
func (s Set) tally(ev Evidence) *tally {
	switch {
	case s.ima == nil || ev.IMA == nil:
	case ev.Measured != nil && ev.IMA.Count > 0:
		return ev.Measured.of(s, ev.IMA)
	case len(ev.IMA.Entries) > 0:
		return tallyOf(s, ev.IMA.Entries)
	}
	return nil
}

// kexec refuses a second boot_aggregate: a kernel that another kernel started wrote it, and no PCR below 10
// knows that kernel or its command line. The set's values are of the first one.
func (c *checker) kexec(e ima.Entry) {
	c.refuse("ima.kexec", "IMA entry %d is another boot_aggregate: the running kernel was started by kexec, so %s says nothing about it; boot through the firmware", e.Index, c)
}

func (c *checker) violation(e ima.Entry) {
	c.refuse("ima.violation", "IMA entry %d is a violation: a file was changed while it was measured (the node names %s), %s denies violations", e.Index, quoteText(e.Path), c)
}

// ignores tells whether a path is in a directory where anything goes, is itself not looked at, or has no directory and the set
// does not look at such names. A listed path is not ignored: it has its digests.
func (p *imaPolicy) ignores(file []byte) bool {
	if bare(file) {
		return p.allowBareNames
	}
	if slices.ContainsFunc(p.ignoreFiles, func(name string) bool { return name == string(file) }) {
		return true
	}
	return slices.ContainsFunc(p.ignore, func(dir string) bool { return len(file) > len(dir) && string(file[:len(dir)]) == dir }) && clean(file)
}

// bare tells whether a name has no directory. The kernel falls back to a file's last name where it cannot tell its path (Linux
// ima_d_path): below a path longer than PATH_MAX, on a mount that was taken off, of a memfd. Its buffers have such names too.
func bare[T string | []byte](name T) bool { return len(name) == 0 || name[0] != '/' }

// unhashed refuses a file of which the kernel could not tell what it holds.
func (c *checker) unhashed(e ima.Entry) {
	c.refuse("ima.file", "%s %s has unknown content: the kernel could not hash it and recorded zeros (a file opened with O_DIRECT, for example); %s allows that only under its ignoreDirectories and ignoreFiles, or with violations: allow%s",
		kind(e.Path), printable(e.Path), c, bareHint(e))
}

// bareHint says what a name without a directory is.
func bareHint(e ima.Entry) string {
	switch v := e.View(); {
	case !bare(e.Path):
		return ""
	case kernelRecord(&v):
		return " (a record of the kernel: a policy of IMA that was loaded or written, or a kernel made ready for kexec; bareNames does not let it pass, list it under files if it is meant to be)"
	case e.NamedOnly:
		return " (PCRs 0 to 9 do not give that digest: it is a file of this name below a path too long for the kernel, which bareNames: allow would let pass, or what a kernel left behind that kexec started with other PCRs)"
	}
	return " (the kernel names it without a directory: its path is too long, or it is a memfd, on a mount that was taken off, or a buffer of the kernel; bareNames: allow would let such files pass)"
}

// clean tells whether an absolute path is as path.Clean leaves it: "/var/../bin/x" is under no ignored directory.
func clean(file []byte) bool {
	for i, c := range file {
		if c == '/' && !beginsClean(file[i+1:]) {
			return false
		}
	}
	return true
}

// beginsClean tells whether what follows a slash begins with a name that is not empty, "." or "..".
func beginsClean(rest []byte) bool {
	if len(rest) == 0 || rest[0] == '/' {
		return false
	}
	if rest[0] != '.' {
		return true
	}
	name, _, _ := bytes.Cut(rest, []byte{'/'})
	return string(name) != "." && string(name) != ".."
}

// unknown refuses a file; unsigned is why no signature key of the set vouches for it.
func (c *checker) unknown(e ima.Entry, unsigned error) {
	if allowed, ok := c.set.ima.files[e.Path]; ok {
		c.refuse("ima.file", "%s %s has digest %s, %s allows %s", kind(e.Path), printable(e.Path), e.Digest, c, cmp.Or(strings.Join(allowed, " or "), "nothing under that path"))
		return
	}
	known := ""
	if other := c.set.ima.pathOf(e.Digest); other != "" {
		known = " (a file with that digest is allowed as " + printable(other) + ")"
	}
	if len(c.set.ima.keys) > 0 && unsigned != nil {
		known += ", and no key of it vouches for the file: " + unsigned.Error()
	}
	c.refuse("ima.file", "%s %s has digest %s, %s does not have that path%s%s", kind(e.Path), printable(e.Path), e.Digest, c, known, bareHint(e))
}

// pathOf is a path that has a digest, the first in order.
func (p *imaPolicy) pathOf(digest string) string {
	var found []string
	for file, digests := range p.files {
		if slices.Contains(digests, digest) {
			found = append(found, file)
		}
	}
	sort.Strings(found)
	if len(found) == 0 {
		return ""
	}
	return found[0]
}

// printable is a path as it stands when it is plain, else quoted: the node chose it.
func printable(s string) string {
	if q := quoteText(s); q != `"`+s+`"` || strings.Contains(s, " ") {
		return q
	}
	return s
}

// kind says what a path looks like, for people.
func kind(file string) string {
	base := path.Base(file)
	switch {
	case slices.Contains([]string{".sh", ".bash", ".py", ".pl", ".rb", ".lua", ".js"}, path.Ext(base)):
		return "script"
	case strings.HasSuffix(base, ".ko") || strings.Contains(base, ".ko."):
		return "kernel module"
	case strings.HasSuffix(base, ".so") || strings.Contains(base, ".so."):
		return "library"
	default:
		return "file"
	}
}
