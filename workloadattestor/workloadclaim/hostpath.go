package workloadclaim

import (
	"fmt"
	"path"
	"strings"
)

// Within tells whether a path of the node is one of these or below one; all are clean and absolute. Both ends of the proof, the attestor on
// the node and policy-sync over the pod's spec, ask it of the same list: what an administrator lets restricted pods mount.
func Within(p string, allowed []string) bool {
	for _, a := range allowed {
		if p == a || strings.HasPrefix(p, a+"/") {
			return true
		}
	}
	return false
}

// CheckHostPath refuses what cannot be in such a list. The root of the node is in none: it would hold the runtime's socket.
func CheckHostPath(p string) error {
	if !path.IsAbs(p) || path.Clean(p) != p || p == "/" {
		return fmt.Errorf("%.255q: want the absolute path of a folder or file of the node, without \"..\" and a \"/\" at its end, and not \"/\" itself", p)
	}
	return nil
}
