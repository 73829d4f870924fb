package image_test

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/random"

	"github.com/keelson-project/keelson/workloadattestor/image"
	"github.com/keelson-project/keelson/workloadattestor/image/imagetest"
)

// TestANameIsLookedForInEveryLayout: that the first layout does not have it says nothing about the second.
func TestANameIsLookedForInEveryLayout(t *testing.T) {
	dir := t.TempDir()
	first, second := filepath.Join(dir, "first"), filepath.Join(dir, "second")
	want := map[string]string{}
	for layout, name := range map[string]string{first: "registry.test/team/one:1", second: "registry.test/team/two:1"} {
		img, err := random.Image(64, 1)
		if err != nil {
			t.Fatal(err)
		}
		if err := imagetest.AddToLayout(layout, name, img); err != nil {
			t.Fatal(err)
		}
		digest, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		want[name] = digest.String()
	}
	checker, err := image.New(image.Config{Layouts: []string{first, second}, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	for name, digest := range want {
		if got, err := checker.Resolve(t.Context(), name); err != nil || got != digest {
			t.Errorf("%s: %q, %v; want %s", name, got, err, digest)
		}
	}
	if _, err := checker.Resolve(t.Context(), "registry.test/team/three:1"); err == nil || !strings.Contains(err.Error(), "three") {
		t.Errorf("a name in no layout: %v", err)
	}
}
