package boundedfile

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestReadTakesAsMuchAsItIsAllowedAndNoByteMore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, read := range map[string]func(string, int64) ([]byte, error){"Read": Read, "ReadRegular": ReadRegular} {
		if got, err := read(path, 5); err != nil || string(got) != "12345" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if got, err := read(path, 4); err == nil || got != nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "4 bytes") {
			t.Errorf("%s beyond its limit: %q, %v; want an error with the file and the limit", name, got, err)
		}
		if _, err := read(path+".gone", 5); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s of no file: %v, want fs.ErrNotExist", name, err)
		}
		if _, err := read(filepath.Dir(path), 5); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s of a folder: %v", name, err)
		}
	}
	if got, err := Read("/dev/zero", 1000); err == nil {
		t.Errorf("%d bytes of a file without an end", len(got))
	}
}

func TestReadRegularDoesNotWaitForAPipesWriter(t *testing.T) {
	dir := t.TempDir()
	pipe, link := filepath.Join(dir, "pipe"), filepath.Join(dir, "link")
	if err := errors.Join(syscall.Mkfifo(pipe, 0o600), os.Symlink(pipe, link)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{pipe, link, "/dev/zero"} {
		if _, err := ReadRegular(path, 10); err == nil || !strings.Contains(err.Error(), "not a regular file") {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestReplaceLeavesTheNewContentAlone(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	if err := os.WriteFile(path+".new", []byte("left by a crash, and longer"), 0o666); err != nil {
		t.Fatal(err)
	}
	for _, content := range []string{"first", "2"} {
		if err := Replace(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != content {
			t.Errorf("%q, %v; want %q", got, err, content)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
		t.Errorf("left behind: %v, %v", files, err)
	}
}

func TestReplaceFollowsNoLinkThatSomebodyPutInItsWay(t *testing.T) {
	dir := t.TempDir()
	path, other := filepath.Join(dir, "file"), filepath.Join(dir, "other")
	if err := errors.Join(os.WriteFile(other, []byte("theirs"), 0o600), os.Symlink(other, path+".new")); err != nil {
		t.Fatal(err)
	}
	if err := Replace(path, []byte("ours"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(other); err != nil || string(got) != "theirs" {
		t.Errorf("%q, %v: the link was followed", got, err)
	}
}

func TestReplaceThatFailsLeavesTheOldContent(t *testing.T) {
	t.Run("no folder", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "gone", "file")
		if err := Replace(path, nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%v, want fs.ErrNotExist", err)
		}
	})
	t.Run("a folder stands in the way", func(t *testing.T) {
		dir := t.TempDir()
		path := filepath.Join(dir, "file")
		if err := os.MkdirAll(filepath.Join(path, "sub"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := Replace(path, []byte("x"), 0o600); err == nil {
			t.Error("a folder was replaced")
		}
		if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
			t.Errorf("left behind: %v, %v", files, err)
		}
	})
	t.Run("no room", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "file")
		if err := Replace(path, []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		var was syscall.Rlimit // a file that may not grow stands for a disk that is full
		if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &was); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 4096, Max: was.Max}); err != nil {
			t.Fatal(err)
		}
		err := Replace(path, bytes.Repeat([]byte("x"), 10000), 0o600)
		if again := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &was); again != nil {
			t.Fatal(again)
		}
		if err == nil || !strings.Contains(err.Error(), "make room in "+filepath.Dir(path)) {
			t.Fatalf("%v; want an error that says where to make room", err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != "old" {
			t.Errorf("%q, %v; want the old content", got, err)
		}
		if _, err := os.Stat(path + ".new"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("left behind: %v", err)
		}
	})
}
