package plugintest_test

import (
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// A machine attests with an RSA key; then its configuration asks for ECDSA, and the new
// key is as good, for it is activated anew.
func TestAMachineWithAnRSAAttestationKeyIsTrustedAndMayChangeIt(t *testing.T) {
	ca := must2(tpmtest.NewCA())(t)
	m := newMachine(t, ca, "good")
	newNode(t, "rsa-1")
	s := newServer(t, serverOptions{ca: ca, reference: m.capture(t, "good"), inventory: map[string][]string{"rsa-1": m.ekHex}})
	for _, akType := range []string{"rsa", "rsa", "ecdsa"} {
		m.serve(t, "ak_type = \""+akType+"\"\n")
		if _, err := attest(t, m, s, nil); err != nil {
			t.Fatalf("ak_type %s: %v", akType, err)
		}
	}
	nodeTrust(t, "rsa-1", trusted)
	for _, line := range s.audit(t) {
		if line.Outcome != audit.Trusted {
			t.Errorf("audit line %+v", line)
		}
	}
}
