package plugintest_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// eventually attests until the outcome is what is wanted: files are read again some time after they change.
func eventually(t *testing.T, m *machine, s *server, want string) {
	t.Helper()
	var err error
	for range 50 {
		_, err = attest(t, m, s, nil)
		if want == "" && err == nil || want != "" && err != nil && strings.Contains(err.Error(), want) {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("after the change: %v, want %q", err, want)
}

func TestChangedFilesAreReadAgainAndBrokenOnesChangeNothing(t *testing.T) {
	ca := must2(tpmtest.NewCA())(t)
	m := newMachine(t, ca, "good").serve(t, "")
	newNode(t, "reload-1")
	revoked := filepath.Join(t.TempDir(), "revoked.yaml")
	write := func(path, text string) {
		t.Helper()
		check(t, os.WriteFile(path+".new", []byte(text), 0o600))
		check(t, os.Rename(path+".new", path)) // as configuration management does it
	}
	write(revoked, "revoked: []\n")
	s := newServer(t, serverOptions{ca: ca, reference: m.capture(t, "good"), inventory: map[string][]string{"reload-1": m.ekHex},
		extra: fmt.Sprintf("revoked = %q\n", revoked)})
	eventually(t, m, s, "")

	all := "revoked:\n"
	for _, h := range m.ekHex {
		all += fmt.Sprintf("- {ekHash: %s, reason: stolen}\n", h)
	}
	write(revoked, all)
	eventually(t, m, s, "ek.revoked")
	_, err := attest(t, m, s, nil)
	refused(t, s, err, audit.Untrusted, "ek.revoked")
	nodeTrust(t, "reload-1", untrusted)

	write(revoked, "revoked: [broken")
	time.Sleep(time.Second)
	_, err = attest(t, m, s, nil)
	refused(t, s, err, audit.Untrusted, "ek.revoked") // the last good list stays in force

	write(revoked, "revoked: []\n")
	eventually(t, m, s, "")
	nodeTrust(t, "reload-1", trusted)

	write(s.file("inventory.yaml"), "machines: []\n")
	eventually(t, m, s, "node.unbound")
}
