package plugintest_test

import (
	"testing"

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
