package plugintest_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/keelson-project/keelson/nodeattestor/assettag"
	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// A revoked tag ends at the next attestation; a newer one of the same machine is good again.
func TestARevokedTagIsRefusedUntilANewerOneIsProvisioned(t *testing.T) {
	ca, key := must2(tpmtest.NewCA())(t), newTagKey(t)
	m := newMachine(t, ca, "good")
	signed := key.tag(t, m.ekHex, 2, "DE")
	m.provision(t, signed)
	m.serve(t, fmt.Sprintf("tag_document = %q", m.file("tag.json")))
	newNode(t, "revoked-tag")
	list := filepath.Join(t.TempDir(), "revoked-tags.yaml")
	revoke := func(r assettag.Revocations) {
		t.Helper()
		check(t, os.WriteFile(list+".new", must2(r.Marshal())(t), 0o600))
		check(t, os.Rename(list+".new", list))
	}
	revoke(assettag.Revocations{})
	s := newServer(t, serverOptions{ca: ca, reference: m.capture(t, "good"), inventory: map[string][]string{"revoked-tag": m.ekHex},
		tagSigner: key.pem, tagExtra: fmt.Sprintf("revoked = %q\n", list)})
	_, err := attest(t, m, s, nil)
	check(t, err)
	nodeTrust(t, "revoked-tag", trusted)

	r := assettag.Revocations{}
	check(t, r.Revoke(must2(assettag.Open(signed, anyKeys(key.Public())))(t), "moved to Paris"))
	revoke(r)
	eventually(t, m, s, "tag.revoked")
	_, err = attest(t, m, s, nil)
	refused(t, s, err, audit.Untrusted, "tag.revoked")
	nodeTrust(t, "revoked-tag", untrusted)

	m.provision(t, key.tag(t, m.ekHex, 3, "FR"))
	eventually(t, m, s, "")
	nodeTrust(t, "revoked-tag", trusted)
}

// The digest is right and root has not locked it: nobody need delete anything to change it.
func TestThreat21_AnUnlockedTagIsRefused(t *testing.T) {
	ca, key := must2(tpmtest.NewCA())(t), newTagKey(t)
	m := newMachine(t, ca, "good")
	signed := key.tag(t, m.ekHex, 1, "DE")
	check(t, os.WriteFile(m.file("tag.json"), signed, 0o600))
	tpm := must2(linuxudstpm.Open(m.tpm))(t)
	owner := tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
	area := assettag.NVPublic(assettag.DefaultIndex, assettag.NVDefined)
	must2(tpm2.NVDefineSpace{AuthHandle: owner, PublicInfo: tpm2.New2B(area)}.Execute(tpm))(t)
	digest := assettag.Digest(signed)
	must2(tpm2.NVWrite{AuthHandle: owner, NVIndex: tpm2.NamedHandle{Handle: tpm2.TPMHandle(assettag.DefaultIndex), Name: *must2(tpm2.NVName(&area))(t)},
		Data: tpm2.TPM2BMaxNVBuffer{Buffer: digest[:]}}.Execute(tpm))(t)
	check(t, tpm.Close())
	m.serve(t, fmt.Sprintf("tag_document = %q", m.file("tag.json")))
	newNode(t, "unlocked-tag")
	s := newServer(t, serverOptions{ca: ca, reference: m.capture(t, "good"), inventory: map[string][]string{"unlocked-tag": m.ekHex}, tagSigner: key.pem})
	_, err := attest(t, m, s, nil)
	refused(t, s, err, audit.Untrusted, "tag.unlocked")
	m.provision(t, signed)
	_, err = attest(t, m, s, nil)
	check(t, err)
}
