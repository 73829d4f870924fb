package plugintest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// door is one server's own way to the Kubernetes API, which can be shut while the others' stay open.
type door struct {
	kubeconfig string

	mu    sync.Mutex
	shut  bool
	conns map[net.Conn]bool
}

func newDoor(t *testing.T) *door {
	t.Helper()
	config := must2(clientcmd.LoadFromFile(kubernetes.AdminKubeconfig()))(t)
	l := must2(net.Listen("tcp", "127.0.0.1:0"))(t)
	t.Cleanup(func() { _ = l.Close() })
	d := &door{kubeconfig: filepath.Join(t.TempDir(), "kubeconfig"), conns: map[net.Conn]bool{}}
	var api string
	for _, c := range config.Clusters {
		api = must2(url.Parse(c.Server))(t).Host
		c.Server = "https://" + l.Addr().String()
	}
	check(t, clientcmd.WriteToFile(*config, d.kubeconfig))
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go d.pass(conn, api)
		}
	}()
	return d
}

// pass carries one connection until either end goes or the door is shut.
func (d *door) pass(in net.Conn, api string) {
	defer func() { _ = in.Close() }()
	out, err := net.Dial("tcp", api)
	if err != nil {
		return
	}
	defer func() { _ = out.Close() }()
	d.mu.Lock()
	shut := d.shut
	d.conns[in] = true
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.conns, in)
	}()
	if shut {
		return
	}
	go func() {
		_, _ = io.Copy(out, in) // ends with either
		_ = out.Close()
	}()
	_, _ = io.Copy(in, out)
}

func (d *door) set(shut bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.shut = shut; shut {
		for c := range d.conns {
			_ = c.Close()
		}
	}
}

