package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/test/cluster/factory"
	"github.com/keelson-project/keelson/test/cluster/node"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// step is one thing that the example shows.
type step struct {
	title string
	run   func(context.Context) error
}

// run shows every step. It leaves nothing behind.
func run(ctx context.Context, out io.Writer, hold bool) (err error) {
	w, err := newWorld(ctx, out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	w.say("Everything happens in %s.", w.dir)
	one, two := &machine{name: "node-1", boot: "good"}, &machine{name: "node-2", boot: "cmdline"}
	for i, s := range []step{
		{"Two machines have booted; their TPMs are of one maker", func(ctx context.Context) error { return w.bootBoth(ctx, one, two) }},
		{"Which TPM is it? Its endorsement keys go into the inventory", func(ctx context.Context) error { return w.inventory(ctx, one, two) }},
		{"What is a good boot? A reference set is captured on node-1, and signed", func(ctx context.Context) error { return w.reference(ctx, one) }},
		{"Where does it stand? Asset tags are signed, and written into the TPMs", func(ctx context.Context) error { return w.tags(ctx, one, two) }},
		{"The SPIRE server starts", w.startServer},
		{"node-1 attests, and is let in", func(ctx context.Context) error { return w.accepted(ctx, one) }},
		{"node-2 booted another kernel command line, and is refused", func(ctx context.Context) error { return w.refused(ctx, two, "kernel.cmdline") }},
		{"node-1 runs a program that no reference set allows, and is refused", func(ctx context.Context) error { return w.tampered(ctx, one) }},
		{"The audit log is whole", w.verifyAudit},
		{"Metrics and readiness", w.metrics},
	} {
		w.say("\n%d. %s", i+1, s.title)
		if err := s.run(ctx); err != nil {
			return fmt.Errorf("step %d: %s: %w", i+1, s.title, err)
		}
	}
	if hold {
		w.say("\nEverything runs on, in %s; Ctrl-C ends it.", w.dir)
		<-ctx.Done()
	}
	return nil
}

func (w *world) bootBoth(ctx context.Context, machines ...*machine) error {
	maker, err := tpmtest.NewCA()
	if err != nil {
		return err
	}
	if err := w.write("operator/ek-root.pem", string(maker.RootPEM())); err != nil {
		return err
	}
	for _, m := range machines {
		if err := w.boot(ctx, maker, m); err != nil {
			return err
		}
		w.say("  %s: %s, into which the recorded boot %q is replayed", m.name, m.tpm.Kind, m.boot)
	}
	_, err = w.do(ctx, "keelson", "tpm", "info", "--tpm", "node-1/tpm.sock")
	return err
}

// ekHashes asks a machine's TPM for its endorsement keys.
func (w *world) ekHashes(ctx context.Context, m *machine) ([]string, error) {
	said, err := w.quietly(ctx, "keelson", "tpm", "info", "--tpm", m.name+"/tpm.sock", "-o", "json")
	if err != nil {
		return nil, err
	}
	var info struct {
		EKs []struct{ Hash string } `json:"eks"`
	}
	if err := json.Unmarshal([]byte(said), &info); err != nil {
		return nil, err
	}
	var hashes []string
	for _, ek := range info.EKs {
		hashes = append(hashes, ek.Hash)
	}
	return hashes, nil
}

func (w *world) inventory(ctx context.Context, machines ...*machine) error {
	list := "machines:\n"
	for _, m := range machines {
		hashes, err := w.ekHashes(ctx, m)
		if err != nil {
			return err
		}
		list += fmt.Sprintf("- node: %s\n  ekHashes: [%s]\n", m.name, strings.Join(hashes, ", "))
	}
	w.say("  operator/inventory.yaml (hashes from keelson tpm info -o json):")
	w.show(list)
	return w.write("operator/inventory.yaml", list)
}

func (w *world) reference(ctx context.Context, golden *machine) error {
	at := golden.name + "/"
	if err := factory.WriteSigningKey(w.path("operator/reference-signer.key"), w.path("operator/reference-signer.pem")); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"evidence", "collect", "--tpm", at + "tpm.sock", "--dir", "operator/evidence", "--nonce", "example",
			"--event-log", at + "binary_bios_measurements", "--ima-log", at + "binary_runtime_measurements", "--command-line", at + "cmdline.txt"},
		{"reference", "capture", "--dir", "operator/evidence", "--name", "prod", "-o", "operator/prod.yaml"},
		{"reference", "sign", "--key", "operator/reference-signer.key", "--valid-for", "24h", "-o", "operator/references/prod.json", "operator/prod.yaml"},
	} {
		if _, err := w.do(ctx, "keelson", args...); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) tags(ctx context.Context, machines ...*machine) error {
	if err := factory.WriteSigningKey(w.path("operator/tag-signer.key"), w.path("operator/tag-signer.pem")); err != nil {
		return err
	}
	for _, m := range machines {
		hashes, err := w.ekHashes(ctx, m)
		if err != nil {
			return err
		}
		issue := []string{"tag", "issue", "--key", "operator/tag-signer.key", "--tag", "country=DE", "--serial", "1", "--valid-for", "24h", "-o", m.name + "/tag.json"}
		for _, h := range hashes {
			issue = append(issue, "--ek-hash", h)
		}
		if _, err := w.do(ctx, "keelson", issue...); err != nil {
			return err
		}
		if _, err := w.do(ctx, "keelson", "tag", "provision", "--tpm", m.name+"/tpm.sock", "--document", m.name+"/tag.json"); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) startServer(ctx context.Context) error {
	if _, err := w.do(ctx, "spire-server", "validate", "-config", "server.conf"); err != nil {
		return err
	}
	var err error
	if w.server, err = w.start("spire-server", "spire-server", "run", "-config", "server.conf"); err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := w.server.Until(wait, func(ctx context.Context) error {
		_, err := w.quietly(ctx, "spire-server", "healthcheck", "-socketPath", "server/api.sock")
		return err
	}); err != nil {
		return err
	}
	w.say("  $ spire-server bundle show -socketPath server/api.sock > bundle.pem")
	bundle, err := w.quietly(ctx, "spire-server", "bundle", "show", "-socketPath", "server/api.sock")
	if err != nil {
		return err
	}
	return w.write("bundle.pem", bundle)
}

// attest starts a machine's agent and waits for the audit line of its attestation.
func (w *world) attest(ctx context.Context, m *machine) (audit.Entry, error) {
	before, err := w.auditLines()
	if err != nil {
		return audit.Entry{}, err
	}
	hashes, err := w.ekHashes(ctx, m)
	if err != nil {
		return audit.Entry{}, err
	}
	if m.agent, err = w.start("spire-agent-"+m.name, "spire-agent", "run", "-config", m.name+"/agent.conf"); err != nil {
		return audit.Entry{}, err
	}
	var line audit.Entry
	err = until(ctx, m.name+" has attested", func(context.Context) (bool, error) {
		lines, err := w.auditLines()
		for _, l := range lines[min(len(lines), len(before)):] {
			if slices.Contains(hashes, l.EKHash) {
				line = l
				return true, nil
			}
		}
		return false, err
	})
	if err != nil {
		err = fmt.Errorf("%w\n%s\n%s", err, m.agent.Tail(5), w.server.Tail(5))
	}
	return line, err
}

func (w *world) auditLines() ([]audit.Entry, error) {
	text, err := os.ReadFile(w.path("server/audit.jsonl"))
	if err != nil {
		return nil, err
	}
	var lines []audit.Entry
	for line := range strings.Lines(string(text)) {
		var e audit.Entry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			return nil, err
		}
		lines = append(lines, e)
	}
	return lines, nil
}

