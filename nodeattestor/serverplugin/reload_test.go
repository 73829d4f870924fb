package serverplugin

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"

	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/nodeattestor/reference"
	"github.com/keelson-project/keelson/nodeattestor/serverconfig"
	"github.com/keelson-project/keelson/spireplugin/watchfile"
)

// site is a configured plugin with its files in folders that a test replaces.
type site struct {
	dir     string
	plugin  *Plugin
	refused atomic.Int32 // readings that were
}

// Write counts the log's lines that say so.
func (s *site) Write(line []byte) (int, error) {
	if strings.Contains(string(line), "the last good ones stay in force") {
		s.refused.Add(1)
	}
	return len(line), nil
}

const noEK = "ekHash: 0000000000000000000000000000000000000000000000000000000000000000, reason: test"

func newSite(t *testing.T, wall func() time.Time) *site {
	t.Helper()
	s := &site{dir: t.TempDir(), plugin: New(wall)}
	s.plugin.SetLogger(hclog.New(&hclog.LoggerOptions{Output: s}))
	s.mkdir(t, "site/references")
	s.mkdir(t, "site/lists")
	s.write(t, "site/references/a.yaml", set("a"))
	s.write(t, "site/lists/revoked.yaml", "revoked: []\n")
	s.write(t, "site/inventory.yaml", "machines: []\n")
	_, err := s.plugin.Configure(t.Context(), &configv1.ConfigureRequest{CoreConfiguration: &configv1.CoreConfiguration{TrustDomain: "example.org"},
		HclConfiguration: fmt.Sprintf("ek_mode = \"inventory\"\ninventory = %q\nreferences = [%q]\nrevoked = %q\naudit_log = %q\npcrs { sha256 = [0, 2, 4] }\nrequire_ima = false\n",
			s.path("site/inventory.yaml"), s.path("site/references"), s.path("site/lists/revoked.yaml"), s.path("audit.jsonl"))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.plugin.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func set(name string) string {
	zero := strings.Repeat("0", 64)
	return "name: " + name + "\nboot: {pcrs: {sha256: {0: '" + zero + "', 2: '" + zero + "', 4: '" + zero + "'}}}\n"
}

func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

func (s *site) mkdir(t *testing.T, name string) {
	t.Helper()
	if err := os.MkdirAll(s.path(name), 0o700); err != nil {
		t.Fatal(err)
	}
}

// write replaces a file as configuration management does it.
func (s *site) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(s.path(name)+".tmp", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.move(t, name+".tmp", name)
}

func (s *site) move(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(s.path(from), s.path(to)); err != nil {
		t.Fatal(err)
	}
}

func (s *site) config() *serverconfig.Config {
	s.plugin.mu.RLock()
	defer s.plugin.mu.RUnlock()
	return s.plugin.run.Config
}

// sets are the reference sets in force.
func (s *site) sets() string {
	var names []string
	for _, set := range s.config().Policy.References {
		names = append(names, set.Name())
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// within waits for what is to become so in the time given.
func within(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for begun := time.Now(); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Since(begun) > limit {
			t.Fatalf("not so after %s: %s", limit, what)
		}
	}
}

// soon is less than the files are looked at without an event.
const soon = watchfile.Look - time.Second

func TestAFolderThatWasReplacedIsWatched(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Now)
	for i, next := range []string{"b", "c"} {
		s.mkdir(t, "site/new")
		s.write(t, "site/new/a.yaml", set(next))
		s.move(t, "site/references", fmt.Sprintf("site/old-%d", i))
		s.move(t, "site/new", "site/references")
		within(t, soon, "the sets of the new folder are in force", func() bool { return s.sets() == next })
		s.write(t, "site/references/more.yaml", set("more"))
		within(t, soon, "a change in the new folder is seen", func() bool { return s.sets() == next+" more" })
		s.write(t, fmt.Sprintf("site/old-%d/a.yaml", i), set("old"))
	}
	if s.sets() != "c more" {
		t.Errorf("sets in force: %s", s.sets())
	}
}

func TestTheFolderOfAFileMayBeReplaced(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Now)
	revoked := func(n int) func() bool { return func() bool { return len(s.config().Policy.Revoked) == n } }
	s.mkdir(t, "site/new")
	s.write(t, "site/new/revoked.yaml", "revoked: [{"+noEK+"}]\n")
	s.move(t, "site/lists", "site/old")
	s.move(t, "site/new", "site/lists")
	within(t, soon, "the list in the new folder is in force", revoked(1))
	s.write(t, "site/lists/revoked.yaml", "revoked: []\n")
	within(t, soon, "a change of the list in the new folder is seen", revoked(0))
}

func TestAFolderThatIsAwayForAWhileIsReadWhenItComesBack(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Now)
	s.move(t, "site/references", "site/away")
	within(t, soon, "the folder was looked for", func() bool { return s.refused.Load() > 0 })
	if s.sets() != "a" {
		t.Errorf("without the folder, sets %q are in force, not the last good ones", s.sets())
	}
	s.write(t, "site/away/b.yaml", set("b"))
	s.move(t, "site/away", "site/references")
	within(t, soon, "the sets are in force again", func() bool { return s.sets() == "a b" })
	s.write(t, "site/references/c.yaml", set("c"))
	within(t, soon, "a change in the folder is seen", func() bool { return s.sets() == "a b c" })
}

func TestAFolderThatIsReplacedFarAboveIsSeenInTheEnd(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Now)
	s.mkdir(t, "new/references")
	s.mkdir(t, "new/lists")
	s.write(t, "new/references/a.yaml", set("b"))
	s.write(t, "new/lists/revoked.yaml", "revoked: [{"+noEK+"}]\n")
	s.write(t, "new/inventory.yaml", "machines: []\n")
	s.move(t, "site", "old")
	s.move(t, "new", "site")
	within(t, watchfile.Look+soon, "what stands in the new folder is in force", func() bool { return s.sets() == "b" && len(s.config().Policy.Revoked) == 1 })
	s.write(t, "site/references/more.yaml", set("more"))
	within(t, soon, "a change in the new folder is seen", func() bool { return s.sets() == "b more" })
}

