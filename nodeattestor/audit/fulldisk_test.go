package audit_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keelson-project/keelson/nodeattestor/audit"
)

// smallDisk is a file system of its own with room for size bytes; it ends with the test.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("skipped: a small file system can only be mounted as root; TestThreat25_AFullDiskLosesNoChain needs none")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("skipped: no tmpfs can be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill takes what room a disk has left, and returns what gives it back.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	ballast := filepath.Join(dir, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = f.Write(make([]byte, 512))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
	}
}

func TestThreat25_TheLogGoesOnWhenAFullDiskHasRoomAgain(t *testing.T) {
	dir := smallDisk(t, "64k")
	path := filepath.Join(dir, "audit.jsonl")
	f := openLog(t, path, 0)
	appendN(t, f, 3)
	if err := f.Writable(); err != nil {
		t.Errorf("before: %v", err)
	}
	free := fill(t, dir)
	var err error
	wrote := 0
	for ; err == nil && wrote < 100; wrote++ { // what is left of the last page still takes lines
		err = f.Append(entry(wrote))
	}
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "make room") || !strings.Contains(err.Error(), path) {
		t.Fatalf("full: %v, want the file, the cause and what to do", err)
	}
	if err := f.Writable(); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("full: Writable says %v", err)
	}
	free()
	if err := f.Writable(); err != nil {
		t.Errorf("with room again: %v", err)
	}
	appendN(t, f, 1)
	want := f.Head()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if head, err := verifyAll(t, path); err != nil || head != want || head.Seq != uint64(3+wrote) {
		t.Errorf("head %+v, %v; want %+v and %d lines", head, err, want, 3+wrote)
	}
}

func TestThreat25_AFullDiskAtARotationLeavesTheFullFileInPlace(t *testing.T) {
	dir := smallDisk(t, "64k,nr_inodes=3") // of which the folder takes one
	path := filepath.Join(dir, "audit.jsonl")
	f := openLog(t, path, 300)
	appendN(t, f, 2)
	before := f.Head()
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := f.Append(entry(2)); !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("a log whose successor cannot be made: %v", err)
		}
	}
	if files, err := audit.Files(path); err != nil || len(files) != 1 {
		t.Errorf("files %v, %v; want the full one in its place", files, err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	appendN(t, f, 1)
	if got := f.Head().Seq; got != before.Seq+1 {
		t.Errorf("line %d follows line %d", got, before.Seq)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if files, err := audit.Files(path); err != nil || len(files) != 2 {
		t.Errorf("files %v, %v; want a rotation", files, err)
	}
	if _, err := verifyAll(t, path); err != nil {
		t.Error(err)
	}
}

func TestAnotherFileInThePlaceOfTheLogIsNotWritable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	f := openLog(t, path, 0)
	appendN(t, f, 1)
	if err := errors.Join(os.Remove(path), os.WriteFile(path, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := f.Writable(); err == nil || !strings.Contains(err.Error(), "another file") {
		t.Errorf("got %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Writable(); err == nil {
		t.Error("a closed log is writable")
	}
}
