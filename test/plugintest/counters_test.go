package plugintest_test

import (
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// clear is TPM2_Clear, with the lockout hierarchy's empty authorization: it sets the counters to zero.
func (r *rebootable) clear(t testing.TB) {
	t.Helper()
	check(t, r.dev.Close())
	dev := must2(linuxudstpm.Open(r.tpm))(t)
	must2(tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth(nil)}}.Execute(dev))(t)
	check(t, dev.Close())
	r.reopen(t)
}

// TestThreat10_ResetsOfTheTPMAreTold: a reboot is no news, several between two attestations are, and TPM2_Clear, which would
// hide them, is refused once.
func TestThreat10_ResetsOfTheTPMAreTold(t *testing.T) {
	ca := must2(tpmtest.NewCA())(t)
	m := newRebootable(t, ca)
	m.serve(t, "")
	newNode(t, "resets")
	s := newServer(t, serverOptions{ca: ca, reference: m.capture(t, "good"), inventory: map[string][]string{"resets": m.ekHex}})
	trusted := func(what, note string) {
		t.Helper()
		if _, err := attest(t, m.machine, s, nil); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		lines := s.audit(t)
		if notes := strings.Join(lines[len(lines)-1].Notes, "; "); notes != note {
			t.Errorf("%s: notes %q, want %q", what, notes, note)
		}
	}
	trusted("the first time", "")
	m.reboot(t)
	trusted("a reboot", "")
	m.reboot(t)
	m.reboot(t)
	trusted("two reboots", "the TPM was reset 2 times since the last attestation")
	m.clear(t)
	_, err := attest(t, m.machine, s, nil)
	refused(t, s, err, audit.Untrusted, "counters.reset")
	trusted("once it was told", "")
}
