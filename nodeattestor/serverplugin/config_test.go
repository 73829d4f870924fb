package serverplugin_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"

	"github.com/keelson-project/keelson/nodeattestor/reference"
	"github.com/keelson-project/keelson/nodeattestor/serverplugin"
)

func notes(t *testing.T, text string) []string {
	t.Helper()
	resp, err := serverplugin.New(time.Now).Validate(t.Context(), &configv1.ValidateRequest{
		CoreConfiguration: &configv1.CoreConfiguration{TrustDomain: "example.org"}, HclConfiguration: text})
	if err != nil {
		t.Fatal(err)
	}
	if resp.Valid != (len(resp.Notes) == 0) {
		t.Errorf("valid is %t with notes %v", resp.Valid, resp.Notes)
	}
	return resp.Notes
}

func TestEveryProblemOfAConfigurationIsToldAtOnceWithItsLine(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	badPEM := write("roots.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
	notPEM := write("not.pem", "hello")
	inventory := write("inventory.yaml", "machines:\n- node: a\n  ekHashes: [xyz]\n")
	set := "name: prod\nima: {}\n"
	if err := os.Mkdir(filepath.Join(dir, "empty"), 0o700); err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		text string
		want []string
	}{
		"nothing at all": {"", []string{"ek_mode: ", "references: no reference set", "pcrs: missing", "audit_log: missing"}},
		"an unknown key": {"ek_mode = \"certificate\"\nek_rots = []\n", []string{"line 2: ek_rots: unknown key"}},
		"a key twice":    {"ek_mode = \"both\"\nek_mode = \"both\"\n", []string{"line 2: ek_mode: stands in line 1 already"}},
		"files that are missing, empty or wrong": {
			"ek_mode = \"both\"\nek_roots = [\"" + badPEM + "\", \"" + notPEM + "\", \"/does/not/exist\"]\ninventory = \"" + inventory + "\"\nreferences = [\"" + filepath.Join(dir, "empty") + "\"]\n",
			[]string{"line 2: ek_roots: " + badPEM, "line 2: ek_roots: " + notPEM, "/does/not/exist", "line 3: inventory: ", "inventory line 3", "line 4: references: directory"}},
		"values out of range": {
			"pcrs { sha256 = [24] md5 = [1] }\nmax_parallel = -1\nverdict_valid_for = \"soon\"\ntag { index = \"x\" }\nkubernetes { }\n",
			[]string{"pcrs.sha256", "pcrs.md5", "line 2: max_parallel", "line 3: verdict_valid_for", "tag.index", "tag.signers", "kubernetes: say either"}},
		"bounds below zero": {"max_event_log_bytes = -1\nmax_ima_log_bytes = -1\nmax_ima_entries = -1\n",
			[]string{"line 1: max_event_log_bytes: -1 is negative", "line 2: max_ima_log_bytes: -1 is negative", "line 3: max_ima_entries: -1 is negative"}},
		"bounds above what is read at all": {"max_event_log_bytes = 4194305\nmax_ima_log_bytes = 402653185\n",
			[]string{"line 1: max_event_log_bytes: 4194305 is more than the 4194304 bytes that are read", "line 2: max_ima_log_bytes: 402653185 is more than the 402653184 bytes that are read"}},
		"node binding by a token that is not described": {
			"kubernetes {\n kubeconfig = \"/none\"\n node_binding = \"token\"\n token_service_accounts = [\"spire\"]\n}\n",
			[]string{"line 1: kubernetes: ", "kubernetes.token_audience: missing", "line 4: kubernetes.token_service_accounts: \"spire\" is not of the form"}},
		"an unknown node binding, and a token that nobody uses": {
			"kubernetes {\n kubeconfig = \"/none\"\n node_binding = \"trust\"\n token_audience = \"x\"\n}\n",
			[]string{"line 3: kubernetes.node_binding: verify: node binding \"trust\" is unknown", "which uses no token"}},
		"a PCR selector that is not quoted": {
			"pcrs { sha256 = [7] }\npcr_selectors { sha256 = [8] }\n", []string{"pcr_selectors: PCR 8 of bank sha256 is not quoted"}},
		"a list of revoked tags that is one of EKs": {
			"tag {\n revoked = \"" + write("revoked.yaml", "revoked:\n- {ekHash: "+strings.Repeat("a", 64)+", reason: stolen}\n") + "\"\n}\n",
			[]string{"tag.revoked: ", "entry 1: serial is missing or 0"}},
		"a list of revoked tags that is not there": {
			"tag { revoked = \"/does/not/exist\" }\n", []string{"tag.revoked: ", "/does/not/exist"}},
		"two sets of one name": {
			"references = [\"" + write("a.yaml", set) + "\", \"" + write("b.yaml", set) + "\"]\n", []string{"references"}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			all := strings.Join(notes(t, tc.text), "\n")
			for _, want := range tc.want {
				if !strings.Contains(all, want) {
					t.Errorf("no note contains %q; the notes are:\n%s", want, all)
				}
			}
		})
	}
}