func (w *world) accepted(ctx context.Context, m *machine) error {
	line, err := w.attest(ctx, m)
	if err != nil {
		return err
	}
	if line.Outcome != audit.Trusted {
		return fmt.Errorf("%s is %s: %v %s", m.name, line.Outcome, line.Refusals, line.Error)
	}
	err = until(ctx, "SPIRE knows the agent", func(ctx context.Context) (bool, error) {
		said, err := w.quietly(ctx, "spire-server", "agent", "count", "-socketPath", "server/api.sock")
		return strings.HasPrefix(said, "1 "), err
	})
	if err != nil {
		return err
	}
	if _, err := w.do(ctx, "spire-server", "agent", "list", "-socketPath", "server/api.sock"); err != nil {
		return err
	}
	said, err := w.do(ctx, "spire-server", "agent", "show", "-socketPath", "server/api.sock", "-spiffeID", line.AgentID)
	if err == nil && !strings.Contains(said, "ref:prod") {
		err = errors.New("the agent has no selector keelson_tpm:ref:prod")
	}
	return err
}

func (w *world) refused(ctx context.Context, m *machine, check string) error {
	line, err := w.attest(ctx, m)
	if err != nil {
		return err
	}
	m.agent.Stop(2 * time.Second) // it would try again
	if line.Outcome != audit.Untrusted || len(line.Refusals) == 0 {
		return fmt.Errorf("%s is %s: %s", m.name, line.Outcome, line.Error)
	}
	w.say("  The audit log says: %s, for these reasons:", line.Outcome)
	found := false
	for _, r := range line.Refusals {
		w.show(r.Check + ": " + r.Reason)
		found = found || r.Check == check
	}
	if !found {
		return fmt.Errorf("%s is not among the reasons", check)
	}
	return nil
}

func (w *world) tampered(ctx context.Context, m *machine) error {
	m.agent.Stop(2 * time.Second)
	w.say("  (the kernel measures /usr/bin/backdoor on node-1: a line in its IMA log, and PCR 10 is extended)")
	if err := node.RunFile(ctx, m.tpm.Device, w.path(m.name+"/binary_runtime_measurements"), "/usr/bin/backdoor", []byte("evil")); err != nil {
		return err
	}
	return w.refused(ctx, m, "ima.file")
}

func (w *world) verifyAudit(ctx context.Context) error {
	_, err := w.do(ctx, "keelson", "audit", "verify", "server/audit.jsonl")
	return err
}

func (w *world) metrics(ctx context.Context) error {
	if err := w.curl(ctx, "/readyz"); err != nil {
		return err
	}
	return w.curl(ctx, "/metrics", "keelson_tpm_attestations_total", "keelson_tpm_refusals_total", "keelson_tpm_reference_sets", "keelson_tpm_phase_seconds_sum")
}

// curl shows what the plugin's listener answers: the lines that begin with one of the names, or all.
func (w *world) curl(ctx context.Context, path string, names ...string) error {
	url := "http://127.0.0.1:" + w.metricsPort + path
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	w.say("  $ curl %s", url)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", url, resp.Status, body)
	}
	for line := range strings.Lines(string(body)) {
		if len(names) == 0 || slices.ContainsFunc(names, func(name string) bool { return strings.HasPrefix(line, name) }) {
			w.show(line)
		}
	}
	return nil
}
