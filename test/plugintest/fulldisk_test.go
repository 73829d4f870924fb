package plugintest_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// disk is a file system of its own, so small that a test can fill it.
func disk(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("skipped: a small file system can only be mounted as root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("skipped: no tmpfs can be mounted here: %v", err)
	}
	t.Cleanup(func() { check(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

// fill takes all room but what is left of the last page of each file, and that too of the file at rest.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "ballast")
	f := must2(os.Create(path))(t)
	var err error
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	check(t, f.Close())
	return func() { check(t, os.Remove(path)) }
}

func TestThreat25_WithoutRoomForItsAuditLineNobodyIsTrusted(t *testing.T) {
	dir := disk(t)
	ca := must2(tpmtest.NewCA())(t)
	m := newMachine(t, ca, "good").serve(t, "")
	newNode(t, "full-audit")
	log := filepath.Join(dir, "audit.jsonl")
	s := newServer(t, serverOptions{ca: ca, reference: m.capture(t, "good"), inventory: map[string][]string{"full-audit": m.ekHex}, auditLog: log})
	_, err := attest(t, m, s, nil)
	check(t, err)
	before := nodeTrust(t, "full-audit", trusted)
	free := fill(t, dir)
	accepted := 1
	for err = nil; err == nil && accepted < 100; accepted++ { // the last page still takes lines
		_, err = attest(t, m, s, nil)
	}
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "cannot write its audit log") {
		t.Fatalf("with a full disk: %v, want Unavailable", err)
	}
	m.measure(t, tpmtest.IMAEntry("/usr/bin/backdoor", []byte("evil")))
	if _, err := attest(t, m, s, nil); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a tampered machine, with a full disk: %v", err)
	}
	if after := nodeTrust(t, "full-audit", untrusted); !after.AttestedAt.After(before.AttestedAt.Time) {
		t.Error("a door stays open because there is no room to write down that it closes")
	}
	if n := whole(t, log); n != uint64(accepted-1) {
		t.Errorf("%d whole lines, %d attestations were accepted", n, accepted-1)
	}
	free()
	if _, err := attest(t, m, s, nil); status.Code(err) != codes.PermissionDenied {
		t.Errorf("with room again: %v", err)
	}
	if n := whole(t, log); n != uint64(accepted) {
		t.Errorf("%d whole lines with room again, want %d", n, accepted)
	}
}

func TestThreat25_WithoutRoomForItsVerdictNobodyIsTrusted(t *testing.T) {
	dir := disk(t)
	ca := must2(tpmtest.NewCA())(t)
	m := newMachine(t, ca, "good").serve(t, "")
	newNode(t, "full-state")
	s := newServer(t, serverOptions{ca: ca, reference: m.capture(t, "good"), inventory: map[string][]string{"full-state": m.ekHex}, stateDir: dir})
	free := fill(t, dir)
	_, err := attest(t, m, s, nil)
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "cannot keep the verdict") {
		t.Fatalf("with a full disk: %v, want Unavailable", err)
	}
	lines := s.audit(t)
	if last := lines[len(lines)-1]; last.Outcome != audit.Inconclusive || !strings.Contains(last.Error, "let nobody in") || !strings.Contains(last.Error, "make room in "+dir) {
		t.Errorf("the audit log ends with %+v, as if the machine had been let in", last)
	}
	free()
	attrs, err := attest(t, m, s, nil)
	check(t, err)
	if !slices.Contains(attrs.SelectorValues, "node:full-state") {
		t.Errorf("selectors %v", attrs.SelectorValues)
	}
	nodeTrust(t, "full-state", trusted)
	whole(t, s.file("audit.jsonl"))
}
