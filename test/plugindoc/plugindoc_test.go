package plugindoc

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

type sub struct {
	Path string `hcl:"path"`
}

type config struct {
	Name   string         `hcl:"name"`
	Banks  map[string]int `hcl:"banks"`
	Block  *sub           `hcl:"block"`
	Labels map[string]sub `hcl:"labels"`
}

func TestKeysAreThoseThatPeopleWrite(t *testing.T) {
	want := []string{"name", "banks", "block.path", "labels.<name>.path"}
	if got := Keys(config{}); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := Kinds([]string{"tag:a:b", "ek:c", "tag:d:e"}); !slices.Equal(got, []string{"ek", "tag"}) {
		t.Errorf("kinds %v", got)
	}
}

// recorder is a test that fails without ending.
type recorder struct {
	testing.TB
	said []string
}

func (r *recorder) Helper() {}

func (r *recorder) Errorf(format string, args ...any) {
	r.said = append(r.said, fmt.Sprintf(format, args...))
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	panic(r)
}

func TestWhatDriftsApartIsTold(t *testing.T) {
	doc := filepath.Join(t.TempDir(), "README.md")
	text := "# Plugin\n\n## Configuration\n\n| key | default |\n| --- | --- |\n| `a`, `b` | `c` |\n| `old` | |\n| `a` | |\n\n### More\n\n| `d` | |\n\n## Selectors\n\n| `e` | |\n\n```hcl\na = 1\n```\n"
	if err := os.WriteFile(doc, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	r := &recorder{}
	Same(r, doc, "## Configuration", []string{"a", "b", "d", "new"}, nil)
	want := []string{"new is missing", "old is not in the code", "a stands there twice"}
	if len(r.said) != len(want) {
		t.Fatalf("said %q", r.said)
	}
	for i := range want {
		if !strings.Contains(r.said[i], want[i]) {
			t.Errorf("said %q, want %q", r.said[i], want[i])
		}
	}
	r = &recorder{}
	func() {
		defer func() { _ = recover() }()
		Same(r, doc, "## Metrics", nil, nil)
	}()
	if len(r.said) != 1 || !strings.Contains(r.said[0], "no table") {
		t.Errorf("said %q", r.said)
	}
	if got := Sample(t, doc, "hcl"); got != "a = 1" {
		t.Errorf("sample %q", got)
	}
}
