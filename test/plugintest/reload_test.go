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

func TestEveryKindOfFileIsReadAgainAndABrokenOneChangesNothing(t *testing.T) {
	ca, stranger, key, otherKey := must2(tpmtest.NewCA())(t), must2(tpmtest.NewCA())(t), newTagKey(t), newTagKey(t)
	m := newMachine(t, ca, "good")
	m.provision(t, key.tag(t, m.ekHex, 1, "DE"))
	m.serve(t, fmt.Sprintf("tag_document = %q\n", m.file("tag.json")))
	newNode(t, "reload-2")
	set := m.capture(t, "good")
	s := newServer(t, serverOptions{ca: ca, reference: set, tagSigner: key.pem, inventory: map[string][]string{"reload-2": m.ekHex}})
	_, err := attest(t, m, s, nil)
	check(t, err)
	for _, tc := range []struct {
		name, file        string
		good, other, junk string
		outcome           audit.Outcome
		check             string
	}{
		{"roots", "roots.pem", string(ca.RootPEM()), string(stranger.RootPEM()), "no certificate", audit.Unproved, "ek.chain"},
		{"reference sets", "reference.yaml", string(set), string(newMachine(t, ca, "cmdline").capture(t, "good")), "name: [", audit.Untrusted, "kernel.cmdline"},
		{"signers of tags", "signer.pem", string(key.pem), string(otherKey.pem), "no key", audit.Untrusted, "tag.signer"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			replace(t, s.file(tc.file), tc.other)
			eventually(t, m, s, tc.check)
			for _, junk := range []string{tc.junk, ""} {
				replace(t, s.file(tc.file), junk)
				time.Sleep(time.Second)
				_, err := attest(t, m, s, nil)
				refused(t, s, err, tc.outcome, tc.check) // the last good one stays in force
			}
			replace(t, s.file(tc.file), tc.good)
			eventually(t, m, s, "")
		})
	}
}

func TestOneEKOfAMachineRevokesAllOfThem(t *testing.T) {
	ca := must2(tpmtest.NewCA())(t)
	m := newMachine(t, ca, "good").serve(t, "")
	newNode(t, "reload-3")
	list := emptyList(t)
	s := newServer(t, serverOptions{ca: ca, reference: m.capture(t, "good"), inventory: map[string][]string{"reload-3": m.ekHex},
		extra: fmt.Sprintf("revoked = %q\n", list)})
	_, err := attest(t, m, s, nil)
	check(t, err)
	shown := nodeTrust(t, "reload-3", trusted).EKHash
	for _, ek := range m.ekHex {
		if ek != shown {
			replace(t, list, fmt.Sprintf("revoked: [{ekHash: %s, reason: stolen}]\n", ek))
		}
	}
	eventually(t, m, s, "ek.revoked")
	_, err = attest(t, m, s, nil)
	refused(t, s, err, audit.Untrusted, "ek.revoked")
	nodeTrust(t, "reload-3", untrusted)
}

// emptyList makes a list of revoked EKs that has none.
func emptyList(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "revoked.yaml")
	replace(t, path, "revoked: []\n")
	return path
}

// replace replaces a file as configuration management does it.
func replace(t testing.TB, path, text string) {
	t.Helper()
	check(t, os.WriteFile(path+".new", []byte(text), 0o600))
	check(t, os.Rename(path+".new", path))
}
