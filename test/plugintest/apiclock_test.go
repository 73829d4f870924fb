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

// Nobody sets this server's clock while it runs: it is wrong from the start, which only the Kubernetes API's can tell.
func TestThreat25_AServerWhoseClockIsAheadDatesNoVerdictAhead(t *testing.T) {
	ca := must2(tpmtest.NewCA())(t)
	m := newMachine(t, ca, "good").serve(t, "")
	newNode(t, "ahead-1")
	var clock offset
	clock.set(5 * time.Hour)
	s := newServer(t, serverOptions{ca: ca, reference: m.capture(t, "good"), inventory: map[string][]string{"ahead-1": m.ekHex}, wall: clock.now})
	if _, err := attest(t, m, s, nil); status.Code(err) != codes.Unavailable {
		t.Errorf("got %v, want that nothing is decided with a wrong date", err)
	}
	lines := s.audit(t)
	if last := lines[len(lines)-1]; last.Outcome != audit.Inconclusive || !strings.Contains(last.Error, "ahead of the Kubernetes API's") {
		t.Errorf("audit line %+v", last)
	}
	for _, by := range []time.Duration{5 * time.Hour, 0, -3 * time.Minute} {
		clock.set(by)
		_, err := attest(t, m, s, nil)
		check(t, err)
	}
	if got := nodeTrust(t, "ahead-1", trusted); time.Since(got.AttestedAt.Time).Abs() > 2*time.Minute || time.Until(got.ValidUntil.Time) > 25*time.Hour {
		t.Errorf("attested at %s, valid until %s", got.AttestedAt, got.ValidUntil)
	}
	clock.set(5 * time.Hour)
	m.measure(t, tpmtest.IMAEntry("/usr/bin/backdoor", []byte("evil")))
	_, err := attest(t, m, s, nil)
	refused(t, s, err, audit.Untrusted, "ima.file")
	if got := nodeTrust(t, "ahead-1", untrusted); time.Since(got.AttestedAt.Time).Abs() > 2*time.Minute {
		t.Errorf("proved bad at %s", got.AttestedAt)
	}
}
