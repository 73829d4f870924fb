package tampering

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/keelson-project/keelson/test/e2e/script"
	"github.com/keelson-project/keelson/test/e2e/stage"
	"github.com/keelson-project/keelson/test/e2e/workload/said"
)

// limit is how long a probe goes on when nobody stops it; a program that runs in a container has a minute.
const limit = 55 * time.Second

// probes are what runs inside pods while the node is tampered with.
type probes struct {
	s    *stage.Stage
	name string // of their signs

	in, out, envoy  []said.Try  // new connections to the node, from it; the proxy's configuration
	heldIn, heldOut []said.Held // open connections from it, to it
	identity        identity
	ledger, mirror  string

	verdict atomic.Pointer[time.Time] // nil until there is one
}

// probe is one of them: where it runs, and what its signs are called.
type probe struct {
	in   stage.Pod
	name string
}

// The probes by what they look at.
func (p *probes) of(what string, in stage.Pod) probe { return probe{in, p.name + what} }

func (p *probes) l4() []probe {
	return []probe{p.of("out", stage.Mirror), p.of("in", stage.Ledger), p.of("held-out", stage.Mirror), p.of("held-in", stage.Ledger)}
}

func (p *probes) proxy() probe { return p.of("envoy", stage.Frontend) }

// start starts them all, and returns once each has seen that what it looks at is open.
func (p *probes) start(ctx context.Context, all *errgroup.Group) error {
	var err error
	if p.ledger, err = p.s.Address(ctx, stage.Ledger, stage.TCPPort); err != nil {
		return err
	}
	if p.mirror, err = p.s.Address(ctx, stage.Mirror, stage.TCPPort); err != nil {
		return err
	}
	l4 := p.l4()
	connections := func(of probe) stage.Probing {
		return stage.Probing{For: limit, Every: 10 * time.Millisecond, Timeout: 300 * time.Millisecond, Name: of.name}
	}
	all.Go(func() (err error) {
		p.out, err = p.s.Probe(ctx, stage.Mirror, connections(l4[0]), "tcp:"+p.ledger)
		return err
	})
	all.Go(func() (err error) {
		p.in, err = p.s.Probe(ctx, stage.Ledger, connections(l4[1]), "tcp:"+p.mirror)
		return err
	})
	all.Go(func() (err error) {
		p.heldOut, err = p.s.Hold(ctx, stage.Mirror, limit, l4[2].name, p.ledger)
		return err
	})
	all.Go(func() (err error) {
		p.heldIn, err = p.s.Hold(ctx, stage.Ledger, limit, l4[3].name, p.mirror)
		return err
	})
	all.Go(func() (err error) {
		// Not more often: the proxy writes its configuration in the thread that also takes over a new one.
		probing := denials(p.ledger, limit, 100*time.Millisecond)
		probing.Name = p.proxy().name
		p.envoy, err = p.s.Probe(ctx, stage.Frontend, probing, stage.Listeners)
		return err
	})
	all.Go(func() error { return p.identity.follow(ctx, p.s, &p.verdict) })
	for _, one := range append(l4, p.proxy()) {
		if err := p.s.Await(ctx, one.in, one.name, stage.Began, 30*time.Second); err != nil {
			return err
		}
	}
	return nil
}

// denials looks for an address in what a proxy denies; a try fails until it is there.
func denials(address string, length, every time.Duration) stage.Probing {
	ip, _, _ := strings.Cut(address, ":")
	return stage.Probing{For: length, Every: every, Timeout: 2 * time.Second, Failing: true, Contains: fmt.Sprintf("%q", ip)}
}

// finish lets the probes go on for as long as it may take until they see what they should, and a little, and stops them.
func (p *probes) finish(ctx context.Context, verdict time.Time) error {
	p.verdict.Store(&verdict)
	until := func(moment time.Time) {
		select {
		case <-ctx.Done():
		case <-time.After(time.Until(moment)):
		}
	}
	until(verdict.Add(l4Bound + stays))
	var errs []error
	for _, one := range p.l4() {
		errs = append(errs, p.s.Stop(ctx, one.in, one.name))
	}
	proxy := p.proxy()
	// When it does not come, judge says so.
	_ = p.s.Await(ctx, proxy.in, proxy.name, stage.Changed, max(0, time.Until(verdict.Add(proxyBound))))
	until(time.Now().Add(stays))
	return errors.Join(append(errs, p.s.Stop(ctx, proxy.in, proxy.name))...)
}

// Bounds on what is measured from the verdict, in every run, however busy the computer is. The goals are others.
const (
	l4Bound = 5 * time.Second
	// apiBound is longer, since it is counted when a watch beside all else on the computer hears of it.
	apiBound   = 15 * time.Second
	proxyBound = 30 * time.Second
	// identityBound: a workload's last identity may have been issued just before its node's agent was deleted, and SPIRE dates it to
	// the second.
	identityBound = stage.SVIDTTL + 5*time.Second
)

// stays is how long things have to stay closed to count as closed.
const stays = time.Second

