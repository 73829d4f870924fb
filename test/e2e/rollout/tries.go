package rollout

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/keelson-project/keelson/test/e2e/script"
	"github.com/keelson-project/keelson/test/e2e/stage"
	"github.com/keelson-project/keelson/test/e2e/workload/said"
)

// way is somebody who tries something again and again.
type way struct {
	from         stage.Pod
	name, target string
	tries        []said.Try
}

// timeout of a try: a dropped packet is sent again after one second and after three, so that what is shut for longer fails, and a
// stall of a busy computer rarely does. What is shut for less shows in the watched labels and revoked addresses.
const timeout = 5 * time.Second

// stretch is how long one program in a container tries at most. Starting one takes seconds on a busy computer, in which nothing is
// tried; and it may run for a minute.
const stretch = 40 * time.Second

// during tries all ways while meanwhile runs.
func during(ctx context.Context, s *stage.Stage, ways []*way, meanwhile func(context.Context) error) error {
	group, limited := errgroup.WithContext(ctx)
	over := make(chan struct{})
	for i, w := range ways {
		group.Go(func() error {
			if err := w.again(limited, s, i, over); err != nil {
				return fmt.Errorf("rollout: %s: %w", w.name, err)
			}
			return nil
		})
	}
	group.Go(func() error {
		defer close(over)
		return meanwhile(limited)
	})
	return group.Wait()
}

// again tries the way until it is over, a stretch after the other.
func (w *way) again(ctx context.Context, s *stage.Stage, number int, over <-chan struct{}) error {
	for {
		name := fmt.Sprintf("rollout-way-%d-%d", number, time.Now().UnixNano())
		ended := make(chan error, 1)
		go func() {
			tries, err := s.Probe(ctx, w.from, stage.Probing{For: stretch, Every: 100 * time.Millisecond, Timeout: timeout, Name: name}, w.target)
			w.tries = append(w.tries, tries...)
			ended <- err
		}()
		select {
		case err := <-ended:
			if err != nil {
				return err
			}
		case <-over:
			return errors.Join(s.Stop(ctx, w.from, name), <-ended)
		}
	}
}

// near is how far apart two failures may lie that have one cause.
const near = 3 * time.Second

// denied are the tries of a way that failed as one does that is denied, or whose connection is cut, while what Keelson has no part in
// was tried and did not fail. A refused connection comes from where packets arrive.
func denied(tries, control []said.Try) (out []said.Try, stalls int) {
	for _, t := range tries {
		if t.OK {
			continue
		}
		served, failed := false, false
		for _, c := range control {
			beside := c.Begun < t.Ended+int64(near) && c.Ended > t.Begun-int64(near)
			served = served || beside && c.OK
			failed = failed || beside && !c.OK
		}
		if t.Kind == said.Refused || failed || !served {
			stalls++
			continue
		}
		out = append(out, t)
	}
	return out, stalls
}

// judge expects that no try was denied.
func (w *way) judge(t *script.Script, control *way) {
	bad, stalls := denied(w.tries, control.tries)
	detail := ""
	if len(bad) > 0 {
		detail = fmt.Sprintf("; the first at %s: %s", time.Unix(0, bad[0].Begun).UTC().Format("15:04:05.000"), bad[0].Error)
	}
	t.Expect(len(w.tries) > 0 && len(bad) == 0 && stalls <= len(w.tries)/10, w.name+": none of the tries that policy allows is denied",
		"%d tries, %d failed; %d more found nobody listening, or failed while somebody who is not enrolled did or did not try%s", len(w.tries), len(bad), stalls, detail)
}

// held is a connection that is kept open.
type held struct {
	name    string
	address string
	from    stage.Pod
	done    chan struct{}
	said    []said.Held
	err     error
}

// holdLimit is how long a connection is held at most; a program that runs in a container has a minute.
const holdLimit = 57 * time.Second

// hold begins to hold a connection, and returns when it stands.
func hold(ctx context.Context, s *stage.Stage, what, address string) (*held, error) {
	h := &held{name: fmt.Sprintf("rollout-%s-%d", what, time.Now().UnixNano()), address: address, from: reader, done: make(chan struct{})}
	go func() {
		defer close(h.done)
		h.said, h.err = s.Hold(ctx, h.from, holdLimit, h.name, address)
	}()
	return h, s.Await(ctx, h.from, h.name, stage.Began, 30*time.Second)
}

// end stops it, if it is not over, and returns what became of it.
func (h *held) end(ctx context.Context, s *stage.Stage) (said.Held, error) {
	select {
	case <-h.done:
	default:
		if err := s.Stop(ctx, h.from, h.name); err != nil {
			return said.Held{}, err
		}
	}
	return h.wait(ctx)
}

// wait waits until it is over by itself.
func (h *held) wait(ctx context.Context) (said.Held, error) {
	select {
	case <-ctx.Done():
		return said.Held{}, ctx.Err()
	case <-h.done:
	}
	if h.err != nil {
		return said.Held{}, h.err
	}
	return h.said[len(h.said)-1], nil
}
