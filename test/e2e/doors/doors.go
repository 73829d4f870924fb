// Package doors tries ways from pod to pod again and again while something else goes on: those that policy forbids, and those that it
// allows.
package doors

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/keelson-project/keelson/test/e2e/script"
	"github.com/keelson-project/keelson/test/e2e/stage"
	"github.com/keelson-project/keelson/test/e2e/workload/said"
)

// Door is a way from one pod to another.
type Door struct {
	Name    string
	Allowed bool

	from           stage.Pod
	method, target string
	tries          []said.Try
}

// L4 is a TCP connection to an address of a pod; to is its name for people.
func L4(from stage.Pod, address, to string, allowed bool) *Door {
	return &Door{Name: fmt.Sprintf("L4 %s → %s", from, to), from: from, target: "tcp:" + address, Allowed: allowed}
}

// L7 is a request of the API.
func L7(from stage.Pod, method, path string, allowed bool) *Door {
	return &Door{Name: fmt.Sprintf("L7 %s %s %s", from, method, path), from: from, method: method, target: stage.API.URL(path), Allowed: allowed}
}

// Cast are the doors between the pods of the stage's cast.
func Cast(ctx context.Context, s *stage.Stage) ([]*Door, error) {
	ledger, err := s.Address(ctx, stage.Ledger, stage.TCPPort)
	if err != nil {
		return nil, err
	}
	api, err := s.Address(ctx, stage.API, stage.HTTPPort)
	if err != nil {
		return nil, err
	}
	return []*Door{
		L4(stage.Mirror, ledger, stage.Ledger.String(), true),
		L7(stage.Frontend, "POST", "/charge", true),
		L4(stage.Passer, ledger, stage.Ledger.String(), false),
		L4(stage.Passer, api, stage.API.String(), false),
		L4(stage.Batch, ledger, stage.Ledger.String(), false),
		L7(stage.Batch, "POST", "/charge", false),
		L7(stage.Frontend, "GET", "/charge", false),
		L7(stage.Frontend, "POST", "/other", false),
	}, nil
}

// During tries all doors four times a second while meanwhile runs, and for a little longer.
func During(ctx context.Context, s *stage.Stage, all []*Door, meanwhile func(context.Context) error) error {
	group, limited := errgroup.WithContext(ctx)
	over := make(chan struct{})
	for _, d := range all {
		group.Go(func() error { return d.watch(limited, s, over) })
	}
	group.Go(func() error {
		defer close(over)
		return meanwhile(limited)
	})
	return group.Wait()
}

// watch tries the door until it is over; what is being tried then is tried to its end.
func (d *Door) watch(ctx context.Context, s *stage.Stage, over <-chan struct{}) error {
	for {
		tries, err := s.Probe(ctx, d.from, stage.Probing{For: 10 * time.Second, Every: 250 * time.Millisecond, Timeout: 2 * time.Second, Method: d.method}, d.target)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil { // the pod itself was not killed: it has to be there
			return fmt.Errorf("doors: %s: %w", d.Name, err)
		}
		d.tries = append(d.tries, tries...)
		select {
		case <-over:
			return nil
		default:
		}
	}
}

// Open waits until every allowed door is open.
func Open(ctx context.Context, s *stage.Stage, all []*Door, limit time.Duration) error {
	for _, d := range all {
		if !d.Allowed {
			continue
		}
		if err := s.Until(ctx, limit, d.Name+" is open", func(ctx context.Context) error { return d.once(ctx, s) }); err != nil {
			return err
		}
	}
	return nil
}

func (d *Door) once(ctx context.Context, s *stage.Stage) error {
	tries, err := s.Probe(ctx, d.from, stage.Probing{For: time.Millisecond, Every: time.Second, Timeout: 2 * time.Second, Method: d.method}, d.target)
	if err == nil && !tries[0].OK {
		err = errors.New(tries[0].Error)
	}
	return err
}

// Judge expects that no try of a forbidden door succeeded, and that an allowed one was not shut for longer than outage.
func (d *Door) Judge(t *script.Script, outage time.Duration) {
	slices.SortFunc(d.tries, func(a, b said.Try) int { return cmp.Compare(a.Begun, b.Begun) })
	opened := 0
	for _, try := range d.tries {
		if try.OK {
			opened++
		}
	}
	if !d.Allowed {
		t.Expect(opened == 0 && len(d.tries) > 0, "forbidden: "+d.Name, "%d of %d tries succeeded", opened, len(d.tries))
		return
	}
	longest := d.longestOutage()
	t.Measure("longest outage of "+d.Name, longest)
	t.Expect(opened > 0 && longest <= outage, "allowed: "+d.Name, "%d of %d tries succeeded, shut for at most %.1f s (%.0f s are stated)",
		opened, len(d.tries), longest.Seconds(), outage.Seconds())
}

// longestOutage is the longest time from the first failing try to the next that succeeded.
func (d *Door) longestOutage() (longest time.Duration) {
	var since int64
	for _, try := range d.tries {
		switch {
		case !try.OK && since == 0:
			since = try.Begun
		case try.OK && since != 0:
			longest = max(longest, time.Duration(try.Begun-since))
			since = 0
		}
	}
	if since != 0 {
		longest = max(longest, time.Duration(d.tries[len(d.tries)-1].Begun-since))
	}
	return longest
}