func TestThreat22_WithSignersOnlySignedReferenceSetsAreLoaded(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	stranger := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, ed25519.SeedSize))
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	zero := strings.Repeat("0", 64)
	text := []byte("name: prod\nnotAfter: 2099-01-01T00:00:00Z\nboot: {pcrs: {sha256: {0: '" + zero + "', 2: '" + zero + "', 4: '" + zero + "'}}}\n")
	set, err := reference.ParseSet(text)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(name string, key ed25519.PrivateKey) string {
		signed, err := reference.Sign(set, key, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return write(name, signed)
	}
	signer := write("signer.pem", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	plain, good, forged := write("plain.yaml", text), sign("good.json", key), sign("forged.json", stranger)
	config := func(set, signers string) string {
		return fmt.Sprintf("references = [%q]\n%s\n", set, signers)
	}
	trusted := fmt.Sprintf("reference_signers = [%q]", signer)
	for name, c := range map[string]struct{ text, want string }{
		"a signed set":                        {config(good, trusted), ""},
		"an unsigned set, and nobody asks":    {config(plain, ""), ""},
		"an unsigned set":                     {config(plain, trusted), "references: " + plain + ": reference.envelope: "},
		"a stranger's set":                    {config(forged, trusted), "references: " + forged + ": reference.signer: "},
		"one that is signed and one not":      {"references = [\"" + good + "\", \"" + plain + "\"]\n" + trusted, "reference.envelope"},
		"a signed set, and nobody is asked":   {config(good, ""), "this is a signed set: name who may sign it"},
		"no signer in the list":               {config(plain, "reference_signers = []"), "reference_signers: missing"},
		"a signed set, no signer in the list": {config(good, "reference_signers = []"), "reference_signers: missing"},
		"a signer that is not there":          {config(good, `reference_signers = ["/does/not/exist.pem"]`), "reference_signers: "},
		"a signer that is no key":             {config(good, fmt.Sprintf("reference_signers = [%q]", plain)), "reference_signers: " + plain},
	} {
		t.Run(name, func(t *testing.T) {
			var about []string
			for _, n := range notes(t, c.text) {
				if strings.Contains(n, "reference") {
					about = append(about, n)
				}
			}
			all := strings.Join(about, "\n")
			if !strings.Contains(all, c.want) || c.want == "" && all != "" {
				t.Errorf("got %q, want %q", all, c.want)
			}
		})
	}
}

func TestAnUnconfiguredPluginLetsNobodyIn(t *testing.T) {
	p := serverplugin.New(time.Now)
	_, err := p.Configure(t.Context(), &configv1.ConfigureRequest{HclConfiguration: "nonsense = 1"})
	if err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Fatalf("got %v", err)
	}
	if err := p.Attest(nil); err == nil || !strings.Contains(err.Error(), "not configured") {
		t.Fatalf("got %v", err)
	}
}
