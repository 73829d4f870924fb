package plugintest_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// spire is a real SPIRE server with the server plugin, and real SPIRE agents with the agent plugin.
type spire struct {
	*server // the plugin's files; it has no clients, for SPIRE has them
	group   *cluster.Group
	spire   *cluster.SpireServer
}

// program builds one of the commands, once for all tests.
var program = func() func(testing.TB, string) string {
	var mu sync.Mutex
	built := map[string]string{}
	return func(t testing.TB, name string) string {
		t.Helper()
		mu.Lock()
		defer mu.Unlock()
		if built[name] == "" {
			path := filepath.Join(kubernetes.Dir(), name)
			build := exec.CommandContext(t.Context(), "go", "build", "-o", path, "./cmd/"+name)
			build.Dir = filepath.Join("..", "..")
			if out, err := build.CombinedOutput(); err != nil {
				t.Fatalf("go build %s: %v\n%s", name, err, out)
			}
			built[name] = path
		}
		return built[name]
	}
}()

// newSpire starts a SPIRE server whose node attestor has the configuration of o, in a file that can be changed.
func newSpire(t *testing.T, o serverOptions, more func(*cluster.SpireServerOptions)) *spire {
	t.Helper()
	dir := tpmtest.Dir(t) // short enough for a socket
	s := &spire{server: &server{dir: filepath.Join(dir, "keelson")}, group: cluster.NewGroup(dir)}
	t.Cleanup(func() { check(t, s.group.Close()) })
	check(t, os.Mkdir(s.dir, 0o700))
	s.write(t, s.config(t, o))
	options := cluster.SpireServerOptions{Dir: dir, Log: t.Output(), TrustDomain: trustDomain, KeepKeys: true,
		AgentTTL: 10 * time.Minute, X509SVIDTTL: time.Minute, Plugins: []cluster.Plugin{
			{Type: "NodeAttestor", Name: "keelson_tpm", Cmd: program(t, "keelson-nodeattestor-server"), DataFile: s.file("plugin.hcl")}}}
	if more != nil {
		more(&options)
	}
	var err error
	s.spire, err = cluster.StartSpireServer(t.Context(), s.group, options)
	check(t, err)
	return s
}

// write puts the plugin's configuration in its file.
func (s *spire) write(t testing.TB, config string) {
	t.Helper()
	check(t, os.WriteFile(s.file("plugin.hcl"), []byte(config), 0o600))
}

// agent starts a SPIRE agent on a machine; it is started again whenever it ends.
func (s *spire) agent(t *testing.T, m *machine, name, extra string, more func(*cluster.SpireAgentOptions)) *cluster.SpireAgent {
	t.Helper()
	options := cluster.SpireAgentOptions{Name: name, Dir: filepath.Join(m.dir, "spire"), Log: t.Output(), Server: s.spire, Restart: 200 * time.Millisecond,
		Plugins: []cluster.Plugin{
			{Type: "NodeAttestor", Name: "keelson_tpm", Cmd: program(t, "keelson-nodeattestor-agent"), Data: m.config(extra)},
			{Type: "WorkloadAttestor", Name: "unix"}}}
	if more != nil {
		more(&options)
	}
	a, err := cluster.StartSpireAgent(t.Context(), s.group, options)
	check(t, err)
	t.Cleanup(a.Stop)
	return a
}

// knows waits until the server knows an agent of the machine, and returns its selectors.
func (s *spire) knows(t testing.TB, m *machine, a *cluster.SpireAgent) []string {
	t.Helper()
	var selectors []string
	eventuallyTrue(t, "the server knows the agent", func(ctx context.Context) bool {
		agents, err := s.spire.Agents(ctx)
		if err != nil {
			return false
		}
		for _, known := range agents {
			if slices.ContainsFunc(m.ekHex, func(ek string) bool { return strings.HasSuffix(known.ID, ek) }) {
				selectors = known.Selectors
				return true
			}
		}
		return false
	}, func() string { return a.Process().Tail(20) + "\n" + s.spire.Process.Tail(20) })
	return selectors
}

