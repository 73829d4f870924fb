package serverconfig

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// warnings are those of a configuration with one set, as one text.
func warnings(t *testing.T, set, more string) string {
	t.Helper()
	dir := t.TempDir()
	key, err := x509.MarshalPKIXPublicKey(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)).Public())
	if err != nil {
		t.Fatal(err)
	}
	signer := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: key}))
	for name, text := range map[string]string{"set.yaml": set, "inventory.yaml": "machines: []\n", "signer.pem": signer} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, _, problems := Read(fmt.Sprintf("ek_mode = \"inventory\"\ninventory = %q\nreferences = [%q]\naudit_log = \"x\"\nrequire_ima = false\n%s\n",
		filepath.Join(dir, "inventory.yaml"), filepath.Join(dir, "set.yaml"), strings.ReplaceAll(more, "DIR", dir)), "example.org", time.Now())
	if err := problems.Err(); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(c.Warnings())
}

func TestWhatLetsMoreInThanItSeemsIsAWarning(t *testing.T) {
	boot := func(bank string, digits int, more string) string {
		zero := strings.Repeat("0", digits)
		return fmt.Sprintf("name: s\nboot: {bank: %[1]s, %[3]spcrs: {%[1]s: {0: '%[2]s', 2: '%[2]s', 4: '%[2]s'}}}\n", bank, zero, more)
	}
	kernel := "kernel: ['sha256:" + strings.Repeat("0", 64) + "'], "
	for name, c := range map[string]struct{ set, more, want string }{
		"nothing is doubtful":             {boot("sha256", 64, kernel), "pcrs { sha256 = [0, 2, 4] }", "[]"},
		"tags whose serials nobody keeps": {boot("sha256", 64, kernel), "pcrs { sha256 = [0, 2, 4] }\ntag { signers = [\"DIR/signer.pem\"] }", "without state_dir or kubernetes"},
		"tags whose serials are kept":     {boot("sha256", 64, kernel), "pcrs { sha256 = [0, 2, 4] }\nstate_dir = \"DIR\"\ntag { signers = [\"DIR/signer.pem\"] }", "[]"},
		"a set of a broken hash":          {boot("sha1", 40, ""), "pcrs { sha1 = [0, 2, 4] }", "these reference sets rest on SHA-1"},
		"a set without a kernel":          {boot("sha256", 64, ""), "pcrs { sha256 = [0, 2, 4] }", "reference set pins no kernel"},
		"one that says so itself":         {boot("sha256", 64, "unpinnedKernel: allow, "), "pcrs { sha256 = [0, 2, 4] }", "as its unpinnedKernel says"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := warnings(t, c.set, c.more); !strings.Contains(got, c.want) {
				t.Errorf("warnings %s, want %s", got, c.want)
			}
		})
	}
}
