package reference

import (
	"path"
	"testing"
)

func TestCleanIsWhatPathCleanLeaves(t *testing.T) {
	for _, p := range []string{"/", "/a", "/a/", "//a", "/a//b", "/a/./b", "/a/.", "/.", "/..", "/a/..", "/a/../b", "/...", "/a/...", "/.a", "/a/.b", "/a/..b/c", "/a/b..", "/a/.../b"} {
		if want := p != "/" && path.Clean(p) == p; clean([]byte(p)) != want {
			t.Errorf("%q: %t", p, !want)
		}
	}
}

func FuzzClean(f *testing.F) {
	f.Add("/a/../b")
	f.Fuzz(func(t *testing.T, name string) {
		p := "/" + name
		if want := p != "/" && path.Clean(p) == p; clean([]byte(p)) != want {
			t.Errorf("%q: %t", p, !want)
		}
	})
}
