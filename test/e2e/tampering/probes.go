package tampering

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/keelson-project/keelson/test/e2e/script"
	"github.com/keelson-project/keelson/test/e2e/stage"
	"github.com/keelson-project/keelson/test/e2e/workload/said"
)

// probes are what runs inside pods while the node is tampered with.
type probes struct {
	s *stage.Stage

	in, out, envoy   []said.Try  // new connections to the node, from it; the proxy's configuration
	heldIn, heldOut  []said.Held // open connections from it, to it
	identity         time.Time   // end of the last identity that its workloads got
	ledger, mirror   string
	deniedByTheProxy string
}

// start starts them all. They end by themselves a little after things have changed.
func (p *probes) start(ctx context.Context, all *errgroup.Group) error {
	var err error
	if p.ledger, err = p.s.Address(ctx, stage.Ledger, stage.TCPPort); err != nil {
		return err
	}
	if p.mirror, err = p.s.Address(ctx, stage.Mirror, stage.TCPPort); err != nil {
		return err
	}
	ip, _, _ := strings.Cut(p.ledger, ":")
	p.deniedByTheProxy = ip
	connections := stage.Probing{For: 55 * time.Second, Every: 10 * time.Millisecond, Timeout: 300 * time.Millisecond, Until: "failing", Linger: 3 * time.Second}
	proxy := stage.Probing{
		// Not more often: the proxy writes its configuration in the thread that also takes over a new one.
		For: 55 * time.Second, Every: 100 * time.Millisecond, Timeout: 2 * time.Second, Until: "ok", Linger: 500 * time.Millisecond, Contains: fmt.Sprintf("%q", ip),
	}
	all.Go(func() (err error) {
		p.out, err = p.s.Probe(ctx, stage.Mirror, connections, "tcp:"+p.ledger)
		return err
	})
	all.Go(func() (err error) {
		p.in, err = p.s.Probe(ctx, stage.Ledger, connections, "tcp:"+p.mirror)
		return err
	})
	all.Go(func() (err error) {
		p.envoy, err = p.s.Probe(ctx, stage.Frontend, proxy, "http://127.0.0.1:15000/config_dump?resource=dynamic_listeners&name_regex=virtualInbound")
		return err
	})
	all.Go(func() (err error) {
		p.heldOut, err = p.s.Hold(ctx, stage.Mirror, 55*time.Second, p.ledger)
		return err
	})
	all.Go(func() (err error) {
		p.heldIn, err = p.s.Hold(ctx, stage.Ledger, 55*time.Second, p.mirror)
		return err
	})
	all.Go(func() error { return p.lastIdentity(ctx) })
	return nil
}

// lastIdentity asks for an identity until there is none, and remembers when the last one ends.
func (p *probes) lastIdentity(ctx context.Context) error {
	var last time.Time
	for limit := time.Now().Add(55 * time.Second); time.Now().Before(limit); time.Sleep(500 * time.Millisecond) {
		svid, err := p.s.SVID(ctx, stage.Ledger)
		if err != nil {
			return err
		}
		if svid.OK && svid.NotAfter.After(last) {
			last = svid.NotAfter
		}
		if !svid.OK && !last.IsZero() {
			p.identity = last
			return nil
		}
	}
	return fmt.Errorf("tampering: %s still gets an identity", stage.Ledger)
}

// closed is when tries began to fail for good: the first of those after which none succeeded.
func closed(tries []said.Try, ok bool) (at time.Time, before int, err error) {
	slices.SortFunc(tries, func(a, b said.Try) int { return cmp.Compare(a.Begun, b.Begun) })
	last := -1
	for i, t := range tries {
		if t.OK == ok {
			last = i
		}
	}
	if last < 0 || last+1 >= len(tries) {
		return time.Time{}, last + 1, fmt.Errorf("%d tries, the last of the kind before the change is number %d", len(tries), last+1)
	}
	return time.Unix(0, tries[last+1].Begun), last + 1, nil
}

// judge measures from the verdict, and expects that nothing went on.
func (p *probes) judge(t *script.Script, verdict time.Time) error {
	for _, c := range []struct {
		what string
		try  []said.Try
		ok   bool
	}{{toClosed, p.out, true}, {toClosedIn, p.in, true}, {toEnvoy, p.envoy, false}} {
		at, before, err := closed(c.try, c.ok)
		if !t.Expect(err == nil, c.what, "%d tries before; %v", before, err) {
			continue
		}
		t.Measure(c.what, at.Sub(verdict))
	}
	for _, c := range []struct {
		what string
		held []said.Held
	}{{toCutOut, p.heldOut}, {toCutIn, p.heldIn}} {
		end := c.held[len(c.held)-1]
		if t.Expect(c.held[0].Open && !end.Open && end.Echoes > 0, c.what, "%d echoes, then: %s", end.Echoes, end.Error) {
			t.Measure(c.what, time.Unix(0, end.At).Sub(verdict))
		}
	}
	return nil
}