// newSigner makes a signer of reference sets, and the PEM of its public key.
func newSigner(t *testing.T) (*ecdsa.PrivateKey, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return key, string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func TestTheSignersOfReferenceSetsAreReadAgain(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Now)
	first, firstPEM := newSigner(t)
	second, secondPEM := newSigner(t)
	signed := func(name string, key *ecdsa.PrivateKey) string {
		set, err := reference.ParseSet([]byte("notAfter: 2099-01-01T00:00:00Z\n" + set(name)))
		if err != nil {
			t.Fatal(err)
		}
		data, err := reference.Sign(set, key, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	s.write(t, "site/signer.pem", firstPEM)
	s.write(t, "site/references/a.yaml", signed("a", first))
	_, err := s.plugin.Configure(t.Context(), &configv1.ConfigureRequest{CoreConfiguration: &configv1.CoreConfiguration{TrustDomain: "example.org"},
		HclConfiguration: s.config().Text + fmt.Sprintf("reference_signers = [%q]\n", s.path("site/signer.pem"))})
	if err != nil {
		t.Fatal(err)
	}
	s.write(t, "site/references/b.yaml", signed("b", second))
	within(t, soon, "a set of an unknown signer is refused", func() bool { return s.refused.Load() == 1 })
	if s.sets() != "a" {
		t.Errorf("sets in force: %s", s.sets())
	}
	s.write(t, "site/signer.pem", "no key")
	within(t, soon, "a file without a key is refused", func() bool { return s.refused.Load() == 2 })
	if s.sets() != "a" {
		t.Errorf("sets in force: %s", s.sets())
	}
	s.write(t, "site/signer.pem", firstPEM+secondPEM)
	within(t, soon, "the second signer's set is in force", func() bool { return s.sets() == "a b" })
	s.write(t, "site/signer.pem", secondPEM)
	s.write(t, "site/references/a.yaml", signed("c", second))
	within(t, soon, "the first signer's is not any more", func() bool { return s.sets() == "b c" })
}

func TestThreat25_FilesThatAreReadHoldNobodyUp(t *testing.T) {
	t.Parallel()
	reading, goOn := make(chan struct{}), make(chan struct{})
	var slow atomic.Bool
	s := newSite(t, func() time.Time {
		if slow.CompareAndSwap(true, false) { // of a reading, which asks for the time first
			close(reading)
			<-goOn
		}
		return time.Now()
	})
	before := s.config()
	slow.Store(true)
	s.write(t, "site/references/b.yaml", set("b"))
	<-reading
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.plugin.record(audit.Entry{Time: time.Now(), Outcome: audit.Unproved}, false); err != nil {
			t.Error(err)
		}
		if s.config() != before {
			t.Error("files are in force that were not read yet")
		}
	}()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Error("whoever attests waits until all files have been read")
	}
	close(goOn)
	within(t, soon, "what was read is in force", func() bool { return s.sets() == "a b" })
}
