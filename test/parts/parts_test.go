package parts

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestEveryPartIsPinned(t *testing.T) {
	root, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range List() {
		for _, name := range p.pins() {
			if _, err := os.Stat(filepath.Join(root, p.Folder, name)); err != nil {
				t.Errorf("%s: %v", p.Name, err)
			}
		}
	}
}

func TestTheKeyFollowsWhatAProgramIsMadeOf(t *testing.T) {
	source := t.TempDir()
	p := Part{Name: "x", Folder: "x", Package: "example.org/x"}
	write := func(name, content string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(source, "x"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(source, "x", name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	key := func(p Part) string {
		t.Helper()
		k, err := builder{source: source}.key(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	write("go.mod", "module x\n\ngo 1.26\n")
	write("go.sum", "")
	first := key(p)
	if again := key(p); again != first {
		t.Errorf("same pins, other key: %s, %s", first, again)
	}
	write("go.sum", "\n")
	second := key(p)
	if second == first {
		t.Error("another go.sum has the same key")
	}
	p.Package = "example.org/y"
	if key(p) == second {
		t.Error("another package has the same key")
	}
}

func TestAnUnknownPartIsRefusedWithTheKnownNames(t *testing.T) {
	if _, err := Ensure(t.Context(), io.Discard, "etcdd"); err == nil || !strings.Contains(err.Error(), "etcd, kube-apiserver") {
		t.Errorf("got %v, want an error with the known names", err)
	}
	if _, err := EnsureSystem(t.Context(), io.Discard, "swtmp"); err == nil {
		t.Error("an unknown system part was accepted")
	}
}

func TestAProgramOnPathCountsOnlyAtThePinnedVersion(t *testing.T) {
	dir := t.TempDir()
	script := "#!/bin/sh\necho 'thing version v1.2.30 (linux)'\n"
	if err := os.WriteFile(filepath.Join(dir, "thing"), []byte(script), 0o700); err != nil { // it has to run
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":/bin:/usr/bin")
	for version, want := range map[string]bool{"v1.2.30": true, "v1.2.3": false, "v1.2.31": false} {
		_, got := onPath(t.Context(), Part{Name: "thing", VersionArgs: []string{"--version"}, Version: version})
		if got != want {
			t.Errorf("pinned %s, on PATH v1.2.30: used %t, want %t", version, got, want)
		}
	}
}

func TestASecondBuildWaitsForTheFirst(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lock")
	unlock, err := lock(t.Context(), io.Discard, "x", file)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	var log strings.Builder
	if _, err := lock(ctx, &log, "x", file); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a lock that is held: got %v, want to wait until the deadline", err)
	}
	if !strings.Contains(log.String(), "waiting for another run") {
		t.Errorf("said %q, want to be told of the wait", log.String())
	}
	unlock()
	again, err := lock(t.Context(), io.Discard, "x", file)
	if err != nil {
		t.Fatal(err)
	}
	again()
}

func TestAMissingSystemPartNamesItsPackageAndTheCause(t *testing.T) {
	err := &MissingError{Names: []string{"swtpm"}, Packages: []string{"swtpm"}, Cause: errors.New("not running as root")}
	for _, want := range []string{"swtpm", "not running as root", "apt-get install swtpm"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
}
