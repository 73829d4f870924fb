package plugintest_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// A reference set that asks for the machine's tag, for its TPM's maker and for a measured file
// accepts it by these, over a TPM and both plugins; with another tag, with none, and with another
// maker it does not.
func TestConditionsOverTagMakerAndMeasuredFilesDecide(t *testing.T) {
	ca := must2(tpmtest.NewCA())(t)
	key := newTagKey(t)
	m := newMachine(t, ca, "good")
	m.provision(t, key.tag(t, m.ekHex, 1, "DE"))
	m.serve(t, fmt.Sprintf("tag_document = %q\n", m.file("tag.json")))
	good := m.capture(t, "good")
	with := func(expr string) serverOptions {
		set := bytes.Replace(good, []byte("boot:\n"), []byte("conditions: [{expr: '"+expr+"', message: ask the platform team}]\nboot:\n"), 1)
		return serverOptions{ca: ca, reference: set, tagSigner: key.pem, kubernetes: "\n", stateDir: t.TempDir()}
	}
	const germany = `tag["country"] == "DE" && tpm.vendor == "KELS" && "/bin/probe" in ima.paths`
	s := newServer(t, with(germany))
	for range 2 { // the second time from what the server remembers
		_, err := attest(t, m, s, nil)
		check(t, err)
	}
	m.provision(t, key.tag(t, m.ekHex, 2, "FR"))
	_, err := attest(t, m, s, nil)
	refused(t, s, err, audit.Untrusted, "reference.condition")
	m.provision(t, key.tag(t, m.ekHex, 3, "DE"))
	_, err = attest(t, m, s, nil)
	check(t, err)

	check(t, s.configure(t, with(`tpm.vendor in ["IFX", "STM"]`)))
	_, err = attest(t, m, s, nil)
	refused(t, s, err, audit.Untrusted, "reference.condition")

	nobody := with(germany)
	nobody.tagSigner = nil
	if err := s.configure(t, nobody); err == nil || !strings.Contains(err.Error(), "a condition over the asset tag, but nobody may sign one") {
		t.Errorf("a set that no node can meet was put in force: %v", err)
	}
	whole(t, s.file("audit.jsonl"))
}
