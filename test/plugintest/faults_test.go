package plugintest_test

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// A TPM that fails in the middle of an attestation proves nothing, good or bad: the
// verdict that stands is left to expire.
func TestATPMThatFailsLeavesTheVerdictAlone(t *testing.T) {
	const quoteCommand, failureMode = 0x158, 0x101
	ca := must2(tpmtest.NewCA())(t)
	m := newMachine(t, ca, "good")
	newNode(t, "fails-1")
	s := newServer(t, serverOptions{ca: ca, reference: m.capture(t, "good"), inventory: map[string][]string{"fails-1": m.ekHex}})
	broken := false
	m.tpm = tpmtest.Between(t, m.tpm, func(command []byte, forward tpmtest.Forward) []byte {
		if broken && tpmtest.Code(command) == quoteCommand {
			return tpmtest.Failed(failureMode)
		}
		return forward(command)
	})
	m.serve(t, "")
	_, err := attest(t, m, s, nil)
	check(t, err)
	before := nodeTrust(t, "fails-1", trusted)

	broken = true
	_, err = attest(t, m, s, nil)
	if err == nil || !strings.Contains(err.Error(), "failure mode") || status.Code(err) == codes.PermissionDenied {
		t.Fatalf("got %v, want the agent's error about its TPM", err)
	}
	var lines []audit.Entry
	for range 50 { // the server learns of the stream's end a moment later
		if lines = s.audit(t); len(lines) == 2 {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if last := lines[len(lines)-1]; len(lines) != 2 || last.Outcome != audit.Inconclusive || len(last.Refusals) != 0 {
		t.Errorf("%d audit lines, last %+v; want a second one that judges nothing", len(lines), last)
	}
	if after := nodeTrust(t, "fails-1", trusted); !after.AttestedAt.Equal(&before.AttestedAt) {
		t.Errorf("the verdict was written anew: %+v, before %+v", after, before)
	}

	broken = false
	_, err = attest(t, m, s, nil)
	check(t, err)
}