// eventuallyTrue waits for what takes some time; explain says what was there instead.
func eventuallyTrue(t testing.TB, what string, ok func(context.Context) bool, explain func() string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for !ok(ctx) {
		select {
		case <-ctx.Done():
			t.Fatalf("not so after a minute: %s\n%s", what, explain())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// again makes an agent attest again: it keeps its keys in memory alone.
func again(t testing.TB, a *cluster.SpireAgent) {
	t.Helper()
	starts := a.Starts()
	check(t, syscall.Kill(a.Process().PID(), syscall.SIGKILL))
	eventuallyTrue(t, "the agent is started again", func(context.Context) bool { return a.Starts() > starts }, func() string { return "" })
}

// last is the newest audit line about a machine.
func (s *spire) last(t testing.TB, m *machine) audit.Entry {
	t.Helper()
	var e audit.Entry
	for _, line := range s.audit(t) {
		if slices.Contains(m.ekHex, line.EKHash) {
			e = line
		}
	}
	return e
}

// whole asserts that the audit log is one unbroken chain, and returns how many lines it has.
func whole(t testing.TB, path string) uint64 {
	t.Helper()
	return must2(audit.VerifyLog(path, ""))(t).Head.Seq
}

// gate is a named pipe in place of a file that the agent plugin reads: who reads it waits until it is opened.
func gate(t testing.TB, path string) {
	t.Helper()
	check(t, os.Remove(path))
	check(t, syscall.Mkfifo(path, 0o600))
}

// waits waits until somebody reads the gate, and returns what lets him through with a content.
func waits(t testing.TB, path string) (pass func(content []byte)) {
	t.Helper()
	var f *os.File
	eventuallyTrue(t, "somebody reads "+path, func(context.Context) bool {
		var err error
		f, err = os.OpenFile(path, os.O_WRONLY|syscall.O_NONBLOCK, 0)
		return err == nil
	}, func() string { return "" })
	return func(content []byte) {
		_, _ = f.Write(content) // who read it may have gone
		_ = f.Close()
	}
}

func TestThreat25_ASPIREServerKilledMidStreamLosesNoVerdict(t *testing.T) {
	ca := must2(tpmtest.NewCA())(t)
	golden := newMachine(t, ca, "good")
	evil, slow := newMachine(t, ca, "good"), newMachine(t, ca, "good")
	newNode(t, "killed-evil")
	newNode(t, "killed-slow")
	s := newSpire(t, serverOptions{ca: ca, reference: golden.capture(t, "good"), inventory: map[string][]string{
		"killed-evil": evil.ekHex, "killed-slow": slow.ekHex}}, nil)

	// The slow machine's agent has had its challenge and reads the command line for its answer.
	line := slow.read(t, "cmdline.txt")
	gate(t, slow.file("cmdline.txt"))
	slowAgent := s.agent(t, slow, "slow", "", nil)
	pass := waits(t, slow.file("cmdline.txt"))

	// The API is away when another machine is found tampered with, so that its verdict waits in the state directory.
	evilAgent := s.agent(t, evil, "evil", "", nil)
	s.knows(t, evil, evilAgent)
	nodeTrust(t, "killed-evil", trusted)
	evil.measure(t, tpmtest.IMAEntry("/usr/bin/backdoor", []byte("evil")))
	away, back := make(chan struct{}), make(chan error, 1)
	ctx, comeBack := context.WithCancel(t.Context())
	defer comeBack()
	go func() { back <- killUntil(ctx, away) }()
	<-away
	again(t, evilAgent)
	eventuallyTrue(t, "the evil machine is proved bad, API or not", func(context.Context) bool {
		return s.last(t, evil).Outcome == audit.Untrusted
	}, func() string { return evilAgent.Process().Tail(10) })
	var pending []byte
	eventuallyTrue(t, "the verdict waits on disk", func(context.Context) bool { // the audit line comes before it
		pending = must2(os.ReadFile(s.file("pending-verdicts.json")))(t)
		return strings.Contains(string(pending), `"killed-evil"`)
	}, func() string { return string(pending) })
	evilAgent.Stop()
	check(t, s.spire.Kill())
	check(t, os.Remove(slow.file("cmdline.txt"))) // before the agent tries again: nobody would open the gate to it
	check(t, os.WriteFile(slow.file("cmdline.txt"), line, 0o600))
	pass(line) // into a stream that is gone
	check(t, s.spire.Start(t.Context()))
	if _, err := os.Stat(s.file("pending-verdicts.json")); err != nil {
		t.Errorf("after the server was killed: %v", err)
	}
	comeBack()
	check(t, <-back)
	nodeTrust(t, "killed-evil", untrusted)

	selectors := s.knows(t, slow, slowAgent)
	if !slices.Contains(selectors, "keelson_tpm:ref:good") {
		t.Errorf("selectors %v", selectors)
	}
	nodeTrust(t, "killed-slow", trusted)
	if n := whole(t, s.file("audit.jsonl")); n < 2 {
		t.Errorf("%d audit lines", n)
	}
}

// A plugin that outlived its SPIRE would keep the audit log from the next one. SPIRE has the kernel end it (PR_SET_PDEATHSIG),
// on Linux.
func TestThreat25_AnIdleSPIREServerThatWasKilledStartsAgain(t *testing.T) {
	ca := must2(tpmtest.NewCA())(t)
	m := newMachine(t, ca, "good")
	newNode(t, "idle-1")
	s := newSpire(t, serverOptions{ca: ca, reference: m.capture(t, "good"), inventory: map[string][]string{"idle-1": m.ekHex}}, nil)
	a := s.agent(t, m, "agent", "", nil)
	s.knows(t, m, a)
	nodeTrust(t, "idle-1", trusted)
	check(t, s.spire.Kill())
	check(t, s.spire.Start(t.Context()))
	lines := len(s.audit(t))
	again(t, a)
	eventuallyTrue(t, "the machine attests to the new server", func(context.Context) bool { return len(s.audit(t)) > lines },
		func() string { return a.Process().Tail(10) })
	if e := s.last(t, m); e.Outcome != audit.Trusted {
		t.Errorf("audit line %+v", e)
	}
	whole(t, s.file("audit.jsonl"))
}

// killUntil ends kube-apiserver, closes away, and starts it again when ctx ends.
func killUntil(ctx context.Context, away chan<- struct{}) error {
	return kubernetes.Outage(context.WithoutCancel(ctx), func() { close(away); <-ctx.Done() })
}

func TestThreat25_AnOutageOfTheAPIChangesNoResultAndTheNewestVerdictStands(t *testing.T) {
	ca := must2(tpmtest.NewCA())(t)
	m, stranger := newMachine(t, ca, "ima-payload-a").serve(t, ""), newMachine(t, ca, "good").serve(t, "")
	newNode(t, "outage-1")
	newNode(t, "outage-2")
	s := newServer(t, serverOptions{ca: ca, reference: m.capture(t, "good"), inventory: map[string][]string{"outage-1": m.ekHex, "outage-2": stranger.ekHex}})
	_, err := attest(t, m, s, nil)
	check(t, err)
	before := known(t, "outage-1")
	check(t, kubernetes.Outage(t.Context(), func() {
		for range 3 {
			if _, err := attest(t, m, s, nil); err != nil {
				t.Errorf("a known node is refused while the API is away: %v", err)
			}
		}
		if _, err := attest(t, stranger, s, nil); err == nil {
			t.Error("a node that was never bound is let in while nobody can say whose it is")
		}
		m.measure(t, tpmtest.IMAEntry("/usr/bin/backdoor", []byte("evil")))
		_, err := attest(t, m, s, nil)
		refused(t, s, err, audit.Untrusted, "ima.file")
	}))
	after := nodeTrust(t, "outage-1", untrusted)
	if !after.AttestedAt.After(before.AttestedAt.Time) {
		t.Errorf("the verdict is of %s, before the outage it was of %s", after.AttestedAt, before.AttestedAt)
	}
	if got := fmt.Sprint(whole(t, s.file("audit.jsonl"))); got != "6" {
		t.Errorf("%s audit lines for 6 attestations", got)
	}
}

func TestThreat25_AnAPIThatHangsChangesNoResult(t *testing.T) {
	ca := must2(tpmtest.NewCA())(t)
	m := newMachine(t, ca, "good").serve(t, "")
	newNode(t, "hang-1")
	s := newServer(t, serverOptions{ca: ca, reference: m.capture(t, "good"), inventory: map[string][]string{"hang-1": m.ekHex}})
	_, err := attest(t, m, s, nil)
	check(t, err)
	known(t, "hang-1")
	check(t, kubernetes.Freeze(func() {
		if _, err := attest(t, m, s, nil); err != nil {
			t.Errorf("a known node is refused while the API hangs: %v", err)
		}
		m.measure(t, tpmtest.IMAEntry("/usr/bin/backdoor", []byte("evil")))
		_, err := attest(t, m, s, nil)
		refused(t, s, err, audit.Untrusted, "ima.file")
	}))
	nodeTrust(t, "hang-1", untrusted)
	whole(t, s.file("audit.jsonl"))
}
