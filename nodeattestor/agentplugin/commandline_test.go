package agentplugin

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/evidence"
)

func TestACommandLineThatCannotBeSentHasAReason(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cmdline")
	for name, c := range map[string]struct {
		content, line, why string
	}{
		"a line":        {"ro quiet\n", "ro quiet", ""},
		"nothing in it": {"\n", "", ""},
		"not UTF-8":     {"ro \xff\n", "", "is not UTF-8"},
		"too long":      {strings.Repeat("x", evidence.MaxCommandLine+1), "", "more than the"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, []byte(c.content), 0o600); err != nil {
				t.Fatal(err)
			}
			line, err := readCommandLine(path)
			if line != c.line || (err == nil) != (c.why == "") || err != nil && !strings.Contains(err.Error(), c.why) {
				t.Errorf("%q, %v; want %q, %q", line, err, c.line, c.why)
			}
		})
	}
	if _, err := readCommandLine(path + ".gone"); err == nil {
		t.Error("a file that is not there has no reason")
	}
}
