package reference

import (
	"path"
	"slices"
	"sort"
	"strings"

	"github.com/keelson-project/keelson/nodeattestor/ima"
)

// maxFileRefusals bounds how many files one evidence is refused for by name; the node chooses
// how many it measures.
const maxFileRefusals = 20

// ima checks every proven entry: its path must be listed with its digest. What is not listed, is
// listed with another digest or was violated is refused.
func (c *checker) ima(ev Evidence) {
	policy := c.set.ima
	if policy == nil {
		return
	}
	if ev.IMA == nil || len(ev.IMA.Entries) == 0 {
		c.refuse("ima.absent", "no measured file is proven (no IMA list, or an empty one), %s wants one", c)
		return
	}
	measured := map[string]bool{}
	refused := map[string]bool{}
	for _, e := range ev.IMA.Entries[1:] { // 0 is boot_aggregate, recomputed by the replay
		if e.Violation {
			c.violation(e, refused)
			continue
		}
		if ima.IsBootAggregate(e) {
			c.kexec(e, refused)
			continue
		}
		if policy.allows(e) {
			measured[e.Path] = true
			continue
		}
		if refused[e.Path+e.Digest] {
			continue
		}
		refused[e.Path+e.Digest] = true
		if len(refused) <= maxFileRefusals {
			c.file(e)
		}
	}
	if n := len(refused) - maxFileRefusals; n > 0 {
		c.refuse("ima.file", "%d more measured files are not in %s", n, c)
	}
	for _, p := range policy.required {
		if !measured[p] {
			c.refuse("ima.required", "%s %s was not measured, %s requires it", kind(p), p, c)
		}
	}
}

// kexec refuses a second boot_aggregate: a kernel that another kernel started wrote it, and no PCR below 10
// knows that kernel or its command line. The set's values are of the first one.
func (c *checker) kexec(e ima.Entry, refused map[string]bool) {
	if key := "kexec"; !refused[key] {
		refused[key] = true
		c.refuse("ima.kexec", "IMA entry %d is another boot_aggregate: the running kernel was started by kexec, so %s says nothing about it; boot through the firmware", e.Index, c)
	}
}

func (c *checker) violation(e ima.Entry, refused map[string]bool) {
	key := "violation " + e.Path
	if c.set.ima.allowViolations || refused[key] {
		return
	}
	refused[key] = true
	if len(refused) <= maxFileRefusals {
		c.refuse("ima.violation", "IMA entry %d is a violation: a file was changed while it was measured (the node names %s), %s denies violations", e.Index, quoteText(e.Path), c)
	}
}

func (p *imaPolicy) allows(e ima.Entry) bool {
	if digests, listed := p.files[e.Path]; listed { // also in an ignored directory
		return slices.Contains(digests, e.Digest)
	}
	if path.Clean(e.Path) != e.Path { // "/var/../bin/x" is under no ignored directory
		return false
	}
	return slices.ContainsFunc(p.ignore, func(dir string) bool { return strings.HasPrefix(e.Path, dir) })
}

func (c *checker) file(e ima.Entry) {
	if allowed, ok := c.set.ima.files[e.Path]; ok {
		c.refuse("ima.file", "%s %s has digest %s, %s allows %s", kind(e.Path), printable(e.Path), e.Digest, c, strings.Join(allowed, " or "))
		return
	}
	known := ""
	if other := c.set.ima.pathOf(e.Digest); other != "" {
		known = " (a file with that digest is allowed as " + printable(other) + ")"
	}
	c.refuse("ima.file", "%s %s has digest %s, %s does not have that path%s", kind(e.Path), printable(e.Path), e.Digest, c, known)
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