// waiting tells whether a verdict of a node lies in a server's file of what waits to be written.
func (s *server) waiting(t testing.TB, node string) bool {
	t.Helper()
	data, err := os.ReadFile(s.file("pending-verdicts.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	check(t, err)
	return strings.Contains(string(data), `"`+node+`"`)
}

// drained waits until a server has written the verdict of a node.
func (s *server) drained(t testing.TB, node string) {
	t.Helper()
	eventuallyTrue(t, "the verdict of "+node+" is written", func(context.Context) bool { return !s.waiting(t, node) }, func() string { return "" })
}

// oneOf is one of two SPIRE servers of one cluster, with its own door to the API.
type oneOf struct {
	*spire
	name string
	door *door
}

// attests has a real SPIRE agent on a machine attest to this server, until the server has judged it so; then the agent ends.
func (s *oneOf) attests(t *testing.T, m *machine, want audit.Outcome) {
	t.Helper()
	before := s.last(t, m).Seq
	a := s.agent(t, m, "agent-of-"+s.name, "", func(o *cluster.SpireAgentOptions) { o.Dir = filepath.Join(m.dir, s.name) })
	var got audit.Entry
	eventuallyTrue(t, fmt.Sprintf("server %s finds the machine %s", s.name, want), func(context.Context) bool {
		got = s.last(t, m)
		return got.Seq > before && got.Outcome == want
	}, func() string {
		return fmt.Sprintf("the last line is %+v\n%s", got, a.Process().Tail(10))
	})
	a.Stop()
}

// Two SPIRE servers with a plugin each, one cluster: the design's high availability. Whoever writes last, the verdict on the
// evidence that was received last stands; and each of the servers may be killed with verdicts that only it has.
func TestThreat29_OfTwoSPIREServersTheNewestReceiptWins(t *testing.T) {
	ca := must2(tpmtest.NewCA())(t)
	m := newRebootable(t, ca)
	const node = "two-servers"
	newNode(t, node)
	set := m.capture(t, "good")
	start := func(name string) *oneOf {
		d := newDoor(t)
		return &oneOf{door: d, name: name, spire: newSpire(t, serverOptions{ca: ca, reference: set, inventory: map[string][]string{node: m.ekHex},
			kubernetes: fmt.Sprintf("kubernetes { kubeconfig = %q }\n", d.kubeconfig)}, nil)}
	}
	a, b := start("a"), start("b")
	backdoor := tpmtest.IMAEntry("/usr/bin/backdoor", []byte("evil"))
	stands := func(why string, want func(v1alpha1.NodeTrustSpec) bool, before v1alpha1.NodeTrustSpec) {
		t.Helper()
		time.Sleep(time.Second) // what was written late had its time
		if after := nodeTrust(t, node, func(v1alpha1.NodeTrustSpec) bool { return true }); !want(after) || after.AttestedAt != before.AttestedAt {
			t.Fatalf("%s: NodeTrust is %s of %s, before it was %s of %s", why, after.Verdict, after.AttestedAt, before.Verdict, before.AttestedAt)
		}
	}

	a.attests(t, m.machine, audit.Trusted)
	first := nodeTrust(t, node, trusted)
	b.attests(t, m.machine, audit.Trusted)
	if says := b.spire.spire.Process.Tail(200); !strings.Contains(says, "resumed=false") || strings.Contains(says, "resumed=true") {
		t.Errorf("a second server does not say that it read the whole IMA log: %s", says)
	}

	// A finds the machine good and cannot write so; B, later, finds a backdoor.
	a.door.set(true)
	a.attests(t, m.machine, audit.Trusted)
	if !a.waiting(t, node) {
		t.Fatal("A's verdict does not wait")
	}
	m.measure(t, backdoor)
	b.attests(t, m.machine, audit.Untrusted)
	bad := nodeTrust(t, node, untrusted)
	if !bad.AttestedAt.After(first.AttestedAt.Time) {
		t.Fatalf("untrusted as of %s, trusted before as of %s", bad.AttestedAt, first.AttestedAt)
	}
	check(t, a.spire.spire.Kill())
	if !a.waiting(t, node) {
		t.Fatal("A's verdict was lost with A")
	}
	a.door.set(false)
	check(t, a.spire.spire.Start(t.Context()))
	a.drained(t, node)
	b.drained(t, node)
	bad = nodeTrust(t, node, untrusted) // B's agent may have tried again before it ended
	stands("A wrote its older trusted verdict after B's untrusted one", untrusted, bad)

	// The other way round: A finds it bad and cannot write so; it is rebooted, and B, later, finds it good.
	a.door.set(true)
	a.attests(t, m.machine, audit.Untrusted)
	m.reboot(t)
	b.attests(t, m.machine, audit.Trusted)
	good := nodeTrust(t, node, trusted)
	if !a.waiting(t, node) {
		t.Fatal("A's verdict does not wait")
	}
	a.door.set(false)
	a.drained(t, node)
	stands("A wrote its older untrusted verdict after B's trusted one", trusted, good)

	// B alone knows that it is bad, and is killed.
	b.door.set(true)
	m.measure(t, backdoor)
	b.attests(t, m.machine, audit.Untrusted)
	stands("B cannot write", trusted, good)
	check(t, b.spire.spire.Kill())
	b.door.set(false)
	check(t, b.spire.spire.Start(t.Context()))
	b.drained(t, node)
	if last := nodeTrust(t, node, untrusted); !last.AttestedAt.After(good.AttestedAt.Time) {
		t.Errorf("untrusted as of %s, trusted before as of %s", last.AttestedAt, good.AttestedAt)
	}

	// A good machine again is trusted by whichever server it asks.
	m.reboot(t)
	a.attests(t, m.machine, audit.Trusted)
	nodeTrust(t, node, trusted)
	for _, s := range []*oneOf{a, b} {
		if n := whole(t, s.file("audit.jsonl")); n < 4 {
			t.Errorf("server %s has %d audit lines", s.name, n)
		}
	}
}

func TestThreat11_ASecondServerAsksForTheWholeListAndNeverGuesses(t *testing.T) {
	ca := must2(tpmtest.NewCA())(t)
	m := newMachine(t, ca, "good").serve(t, "")
	newNode(t, "two-states")
	entry := tpmtest.IMAEntry("/usr/bin/tool", []byte("tool"))
	m.measure(t, entry)
	options := serverOptions{ca: ca, reference: m.capture(t, "good"), inventory: map[string][]string{"two-states": m.ekHex}}
	a, b := newServer(t, options), newServer(t, options)
	var got imaOffsets
	trust := func(why string, s *server, want ...uint64) {
		t.Helper()
		if _, err := attest(t, m, s, got.watch(t)); err != nil {
			t.Fatalf("%s: %v", why, err)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: IMA chunks at %v, want %v", why, got, want)
		}
	}
	size := func() uint64 { return uint64(len(m.read(t, "binary_runtime_measurements"))) }
	trust("A knows nothing", a, 0)
	trust("A knows it", a, size())
	trust("B knows nothing", b, 0)
	known := size()
	m.measure(t, entry)
	trust("B knows what was there before", b, known)
	trust("A as well, from its own last attestation", a, known)
	m.measure(t, tpmtest.IMAEntry("/usr/bin/backdoor", []byte("evil")))
	_, err := attest(t, m, b, nil)
	refused(t, b, err, audit.Untrusted, "ima.file")
	_, err = attest(t, m, a, nil) // which had accepted it until then
	refused(t, a, err, audit.Untrusted, "ima.file")
}

// Both servers judge one machine at the same time, over and over: NodeTrust never goes back in time, and the last word is the
// evidence's that was received last.
func TestThreat29_TwoServersAtOnceNeverWriteBackwards(t *testing.T) {
	ca := must2(tpmtest.NewCA())(t)
	m := newMachine(t, ca, "good")
	newNode(t, "two-at-once")
	options := serverOptions{ca: ca, reference: m.capture(t, "good"), inventory: map[string][]string{"two-at-once": m.ekHex},
		extra: "verdict_valid_for = \"1s\"\n"} // more than half of it is soon over, so that trusted verdicts are written too
	servers := []*server{newServer(t, options), newServer(t, options)}
	m.serve(t, "")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	watched := make(chan []string, 1)
	go func() {
		var back []string
		var last v1alpha1.NodeTrustSpec
		api := kube(t)
		for ctx.Err() == nil {
			var nt v1alpha1.NodeTrust
			if err := api.Get(ctx, client.ObjectKey{Name: "two-at-once"}, &nt); err == nil {
				if nt.Spec.AttestedAt.Before(&last.AttestedAt) {
					back = append(back, fmt.Sprintf("%s of %s after %s of %s", nt.Spec.Verdict, nt.Spec.AttestedAt, last.Verdict, last.AttestedAt))
				}
				last = nt.Spec
			}
			time.Sleep(5 * time.Millisecond)
		}
		watched <- back
	}()
	round := func(n int) (errs []error) {
		var mu sync.Mutex
		var all sync.WaitGroup
		for _, s := range servers {
			all.Go(func() {
				for range n {
					_, err := attest(t, m, s, nil)
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
			})
		}
		all.Wait()
		return errs
	}
	for _, err := range round(15) {
		check(t, err)
	}
	nodeTrust(t, "two-at-once", trusted)
	m.measure(t, tpmtest.IMAEntry("/usr/bin/backdoor", []byte("evil")))
	for _, err := range round(5) {
		if err == nil || !strings.Contains(err.Error(), "ima.file") {
			t.Errorf("got %v", err)
		}
	}
	nodeTrust(t, "two-at-once", untrusted)
	stop()
	for _, line := range <-watched {
		t.Errorf("NodeTrust went back: %s", line)
	}
	for _, s := range servers {
		if n := whole(t, s.file("audit.jsonl")); n != 20 {
			t.Errorf("%d audit lines for 20 attestations", n)
		}
	}
}
