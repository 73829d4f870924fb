package main

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"
)

// The steps check themselves; the test also holds the README to what they show.
func TestTheExampleShowsWhatItsREADMESays(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped: it needs a real containerd and a real SPIRE, which -short leaves out")
	}
	if os.Geteuid() != 0 {
		t.Skip("skipped: it needs root, because containerd cannot run real containers without")
	}
	var out bytes.Buffer
	if err := run(t.Context(), io.MultiWriter(&out, t.Output()), false); err != nil {
		t.Fatal(err)
	}
	shown := out.String()
	dir, _, _ := strings.Cut(strings.TrimPrefix(shown[strings.Index(shown, "Everything happens in "):], "Everything happens in "), ".\n")
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the folder %s is left behind: %v", dir, err)
	}
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(readme)) {
		if words, indented := strings.CutPrefix(line, "    "); indented {
			n++
			if words = strings.TrimSpace(words); !strings.Contains(shown, words) {
				t.Errorf("the README shows %q, the example does not", words)
			}
		}
	}
	if n < 6 {
		t.Errorf("only %d lines of the README were compared", n)
	}
}
