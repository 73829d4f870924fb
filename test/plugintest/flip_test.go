package plugintest_test

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"testing"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/ek"
	"github.com/keelson-project/keelson/nodeattestor/evidence"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/reference"
	"github.com/keelson-project/keelson/nodeattestor/verify"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// The AK's public area is signed by nobody: what binds it is activation, for the credential is made for
// the name that the area hashes to. So with any bit of it flipped, either the server refuses the
// area, or the TPM, which holds the real key, does not give the secret back.
func TestThreat05_EveryFlippedBitOfTheAKIsRefusedByServerOrTPM(t *testing.T) {
	ca := must2(tpmtest.NewCA())(t)
	m := newMachine(t, ca, "good")
	policy := &verify.Policy{
		Anchors:    ek.Anchors{Roots: []*x509.Certificate{ca.Root()}, Mode: ek.Certificate},
		Selections: []nodeclaim.Selection{quoted}, IMA: true,
		References: must2(reference.NewSets(must2(reference.ParseSet(m.capture(t, "good")))(t)))(t),
	}
	check(t, policy.Validate())
	key := must2(m.dev.AK(t.Context(), m.file("data")))(t)
	payload := evidence.Payload{EKCertificates: must2(m.dev.Endorsement(t.Context()))(t).Certs, AKPublic: key.Public,
		Banks: []nodeclaim.HashAlg{nodeclaim.SHA256}, HasEventLog: true, HasIMA: true}
	c := must2(verify.Begin(&payload, policy, nil, time.Now(), rand.Reader))(t).Message()
	if _, err := m.dev.Activate(t.Context(), key, c.CredentialBlob, c.EncryptedSecret); err != nil {
		t.Fatalf("the true AK is not activated: %v", err)
	}
	byServer, byTPM := 0, 0
	for bit := range 8 * len(key.Public) {
		flipped := bytes.Clone(key.Public)
		flipped[bit/8] ^= 1 << (bit % 8)
		payload.AKPublic = flipped
		challenge, err := verify.Begin(&payload, policy, nil, time.Now(), rand.Reader)
		if err != nil {
			byServer++
			continue
		}
		c := challenge.Message()
		if secret, err := m.dev.Activate(t.Context(), key, c.CredentialBlob, c.EncryptedSecret); err == nil {
			t.Fatalf("bit %d flipped, and the TPM gave back %x", bit, secret)
		}
		byTPM++
	}
	if byServer == 0 || byTPM == 0 {
		t.Errorf("%d bits refused by the server and %d by the TPM; both must have had their turn", byServer, byTPM)
	}
	t.Logf("%d bits refused by the server, %d by the TPM", byServer, byTPM)
}
