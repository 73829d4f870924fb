package audit_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/audit"
)

// FuzzVerifyLog reads logs that anybody may have written: it never panics, says which line is wrong, and what it
// calls whole begins at line 1 or says itself that its beginning was pruned.
func FuzzVerifyLog(f *testing.F) {
	f.Add([]byte(""))
	f.Add([]byte("{\"seq\":7,\"prev\":\"00\"}\n{\"seq\":8}\n"))
	f.Add([]byte("{\"seq\":18446744073709551615,\"prev\":\"\",\"outcome\":\"pruned\",\"pruned\":{\"seq\":18446744073709551614,\"hash\":\"\"}}\n"))
	f.Add([]byte("{\"seq\":1,\"prev\":\"" + strings.Repeat("0", 64) + "\"}\n"))
	path := filepath.Join(f.TempDir(), "audit.jsonl")
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := audit.VerifyLog(path, "")
		var b *audit.Broken
		if err != nil && (!errors.As(err, &b) || b.Line < 1) {
			t.Fatalf("%v is not about a line", err)
		}
		if err == nil && s.First > 1 && !strings.Contains(string(text), "pruned") {
			t.Fatalf("a log without its beginning is whole: %+v", s)
		}
	})
}
