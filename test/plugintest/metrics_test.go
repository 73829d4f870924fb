package plugintest_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// page is what an address answers, "" while it does not.
func page(ctx context.Context, url string) (code int, body string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, ""
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, ""
	}
	defer func() { _ = resp.Body.Close() }() // it was read
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, ""
	}
	return resp.StatusCode, string(data)
}

// shows waits until a page has all lines.
func shows(t testing.TB, url string, lines ...string) {
	t.Helper()
	var missing []string
	var last string
	eventuallyTrue(t, "the page "+url+" is complete", func(ctx context.Context) bool {
		_, last = page(ctx, url)
		missing = nil
		for _, l := range lines {
			if !strings.Contains(last, l) {
				missing = append(missing, l)
			}
		}
		return len(missing) == 0
	}, func() string { return fmt.Sprintf("missing: %q\n%s", missing, relevant(last)) })
}

// relevant is what of a page is Keelson's.
func relevant(page string) string {
	var out []string
	for line := range strings.Lines(page) {
		if strings.Contains(line, "keelson") && !strings.HasPrefix(line, "#") {
			out = append(out, line)
		}
	}
	return strings.Join(out, "")
}

func TestTheNumbersReachSPIREAndTheListener(t *testing.T) {
	ca := must2(tpmtest.NewCA())(t)
	good, evil := newMachine(t, ca, "good"), newMachine(t, ca, "cmdline")
	newNode(t, "metrics-good")
	newNode(t, "metrics-evil")
	port := func() int { return must2(cluster.FreePort())(t) }
	spirePort, ownPort, agentSpirePort, agentOwnPort := port(), port(), port(), port()
	s := newSpire(t, serverOptions{ca: ca, reference: good.capture(t, "good"), inventory: map[string][]string{"metrics-good": good.ekHex, "metrics-evil": evil.ekHex},
		extra: fmt.Sprintf("metrics { listen = \"127.0.0.1:%d\" }\n", ownPort)}, func(o *cluster.SpireServerOptions) { o.MetricsPort = spirePort })
	own, spires := fmt.Sprintf("http://127.0.0.1:%d", ownPort), fmt.Sprintf("http://127.0.0.1:%d/metrics", spirePort)
	if code, body := page(t.Context(), own+"/readyz"); code != http.StatusOK {
		t.Errorf("before the first attestation: %d %s", code, body)
	}
	a := s.agent(t, good, "good", fmt.Sprintf("metrics { listen = \"127.0.0.1:%d\" }\n", agentOwnPort), func(o *cluster.SpireAgentOptions) { o.MetricsPort = agentSpirePort })
	s.knows(t, good, a)
	bad := s.agent(t, evil, "evil", "", nil)
	eventuallyTrue(t, "the evil machine is refused", func(context.Context) bool { return s.last(t, evil).Outcome == audit.Untrusted }, func() string { return bad.Process().Tail(10) })
	bad.Stop()

	t.Run("the server's listener", func(t *testing.T) {
		shows(t, own+"/metrics", `keelson_tpm_attestations_total{result="trusted"} 1`, `keelson_tpm_attestations_total{result="untrusted"} `,
			`keelson_tpm_refusals_total{check="kernel.cmdline"} `, `keelson_tpm_attestation_seconds_count{result="trusted"} 1`,
			`keelson_tpm_phase_seconds_count{phase="proof"} `, `keelson_tpm_phase_seconds_count{phase="record"} 1`,
			`keelson_tpm_log_bytes_count{log="ima"} `, "keelson_tpm_pending_verdicts 0", "keelson_tpm_reference_sets 1", "keelson_tpm_ready 1", "keelson_tpm_clock_step_seconds 0")
	})
	t.Run("SPIRE's telemetry of the server", func(t *testing.T) {
		shows(t, spires, `spire_server_keelson_tpm_attestations{host=`, `result="trusted"} 1`, `check="kernel_cmdline"`, "spire_server_keelson_tpm_phase_seconds", "spire_server_keelson_tpm_ready", "spire_server_keelson_tpm_pending_verdicts")
	})
	t.Run("the agent's listener", func(t *testing.T) {
		base := fmt.Sprintf("http://127.0.0.1:%d", agentOwnPort)
		shows(t, base+"/metrics", `keelson_tpm_attestations_total{result="answered"} 1`, `keelson_tpm_phase_seconds_count{phase="open"} 1`, `keelson_tpm_phase_seconds_count{phase="answer"} 1`, "keelson_tpm_ready 1")
		check(t, os.Rename(good.file("binary_bios_measurements"), good.file("gone")))
		if code, body := page(t.Context(), base+"/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "binary_bios_measurements") {
			t.Errorf("%d %s", code, body)
		}
		check(t, os.Rename(good.file("gone"), good.file("binary_bios_measurements")))
	})
	t.Run("SPIRE's telemetry of the agent", func(t *testing.T) {
		shows(t, fmt.Sprintf("http://127.0.0.1:%d/metrics", agentSpirePort), "spire_agent_keelson_tpm_attestations{", "spire_agent_keelson_tpm_phase_seconds", "spire_agent_keelson_tpm_ready")
	})
	t.Run("changed files are counted", func(t *testing.T) {
		check(t, os.WriteFile(s.file("inventory.yaml"), []byte("machines: [broken"), 0o600))
		shows(t, own+"/metrics", `keelson_tpm_reloads_total{result="refused"} 1`)
	})
	t.Run("a log that was taken away is no readiness", func(t *testing.T) {
		check(t, os.Rename(s.file("audit.jsonl"), s.file("elsewhere")))
		if code, body := page(t.Context(), own+"/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "no longer at its path") {
			t.Errorf("%d %s", code, body)
		}
		if code, _ := page(t.Context(), own+"/healthz"); code != http.StatusOK {
			t.Errorf("healthz: %d", code)
		}
		check(t, os.Rename(s.file("elsewhere"), s.file("audit.jsonl")))
		if code, body := page(t.Context(), own+"/readyz"); code != http.StatusOK {
			t.Errorf("%d %s", code, body)
		}
	})
}

