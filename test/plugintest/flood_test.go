package plugintest_test

import (
	"os"
	"testing"
	"time"

	serverv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/nodeattestor/v1"

	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/test/tpmtest"
)

func TestThreat24_StrangersDoNotFillTheAuditLog(t *testing.T) {
	ca := must2(tpmtest.NewCA())(t)
	m := newMachine(t, ca, "good").serve(t, "")
	newNode(t, "flood-1")
	s := newServer(t, serverOptions{ca: ca, reference: m.capture(t, "good"), inventory: map[string][]string{"flood-1": m.ekHex}})
	const strangers = 2000
	begun := time.Now()
	for range strangers {
		stream := must2(s.client.Attest(t.Context()))(t)
		check(t, stream.Send(&serverv1.AttestRequest{Request: &serverv1.AttestRequest_Payload{Payload: []byte("garbage")}}))
		if _, err := stream.Recv(); err == nil {
			t.Fatal("garbage was answered with a challenge")
		}
	}
	took := time.Since(begun)
	_, err := attest(t, m, s, nil)
	check(t, err)
	told := map[audit.Outcome]int{}
	lines := s.audit(t)
	for _, line := range lines {
		told[line.Outcome]++
		told[audit.Omitted] += int(line.Omitted)
	}
	if last := lines[len(lines)-1]; last.Outcome != audit.Trusted || last.Omitted == 0 {
		t.Errorf("the line after the flood is %+v, and tells of nothing", last)
	}
	if told[audit.Unproved]+told[audit.Omitted] != strangers || told[audit.Unproved] > 100+int(took/(6*time.Second))+1 {
		t.Errorf("%v of %d strangers in %s", told, strangers, took)
	}
	whole(t, s.file("audit.jsonl"))
	info := must2(os.Stat(s.file("audit.jsonl")))(t)
	t.Logf("%d strangers in %s: %d lines, %d bytes", strangers, took, len(lines), info.Size())
}
