package workloadplugin_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func page(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
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

func TestNumbersAndReadiness(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	w := newWorld(t)
	config := w.hcl() + fmt.Sprintf("metrics { listen = %q }\n", address)
	_, err = w.config.Configure(t.Context(), &configv1.ConfigureRequest{HclConfiguration: config})
	if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "metrics.listen") {
		t.Errorf("an address that another has: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	w.configure(config)
	if _, err := w.attest(42); err != nil {
		t.Fatal(err)
	}
	if _, err := w.attest(1); err == nil { // there is no such process
		t.Error("a process that is not there was attested")
	}
	_, text := page(t, "http://"+address+"/metrics")
	for _, want := range []string{`keelson_attestations_total{result="attested"} 1`, `keelson_attestations_total{result="refused"} 1`,
		`keelson_attestation_seconds_count{result="attested"} 1`, "keelson_ready 1"} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("the page lacks %s", want)
		}
	}
	w.configure(config + "verifiers \"other\" { manifests = [\"sha256:" + strings.Repeat("0", 64) + "\"] }\n")
	if _, err := w.attest(42); err != nil {
		t.Fatal(err)
	}
	if _, text = page(t, "http://"+address+"/metrics"); !strings.Contains(text, `keelson_absent_total{proof="signed-by:other"} 1`) {
		t.Error("a missing signature is not counted by its verifier")
	}
	if code, text := page(t, "http://"+address+"/readyz"); code != http.StatusOK {
		t.Errorf("%d %s", code, text)
	}
	socket := filepath.Join(w.dir, "cri.sock")
	if err := os.Rename(socket, socket+".gone"); err != nil {
		t.Fatal(err)
	}
	if code, text := page(t, "http://"+address+"/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(text, "container runtime does not answer") {
		t.Errorf("without the runtime: %d %s", code, text)
	}
}
