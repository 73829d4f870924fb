package serverplugin_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keelson-project/keelson/nodeattestor/serverplugin"
)

// working is a configuration that can be put in force, with room for what a test changes.
type working struct {
	dir       string
	plugin    *serverplugin.Plugin
	reference string // content of the one reference set
}

func newWorking(t *testing.T) *working {
	t.Helper()
	zero := strings.Repeat("0", 64)
	w := &working{dir: t.TempDir(), plugin: serverplugin.New(time.Now),
		reference: "name: prod\nboot: {pcrs: {sha256: {0: '" + zero + "', 2: '" + zero + "', 4: '" + zero + "'}}}\n"}
	t.Cleanup(func() {
		if err := w.plugin.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *working) file(name string) string { return filepath.Join(w.dir, name) }

// config writes the files, and returns the text that names them.
func (w *working) config(t *testing.T, extra string) string {
	t.Helper()
	for name, content := range map[string]string{"inventory.yaml": "machines: []\n", "reference.yaml": w.reference} {
		if err := os.WriteFile(w.file(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return fmt.Sprintf("ek_mode = \"inventory\"\ninventory = %q\nreferences = [%q]\naudit_log = %q\npcrs { sha256 = [0, 2, 4] }\nrequire_ima = false\n%s",
		w.file("inventory.yaml"), w.file("reference.yaml"), w.file("audit.jsonl"), extra)
}

func (w *working) configure(t *testing.T, text string) error {
	t.Helper()
	_, err := w.plugin.Configure(t.Context(), &configv1.ConfigureRequest{CoreConfiguration: &configv1.CoreConfiguration{TrustDomain: "example.org"}, HclConfiguration: text})
	return err
}

func TestValidateAndConfigureSayTheSame(t *testing.T) {
	for name, extra := range map[string]string{
		"good":                        "",
		"too large a bound":           "max_event_log_bytes = 8388608\n",
		"an unknown key":              "audit_max_size = 3\n",
		"a key twice":                 "audit_log = \"x\"\n",
		"several values out of range": "max_parallel = -1\nverdict_valid_for = \"soon\"\nattestation_timeout = \"-1s\"\n",
		"kubernetes without a place":  "kubernetes { in_cluster = true kubeconfig = \"x\" }\n",
		"metrics for everybody":       "metrics { listen = \"0.0.0.0:9468\" }\n",
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorking(t)
			text := w.config(t, extra)
			want := strings.Join(notes(t, text), "\n")
			if (want == "") != (extra == "") {
				t.Errorf("notes %q", want)
			}
			err := w.configure(t, text)
			if want == "" && err != nil {
				t.Fatal(err)
			}
			if want != "" && (status.Code(err) != codes.InvalidArgument || status.Convert(err).Message() != "keelson_tpm: "+want) {
				t.Errorf("Configure says %v\nValidate says %s", err, want)
			}
		})
	}
}

func TestValidateOpensNothing(t *testing.T) {
	w := newWorking(t)
	if got := notes(t, w.config(t, "")); len(got) > 0 {
		t.Fatal(got)
	}
	if _, err := os.Stat(w.file("audit.jsonl")); !os.IsNotExist(err) {
		t.Errorf("a configuration was only looked at, and has an audit log: %v", err)
	}
}

func TestReadinessSaysWhatIsWrong(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	w := newWorking(t)
	text := w.config(t, fmt.Sprintf("metrics { listen = %q }\n", address))
	if err := w.configure(t, text); status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "metrics.listen") {
		t.Errorf("an address that another has: %v", err)
	}
	if _, err := os.Stat(w.file("audit.jsonl")); !os.IsNotExist(err) {
		t.Errorf("a configuration that was refused opened its audit log: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.configure(t, text); err != nil {
		t.Fatal(err)
	}
	ready := func() (int, string) {
		resp, err := http.Get("http://" + address + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }() // it was read
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	if code, said := ready(); code != http.StatusOK {
		t.Errorf("%d %s", code, said)
	}
	w.reference = "notAfter: 2020-01-01T00:00:00Z\n" + w.reference
	if err := w.configure(t, w.config(t, fmt.Sprintf("metrics { listen = %q }\n", address))); err != nil {
		t.Fatal(err)
	}
	if code, said := ready(); code != http.StatusServiceUnavailable || !strings.Contains(said, "no reference set is valid: reference set prod expired at 2020-01-01T00:00:00Z") {
		t.Errorf("with an expired reference set: %d %s", code, said)
	}
	if err := os.Remove(w.file("audit.jsonl")); err != nil {
		t.Fatal(err)
	}
	if code, said := ready(); code != http.StatusServiceUnavailable || strings.Count(said, "\n") != 2 || !strings.Contains(said, "the audit log cannot be written") {
		t.Errorf("without its audit log: %d %s", code, said)
	}
}

func TestTheLargestBoundsAreTaken(t *testing.T) {
	if got := notes(t, newWorking(t).config(t, "max_event_log_bytes = 4194304\nmax_ima_log_bytes = 402653184\n")); len(got) > 0 {
		t.Error(got)
	}
}
