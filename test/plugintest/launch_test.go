package plugintest_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// launching is what a server asks for that looks at a dynamic launch.
var launching = nodeclaim.Selection{Bank: nodeclaim.SHA256, PCRs: append(slices.Clone(quoted.PCRs), 17, 18, 19)}

// launch is a dynamic launch on the machine: a loader that the processor measures into PCR 17, which measures a configuration into 17
// and who signed it into 18.
func (m *machine) launch(t testing.TB, loader, configuration string) *machine {
	t.Helper()
	extension := func(pcr int, what string) tpmtest.Extension {
		return tpmtest.Extension{PCR: pcr, Digests: map[nodeclaim.HashAlg][]byte{nodeclaim.SHA256: hashed(nodeclaim.SHA256, []byte(what))}}
	}
	check(t, tpmtest.Launch(t.Context(), m.tpm, m.dev, []byte(loader), extension(17, configuration), extension(18, "the maker's key")))
	return m
}

// pin adds an exact PCR value of the machine to a set.
func (m *machine) pin(t testing.TB, set []byte, pcrs ...int) []byte {
	t.Helper()
	values := must2(m.dev.PCRRead(t.Context(), nodeclaim.Selection{Bank: nodeclaim.SHA256, PCRs: pcrs}))(t)
	out := string(set)
	for _, i := range pcrs {
		const before = "  pcrs:\n    sha256:\n"
		if !strings.Contains(out, before) {
			t.Fatalf("the set pins no PCR: %s", set)
		}
		out = strings.Replace(out, before, before+fmt.Sprintf("      %q: %q\n", fmt.Sprint(i), hex.EncodeToString(values[i])), 1)
	}
	return []byte(out)
}

// PCRs 17 to 22 are those of a dynamic launch (Intel TXT). Sets pin their exact values, as for every PCR without a log.
func TestADynamicLaunchIsPinnedByExactValues(t *testing.T) {
	if _, err := exec.LookPath("swtpm"); err != nil {
		t.Skip("skipped: swtpm is not installed, and the simulator has no locality 4")
	}
	ca := must2(tpmtest.NewCA())(t)
	golden := newMachine(t, ca, "good").launch(t, "SINIT 1", "policy 1")
	same := newMachine(t, ca, "good").launch(t, "SINIT 1", "policy 1").serve(t, "")
	loader := newMachine(t, ca, "good").launch(t, "SINIT 2", "policy 1").serve(t, "")
	policy := newMachine(t, ca, "good").launch(t, "SINIT 1", "no policy").serve(t, "")
	static := newMachine(t, ca, "good").serve(t, "")
	inventory := map[string][]string{}
	for node, m := range map[string]*machine{"launch-same": same, "launch-loader": loader, "launch-policy": policy, "launch-static": static} {
		newNode(t, node)
		inventory[node] = m.ekHex
	}
	set := golden.capture(t, "launched")
	o := serverOptions{ca: ca, reference: golden.pin(t, set, 17, 18, 19), inventory: inventory, extra: "pcr_selectors { sha256 = [17] }\n"}
	o.pcrs = pcrBlock(launching)
	s := newServer(t, o)

	attrs, err := attest(t, same, s, nil)
	check(t, err)
	h := func(b ...[]byte) []byte { return hashed(nodeclaim.SHA256, bytes.Join(b, nil)) }
	value := h(h(make([]byte, 32), h([]byte("SINIT 1"))), h([]byte("policy 1")))
	if want := fmt.Sprintf("pcr:sha256:17:%x", value); !slices.Contains(attrs.SelectorValues, want) {
		t.Errorf("selectors %v lack %s", attrs.SelectorValues, want)
	}
	nodeTrust(t, "launch-same", trusted)
	for node, tc := range map[string]struct {
		m    *machine
		says string
	}{
		"launch-loader": {loader, "PCR 17 (sha256) is "},
		"launch-policy": {policy, "PCR 17 (sha256) is "},
		"launch-static": {static, "PCR 17 (sha256) is " + strings.Repeat("f", 64)},
	} {
		t.Run(node, func(t *testing.T) {
			_, err := attest(t, tc.m, s, nil)
			line := refused(t, s, err, audit.Untrusted, "pcr.value")
			if !strings.Contains(line.Refusals[0].Reason, tc.says) || !strings.Contains(line.Refusals[0].Reason, "reference set launched has "+hex.EncodeToString(value)) {
				t.Errorf("the reason is %q", line.Refusals[0].Reason)
			}
			nodeTrust(t, node, untrusted)
		})
	}
	t.Run("software extends no PCR of a launch", func(t *testing.T) {
		if err := static.dev.PCRExtend(t.Context(), 17, map[nodeclaim.HashAlg][]byte{nodeclaim.SHA256: h([]byte("SINIT 1"))}); err == nil || !strings.Contains(err.Error(), "LOCALITY") {
			t.Errorf("got %v: whoever has root may make PCR 17 what he likes", err)
		}
	})
	t.Run("that none took place can be pinned too", func(t *testing.T) {
		o.reference = static.pin(t, set, 17, 18)
		s := newServer(t, o)
		_, err := attest(t, static, s, nil)
		check(t, err)
		_, err = attest(t, same, s, nil)
		refused(t, s, err, audit.Untrusted, "pcr.value")
	})
	t.Run("a value that is pinned and not quoted", func(t *testing.T) {
		o.extra, o.pcrs = "", "" // everybody's PCRs, 17 is not among them
		o.reference = golden.pin(t, set, 17)
		s := newServer(t, o)
		_, err := attest(t, same, s, nil)
		refused(t, s, err, audit.Untrusted, "pcr.unquoted")
	})
}
