package plugintest_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// offset is how far the server machine's clock is set.
type offset struct{ by atomic.Int64 }

func (o *offset) set(by time.Duration) { o.by.Store(int64(by)) }

func (o *offset) now() time.Time { return time.Now().Add(time.Duration(o.by.Load())) }

func TestThreat25_AServerWhoseClockIsSetForwardsCutsNobodyOffForADate(t *testing.T) {
	ca := must2(tpmtest.NewCA())(t)
	m := newMachine(t, ca, "good").serve(t, "")
	newNode(t, "forwards-1")
	var clock offset
	set := append([]byte(fmt.Sprintf("notAfter: %s\n", time.Now().Add(time.Hour).UTC().Format(time.RFC3339))), m.capture(t, "good")...)
	s := newServer(t, serverOptions{ca: ca, reference: set, inventory: map[string][]string{"forwards-1": m.ekHex}, wall: clock.now})
	_, err := attest(t, m, s, nil)
	check(t, err)
	before := nodeTrust(t, "forwards-1", trusted)

	clock.set(5 * time.Hour) // the set has expired by it
	if _, err = attest(t, m, s, nil); status.Code(err) != codes.Unavailable {
		t.Errorf("got %v: nobody is let in by an expired set, and nothing is proved", err)
	}
	lines := s.audit(t)
	if last := lines[len(lines)-1]; last.Outcome != audit.Inconclusive || !strings.Contains(last.Error, "clock was set by 5h0m0s") || !strings.Contains(last.Error, "expired at") {
		t.Errorf("audit line %+v", last)
	}
	if after := nodeTrust(t, "forwards-1", trusted); after.AttestedAt != before.AttestedAt {
		t.Errorf("the verdict changed: %+v", after)
	}
	m.measure(t, tpmtest.IMAEntry("/usr/bin/backdoor", []byte("evil")))
	_, err = attest(t, m, s, nil)
	refused(t, s, err, audit.Untrusted, "ima.file") // whatever the clock says
	nodeTrust(t, "forwards-1", untrusted)
}

func TestThreat25_AServerWhoseClockIsSetBackStillLowersAVerdict(t *testing.T) {
	ca := must2(tpmtest.NewCA())(t)
	m := newMachine(t, ca, "good").serve(t, "")
	newNode(t, "back-1")
	var clock offset
	s := newServer(t, serverOptions{ca: ca, reference: m.capture(t, "good"), inventory: map[string][]string{"back-1": m.ekHex}, wall: clock.now})
	_, err := attest(t, m, s, nil)
	check(t, err)
	before := known(t, "back-1")

	clock.set(-3 * time.Hour)
	check(t, kubernetes.Outage(t.Context(), func() { // the trusted verdict of this attestation waits in the queue
		_, err := attest(t, m, s, nil)
		check(t, err)
		m.measure(t, tpmtest.IMAEntry("/usr/bin/backdoor", []byte("evil")))
		_, err = attest(t, m, s, nil)
		refused(t, s, err, audit.Untrusted, "ima.file")
	}))
	after := nodeTrust(t, "back-1", untrusted)
	if !after.AttestedAt.After(before.AttestedAt.Time) || !after.ValidUntil.After(after.AttestedAt.Time) {
		t.Errorf("attested at %s, valid until %s; before it was %s", after.AttestedAt, after.ValidUntil, before.AttestedAt)
	}
}