func TestVerdictsThatCannotBeWrittenAreNoReadinessInTheEnd(t *testing.T) {
	ca := must2(tpmtest.NewCA())(t)
	m := newMachine(t, ca, "good").serve(t, "")
	newNode(t, "unwritten-1")
	address := fmt.Sprintf("127.0.0.1:%d", must2(cluster.FreePort())(t))
	s := newServer(t, serverOptions{ca: ca, reference: m.capture(t, "good"), inventory: map[string][]string{"unwritten-1": m.ekHex},
		extra: fmt.Sprintf("verdict_valid_for = \"6s\"\nmetrics { listen = %q }\n", address)})
	_, err := attest(t, m, s, nil)
	check(t, err)
	nodeTrust(t, "unwritten-1", trusted)
	check(t, kubernetes.Outage(t.Context(), func() {
		m.measure(t, tpmtest.IMAEntry("/usr/bin/backdoor", []byte("evil"))) // a verdict that is kept until it is written
		_, err := attest(t, m, s, nil)
		refused(t, s, err, audit.Untrusted, "ima.file")
		if code, body := page(t.Context(), "http://"+address+"/readyz"); code != http.StatusOK {
			t.Errorf("an API that is away for a moment: %d %s", code, body)
		}
		var said string
		eventuallyTrue(t, "the plugin is not ready", func(ctx context.Context) bool {
			var code int
			code, said = page(ctx, "http://"+address+"/readyz")
			return code == http.StatusServiceUnavailable
		}, func() string { return said })
		if !strings.Contains(said, "1 verdicts wait to be written, the oldest for ") || !strings.Contains(said, "connection refused") {
			t.Errorf("the reason is %q", said)
		}
		shows(t, "http://"+address+"/metrics", "keelson_tpm_pending_verdicts 1", "keelson_tpm_ready 0")
	}))
	nodeTrust(t, "unwritten-1", untrusted)
	shows(t, "http://"+address+"/metrics", "keelson_tpm_pending_verdicts 0", "keelson_tpm_ready 1")
}
