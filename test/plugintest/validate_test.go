package plugintest_test

import (
	"context"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/test/tpmtest"
)

func TestSPIREValidatesAndReconfiguresTheServerPlugin(t *testing.T) {
	ca := must2(tpmtest.NewCA())(t)
	m, other := newMachine(t, ca, "good"), newMachine(t, ca, "cmdline")
	newNode(t, "validate-1")
	o := serverOptions{ca: ca, reference: m.capture(t, "good"), inventory: map[string][]string{"validate-1": m.ekHex}}
	s := newSpire(t, o, nil)
	good := s.config(t, o)
	out, err := s.spire.Validate(t.Context())
	if err != nil || !strings.Contains(out, "is valid") {
		t.Errorf("a good configuration, while a server runs with it: %v\n%s", err, out)
	}
	a := s.agent(t, m, "agent", "", nil)
	s.knows(t, m, a)

	broken := strings.Replace(good, "ek_mode", "ek_mod", 1)
	s.write(t, broken)
	if out, err := s.spire.Validate(t.Context()); err == nil || !strings.Contains(out, `NodeAttestor "keelson_tpm"`) || !strings.Contains(out, "line 1: ek_mod: unknown key") {
		t.Errorf("a broken configuration: %v\n%s", err, out)
	}
	s.write(t, strings.Replace(strings.Replace(good, "\"certificate\"", "\"paper\"", 1), "reference.yaml", "nothing.yaml", 1))
	if out, err := s.spire.Validate(t.Context()); err == nil || !strings.Contains(out, "line 1: ek_mode: ") || !strings.Contains(out, "nothing.yaml") {
		t.Errorf("a configuration with two problems: %v\n%s", err, out)
	}

	s.write(t, broken)
	reconfigure(t, s.spire.Process, "Failed to reconfigure plugin")
	lines := len(s.audit(t))
	again(t, a)
	eventuallyTrue(t, "the machine attests again", func(context.Context) bool { return len(s.audit(t)) > lines }, func() string { return a.Process().Tail(10) })
	if e := s.last(t, m); e.Outcome != audit.Trusted {
		t.Errorf("after a refused configuration: %+v", e)
	}

	check(t, os.WriteFile(s.file("second.yaml"), other.capture(t, "second"), 0o600))
	s.write(t, strings.Replace(good, s.file("reference.yaml"), s.file("second.yaml"), 1))
	reconfigure(t, s.spire.Process, "Plugin reconfigured")
	lines = len(s.audit(t))
	again(t, a)
	eventuallyTrue(t, "the machine attests again", func(context.Context) bool { return len(s.audit(t)) > lines }, func() string { return a.Process().Tail(10) })
	if e := s.last(t, m); e.Outcome != audit.Untrusted || !slices.ContainsFunc(e.Refusals, func(r refusal) bool { return strings.Contains(r.Reason, "reference set second") }) {
		t.Errorf("under the new configuration: %+v", e)
	}
	whole(t, s.file("audit.jsonl"))
}

// reconfigure has SPIRE read its plugins' configuration files again, and waits for what it says then.
func reconfigure(t testing.TB, p *cluster.Process, want string) {
	t.Helper()
	said := func() int { return strings.Count(string(must2(os.ReadFile(p.Log))(t)), want) }
	before := said()
	check(t, syscall.Kill(p.PID(), syscall.SIGUSR1))
	eventuallyTrue(t, "SPIRE says: "+want, func(context.Context) bool { return said() > before }, func() string { return p.Tail(10) })
}

func TestSPIREReconfiguresTheAgentPlugin(t *testing.T) {
	ca := must2(tpmtest.NewCA())(t)
	m := newMachine(t, ca, "good")
	newNode(t, "reconfigured-agent")
	s := newSpire(t, serverOptions{ca: ca, reference: m.capture(t, "good"), inventory: map[string][]string{"reconfigured-agent": m.ekHex}}, nil)
	file := m.file("plugin.hcl")
	check(t, os.WriteFile(file, []byte(m.config("")), 0o600))
	a := s.agent(t, m, "agent", "", func(o *cluster.SpireAgentOptions) { o.Plugins[0].Data, o.Plugins[0].DataFile = "", file })
	s.knows(t, m, a)
	eventuallyTrue(t, "the agent serves, and no longer ends by SIGUSR1", func(context.Context) bool { _, err := os.Stat(a.Socket); return err == nil },
		func() string { return a.Process().Tail(10) })
	check(t, os.WriteFile(file, []byte(m.config("nonsense = 1\n")), 0o600))
	reconfigure(t, a.Process(), "Failed to reconfigure plugin")
	check(t, os.WriteFile(file, []byte(m.config("timeout = \"1m\"\n")), 0o600))
	reconfigure(t, a.Process(), "Plugin reconfigured")
}
