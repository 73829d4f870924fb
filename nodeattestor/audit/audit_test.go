package audit_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

var now = time.Date(2026, 10, 1, 12, 0, 0, 0, time.UTC)

func entry(i int) audit.Entry {
	return audit.Entry{Time: now.Add(time.Duration(i) * time.Second), Outcome: audit.Untrusted, Node: fmt.Sprintf("node-%d", i),
		Refusals: []nodeclaim.Refusal{{Check: "kernel.cmdline", Reason: "line one\nline two"}}}
}

func openLog(t *testing.T, path string, size int64) *audit.File {
	t.Helper()
	f, err := audit.Open(path, size, now)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func appendN(t *testing.T, f *audit.File, n int) {
	t.Helper()
	for i := range n {
		if err := f.Append(entry(i)); err != nil {
			t.Fatal(err)
		}
	}
}

func verifyAll(t *testing.T, path string) (audit.Head, error) {
	t.Helper()
	files, err := audit.Files(path)
	if err != nil {
		t.Fatal(err)
	}
	head := audit.Start()
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if head, err = audit.Verify(bytes.NewReader(data), head); err != nil {
			return head, fmt.Errorf("%s: %w", filepath.Base(name), err)
		}
	}
	return head, nil
}

func TestTheChainGoesOnAcrossRestartsAndRotations(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	var head audit.Head
	for range 5 {
		f := openLog(t, path, 1000)
		appendN(t, f, 7)
		head = f.Head()
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	files, err := audit.Files(path)
	if err != nil || len(files) < 3 {
		t.Fatalf("%d files, %v; want a rotation or more", len(files), err)
	}
	got, err := verifyAll(t, path)
	if err != nil || got != head || got.Seq != 35 {
		t.Errorf("head %+v, %v; want %+v with 35 lines", got, err, head)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; only the owner may read the log", info.Mode(), err)
	}
}

func lines(t *testing.T, n int) []string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	f := openLog(t, path, 0)
	appendN(t, f, n)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.SplitAfter(strings.TrimSuffix(string(data), "\n"), "\n")
}

func TestEveryChangeRemovalAndReorderingIsFound(t *testing.T) {
	l := lines(t, 6)
	l[5] += "\n"
	join := func(parts ...string) string { return strings.Join(parts, "") }
	cases := map[string]struct {
		text string
		line int
		want string
	}{
		"a line changed":          {join(l[0], l[1], strings.Replace(l[2], "node-2", "node-9", 1), l[3], l[4], l[5]), 4, "was changed"},
		"a line removed":          {join(l[0], l[1], l[3], l[4], l[5]), 3, "removed"},
		"the first line removed":  {join(l[1:]...), 1, "has number 2"},
		"two lines swapped":       {join(l[0], l[2], l[1], l[3], l[4], l[5]), 2, "moved"},
		"a line doubled":          {join(l[0], l[1], l[1], l[2]), 3, "has number 2"},
		"a line of another hand":  {join(l[0], "{\"seq\":2,\"prev\":\"00\"}\n", l[2]), 2, "does not follow"},
		"a line that is no entry": {join(l[0], "hello\n", l[1]), 2, "not an audit entry"},
		"the end cut":             {join(l[0], l[1])[:len(l[0])+20], 2, "ends inside"},
		"a line without end":      {strings.Repeat("x", 2*audit.MaxLine), 1, "longer than"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := audit.Verify(strings.NewReader(tc.text), audit.Start())
			var broken *audit.Broken
			if !errors.As(err, &broken) || broken.Line != tc.line || !strings.Contains(broken.Reason, tc.want) {
				t.Errorf("got %v, want line %d: %q", err, tc.line, tc.want)
			}
		})
	}
}

func TestEveryFlippedByteButTheLastLinesIsFound(t *testing.T) {
	l := lines(t, 3)
	text := []byte(strings.Join(l, "") + "\n")
	want, err := audit.Verify(bytes.NewReader(text), audit.Start())
	if err != nil {
		t.Fatal(err)
	}
	for i := range text {
		flipped := bytes.Clone(text)
		flipped[i] ^= 1
		// A change in the last line shows in its hash: that is what the noted head is for.
		if head, err := audit.Verify(bytes.NewReader(flipped), audit.Start()); err == nil && head == want {
			t.Fatalf("byte %d flipped and nobody noticed", i)
		}
	}
}

