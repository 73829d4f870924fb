package faults

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keelson-project/keelson/test/e2e/script"
	"github.com/keelson-project/keelson/test/e2e/stage"
	"github.com/keelson-project/keelson/test/e2e/workload/said"
)

// path is a way from one pod to another that policy allows or forbids.
type path struct {
	name    string
	from    stage.Pod
	method  string
	target  string
	allowed bool

	tries []said.Try
}

// paths are those that are tried all the time.
func paths(ctx context.Context, s *stage.Stage) ([]*path, error) {
	ledger, err := s.Address(ctx, stage.Ledger, stage.TCPPort)
	if err != nil {
		return nil, err
	}
	api, err := s.Address(ctx, stage.API, stage.HTTPPort)
	if err != nil {
		return nil, err
	}
	l4 := func(from stage.Pod, address, to string, allowed bool) *path {
		return &path{name: fmt.Sprintf("L4 %s → %s", from, to), from: from, target: "tcp:" + address, allowed: allowed}
	}
	l7 := func(from stage.Pod, method, to string, allowed bool) *path {
		return &path{name: fmt.Sprintf("L7 %s %s %s", from, method, to), from: from, method: method, target: stage.API.URL(to), allowed: allowed}
	}
	return []*path{
		l4(stage.Mirror, ledger, stage.Ledger.String(), true),
		l7(stage.Frontend, "POST", "/charge", true),
		l4(stage.Passer, ledger, stage.Ledger.String(), false),
		l4(stage.Passer, api, stage.API.String(), false),
		l4(stage.Batch, ledger, stage.Ledger.String(), false),
		l7(stage.Batch, "POST", "/charge", false),
		l7(stage.Frontend, "GET", "/charge", false),
		l7(stage.Frontend, "POST", "/other", false),
	}, nil
}

// watch tries the path again and again until the deadline.
func (p *path) watch(ctx context.Context, s *stage.Stage, deadline time.Time) error {
	for time.Now().Before(deadline) {
		tries, err := s.Probe(ctx, p.from, stage.Probing{
			For: min(15*time.Second, time.Until(deadline)), Every: 250 * time.Millisecond, Timeout: 2 * time.Second, Method: p.method,
		}, p.target)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil { // the pod itself was not killed: it has to be there
			return fmt.Errorf("faults: %s: %w", p.name, err)
		}
		p.tries = append(p.tries, tries...)
	}
	return nil
}

func (p *path) once(ctx context.Context, s *stage.Stage) error {
	tries, err := s.Probe(ctx, p.from, stage.Probing{For: time.Millisecond, Every: time.Second, Timeout: 2 * time.Second, Method: p.method}, p.target)
	if err == nil && !tries[0].OK {
		err = errors.New(tries[0].Error)
	}
	return err
}

// judge: no try of a forbidden path succeeded; an allowed one was not shut for longer than it may.
func (p *path) judge(t *script.Script) {
	slices.SortFunc(p.tries, func(a, b said.Try) int { return cmp.Compare(a.Begun, b.Begun) })
	opened := 0
	for _, try := range p.tries {
		if try.OK {
			opened++
		}
	}
	if !p.allowed {
		t.Expect(opened == 0 && len(p.tries) > 0, "forbidden: "+p.name, "%d of %d tries succeeded", opened, len(p.tries))
		return
	}
	longest := p.longestOutage()
	t.Measure("longest outage of "+p.name, longest)
	t.Expect(opened > 0 && longest <= Recovery, "allowed: "+p.name, "%d of %d tries succeeded, shut for at most %.1f s (%.0f s are stated)",
		opened, len(p.tries), longest.Seconds(), Recovery.Seconds())
}

// longestOutage is the longest time from the first failing try to the next that succeeded.
func (p *path) longestOutage() (longest time.Duration) {
	var since int64
	for _, try := range p.tries {
		switch {
		case !try.OK && since == 0:
			since = try.Begun
		case try.OK && since != 0:
			longest = max(longest, time.Duration(try.Begun-since))
			since = 0
		}
	}
	if since != 0 {
		longest = max(longest, time.Duration(p.tries[len(p.tries)-1].Begun-since))
	}
	return longest
}
