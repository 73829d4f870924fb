package plugintest_test

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"

	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// Two classes of machines, and a set for each: what the laboratory may run is no excuse for production.
func TestThreat22_TheInventorySaysWhichSetsMayAcceptAMachine(t *testing.T) {
	ca := must2(tpmtest.NewCA())(t)
	production, laboratory, stranger := newMachine(t, ca, "good").serve(t, ""), newMachine(t, ca, "good").serve(t, ""), newMachine(t, ca, "good").serve(t, "")
	newNode(t, "class-production")
	newNode(t, "class-laboratory")
	strict := production.capture(t, "prod-2026-11")
	lax := bytes.Replace(bytes.Replace(strict, []byte("name: prod-2026-11"), []byte("name: lab"), 1), []byte("\n  violations:"), []byte("\n  ignoreDirectories: [/usr]\n  violations:"), 1)
	o := serverOptions{ca: ca, reference: strict, inventory: map[string][]string{"class-production": production.ekHex}}
	s := newServer(t, o)
	configure := func(productions string) error {
		text := strings.Replace(s.config(t, o), fmt.Sprintf("%q", s.file("reference.yaml")), fmt.Sprintf("%q, %q", s.file("reference.yaml"), s.file("lab.yaml")), 1)
		check(t, os.WriteFile(s.file("lab.yaml"), lax, 0o600))
		check(t, os.WriteFile(s.file("inventory.yaml"), []byte(fmt.Sprintf(
			"machines:\n- node: class-production\n  ekHashes: [%s]\n  references: [%s]\n- node: class-laboratory\n  ekHashes: [%s]\n  references: [\"prod-*\", lab]\n",
			strings.Join(production.ekHex, ", "), productions, strings.Join(laboratory.ekHex, ", "))), 0o600))
		_, err := s.conf.Configure(t.Context(), &configv1.ConfigureRequest{CoreConfiguration: &configv1.CoreConfiguration{TrustDomain: trustDomain}, HclConfiguration: text})
		return err
	}
	if err := configure("prods"); err == nil || !strings.Contains(err.Error(), "machine class-production may match reference sets prods alone, and none of that name is there") {
		t.Fatalf("a name that fits no set: %v", err)
	}
	check(t, configure("\"prod-*\""))
	backdoor := tpmtest.IMAEntry("/usr/bin/backdoor", []byte("evil"))
	laboratory.measure(t, backdoor)
	attrs, err := attest(t, laboratory, s, nil)
	check(t, err)
	if !strings.Contains(strings.Join(attrs.SelectorValues, " "), "ref:lab ") {
		t.Errorf("selectors %v, want ref:lab", attrs.SelectorValues)
	}
	attrs, err = attest(t, production, s, nil)
	check(t, err)
	if !strings.Contains(strings.Join(attrs.SelectorValues, " "), "ref:prod-2026-11 ") {
		t.Errorf("selectors %v, want ref:prod-2026-11", attrs.SelectorValues)
	}
	nodeTrust(t, "class-production", trusted)
	production.measure(t, backdoor)
	_, err = attest(t, production, s, nil)
	line := refused(t, s, err, audit.Untrusted, "ima.file")
	if strings.Contains(fmt.Sprint(line.Refusals), "lab") {
		t.Errorf("the refusal tells of another class: %+v", line.Refusals)
	}
	nodeTrust(t, "class-production", untrusted)
	_, err = attest(t, stranger, s, nil)
	refused(t, s, err, audit.Unproved, "reference.class")
}
