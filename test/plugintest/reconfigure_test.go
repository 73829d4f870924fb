package plugintest_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// A configuration that comes while an attestation is under way closes the queue and may close the audit
// log that the attestation began with; its result must reach those of the new one.
func TestThreat25_AVerdictOfAnAttestationUnderWaySurvivesANewConfiguration(t *testing.T) {
	ca := must2(tpmtest.NewCA())(t)
	good := newMachine(t, ca, "good")
	m := newMachine(t, ca, "cmdline").serve(t, "")
	newNode(t, "reconfigured-1")
	o := serverOptions{ca: ca, reference: good.capture(t, "good"), inventory: map[string][]string{"reconfigured-1": m.ekHex}}
	s := newServer(t, o)
	_, err := attest(t, m, s, func(round int, msg []byte) []byte {
		if round == 1 {
			check(t, s.configure(t, o))
		}
		return msg
	})
	refused(t, s, err, audit.Untrusted, "kernel.cmdline")
	nodeTrust(t, "reconfigured-1", untrusted)
}

// What cannot be opened must not take away what works: a typing error in a reload would else lock a fleet out.
func TestAConfigurationThatCannotBePutInForceLeavesTheLastOne(t *testing.T) {
	ca := must2(tpmtest.NewCA())(t)
	m := newMachine(t, ca, "good").serve(t, "")
	newNode(t, "reconfigured-2")
	o := serverOptions{ca: ca, reference: m.capture(t, "good"), inventory: map[string][]string{"reconfigured-2": m.ekHex}}
	s := newServer(t, o)
	_, err := attest(t, m, s, nil)
	check(t, err)
	broken := t.TempDir()
	check(t, os.WriteFile(filepath.Join(broken, "pending-verdicts.json"), []byte("{broken"), 0o600))
	for name, tc := range map[string]struct {
		change func(*serverOptions)
		code   codes.Code
		want   string
	}{
		"an audit log that is a folder":          {func(o *serverOptions) { o.auditLog = t.TempDir() }, codes.Internal, "audit"},
		"an audit log that is no audit log":      {func(o *serverOptions) { o.auditLog = s.file("inventory.yaml") }, codes.Internal, "no audit entry"},
		"a state_dir whose file is broken":       {func(o *serverOptions) { o.stateDir = broken }, codes.Internal, "pending-verdicts.json"},
		"a broken state_dir and a new audit log": {func(o *serverOptions) { o.stateDir, o.auditLog = broken, s.file("other.jsonl") }, codes.Internal, "pending-verdicts.json"},
		"a key that nobody knows":                {func(o *serverOptions) { o.extra = "ek_root = []\n" }, codes.InvalidArgument, "ek_root: unknown key"},
	} {
		t.Run(name, func(t *testing.T) {
			other := o
			tc.change(&other)
			if err := s.configure(t, other); status.Code(err) != tc.code || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want %s with %q", err, tc.code, tc.want)
			}
			before := len(s.audit(t))
			if _, err := attest(t, m, s, nil); err != nil {
				t.Errorf("the configuration in force does not work any more: %v", err)
			}
			if n := len(s.audit(t)); n != before+1 {
				t.Errorf("%d audit lines, want %d", n, before+1)
			}
		})
	}
	moved := o
	moved.auditLog, moved.stateDir = s.file("moved.jsonl"), t.TempDir()
	check(t, s.configure(t, moved))
	_, err = attest(t, m, s, nil)
	check(t, err)
	if n := whole(t, moved.auditLog); n != 1 {
		t.Errorf("%d lines in the new audit log", n)
	}
	check(t, s.configure(t, o)) // the log that was left can be gone on with
	_, err = attest(t, m, s, nil)
	check(t, err)
	whole(t, s.file("audit.jsonl"))
}
