package flows_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/calico"
	"github.com/keelson-project/keelson/policy-sync/flows"
)

var hosts = map[netip.Addr]string{
	netip.MustParseAddr("192.0.2.1"):    "node fra-1",
	netip.MustParseAddr("10.96.0.1"):    "the API server",
	netip.MustParseAddr("2001:db8::1"):  "node fra-1",
	netip.MustParseAddr("198.51.100.7"): "this node",
}

// TestThreatASetCutsOffANodeOrARange is the second line of row 34 of the threats.
func TestThreatASetCutsOffANodeOrARange(t *testing.T) {
	for net, reason := range map[string]string{
		"10.1.0.2/32":             "",
		"10.1.0.2":                "",
		"fd00::2/128":             "",
		"::ffff:10.1.0.2/128":     "",
		"192.0.2.1/32":            flows.Host,
		"::ffff:192.0.2.1/128":    flows.Host,
		"2001:db8::1/128":         flows.Host,
		"10.96.0.1/32":            flows.Host,
		"198.51.100.7":            flows.Host,
		"0.0.0.0/0":               flows.Range,
		"::/0":                    flows.Range,
		"10.1.0.0/31":             flows.Range,
		"fd00::/127":              flows.Range,
		"::ffff:10.1.0.2/96":      flows.Range,
		"::ffff:10.1.0.2/32":      flows.Range,
		"0.0.0.0/32":              flows.Reserved,
		"::/128":                  flows.Reserved,
		"127.0.0.1/32":            flows.Reserved,
		"127.8.8.8":               flows.Reserved,
		"::ffff:127.0.0.1/128":    flows.Reserved,
		"::1/128":                 flows.Reserved,
		"169.254.1.1/32":          flows.Reserved,
		"fe80::1/128":             flows.Reserved,
		"224.0.0.1/32":            flows.Reserved,
		"ff02::1/128":             flows.Reserved,
		"255.255.255.255/32":      flows.Reserved,
		"":                        flows.Unreadable,
		"pod":                     flows.Unreadable,
		"10.1.0.2/33":             flows.Unreadable,
		"10.1.0/24":               flows.Unreadable,
		"fe80::1%eth0":            flows.Unreadable,
		"10.1.0.2/32 ":            flows.Unreadable,
		strings.Repeat("1", 2000): flows.Unreadable,
	} {
		t.Run(fmt.Sprintf("%.40q", net), func(t *testing.T) {
			targets, refused := flows.Judge([]string{net, "10.9.9.9/32"}, hosts)
			if !targets.Has(netip.MustParseAddr("10.9.9.9")) {
				t.Error("the other address of the set is not cut")
			}
			got := ""
			if len(refused) == 1 {
				got = refused[0].Reason
				if refused[0].Why == "" || len(refused[0].Net) > 64 {
					t.Errorf("refusal %+v lacks a reason or is long", refused[0])
				}
			}
			if got != reason || len(refused) > 1 || targets.Len() != 2-len(refused) {
				t.Errorf("refused for %q, %d cut, want %q", got, targets.Len(), reason)
			}
		})
	}
}

func TestTooManyAddresses(t *testing.T) {
	nets := make([]string, 0, flows.MaxAddresses+2)
	for i := range flows.MaxAddresses + 1 {
		nets = append(nets, fmt.Sprintf("10.%d.%d.%d/32", i>>16, i>>8&255, i&255))
	}
	nets = append(nets, nets[1]) // the second of one that is cut is no refusal
	nets[0] = "10.200.0.1/32"
	targets, refused := flows.Judge(nets, nil)
	if targets.Len() != flows.MaxAddresses || len(refused) != 1 || refused[0].Reason != flows.Limit {
		t.Errorf("%d are cut, refused %v; want all but one", targets.Len(), refused)
	}
}

// FuzzJudge: whatever stands in the set, an address that is cut is one that a pod can have, and was named alone.
func FuzzJudge(f *testing.F) {
	for _, seed := range []string{"10.1.0.2/32", "::ffff:192.0.2.1/128", "0.0.0.0/0", "fe80::1%eth0", "fd00::2/128", "::ffff:0:0/96"} {
		f.Add(seed, "192.0.2.1")
	}
	f.Fuzz(func(t *testing.T, net, host string) {
		addr, err := netip.ParseAddr(host)
		if err != nil {
			return
		}
		shielded := map[netip.Addr]string{addr.Unmap(): "a node"}
		targets, refused := flows.Judge([]string{net}, shielded)
		if targets.Len()+len(refused) != 1 {
			t.Fatalf("%q is cut %d times and refused %v", net, targets.Len(), refused)
		}
		if targets.Len() == 0 {
			return
		}
		if targets.Has(addr.Unmap()) {
			t.Fatalf("%q cuts off host %s", net, host)
		}
		p, err := netip.ParsePrefix(net)
		if err != nil {
			p = netip.PrefixFrom(netip.MustParseAddr(net), netip.MustParseAddr(net).BitLen())
		}
		cut := p.Addr().Unmap()
		if !targets.Has(cut) || !p.IsSingleIP() || !cut.IsGlobalUnicast() {
			t.Fatalf("%q is cut as something else, or as a range, or is no pod's (%s)", net, cut)
		}
	})
}

