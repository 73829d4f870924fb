package agentplugin_test

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

	"github.com/keelson-project/keelson/nodeattestor/agentplugin"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// both gives a configuration to Validate and to Configure, which must say the same.
func both(t *testing.T, p *agentplugin.Plugin, config string) string {
	t.Helper()
	v, err := p.Validate(t.Context(), &configv1.ValidateRequest{HclConfiguration: config})
	if err != nil {
		t.Fatal(err)
	}
	notes := strings.Join(v.Notes, "\n")
	_, err = p.Configure(t.Context(), &configv1.ConfigureRequest{HclConfiguration: config})
	switch {
	case v.Valid != (err == nil):
		t.Fatalf("Validate says %t %q, Configure says %v", v.Valid, notes, err)
	case err != nil && (status.Code(err) != codes.InvalidArgument || status.Convert(err).Message() != "keelson_tpm: "+notes):
		t.Fatalf("Validate says %q, Configure says %v", notes, err)
	}
	return notes
}

func TestValidateAndConfigureSayTheSame(t *testing.T) {
	good := fmt.Sprintf("tpm = %q\ndata_dir = %q\n", tpmtest.Start(t), tpmtest.Dir(t))
	for name, c := range map[string]struct{ config, want string }{
		"good":                    {good, ""},
		"an unknown key":          {good + "tpm_path = \"x\"\n", "line 3: tpm_path: unknown key"},
		"a key that stands twice": {good + "timeout = \"1m\"\ntimeout = \"2m\"\n", "stands in line 3 already"},
		"no HCL":                  {"tpm = [", "not HCL"},
		"no data_dir":             {good[:strings.Index(good, "data_dir")], "data_dir: missing"},
		"no TPM":                  {"tpm = \"/nowhere\"\n" + good[strings.Index(good, "data_dir"):], "line 1: tpm: "},
		"a tag document that is not there": {good + "tag_document = \"/nowhere\"\n",
			"line 3: tag_document: stat /nowhere"},
		"a token that is not there":             {good + "token_path = \"/nowhere\"\n", "line 3: token_path: stat /nowhere"},
		"a timeout that is none":                {good + "timeout = \"soon\"\n", "line 3: timeout: \"soon\" is not a positive duration"},
		"metrics for everybody":                 {good + "metrics { listen = \"0.0.0.0:9468\" }\n", "allow_remote"},
		"two problems are both told, in one go": {good + "timeout = \"soon\"\ntoken_path = \"/nowhere\"\n", "token_path: stat /nowhere"},
	} {
		t.Run(name, func(t *testing.T) {
			p := agentplugin.New()
			if got := both(t, p, c.config); !strings.Contains(got, c.want) || c.want == "" && got != "" {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestARefusedConfigurationLeavesTheLastOne(t *testing.T) {
	good := fmt.Sprintf("tpm = %q\ndata_dir = %q\n", tpmtest.Start(t), tpmtest.Dir(t))
	p := agentplugin.New()
	if got := both(t, p, good); got != "" {
		t.Fatal(got)
	}
	if got := both(t, p, good+"nonsense = 1\n"); got == "" {
		t.Fatal("nonsense was taken")
	}
	taken := taken(t)
	if _, err := p.Configure(t.Context(), &configv1.ConfigureRequest{HclConfiguration: good + fmt.Sprintf("metrics { listen = %q }\n", taken)}); status.Code(err) != codes.Internal {
		t.Fatalf("an address that another has: %v", err)
	}
	s := &stream{ctx: t.Context(), end: io.EOF}
	if err := p.AidAttestation(s); err != nil || s.sent != 1 {
		t.Errorf("the configuration in force does not work any more: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

func TestReadinessNamesWhatIsMissing(t *testing.T) {
	dir := tpmtest.Dir(t)
	log := filepath.Join(dir, "log")
	address := free(t)
	config := fmt.Sprintf("tpm = %q\ndata_dir = %q\nevent_log = %q\nmetrics { listen = %q }\n", tpmtest.Start(t), dir, log, address)
	p := agentplugin.New()
	if got := both(t, p, config); got != "" {
		t.Fatal(got)
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
	if code, text := ready(); code != http.StatusServiceUnavailable || !strings.Contains(text, log) {
		t.Errorf("without an event log: %d %s", code, text)
	}
	if err := os.WriteFile(log, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, text := ready(); code != http.StatusOK {
		t.Errorf("with one: %d %s", code, text)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if c, err := net.Dial("tcp", address); err == nil {
		_ = c.Close()
		t.Error("a closed plugin still serves")
	}
}

// taken is an address that another listens on until the test ends, free one that was given back.
func taken(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().String()
}

func free(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}
