package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/keelson-project/keelson/examples/walkthrough"
	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/test/cluster/factory"
	"github.com/keelson-project/keelson/test/cluster/node"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// run shows every step. It leaves nothing behind.
func run(ctx context.Context, out io.Writer, hold bool) (err error) {
	w, err := newWorld(ctx, out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	one, two := &machine{name: "node-1", boot: "good"}, &machine{name: "node-2", boot: "cmdline"}
	return w.Walk(ctx, hold, []walkthrough.Step{
		{Title: "Two machines have booted; their TPMs are of one maker", Run: func(ctx context.Context) error { return w.bootBoth(ctx, one, two) }},
		{Title: "Which TPM is it? Its endorsement keys go into the inventory", Run: func(ctx context.Context) error { return w.inventory(ctx, one, two) }},
		{Title: "What is a good boot? A reference set is captured on node-1, and signed", Run: func(ctx context.Context) error { return w.reference(ctx, one) }},
		{Title: "Where does it stand? Asset tags are signed, and written into the TPMs", Run: func(ctx context.Context) error { return w.tags(ctx, one, two) }},
		{Title: "The SPIRE server starts", Run: w.startServer},
		{Title: "node-1 attests, and is let in", Run: func(ctx context.Context) error { return w.accepted(ctx, one) }},
		{Title: "node-2 booted another kernel command line, and is refused", Run: func(ctx context.Context) error { return w.refused(ctx, two, "kernel.cmdline") }},
		{Title: "node-1 runs a program that no reference set allows, and is refused", Run: func(ctx context.Context) error { return w.tampered(ctx, one) }},
		{Title: "The audit log is whole", Run: w.verifyAudit},
		{Title: "Metrics and readiness", Run: w.metrics},
	}...)
}

func (w *world) bootBoth(ctx context.Context, machines ...*machine) error {
	maker, err := tpmtest.NewCA()
	if err != nil {
		return err
	}
	if err := w.Write("operator/ek-root.pem", string(maker.RootPEM())); err != nil {
		return err
	}
	for _, m := range machines {
		if err := w.boot(ctx, maker, m); err != nil {
			return err
		}
		w.Say("  %s: %s, into which the recorded boot %q is replayed", m.name, m.tpm.Kind, m.boot)
	}
	_, err = w.Do(ctx, "keelson", "tpm", "info", "--tpm", "node-1/tpm.sock")
	return err
}

// ekHashes asks a machine's TPM for its endorsement keys.
func (w *world) ekHashes(ctx context.Context, m *machine) ([]string, error) {
	said, err := w.Quietly(ctx, "keelson", "tpm", "info", "--tpm", m.name+"/tpm.sock", "-o", "json")
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
	w.Say("  operator/inventory.yaml (hashes from keelson tpm info -o json):")
	w.Show(list)
	return w.Write("operator/inventory.yaml", list)
}

func (w *world) reference(ctx context.Context, golden *machine) error {
	at := golden.name + "/"
	if err := factory.WriteSigningKey(w.Path("operator/reference-signer.key"), w.Path("operator/reference-signer.pem")); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"evidence", "collect", "--tpm", at + "tpm.sock", "--dir", "operator/evidence", "--nonce", "example",
			"--event-log", at + "binary_bios_measurements", "--ima-log", at + "binary_runtime_measurements", "--command-line", at + "cmdline.txt"},
		{"reference", "capture", "--dir", "operator/evidence", "--name", "prod", "-o", "operator/prod.yaml"},
		{"reference", "sign", "--key", "operator/reference-signer.key", "--valid-for", "24h", "-o", "operator/references/prod.json", "operator/prod.yaml"},
	} {
		if _, err := w.Do(ctx, "keelson", args...); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) tags(ctx context.Context, machines ...*machine) error {
	if err := factory.WriteSigningKey(w.Path("operator/tag-signer.key"), w.Path("operator/tag-signer.pem")); err != nil {
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
		if _, err := w.Do(ctx, "keelson", issue...); err != nil {
			return err
		}
		if _, err := w.Do(ctx, "keelson", "tag", "provision", "--tpm", m.name+"/tpm.sock", "--document", m.name+"/tag.json"); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) startServer(ctx context.Context) error {
	if _, err := w.Do(ctx, "spire-server", "validate", "-config", "server.conf"); err != nil {
		return err
	}
	var err error
	if w.server, err = w.Start("spire-server", "spire-server", "run", "-config", "server.conf"); err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := w.server.Until(wait, func(ctx context.Context) error {
		_, err := w.Quietly(ctx, "spire-server", "healthcheck", "-socketPath", "server/api.sock")
		return err
	}); err != nil {
		return err
	}
	w.Say("  $ spire-server bundle show -socketPath server/api.sock > bundle.pem")
	bundle, err := w.Quietly(ctx, "spire-server", "bundle", "show", "-socketPath", "server/api.sock")
	if err != nil {
		return err
	}
	return w.Write("bundle.pem", bundle)
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
	if m.agent, err = w.Start("spire-agent-"+m.name, "spire-agent", "run", "-config", m.name+"/agent.conf"); err != nil {
		return audit.Entry{}, err
	}
	var line audit.Entry
	err = walkthrough.Until(ctx, m.name+" has attested", func(context.Context) (bool, error) {
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
	text, err := os.ReadFile(w.Path("server/audit.jsonl"))
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
	err = walkthrough.Until(ctx, "SPIRE knows the agent", func(ctx context.Context) (bool, error) {
		said, err := w.Quietly(ctx, "spire-server", "agent", "count", "-socketPath", "server/api.sock")
		return strings.HasPrefix(said, "1 "), err
	})
	if err != nil {
		return err
	}
	if _, err := w.Do(ctx, "spire-server", "agent", "list", "-socketPath", "server/api.sock"); err != nil {
		return err
	}
	said, err := w.Do(ctx, "spire-server", "agent", "show", "-socketPath", "server/api.sock", "-spiffeID", line.AgentID)
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
	w.Say("  The audit log says: %s, for these reasons:", line.Outcome)
	found := false
	for _, r := range line.Refusals {
		w.Show(r.Check + ": " + r.Reason)
		found = found || r.Check == check
	}
	if !found {
		return fmt.Errorf("%s is not among the reasons", check)
	}
	return nil
}

func (w *world) tampered(ctx context.Context, m *machine) error {
	m.agent.Stop(2 * time.Second)
	w.Say("  (the kernel measures /usr/bin/backdoor on node-1: a line in its IMA log, and PCR 10 is extended)")
	if err := node.RunFile(ctx, m.tpm.Device, w.Path(m.name+"/binary_runtime_measurements"), "/usr/bin/backdoor", []byte("evil")); err != nil {
		return err
	}
	return w.refused(ctx, m, "ima.file")
}

func (w *world) verifyAudit(ctx context.Context) error {
	_, err := w.Do(ctx, "keelson", "audit", "verify", "server/audit.jsonl")
	return err
}

func (w *world) metrics(ctx context.Context) error {
	if err := w.Curl(ctx, "/readyz"); err != nil {
		return err
	}
	return w.Curl(ctx, "/metrics", "keelson_tpm_attestations_total", "keelson_tpm_refusals_total", "keelson_tpm_reference_sets", "keelson_tpm_phase_seconds_sum")
}
