package agentplugin

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func TestTheLockOfSystemdsLogIsWaitedForButNotForever(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tpm2-measure.log")
	open := func(create int) *os.File {
		f, err := os.OpenFile(path, os.O_RDWR|create, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	writer, reader := open(os.O_CREATE), open(0)
	free := func() bool { // may the writer go on
		return syscall.Flock(int(writer.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil
	}
	if err := shareLock(t.Context(), reader, time.Minute); err != nil || free() {
		t.Fatalf("a free log: %v, locked %v", err, !free())
	}
	if err := syscall.Flock(int(reader.Fd()), syscall.LOCK_UN); err != nil || !free() {
		t.Fatalf("unlocked: %v", err)
	}
	if err := shareLock(t.Context(), reader, 20*time.Millisecond); err != nil {
		t.Errorf("a writer that never ends: %v", err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if err := shareLock(ended, reader, time.Minute); !errors.Is(err, context.Canceled) {
		t.Errorf("an attestation that ended: %v", err)
	}
	done := make(chan error)
	go func() { done <- shareLock(t.Context(), reader, time.Minute) }()
	if err := syscall.Flock(int(writer.Fd()), syscall.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil || free() {
		t.Errorf("a writer that ends: %v", err)
	}
	if err := reader.Close(); err != nil {
		t.Fatal(err)
	}
	if err := shareLock(t.Context(), reader, time.Minute); err == nil {
		t.Error("a closed file is locked")
	}
}
