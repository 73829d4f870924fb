package audit_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/audit"
)

// pruned is a log of 60 lines of which the oldest files are gone.
func pruned(t *testing.T) (path string, head audit.Head) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "audit.jsonl")
	f := openLog(t, path, 1000)
	f.Limit(1000, 2)
	appendN(t, f, 60)
	if err := f.Unpruned(); err != nil {
		t.Fatal(err)
	}
	head = f.Head()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return path, head
}

func broken(t *testing.T, err error, want string) {
	t.Helper()
	if !errors.As(err, new(*audit.Broken)) || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
}

func TestAPrunedLogStillVerifies(t *testing.T) {
	path, head := pruned(t)
	files, err := audit.Files(path)
	if err != nil || len(files) != 3 {
		t.Fatalf("%d files, %v; want 2 rotated ones and the log", len(files), err)
	}
	s, err := audit.VerifyLog(path, head.Hash)
	if err != nil || s.Head != head || !s.Found || s.First < 30 {
		t.Errorf("%+v, %v; want head %+v of a log that begins late", s, err, head)
	}
	f := openLog(t, path, 1000) // and goes on after a restart, with more files kept
	f.Limit(1000, 5)
	appendN(t, f, 10)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if again, err := audit.VerifyLog(path, head.Hash); err != nil || again.First != s.First || !again.Found {
		t.Errorf("%+v, %v; want the same beginning, %d", again, err, s.First)
	}
}

func TestThreat25_ABeginningThatAnotherRemovedIsFound(t *testing.T) {
	path, _ := pruned(t)
	files, err := audit.Files(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(files[0]); err != nil {
		t.Fatal(err)
	}
	_, err = audit.VerifyLog(path, "")
	broken(t, err, "no entry says that the server pruned it")
	if err := os.Remove(files[1]); err != nil {
		t.Fatal(err)
	}
	_, err = audit.VerifyLog(path, "")
	broken(t, err, "no entry says that the server pruned it")
}

func TestAFileRemovedFromTheMiddleIsFound(t *testing.T) {
	path, _ := pruned(t)
	files, err := audit.Files(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(files[1]); err != nil {
		t.Fatal(err)
	}
	_, err = audit.VerifyLog(path, "")
	broken(t, err, "lines were removed, added or moved before it")
}

func TestThreat25_ACrashBetweenTheEntryAndTheRemovalLeavesAWholeLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	f := openLog(t, path, 1000)
	f.Limit(1000, 1)
	var kept []byte // the file that is pruned first
	var name string
	for range 40 {
		appendN(t, f, 1)
		files, err := audit.Files(path)
		if err != nil {
			t.Fatal(err)
		}
		if name == "" && len(files) == 2 {
			name = files[0]
			if kept, err = os.ReadFile(name); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := os.Stat(name); name != "" && errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	if err := errors.Join(f.Close(), os.WriteFile(name, kept, 0o600)); err != nil {
		t.Fatal(err)
	}
	if s, err := audit.VerifyLog(path, ""); err != nil || s.First != 1 {
		t.Errorf("with the removed file still there: %+v, %v", s, err)
	}
	f = openLog(t, path, 1000)
	f.Limit(1000, 1)
	appendN(t, f, 10)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if files, err := audit.Files(path); err != nil || len(files) != 2 {
		t.Errorf("files %v, %v; the next rotation removes what was left", files, err)
	}
	if s, err := audit.VerifyLog(path, ""); err != nil || s.First == 1 {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestWhatCannotBeRemovedHoldsUpNoLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	f := openLog(t, path, 1000)
	f.Limit(1000, 1)
	appendN(t, f, 7)
	files, err := audit.Files(path)
	if err != nil || len(files) != 2 {
		t.Fatalf("files %v, %v", files, err)
	}
	if err := os.WriteFile(files[0], []byte("not ours\n"), 0o600); err != nil { // its last line is no entry
		t.Fatal(err)
	}
	appendN(t, f, 10)
	if err := f.Unpruned(); err == nil {
		t.Error("nobody is told that a file stays")
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestALogThatIsNoneIsBrokenAtItsFirstLine(t *testing.T) {
	for name, text := range map[string]string{"text": "hello\n", "a cut line": `{"seq":7`, "a late line of another hand": "{\"seq\":7,\"prev\":\"00\"}\n"} {
		path := filepath.Join(t.TempDir(), "audit.jsonl")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := audit.VerifyLog(path, "")
		var b *audit.Broken
		if !errors.As(err, &b) || b.Line != 1 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if s, err := audit.VerifyLog(filepath.Join(t.TempDir(), "none"), ""); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%+v, %v", s, err)
	}
}
