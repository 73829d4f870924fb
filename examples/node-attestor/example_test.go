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
		t.Skip("skipped: it needs a real SPIRE, which -short leaves out")
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
		if words := strings.TrimSpace(line); strings.HasPrefix(words, "keelson ") || strings.HasPrefix(words, "keelson_tpm") {
			n++
			if !strings.Contains(shown, words) {
				t.Errorf("the README shows %q, the example does not", words)
			}
		}
	}
	if n < 14 {
		t.Errorf("only %d lines of the README were compared", n)
	}
}