// TestNothingButTheNamedAddressesIsCut: over random sets and flows, a flow is cut exactly when one of its four addresses is
// named and not refused.
func TestNothingButTheNamedAddressesIsCut(t *testing.T) {
	address := rapid.Map(rapid.IntRange(1, 6), func(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, 0, byte(n)}) })
	rapid.Check(t, func(t *rapid.T) {
		named := rapid.SliceOf(address).Draw(t, "named")
		shielded := map[netip.Addr]string{}
		for _, a := range rapid.SliceOf(address).Draw(t, "hosts") {
			shielded[a] = "a node"
		}
		var nets []string
		want := map[netip.Addr]bool{}
		for _, a := range named {
			nets = append(nets, a.String()+"/32")
			want[a] = shielded[a] == ""
		}
		targets, _ := flows.Judge(nets, shielded)
		e := flows.Entry{Original: flows.Tuple{Source: address.Draw(t, "a"), Destination: address.Draw(t, "b")},
			Reply: flows.Tuple{Source: address.Draw(t, "c"), Destination: address.Draw(t, "d")}}
		if got := targets.Match(&e); got != (want[e.Original.Source] || want[e.Original.Destination] || want[e.Reply.Source] || want[e.Reply.Destination]) {
			t.Fatalf("%+v is cut: %t", e, got)
		}
	})
}

func TestTargetsAreCompared(t *testing.T) {
	a, _ := flows.Judge([]string{"10.1.0.2/32", "10.1.0.3/32"}, nil)
	b, _ := flows.Judge([]string{"10.1.0.3", "10.1.0.2", "10.1.0.2"}, nil)
	c, _ := flows.Judge([]string{"10.1.0.3", "10.1.0.4"}, nil)
	if !a.Equal(b) || a.Equal(c) || a.Beyond(c) != 1 || a.Beyond(b) != 0 || a.Beyond(flows.Targets{}) != 2 {
		t.Error("sets of addresses are compared wrongly")
	}
}

func TestStands(t *testing.T) {
	ip := netip.MustParseAddr
	const revoked, other, node = "10.1.0.2", "10.2.0.2", "192.0.2.1"
	entry := func(protocol uint8, from, to string, port uint16) flows.Entry {
		return flows.Entry{Protocol: protocol, Answered: true,
			Original: flows.Tuple{Source: ip(from), Destination: ip(to), SourcePort: 40000, DestinationPort: port},
			Reply:    flows.Tuple{Source: ip(to), Destination: ip(from), SourcePort: port, DestinationPort: 40000}}
	}
	service := entry(6, other, "10.96.0.10", 80)
	service.Reply.Source, service.Reply.SourcePort = ip(revoked), 8080
	unanswered := entry(6, revoked, other, 8080)
	unanswered.Answered = false
	for name, c := range map[string]struct {
		entry flows.Entry
		want  bool
	}{
		"a call of a revoked pod":                                 {entry(6, revoked, other, 8080), true},
		"a call to a revoked pod":                                 {entry(6, other, revoked, 8080), true},
		"a call to a revoked pod through a Service's address":     {service, true},
		"a call without an answer":                                {unanswered, false},
		"a probe of this node's kubelet":                          {entry(6, node, revoked, 8080), false},
		"a call to this node":                                     {entry(6, revoked, node, 10250), false},
		"a name lookup":                                           {entry(17, revoked, other, 53), false},
		"a name lookup over TCP":                                  {entry(6, revoked, other, 53), false},
		"istiod's configuration":                                  {entry(6, revoked, other, 15012), false},
		"datagrams to istiod's port":                              {entry(17, revoked, other, 15012), true},
		"a name lookup at a revoked pod, which is not to be made": {entry(17, other, revoked, 53), true},
		"a flow of others":                                        {entry(6, other, "10.2.0.3", 80), false},
	} {
		t.Run(name, func(t *testing.T) {
			targets, _ := flows.Judge([]string{revoked}, nil)
			if got := targets.Stands(&c.entry, map[netip.Addr]struct{}{ip(node): {}}); got != c.want {
				t.Errorf("got %t, want %t", got, c.want)
			}
		})
	}
}

// TestPace: sweeps are close together at first, no cut comes later than a quarter of the drop's own time and a sweep after it, and
// sweeping takes at most half a core.
func TestPace(t *testing.T) {
	const took = 5 * time.Millisecond
	var sweeps []time.Duration
	now := time.Duration(0)
	for now < flows.FastPhase {
		now += took
		sweeps = append(sweeps, now)
		now += flows.Pause(now, took)
	}
	if len(sweeps) < 15 || len(sweeps) > 50 {
		t.Errorf("%d sweeps in the fast phase", len(sweeps))
	}
	for i, at := range sweeps[1:] {
		before := sweeps[i]
		if gap, most := at-before, max(before/4, 20*time.Millisecond)+took; gap > most {
			t.Errorf("%s pass between sweeps at %s and %s, want at most %s", gap, before, at, most)
		}
	}
	if got := flows.Pause(flows.FastPhase, took); got != flows.SlowPeriod {
		t.Errorf("after the fast phase the pause is %s", got)
	}
	for _, since := range []time.Duration{0, time.Second, time.Hour} {
		if got := flows.Pause(since, time.Minute); got < time.Minute {
			t.Errorf("a sweep of a minute is followed by a pause of %s", got)
		}
	}
}

// TestNamesAreThoseOfPolicySync: what this package believes of what policy-sync writes.
func TestNamesAreThoseOfPolicySync(t *testing.T) {
	if diff := cmp.Diff(calico.Name("revoked"), v1alpha1.RevokedSet); diff != "" {
		t.Error(diff)
	}
	targets, _ := flows.Judge([]string{"10.1.0.2"}, nil)
	e := flows.Entry{Protocol: 6, Answered: true, Original: flows.Tuple{Source: netip.MustParseAddr("10.1.0.2")}, Reply: flows.Tuple{SourcePort: calico.IstiodPort}}
	if targets.Stands(&e, nil) {
		t.Errorf("istiod's port is %d in package calico and another here", calico.IstiodPort)
	}
}
