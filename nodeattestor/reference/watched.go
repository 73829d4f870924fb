package reference

import (
	"bytes"
	"slices"
	"unicode/utf8"

	"github.com/keelson-project/keelson/nodeattestor/ima"
)

// Limits of what conditions can read of an IMA list. Beyond them a condition knows nothing, rather
// than a part.
const (
	maxPaths     = 16384
	maxPathBytes = 1 << 20
	maxPolicies  = 16
)

// watched is what conditions read of an IMA list: the paths that a set accepts by its files and its
// keys, each once, and the policies that the kernel recorded. What the set ignores is not in it,
// for any process on the machine can add to that. A nil *watched learns nothing.
type watched struct {
	paths    []string // in the order of the list
	bytes    int      // of all paths
	policies []string // digests, in the order of the list
	over     bool     // there are more paths than are kept, or one that is no text
	seen     map[string]bool
}

func newWatched() *watched { return &watched{seen: map[string]bool{}} }

// add learns of an entry that the set accepts.
func (w *watched) add(v *ima.View) {
	if w == nil {
		return
	}
	if policyRecord(v) {
		if len(w.policies) <= maxPolicies { // one more tells that there are too many
			w.policies = append(w.policies, v.Entry().Digest)
		}
	}
	if w.over || w.seen[string(v.Path)] {
		return
	}
	if len(w.paths) == maxPaths || w.bytes+len(v.Path) > maxPathBytes || !utf8.Valid(v.Path) {
		w.over, w.paths, w.seen = true, nil, nil
		return
	}
	path := string(v.Path)
	w.paths, w.seen[path] = append(w.paths, path), true
	w.bytes += len(path)
}

// pathsKnown are the paths; false where not all are known.
func (w *watched) pathsKnown() (any, bool) {
	if w == nil || w.over {
		return nil, false
	}
	return w.paths, true
}

// policiesKnown are the policies; false where the kernel recorded none, for it may not record them
// at all.
func (w *watched) policiesKnown() (any, bool) {
	if w == nil || len(w.policies) == 0 || len(w.policies) > maxPolicies {
		return nil, false
	}
	return w.policies, true
}

// keep is what a later appraisal goes on from. It shares what cannot change any more.
func (w *watched) keep() *watched {
	if w == nil {
		return nil
	}
	return &watched{paths: slices.Clip(w.paths), bytes: w.bytes, policies: slices.Clip(w.policies), over: w.over}
}

// resume goes on from what was kept.
func (w *watched) resume() *watched {
	if w == nil {
		return nil
	}
	next := *w
	if !w.over {
		next.seen = make(map[string]bool, len(w.paths))
		for _, p := range w.paths {
			next.seen[p] = true
		}
	}
	return &next
}

// size is about how many bytes of memory it takes once it is kept.
func (w *watched) size() int {
	if w == nil {
		return 0
	}
	const fixed, each = 96, 16 // the structs
	n := fixed + w.bytes + each*(len(w.paths)+len(w.policies))
	for _, p := range w.policies {
		n += len(p)
	}
	return n
}

// records are the names under which the kernel measures what changes what its list is worth, as
// buffers: policies of IMA as they were loaded (critical data, label ima_policy) and as they were
// written to securityfs (func=POLICY_CHECK), and the command line of a kernel for kexec
// (func=KEXEC_CMDLINE). The first two are in kernels whose security/integrity/ima has
// ima_measure_loaded_policy and ima_measure_raw_policy.
var records = []string{policyLoaded, policyWritten, "kexec-cmdline"}

const (
	policyLoaded  = "ima_policy_loaded"
	policyWritten = "ima_policy_written"
)

// kernelRecord tells whether an entry is such a record. A set that does not look at names without a
// directory looks at these all the same: a process needs root to have the kernel write one. It does
// not where the IMA policy measures keys of every keyring (func=KEY_CHECK without keyrings=), for a
// user gives his own keyring any name.
func kernelRecord(v *ima.View) bool {
	return bare(v.Path) && slices.ContainsFunc(records, func(name string) bool { return string(v.Path) == name }) && v.Buffer()
}

// policyRecord tells whether an entry is a policy that became effective.
func policyRecord(v *ima.View) bool {
	return bytes.Equal(v.Path, []byte(policyLoaded)) && v.Buffer()
}
