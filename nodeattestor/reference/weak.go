package reference

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// collidable are hashes for which two files of one digest can be made. What a kernel measures by them (ima_hash) proves less
// than it seems: whoever makes both files shows the one and runs the other.
var collidable = []string{"md4", "md5", "sha1"}

// maxNamed bounds how many paths a warning names.
const maxNamed = 3

// Weaknesses say in a person's words where the set rests on hashes whose collisions are practical. They refuse nothing:
// old TPMs and kernels have no other.
func (s Set) Weaknesses() []string {
	var out []string
	if s.boot.bank.Weak() {
		out = append(out, fmt.Sprintf("the boot values are of bank %s, for which collisions can be made: what the set accepts is marked weak; capture it anew with another bank", s.boot.bank))
	}
	if s.ima == nil {
		return out
	}
	byAlg := map[string][]string{}
	for file, digests := range s.ima.files {
		for _, d := range digests {
			if alg := hashOf(d); slices.Contains(collidable, alg) && !slices.Contains(byAlg[alg], file) {
				byAlg[alg] = append(byAlg[alg], file)
			}
		}
	}
	for _, alg := range slices.Sorted(maps.Keys(byAlg)) {
		files := byAlg[alg]
		slices.Sort(files)
		more := ""
		if n := len(files); n > maxNamed {
			files, more = files[:maxNamed], fmt.Sprintf(" and %d more", n-maxNamed)
		}
		out = append(out, fmt.Sprintf("files are allowed by a digest of %s, for which collisions can be made: %s%s; have the kernel measure with ima_hash=sha256, and capture the set anew",
			alg, strings.Join(files, ", "), more))
	}
	return out
}

// hashOf is the hash of a measured file's digest: of "sha1:hex", and of "verity:sha1:hex" as well.
func hashOf(digest string) string {
	name, _, _ := cutLast(digest)
	_, alg, typed := cutLast(name)
	if !typed {
		return name
	}
	return alg
}

func cutLast(s string) (before, after string, found bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}
