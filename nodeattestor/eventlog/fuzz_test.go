package eventlog_test

import (
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/test/vectors"
)

// FuzzReplay: no log makes the parser or the facts panic, and none but the true one of a boot
// has its facts in the PCRs that must be reached.
func FuzzReplay(f *testing.F) {
	for _, name := range vectors.Boots() {
		f.Add(vectors.Read(f, name, vectors.EventLog))
	}
	for _, dir := range vectors.RealLogs(f) {
		if log := vectors.RealLog(f, vectors.Expect(f, dir)); len(log) < 20000 {
			f.Add(log)
		}
	}
	f.Add(vectors.NewLog(nodeclaim.SHA1, nodeclaim.SHA256).Measure(8, vectors.IPL, []byte("linux /x y")).Measure(8, vectors.IPL, []byte("/x y")).Raw())
	some, _ := fewer()
	f.Add(some)
	f.Add(booted(nodeclaim.SHA256).Measure(4, vectors.Action, []byte("Booting to Boot20AF Option")).Event(14, vectors.IPL, []byte("keys"), nil).Raw())
	f.Add(vectors.NewLog(nodeclaim.SHA256).Fake(0, vectors.NoAction, nil, append([]byte("StartupLocality\x00\x03"), make([]byte, 33)...)).Raw())
	quoted := vectors.Quoted(f, "good")
	good, _ := replay(f, vectors.Read(f, "good", vectors.EventLog), quoted).Facts(nodeclaim.SHA256)
	f.Fuzz(func(t *testing.T, raw []byte) {
		log, err := eventlog.Parse(raw)
		if err != nil {
			return
		}
		for _, alg := range log.Banks() {
			values, err := log.Unverified(alg)
			if err != nil {
				continue
			}
			// A quote over exactly what this log leads to: every fact is drawn.
			delete(values, 10)
			boot, err := log.Replay(vectors.Quote(t, map[nodeclaim.HashAlg]map[int][]byte{alg: values}))
			if err == nil {
				boot.ConfirmCommandLine("quiet").Events(alg)
			}
		}
		boot, err := log.Replay(quoted)
		if err != nil {
			return
		}
		facts, _ := boot.Facts(nodeclaim.SHA256)
		if facts.SecureBoot.State != good.SecureBoot.State || len(facts.BootLoader) != len(good.BootLoader) || facts.CommandLine != good.CommandLine {
			t.Errorf("another log has the PCRs of good and other facts: %+v", facts)
		}
	})
}
