package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/keelson-project/keelson/test/e2e/workload/said"
)

type prober struct {
	method, contains       string
	until                  string
	timeout, every, linger time.Duration
}

// probe serves get, dial and probe: they differ in how often they try.
func probe(ctx context.Context, command string, args []string, out *lines) error {
	var p prober
	flags := flag.NewFlagSet(command, flag.ContinueOnError)
	flags.StringVar(&p.method, "method", http.MethodGet, "HTTP method")
	flags.DurationVar(&p.timeout, "timeout", 2*time.Second, "how long to wait for an answer")
	flags.DurationVar(&p.every, "every", 50*time.Millisecond, "pause between two tries")
	flags.StringVar(&p.contains, "contains", "", "a try succeeds when this is in the answer, which need not be one of ours")
	flags.StringVar(&p.until, "until", "", `end before -for is over, once every try has been "ok" or "failing" for as long as -linger says (probe)`)
	flags.DurationVar(&p.linger, "linger", time.Second, "see -until")
	length := flags.Duration("for", 10*time.Second, "how long to go on")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if command != "probe" {
		if flags.NArg() != 1 {
			return fmt.Errorf("workload: %s wants one target", command)
		}
		target := flags.Arg(0)
		if command == "dial" {
			target = "tcp:" + target
		}
		return out.print(p.try(ctx, target))
	}
	ctx, cancel := context.WithTimeout(ctx, *length)
	defer cancel()
	var all sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for _, target := range flags.Args() {
		all.Go(func() {
			if err := p.again(ctx, target, out); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// again starts a try every p.every, whether the last one has ended or not: a try that hangs must not hide that the next succeeds.
func (p prober) again(ctx context.Context, target string, out *lines) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ticker := time.NewTicker(p.every)
	defer ticker.Stop()
	var running sync.WaitGroup
	defer running.Wait()
	settled := settling{want: p.until, since: time.Now()}
	for {
		running.Go(func() {
			t := p.try(context.WithoutCancel(ctx), target)
			_ = out.print(t) // a reader that went away ends us soon
			if settled.seen(t.OK, p.linger) {
				cancel()
			}
		})
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// settling notices when all outcomes have been of one kind for a while.
type settling struct {
	want string // "ok", "failing", or neither

	mu    sync.Mutex
	since time.Time // of the last outcome of the other kind
}

func (s *settling) seen(ok bool, linger time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ok != (s.want == "ok") {
		s.since = time.Now()
		return false
	}
	return (s.want == "ok" || s.want == "failing") && time.Since(s.since) > linger
}

func (p prober) try(ctx context.Context, target string) said.Try {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	t := said.Try{Target: target, Begun: time.Now().UnixNano()}
	var err error
	if address, ok := strings.CutPrefix(target, "tcp:"); ok {
		err = dial(ctx, address)
	} else {
		err = p.get(ctx, target, &t)
	}
	t.Ended, t.OK = time.Now().UnixNano(), err == nil
	if err != nil {
		t.Error = err.Error()
	}
	return t
}

// dial connects and has four bytes echoed.
func dial(ctx context.Context, address string) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // all that was wanted has been read
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	return echo(conn, []byte("ping"))
}

func echo(conn net.Conn, message []byte) error {
	if _, err := conn.Write(message); err != nil {
		return err
	}
	got := make([]byte, len(message))
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if !bytes.Equal(got, message) {
		return errors.New("another echo")
	}
	return nil
}

// get asks on a connection of its own, so that each request is decided anew as far as this program can see to it.
func (p prober) get(ctx context.Context, url string, t *said.Try) error {
	r, err := http.NewRequestWithContext(ctx, p.method, url, nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(r)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()                   // it was read
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20)) // a proxy's configuration is long
	if err != nil {
		return err
	}
	t.Status = resp.StatusCode
	if p.contains != "" {
		if !bytes.Contains(body, []byte(p.contains)) {
			return errors.New("the answer does not contain it")
		}
		return nil
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(body)))
	}
	return json.Unmarshal(body, &t.Answer)
}

func hold(ctx context.Context, args []string, out *lines) error {
	flags := flag.NewFlagSet("hold", flag.ContinueOnError)
	length := flags.Duration("for", 10*time.Second, "how long to go on")
	patience := flags.Duration("patience", time.Second, "how long an echo may take before the connection counts as cut")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return errors.New("workload: hold wants one target")
	}
	ctx, cancel := context.WithTimeout(ctx, *length)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", flags.Arg(0))
	if err != nil {
		return out.print(said.Held{Error: err.Error(), At: time.Now().UnixNano()})
	}
	defer func() { _ = conn.Close() }() // the process is ending
	if err := out.print(said.Held{Open: true, At: time.Now().UnixNano()}); err != nil {
		return err
	}
	end := said.Held{At: time.Now().UnixNano()}
	for ctx.Err() == nil {
		err := conn.SetDeadline(time.Now().Add(*patience))
		if err == nil {
			err = echo(conn, []byte("ping"))
		}
		if err != nil {
			end.Error = err.Error()
			return out.print(end)
		}
		end.Echoes++
		end.At = time.Now().UnixNano()
		time.Sleep(5 * time.Millisecond)
	}
	end.Open = true
	return out.print(end)
}