func TestThreat25_AnUnfinishedLineAfterACrash(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	f := openLog(t, path, 0)
	appendN(t, f, 3)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(data, []byte(`{"seq":4,"pre`)...), 0o600); err != nil {
		t.Fatal(err)
	}
	f = openLog(t, path, 0)
	appendN(t, f, 1)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	head, err := verifyAll(t, path)
	if err != nil || head.Seq != 5 { // 3, the note about the crash, and 1
		t.Errorf("head %+v, %v", head, err)
	}
}

func TestAFileThatIsNotAnAuditLogIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"text": "hello\n", "other-json": "{\"a\":1}\n"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := audit.Open(path, 0, now); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v, want an error that names the file", name, err)
		}
		if data, err := os.ReadFile(path); err != nil || string(data) != content {
			t.Errorf("%s was changed to %q, %v", name, data, err)
		}
	}
	if _, err := audit.Open(dir, 0, now); err == nil {
		t.Error("a directory was opened as a log")
	}
}

func TestThreat25_AFullDiskLosesNoChain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	f := openLog(t, path, 0)
	appendN(t, f, 3)
	// A file size limit of the process is what a full disk looks like from here.
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	limit := old
	limit.Cur = uint64(info.Size()) + 50
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	refused := f.Append(entry(3))
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	if refused == nil {
		t.Fatal("a line that did not fit was taken for written")
	}
	appendN(t, f, 1)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if head, err := verifyAll(t, path); err != nil || head.Seq != 4 {
		t.Errorf("head %+v, %v; want 4 whole lines", head, err)
	}
}

func TestThreat25_ALogThatAnotherIsAboutToCloseIsWaitedFor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	old := openLog(t, path, 0)
	appendN(t, old, 1)
	closed := make(chan error, 1)
	go func() {
		time.Sleep(200 * time.Millisecond)
		closed <- old.Close()
	}()
	next := openLog(t, path, 0)
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	appendN(t, next, 1)
	if err := next.Close(); err != nil {
		t.Fatal(err)
	}
	if head, err := verifyAll(t, path); err != nil || head.Seq != 2 {
		t.Errorf("head %+v, %v", head, err)
	}
}

func TestALogHasOneWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	f := openLog(t, path, 0)
	if _, err := audit.Open(path, 0, now); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("got %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := openLog(t, path, 0).Close(); err != nil {
		t.Error(err)
	}
}

func TestAppendsAtOnceStayAChain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	f := openLog(t, path, 5000)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 10 {
				if err := f.Append(entry(i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if head, err := verifyAll(t, path); err != nil || head.Seq != 80 {
		t.Errorf("head %+v, %v", head, err)
	}
	if err := f.Append(entry(0)); err == nil {
		t.Error("a closed log took a line")
	}
}

func TestWhatAnAgentControlsIsShortened(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	f := openLog(t, path, 0)
	e := entry(0)
	e.Error = strings.Repeat("ä", 1<<20)
	for range 1000 {
		e.Refusals = append(e.Refusals, nodeclaim.Refusal{Check: "c", Reason: e.Error})
	}
	if err := errors.Join(f.Append(e), f.Close()); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Size() > audit.MaxLine {
		t.Errorf("%d bytes, %v", info.Size(), err)
	}
	if _, err := verifyAll(t, path); err != nil {
		t.Error(err)
	}
}

func TestReasonsThatJSONMakesLongLoseNoLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	f := openLog(t, path, 0)
	e := entry(0)
	e.Refusals = nil
	for range 64 {
		e.Refusals = append(e.Refusals, nodeclaim.Refusal{Check: "ima.file", Reason: strings.Repeat("<", 1000)}) // \u003c
	}
	if err := errors.Join(f.Append(e), f.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := verifyAll(t, path); err != nil {
		t.Error(err)
	}
	line, err := os.ReadFile(path)
	if err != nil || bytes.Count(line, []byte("ima.file")) != 64 {
		t.Errorf("the names of the checks are lost: %v", err)
	}
}

func FuzzVerify(f *testing.F) {
	f.Add([]byte("{\"seq\":1,\"prev\":\"" + strings.Repeat("0", 64) + "\"}\n"))
	f.Add([]byte("\n\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		head, err := audit.Verify(bytes.NewReader(data), audit.Start())
		if err == nil && head.Seq != uint64(bytes.Count(data, []byte("\n"))) {
			t.Fatalf("%d lines were taken for %d", bytes.Count(data, []byte("\n")), head.Seq)
		}
	})
}
