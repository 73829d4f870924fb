package plugintest_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// A real SPIRE agent that starts again attests again, though an unexpired SVID of the good days lies on its disk: its key was in memory, as in
// every chart and example (test/charts looks at those).
func TestThreat31_AnAgentThatStartsAgainIsJudgedAnewWhateverLiesOnItsDisk(t *testing.T) {
	ca := must2(tpmtest.NewCA())(t)
	m := newRebootable(t, ca)
	newNode(t, "restart-1")
	s := newSpire(t, serverOptions{ca: ca, reference: m.capture(t, "good"), inventory: map[string][]string{"restart-1": m.ekHex}}, nil)
	a := s.agent(t, m.machine, "agent", "", nil)
	s.knows(t, m.machine, a)
	nodeTrust(t, "restart-1", trusted)
	var kept []byte
	eventuallyTrue(t, "the agent keeps its SVID on disk", func(context.Context) bool {
		kept = nil
		_ = filepath.WalkDir(filepath.Join(m.dir, "spire", "data"), func(path string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				data, err := os.ReadFile(path)
				kept = append(kept, data...)
				return err
			}
			return nil // it comes later
		})
		return bytes.Contains(kept, []byte("svid"))
	}, func() string { return string(kept) })

	m.reboot(t) // an evil boot: the same firmware and kernel, and a backdoor
	m.measure(t, tpmtest.IMAEntry("/usr/bin/backdoor", []byte("evil")))
	again(t, a)
	eventuallyTrue(t, "the machine is judged anew", func(context.Context) bool { return s.last(t, m.machine).Outcome == audit.Untrusted },
		func() string { return a.Process().Tail(10) })
	nodeTrust(t, "restart-1", untrusted)
}