// late is how much later than a pod's own clock we may learn of the verdict: Felix and we hear of it by way of the same API server,
// each on a stream of its own. What closed longer before than that was not closed by the verdict.
const late = 250 * time.Millisecond

// closing is what tries say of the moment when something closed (or opened).
type closing struct {
	at     time.Time // when the first try began after which no try had the outcome before
	before int       // tries before that
	stalls int       // those of them that had the outcome after: for a while, and then things were as before
	stayed time.Duration
}

// closed finds the change. ok is the outcome of tries before it.
func closed(tries []said.Try, ok bool) (closing, error) {
	tries = slices.SortedFunc(slices.Values(tries), func(a, b said.Try) int { return cmp.Compare(a.Begun, b.Begun) })
	last := -1
	var c closing
	for i, t := range tries {
		if t.OK == ok {
			last = i
			c.before++
		}
	}
	if last < 0 {
		return c, fmt.Errorf("none of %d tries saw things as they were before", len(tries))
	}
	c.stalls = last + 1 - c.before
	c.before = last + 1
	if c.before == len(tries) {
		return c, fmt.Errorf("the last of %d tries went as before", len(tries))
	}
	c.at = time.Unix(0, tries[c.before].Begun)
	c.stayed = time.Duration(tries[len(tries)-1].Begun - tries[c.before].Begun)
	if c.stayed < stays/2 {
		return c, fmt.Errorf("it was seen to stay so for %s only", c.stayed)
	}
	return c, nil
}

// within expects that something came after what it is counted from, and soon enough, and records how long it took.
func within(t *script.Script, what string, at, from time.Time, bound time.Duration, detail string) {
	d := at.Sub(from)
	text := fmt.Sprintf("%.0f ms, %s", d.Seconds()*1000, detail)
	switch {
	case d < -late:
		t.Expect(false, what, "%s: a negative time; something else closed it, or a stall hides when it closed", text)
	case d >= bound:
		t.Expect(false, what, "%s: not within %s", text, bound)
	default:
		t.Expect(true, what, "%s", text)
		t.Measure(what, max(0, d))
	}
}

// judge measures from the verdict, and expects that nothing went on.
func (p *probes) judge(t *script.Script, verdict time.Time) {
	for _, c := range []struct {
		what  string
		tries []said.Try
		ok    bool
		bound time.Duration
	}{{toClosed, p.out, true, l4Bound}, {toClosedIn, p.in, true, l4Bound}, {toEnvoy, p.envoy, false, proxyBound}} {
		found, err := closed(c.tries, c.ok)
		if err != nil {
			t.Expect(false, c.what, "%v", err)
			continue
		}
		if found.stalls > 0 {
			t.Say("%s: %d of %d tries before it failed, and the next did not: a stall", c.what, found.stalls, found.before)
		}
		within(t, c.what, found.at, verdict, c.bound, fmt.Sprintf("after %d tries, and stayed so for %.1f s", found.before, found.stayed.Seconds()))
	}
	for _, c := range []struct {
		what string
		held []said.Held
	}{{toCutOut, p.heldOut}, {toCutIn, p.heldIn}} {
		end := c.held[len(c.held)-1]
		if !c.held[0].Open || end.Open || end.Echoes == 0 {
			t.Expect(false, c.what, "stood %t, open at the end %t, %d echoes: %s", c.held[0].Open, end.Open, end.Echoes, end.Error)
			continue
		}
		within(t, c.what, time.Unix(0, end.At), verdict, l4Bound, fmt.Sprintf("%d echoes, then: %s", end.Echoes, end.Error))
	}
	within(t, toIdentity, p.identity.end, verdict, identityBound, "then only: "+p.identity.why)
}

// identity is the end of the last identity that a workload of the node's got.
type identity struct {
	end time.Time
	why string // it gets no other
}

// follow asks for an identity until, after the verdict, there has been none for a while, because the agent says no, or because no
// agent serves. An answer that does not come in time says nothing.
func (i *identity) follow(ctx context.Context, s *stage.Stage, verdict *atomic.Pointer[time.Time]) error {
	var last said.SVID
	var since time.Time // the first refusal after the last identity
	for end := time.Now().Add(limit + 10*time.Second); time.Now().Before(end); time.Sleep(300 * time.Millisecond) {
		begun := time.Now()
		svid, err := s.SVID(ctx, stage.Ledger)
		if err != nil {
			return err
		}
		last = svid
		switch {
		case svid.OK:
			since = time.Time{}
			if svid.NotAfter.After(i.end) {
				i.end = svid.NotAfter
			}
			continue
		case !stage.RefusedByAgent(svid) && !stage.NoAgent(svid):
			continue
		case since.IsZero():
			since = begun
		}
		if v := verdict.Load(); v != nil && time.Since(later(since, *v)) > 2*stays && !i.end.IsZero() {
			i.why = svid.Error
			return nil
		}
	}
	return fmt.Errorf("tampering: %s: it is not clear that it gets no identity: the last one ends at %s, the last answer was %+v", stage.Ledger, i.end, last)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
