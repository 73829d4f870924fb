package workloadplugin_test

import (
	"slices"
	"strings"
	"testing"
)

// TestLazySnapshotters: nothing is said of an image whose layers no one has compared with its configuration.
func TestLazySnapshotters(t *testing.T) {
	for name, c := range map[string]struct {
		snapshotter, hcl string
		want             bool
	}{
		"unpacked":              {"overlayfs", "", true},
		"the runtime is silent": {"", "", true},
		"stargz":                {"stargz", "", false},
		"nydus":                 {"nydus", "", false},
		"one of any name":       {"overlayfs2", "", false},
		"trusted":               {"stargz", "allowed_snapshotters = [\"stargz\"]\n", true},
		"another is trusted":    {"nydus", "allowed_snapshotters = [\"stargz\"]\n", false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			pod := w.pod
			pod.Snapshotter = c.snapshotter
			if err := w.runtime.Add(pod); err != nil {
				t.Fatal(err)
			}
			w.configure(w.hcl() + c.hcl)
			got, err := w.attest(42)
			has := slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, "image-") || strings.HasPrefix(s, "signed-by:") })
			if err != nil || has != c.want || !slices.Contains(got, "ns:payments") {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
}
